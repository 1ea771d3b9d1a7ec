"""Rewards that explain preferences: the loss, what is recovered, and training with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures.learning import call_step
from scipy.stats import spearmanr

from understudy.core import ConfigError, DataError, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.critics.td3 import TD3
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method, training_data
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.preflight import label_findings
from understudy.learn.rewards.denoising_preference import DenoisingPreference
from understudy.learn.rewards.preference_reward import PreferenceLearning, PreferenceReward
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner, check_reward_model

STATE = "observation.state"
POLICY = PolicyConfig(Regression(), MLP(16, 1), window=Window(1, 1), inputs=(STATE,))
FAST = OptimizerConfig(lr=3e-3, weight_decay=0.0)
LEARNER = PreferenceLearning(steps=300, batch_size=16, reward=PreferenceReward((32,)), reward_optimizer=FAST)


def comparisons(count: int, lengths=(6,), seed: int = 0, answer=None) -> Dataset:
    """Segments of random steps, of which the one with the larger sum of (state + 2 action)[0] is better."""
    rng, episodes = np.random.default_rng(seed), []
    for number in range(count):
        n = lengths[number % len(lengths)]
        state, action = (rng.normal(size=(2 * n, k)).astype(np.float32) for k in (2, 1))
        reward = state[:, 0] + 2 * action[:, 0]
        first = 1.0 if reward[:n].sum() > reward[n:].sum() else 0.0
        first = first if answer is None else answer
        episodes.append(Episode({STATE: state, "action": action, "segment": np.repeat([0, 1], n)[:, None],
                                 "preference": np.repeat([round(2 * first), round(2 * (1 - first))], n)[:, None],
                                 "true": reward}, {"number": number}))
    return Dataset(episodes, {"fps": 10})


def built(data: Dataset, config: PreferenceLearning = LEARNER):
    torch.manual_seed(0)
    policy = Policy(POLICY, data.features()).fit_statistics(data)
    return config.build(policy, 0, 10, data)


def test_contracts():
    check_reward_model(PreferenceReward((16,)))
    check_reward_model(PreferenceReward((16,), inputs="state"))
    check_learner(LEARNER, [POLICY])


@pytest.mark.parametrize(("answer", "first_is_better"), [(1.0, 1.0), (0.0, 0.0), (0.5, 0.5)])
def test_the_loss_is_the_cross_entropy_of_the_difference_of_sums(answer, first_is_better):
    """Bradley and Terry: log(1 + exp(-difference)) if the first is better. Comparisons of other lengths are padded."""
    data = comparisons(4, (3, 5), answer=answer)
    learner = built(Dataset([*data, *comparisons(1)], data.metadata))
    learner.nets.comparisons.sign, learner.nets.comparisons.first_is_better = (
        column[:4] for column in (learner.nets.comparisons.sign, learner.nets.comparisons.first_is_better))
    assert learner.nets.comparisons.first_is_better.tolist() == [first_is_better] * 4
    expected = []
    for episode in data:
        obs, action = (torch.from_numpy(episode.steps[k]).unsqueeze(1) for k in (STATE, "action"))
        values = learner.nets.reward.value({STATE: obs}, action).detach().double()
        first, second = values.reshape(2, -1).sum(1)
        expected.append(first - second)
    difference = learner.config.difference(learner.nets, torch.arange(4)).detach().double()
    assert learner.nets.reward.mean == 0 and learner.nets.reward.deviation == 1  # a loss measures nothing
    torch.testing.assert_close(difference, torch.stack(expected), rtol=1e-5, atol=1e-5)
    batch = learner.batch_sampler(data).batch(8, 0)
    drawn = torch.randint(4, (8,), generator=torch.Generator().manual_seed(7))
    p = torch.sigmoid(difference[drawn])
    loss = -(first_is_better * p.log() + (1 - first_is_better) * (1 - p).log())
    actual = call_step(learner, "preference_loss", batch, torch.Generator().manual_seed(7))
    torch.testing.assert_close(actual.detach().double(), loss, rtol=1e-5, atol=1e-5)


def refused(data: Dataset, match: str) -> None:
    for learner in (LEARNER, DenoisingPreference(steps=1, batch_size=4)):
        with pytest.raises(DataError, match=match):
            list(label_findings(Method(POLICY, learner=learner), data, data.features()))


def test_answers_without_a_preference_are_refused():
    refused(comparisons(4, answer=0.5), "none of the 4 comparisons prefers a segment")


@pytest.mark.parametrize(("better", "other"), [(1, 0), (0.5, 0.5), (5, 0), (2, 2), (2, 1), (1, -1), (np.nan, 0)])
def test_preferences_of_another_convention_are_refused(better, other):
    """1 for the better segment and 0 for the other was read as a tie, or as a preference for the second."""
    data = comparisons(3, answer=1.0)
    first = data[1].replace({"preference": np.repeat([float(better), other], 6)[:, None]})
    refused(Dataset([data[0], first]), f"episode 1, column 'preference': it is {better:g} in segment 0 and {other:g}")
    mixed = data[1].replace({"preference": np.tile([2, 0], 6)[:, None]})
    refused(Dataset([data[0], mixed]), "it is 0 and 2 in segment 0 and 0 and 2 in segment 1")


@pytest.mark.parametrize("segment", [[0] * 12, [0] * 8 + [1] * 4, [1] * 6 + [2] * 6, [0] * 4 + [1] * 4 + [2] * 4])
def test_segments_that_are_not_two_of_equal_length_are_refused(segment):
    data = comparisons(2, answer=1.0)
    wrong = data[1].replace({"segment": np.array(segment)[:, None]})
    refused(Dataset([data[0], wrong]), f"episode 1, column 'segment': {segment.count(0)} of the 12 steps are of "
            f"segment 0 and {segment.count(1)} of segment 1")


def test_the_reward_is_recovered_up_to_scale_and_standardized():
    data, new = comparisons(200), comparisons(100, seed=1)
    model = fit_method(Method(POLICY, learner=LEARNER), data, 0).modules["reward"]
    steps = {k: np.concatenate([e.steps[k] for e in new]) for k in (STATE, "action", "true")}
    with torch.no_grad():
        reward = model({STATE: torch.from_numpy(steps[STATE])[:, None]}, torch.from_numpy(steps["action"])[:, None])
    assert spearmanr(reward.numpy(), steps["true"]).statistic > 0.95
    assert abs(float(reward.mean())) < 0.15 and 0.8 < float(reward.std()) < 1.2
    sums = reward.reshape(100, 2, 6).sum(2)
    better = np.array([e.steps["preference"][0, 0] == 2 for e in new])
    assert np.mean((sums[:, 0] > sums[:, 1]).numpy() == better) > 0.9


def test_the_policy_clones_the_better_segments():
    """The action is 1 in better segments and -1 in the others."""
    data = Dataset([Episode({**e.steps, "action": np.where(e.steps["preference"] == 2, 1.0, -1.0).astype(np.float32)})
                    for e in comparisons(20)])
    policy = fit_method(Method(POLICY, learner=LEARNER), data, 0).policy
    plan = policy.plan({STATE: torch.randn(50, 1, 2)}, torch.zeros(50, 1, 0))
    assert float((plan - 1).abs().mean()) < 0.1


def test_a_reward_that_nobody_trains_is_refused():
    learner = TD3(steps=2, batch_size=4, reward=PreferenceReward((8,)))
    data = training_data(comparisons(4), Method(POLICY))
    data = Dataset([e.replace({"next.terminated": np.zeros(len(e), bool)}) for e in data])
    with pytest.raises(ConfigError, match="(?s)this learner does not train them.*--reward RUN"):
        learner.build(Policy(POLICY, data.features()).fit_statistics(data), 0, 2, data)


def test_other_data_are_refused():
    from understudy.methods import find_method

    with pytest.raises(UserError, match="(?s)no comparisons.*understudy judge DATA"):
        find_method("preference-reward", comparisons(2)[0].replace({"segment": None}).features())
