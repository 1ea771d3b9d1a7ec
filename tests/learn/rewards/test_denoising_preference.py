"""Implicit rewards of tuned denoising policies: closed forms, shared draws, and which action they choose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures.learning import call_step
from torch import nn

from understudy.core import Unsupported, keys
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Goal, Window
from understudy.execute.planners import BestOfN
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.rewards.denoising_preference import ChunkComparisons, DenoisingPreference, ImplicitReward
from understudy.methods.reward_matching.flow_dpo import FlowDPO
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner, check_scorer

STATE = "observation.state"
HEADS = Diffusion(prediction="sample", clip_sample=0.0), Flow()


def config(head=HEADS[0], window=None) -> PolicyConfig:
    return PolicyConfig(head, MLP(32, 1, dropout=0.1), window=window or Window(1, 1), inputs=(STATE,))


def comparisons(count=20, answer=2, equal=False) -> Dataset:
    """Comparisons of two actions in one observation. The first has the preference `answer`."""
    rng, episodes = np.random.default_rng(0), []
    for _ in range(count):
        action = rng.uniform(-1, 1, (1 if equal else 2, 2)).astype(np.float32)
        episodes.append(Episode({STATE: rng.normal(size=(1, 3)).astype(np.float32).repeat(2, 0),
                                 "action": np.resize(action, (2, 2)), "segment": np.array([[0], [1]]),
                                 "preference": np.array([[answer], [2 - answer]])}))
    return Dataset(episodes, {"fps": 10})


def built(data: Dataset, head=HEADS[0], moved=True):
    """A learner whose copy is moved away from its policy."""
    torch.manual_seed(0)
    policy = Policy(config(head), data.features()).fit_statistics(data)
    learner = DenoisingPreference(beta=3.0).build(policy, 0, 10, data)
    with torch.no_grad():
        for p in learner.nets.reward.tuned.parameters() if moved else ():
            p += 0.1 * torch.randn(p.shape)
    return learner, learner.batch_sampler(data).batch(32, 0)


class Constant(nn.Module):
    """A network whose estimate of the clean action is always the same."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x, t, context):
        return self.value.expand(x.shape)


def test_contracts():
    check_learner(DenoisingPreference(batch_size=8), [config(head) for head in HEADS] + [config(window=Window(2, 3))])
    check_learner(FlowDPO(batch_size=8), [config(HEADS[1]), config(HEADS[1], Window(2, 3, -1))])
    for head in HEADS:
        learner, batch = built(comparisons(), head)
        check_scorer(learner.nets.reward, batch.obs, batch.action)
        assert learner.nets.reward(batch.obs, batch.action).abs().min() > 0


@pytest.mark.parametrize("answer, sign", [(2, 1), (0, -1), (1, 0)])
def test_the_loss_of_constant_estimates_is_a_closed_form(answer, sign):
    """The error of an estimate c is the mean of (c - action)², at each time and for each noise."""
    data = comparisons(1, answer)
    learner, batch = built(data)
    tuned, base = [0.3, -0.2], [-0.5, 0.1]
    learner.nets.reward.tuned.net, learner.nets.reward.base.net = Constant(tuned), Constant(base)
    plan = torch.from_numpy(data[0].steps["action"]).unsqueeze(1)
    obs = {STATE: torch.from_numpy(data[0].steps[STATE]).unsqueeze(1)}
    coded = learner.policy.encode(plan, obs)
    score = (torch.tensor(base) - coded).square().mean((1, 2)) - (torch.tensor(tuned) - coded).square().mean((1, 2))
    torch.testing.assert_close(learner.nets.reward(obs, plan), score)
    loss = call_step(learner, "preference_loss", batch, torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss, -torch.sigmoid(3.0 * sign * (score[0] - score[1])).expand(32))


@pytest.mark.parametrize("head", HEADS)
def test_all_four_errors_have_the_same_time_and_noise(head):
    """Equal actions, or equal policies, make no difference. With other draws for one of the errors they would."""
    for data, moved in ((comparisons(equal=True), True), (comparisons(), False)):
        learner, batch = built(data, head, moved)
        loss = call_step(learner, "preference_loss", batch, torch.Generator().manual_seed(1))
        torch.testing.assert_close(loss, torch.full((32,), -0.5), rtol=0, atol=1e-6)
    learner, batch = built(comparisons(), head)
    losses = [call_step(learner, "preference_loss", batch, torch.Generator().manual_seed(1)).detach() for _ in range(2)]
    assert torch.equal(*losses) and losses[0].std() > 0.001


def test_draws_are_evenly_spaced_times_near_the_action():
    learner, _ = built(comparisons())
    reward = ImplicitReward(learner.nets.reward.tuned, learner.nets.reward.base, 4, (0.5, 0.9))
    torch.testing.assert_close(reward.t, torch.tensor([0.5, 0.6, 0.7, 0.8]))
    torch.testing.assert_close(learner.nets.reward.t, torch.arange(90, 100) / 100)


def test_the_best_of_several_actions_is_the_preferred_one_and_the_policy_stays():
    """Demonstrations act at -0.5 or 0.5. The larger action is preferred, with 5 % of wrong answers."""
    rng = np.random.default_rng(0)
    action = (rng.choice([-0.5, 0.5], (400, 1)) + 0.1 * rng.normal(size=(400, 1))).astype(np.float32)
    state = rng.normal(size=(400, 3)).astype(np.float32)
    demonstrations = Dataset([Episode({STATE: state, "action": action})])
    base = fit_method(Method(config(), learner=BehaviorCloning(400)), demonstrations, 0).policy
    pairs = [Episode({STATE: s[None].repeat(2, 0), "action": a, "segment": np.array([[0], [1]]),
                      "preference": np.array([[b], [2 - b]])})
             for s, a, b in zip(state[:200], action.reshape(-1, 2, 1), 2 * ((action[::2] > action[1::2])[:, 0] != (
                 rng.random(200) < 0.05)), strict=True)]
    learner = DenoisingPreference(300, 64, optimizer=OptimizerConfig(lr=1e-3))
    result = fit_method(Method(config(), learner=learner), Dataset(pairs), 0, policy=base)
    assert all(torch.equal(v, base.state_dict()[k]) for k, v in result.policy.state_dict().items())
    obs, key = {STATE: torch.from_numpy(state[:, None])}, keys(0, range(400))
    best, count = BestOfN(result.policy, result.modules["reward"], 8), torch.zeros(400, dtype=torch.int64)
    plans = [p.plan(obs, p.noise(key, count)) for p in (base, best)]
    assert 0.35 < float((plans[0] > 0).float().mean()) < 0.65 and float((plans[1] > 0).float().mean()) > 0.95


def chunk_comparisons() -> Dataset:
    """One comparison of segments of three steps, the first of which is better. Actions reach from -1 to 1."""
    action = np.float32([[1, 0], [0, 1], [-1, 0], [0, -1], [1, 1], [0, 0]])
    return Dataset([Episode({STATE: np.arange(18, dtype=np.float32).reshape(6, 3), "action": action,
                             "segment": np.repeat([[0], [1]], 3, 0), "preference": np.repeat([[2], [0]], 3, 0)})])


def test_chunks_and_observations_stay_within_a_segment():
    pairs = ChunkComparisons(chunk_comparisons(), (STATE, "action"), Window(2, 2))
    obs, chunk, mask = pairs.windows(torch.tensor([0]), "action", torch.device("cpu"))
    assert (obs[STATE][:, :, 0] / 3).tolist() == [[0, 0], [0, 1], [1, 2], [3, 3], [3, 4], [4, 5]]
    assert chunk[:, 0].tolist() == chunk_comparisons()[0].steps["action"].tolist()
    assert mask.tolist() == [[True, True], [True, True], [True, False]] * 2
    assert all(chunk[i, 1].tolist() == chunk[i + 1, 0].tolist() for i in (0, 1, 3, 4))


@pytest.mark.parametrize("horizon, margin", [(1, -0.6), (2, -1.2)])
def test_flow_dpo_of_constant_velocities_is_a_closed_form(horizon, margin):
    """For constant velocities v and v0, time and noise cancel out of the differences: the error of a chunk a for the
    noise e is the mean of (v - a + e)^2, and improvement(a) - improvement(b) = 2 mean((v - v0) (a - b)).

    Here v - v0 = (0.6, 0). The first components of the actions are (1, 0, -1) and (0, 1, 0), and differ by (1, -1, -1).
    Means over two components of the chunks of one step are (0.6, -0.6, -0.6), with the sum -0.6. Of two steps they are
    (0, -0.6, -0.6), because the last one is cut off, with the sum -1.2. The data's first segment is better.
    """
    data = chunk_comparisons()
    policy = Policy(config(Flow(), Window(1, horizon)), data.features()).fit_statistics(data)
    policy.net = Constant([0.6, 0.0])
    learner = FlowDPO(beta=3.0).build(policy, 0, 10, data)
    learner.nets.reference.net = Constant([0.0, 0.0])
    loss = call_step(learner, "preference_loss", learner.batch_sampler(data).batch(32, 0), torch.Generator())
    loss = loss[0] if isinstance(loss, tuple) else loss
    expected = np.log1p(np.exp(-3.0 / 2 * margin))
    torch.testing.assert_close(loss, torch.full((32,), expected, dtype=loss.dtype), atol=2e-3, rtol=0)


def test_the_loss_of_chunks_is_the_sum_over_the_steps_of_a_segment():
    """Constant estimates c: the improvement of a chunk is the mean of (c0 - a)^2 - (c - a)^2 over its steps.

    For c = (0.5, 0) and c0 = 0 that of a step is a / 2 - 1 / 8 for its first component a. For (1, 0, -1) the chunks of
    two steps have (1, -3, -5) / 8, where the last one is cut off, and for (0, 1, 0) they have (1, 1, -1) / 8. The
    difference of the sums is -1.
    """
    data = chunk_comparisons()
    policy = Policy(config(HEADS[0], Window(1, 2)), data.features()).fit_statistics(data)
    learner = DenoisingPreference(beta=3.0).build(policy, 0, 10, data)
    learner.nets.reward.tuned.net, learner.nets.reward.base.net = Constant([0.5, 0.0]), Constant([0.0, 0.0])
    loss = call_step(learner, "preference_loss", learner.batch_sampler(data).batch(8, 0), torch.Generator())
    torch.testing.assert_close(loss, torch.full((8,), -1 / (1 + np.exp(3.0))), atol=1e-5, rtol=0)


def test_other_policies_are_refused():
    data = comparisons()
    windows = Window(goals=(Goal(STATE),)), Window(2, obs_offset=1)
    for other in (config(Regression()), *(config(window=window) for window in windows)):
        with pytest.raises(Unsupported, match=r"(?s)plans that are denoised.*without goals"):
            DenoisingPreference().build(Policy(other, data.features()), 0, 10, data)
    with pytest.raises(Unsupported, match="velocities, and Diffusion has none"):
        FlowDPO().build(Policy(config(), data.features()), 0, 10, data)
