"""Reward models: their contract, and training with them."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.collections import Stop, contents, fork
from fixtures.reward_models import Stored

from understudy.checkpoint import FromStage
from understudy.core import Feature, Unsupported, keys
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.envs.wrappers import LearnedRewardEnv
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.heads.likelihood.regression import Regression
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.improve.collection import CollectionRounds, GaussianExploration, RolloutCollector
from understudy.improve.updates import PerNewStep
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.sac import SAC
from understudy.learn.critics.td3 import TD3
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method, Stage, load_modules
from understudy.learn.rewards.discriminator_reward import DiscriminatorReward
from understudy.learn.rewards.learned_reward import LearnedReward
from understudy.learn.rewards.reward_models import METRICS_EVERY, ConstantReward
from understudy.learn.run import Run
from understudy.learn.targets import TERMINATED
from understudy.learn.train import train
from understudy.methods.reward_matching.density_reward import DensityReward
from understudy.methods.reward_matching.filter import OwnStartReward
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import ContractViolation, check_env, check_learner, check_reward_model, random_dataset

STATE = "observation.state"
POLICY = PolicyConfig(Regression(), MLP(16, 1), window=Window(1, 1))
SMALL = TD3(steps=20, batch_size=8, critic=CriticConfig((16,)), policy_delay=1)
SMALL_SAC = SAC(steps=20, batch_size=8, critic=CriticConfig((16,)), target_entropy=None)
MODELS = {
    "stored": Stored(),
    "constant": ConstantReward(),
    "discriminator": DiscriminatorReward(hidden=(16,)),
    "GAIL": DiscriminatorReward("gail", penalty=0.0, hidden=(16,)),
    "AIRL": DiscriminatorReward("airl", hidden=(16,)),
    "absorbing": DiscriminatorReward(hidden=(16,), absorbing=True),
    "GAIfO": DiscriminatorReward(inputs="next", spectral=True, hidden=(16,)),
    "states": DiscriminatorReward(inputs="state", one_sided=True, hidden=(16,)),
}


@pytest.fixture(scope="module")
def demos() -> Dataset:
    env = fork(6)
    return rollout(env.expert(), env, 6, recording_seed(0))


@pytest.mark.parametrize("name", MODELS)
def test_contract(name):
    check_reward_model(MODELS[name])


@pytest.mark.parametrize(("change", "message"), [
    (lambda reward: reward + torch.rand(1), "must have the same reward"),
    (lambda reward: reward[:, 0], r"shape \(B, H\)"),
    (lambda reward: reward - reward.mean(), "must not depend on the other rows"),
    (lambda reward: reward / 0, "finite"),
])
def test_the_contract_can_fail(change, message):
    with pytest.raises(ContractViolation, match=message):
        check_reward_model(Stored(change=change))


@pytest.mark.parametrize("name", ["stored", "discriminator"])
def test_actor_critics_with_a_reward_keep_the_contract_of_learners(name):
    policy = PolicyConfig(Regression(), MLP(16, 1, dropout=0.2), window=Window(2, 1), inputs=(STATE,))
    check_learner(replace(SMALL, reward=MODELS[name]), (policy,))


@pytest.mark.parametrize(("reward", "demonstrations_end", "warns"), [
    (DiscriminatorReward("gail"), False, True), (DiscriminatorReward("airl"), True, False),
    (DiscriminatorReward(absorbing=True), False, False), (DensityReward(), False, True),
    (ConstantReward(), False, False)])
def test_a_reward_whose_sign_says_how_long_to_live_warns_once_if_only_the_policy_ends(reward, demonstrations_end, warns,
                                                                                     demos):
    data = demos.map(lambda e: e.replace({TERMINATED: np.arange(len(e)) == (len(e) - 1 if demonstrations_end else -1)}))
    policy = Policy(replace(POLICY, head=SquashedGaussian()), data.features()).fit_statistics(data)
    learner = replace(SMALL_SAC, reward=reward).build(policy, 0, 10, data)
    own = learner.batch_sampler(learner.annotate(data, 0)).batch(8, 0)
    ends = {**own.extra, TERMINATED: torch.ones_like(own.mask)}
    own = own.replace(extra=ends, others={"expert": own})
    learner.n_updates = METRICS_EVERY - 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learner.with_rewards(own)
        learner.with_rewards(own)
    told = f"no demonstration ends. What follows an end has no reward of {type(reward).__name__}, so"
    # Others, such as of files that earlier tests left open, may come at any time.
    assert sum(told in str(w.message) for w in caught) == warns


def test_airl_reads_the_density_of_the_policy_at_each_action(demos):
    """Of its own actions and of demonstrated ones, with the weights before the update."""
    policy = Policy(replace(POLICY, head=SquashedGaussian()), demos.features()).fit_statistics(demos)
    learner = replace(SMALL_SAC, reward=MODELS["AIRL"]).build(policy, 0, 10, demos)
    batch = learner.batch_sampler(demos).batch(8, 0)
    expected = [policy.log_prob(policy.context(b.obs), policy.encode_batch(b), b.mask).detach()
                for b in (batch, batch.others["expert"])]
    densities = []

    def loss(own, expert, rng, before=learner.reward.loss):
        densities.extend([own.extra["log_prob"], expert.extra["log_prob"]])
        return before(own, expert, rng)
    learner.reward.loss = loss
    learner.update(batch)
    for actual, density in zip(densities, expected, strict=True):
        torch.testing.assert_close(actual, density)


@pytest.mark.parametrize("name", ["discriminator", "GAIfO"])
def test_logging_the_slope_of_a_reward_does_not_change_it(demos, name):
    states = []
    for is_logged in (True, False):
        torch.manual_seed(0)
        policy = Policy(POLICY, demos.features()).fit_statistics(demos)
        learner = replace(SMALL, reward=MODELS[name]).build(policy, 0, 10, demos)
        batch = learner.batch_sampler(demos).batch(8, 0)
        if not is_logged:
            learner.reward.metrics = lambda batch: {}
        learner.n_updates = 97
        metrics = [learner.update(batch) for _ in range(3)]
        assert ["reward/slope" in m for m in metrics] == [False, False, is_logged]  # in every hundredth update
        if is_logged:
            learner.reward.eval()
            assert metrics[-1]["reward/slope"] == pytest.approx(learner.reward.metrics(batch)["slope"], rel=1e-5)
        states.append(list(learner.reward.state_dict().values()))
    assert all(map(torch.equal, *states))


def test_the_reward_of_the_data_gives_the_same_training_bit_by_bit():
    features = {STATE: Feature("float32", (3,)), "action": Feature("float32", (2,)),
                "next.reward": Feature("float32", ()), "next.terminated": Feature("bool", ())}
    data = random_dataset({k: v for k, v in features.items() if k != "next.terminated"})
    data = data.map(lambda e: e.replace({"next.terminated": np.arange(len(e)) == len(e) - 1}))
    plain, stored, other = (fit_method(Method(POLICY, learner=replace(SMALL, reward=reward)), data, 0)
                            for reward in (None, Stored(), Stored(change=torch.neg)))
    for name in ("policy", "critic"):
        weights = [list(result.modules[name].state_dict().values()) for result in (plain, stored, other)]
        assert all(map(torch.equal, weights[0], weights[1]))
        assert not all(map(torch.equal, weights[0], weights[2]))


def rewarded(reward, n_rounds: int = 2, **fields) -> Method:
    rounds = CollectionRounds(n_rounds, RolloutCollector(2, GaussianExploration(0.2)), updates=PerNewStep(0.25))
    return Method(POLICY, learner=replace(SMALL, reward=reward), collection=rounds, **fields)


def test_a_stopped_run_with_a_learned_reward_continues_bit_by_bit(demos, tmp_path):
    method, options = rewarded(MODELS["discriminator"]), {"device": "cpu", "val_fraction": 0, "progress": False}
    train(method, demos, tmp_path / "whole", env=fork(), **options)
    first = max(line["step"] for line in Run(tmp_path / "whole").read_metrics() if "round" in line)
    for at in (first - 1, first, first + 2):  # within the first round, between the rounds, and within the second
        with pytest.raises(KeyboardInterrupt):
            train(method, demos, tmp_path / "run", env=fork(), callbacks=[Stop(at)], **options)
    train(method, demos, tmp_path / "run", env=fork(), **options)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_learned_reward_is_saved_and_wrapped_around_an_environment(demos, tmp_path):
    train(rewarded(MODELS["discriminator"]), demos, tmp_path / "run", env=fork(), device="cpu", progress=False)
    model = load_modules(tmp_path / "run")["reward"]
    check_env(lambda rows=1: LearnedRewardEnv(fork(rows), model))
    env = LearnedRewardEnv(fork(3), model)
    episodes = rollout(env.env.expert(), env, 4, recording_seed(1))
    plain = rollout(env.env.expert(), fork(3), 4, recording_seed(1))
    policy = Policy(POLICY, demos.features())
    for episode, unchanged in zip(episodes, plain, strict=True):
        assert np.array_equal(episode.steps["action"], unchanged.steps["action"])
        batch = policy.windows(Dataset([unchanged]), extra=("next.terminated",), next_obs=True).gather(
            np.arange(len(episode)))
        expected = model.reward(batch, policy)[:, 0].detach().numpy()
        np.testing.assert_allclose(episode.steps["next.reward"], expected, rtol=1e-4, atol=1e-5)
        assert episode.steps["next.reward"].std() > 1e-3


def test_the_reward_of_filter_gives_rewards_to_single_steps(demos):
    """Its loss alone reads where the episode of a step began."""
    policy = Policy(POLICY, demos.features()).fit_statistics(demos)
    model, episode = OwnStartReward(hidden=(16,)).build(policy, demos), demos[0]
    rewarded = LearnedReward(model).apply(Dataset([episode]))[0].steps["next.reward"]
    env, numbers = fork(1), torch.tensor([episode.metadata["number"]])
    wrapped = LearnedRewardEnv(env, model)
    wrapped.reset(torch.tensor([0]), keys(int(episode.metadata["seed"]), numbers))
    given = [wrapped.step(torch.from_numpy(action[None])).reward.item() for action in np.array(episode.steps["action"])]
    np.testing.assert_allclose(given, rewarded, rtol=1e-4, atol=1e-5)


def test_a_window_of_several_observations_is_not_wrapped_around_an_environment(demos):
    policy = Policy(replace(POLICY, window=Window(2, 1)), demos.features()).fit_statistics(demos)
    with pytest.raises(Unsupported, match=r"2 observations(.|\n)*n_obs_steps=1"):
        LearnedRewardEnv(fork(), MODELS["discriminator"].build(policy, demos))


def test_the_reward_model_of_a_stage_stays_as_it_is(demos):
    stage = Stage("reward", rewarded(MODELS["discriminator"], 1))
    result = fit_method(rewarded(FromStage("reward", "reward"), stages=(stage,)), demos, 0, env=fork())
    before = fit_method(stage.method, demos, 0, env=fork()).modules["reward"].state_dict()
    after = result.modules["reward"].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_reward_of_airl_teaches_a_policy_without_a_density(demos):
    """Its loss alone reads a density, and the reward of a stage is not trained."""
    policy = replace(POLICY, head=SquashedGaussian())
    learner = replace(SMALL_SAC, reward=MODELS["AIRL"])
    stage = Stage("airl", replace(rewarded(MODELS["AIRL"], 1), policy=policy, learner=learner))
    seen = []
    fit_method(rewarded(FromStage("airl", "reward"), 1, stages=(stage,)), demos, 0, env=fork(),
               callbacks=[lambda n, learner, metrics: seen.append(metrics.get("reward/mean"))])
    assert np.isfinite([x for x in seen if x is not None]).any()


def test_constant_rewards_are_those_of_the_source_of_a_row(demos):
    policy = Policy(POLICY, demos.features()).fit_statistics(demos)
    batch = policy.windows(demos).batch(4, 0)
    model = ConstantReward(expert=3.0, own=-1.0).build(policy, demos)
    mixed = batch.replace(extra={"dataset_index": torch.tensor([[0], [1], [1], [0]])})
    assert model.reward(mixed, policy).tolist() == [[3], [-1], [-1], [3]]
    assert model.reward(batch, policy).tolist() == [[3]] * 4
