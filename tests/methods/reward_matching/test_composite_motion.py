"""Several objectives in PPO: what each adds to an update, and the discriminator of each column."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from fixtures.reward_models import Stored, StoredModel

from understudy import make
from understudy.core import ConfigError, Feature, Unsupported
from understudy.data.episode import Dataset, Episode
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.improve.collection import random_episodes
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.ppo import ADVANTAGE, LOG_PROB, PPO, RETURN
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.rewards.discriminator_reward import DiscriminatorReward
from understudy.learn.rewards.reward_models import RewardSpec
from understudy.learn.targets import gae
from understudy.methods import find_method
from understudy.methods.reward_matching.composite_motion import CompositeReward
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_collection, check_learner, check_method, check_reward_model, example_columns

ARM, LEGS = "observation.arm", "observation.legs"
POLICY = PolicyConfig(SquashedGaussian("free"), FeedForward((8,), "tanh"), ConcatEncoder())
SMALL = PPO(batch_size=4, value=CriticConfig((8,), n_critics=1),
            optimizer=OptimizerConfig(lr=3e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=0.5))


@dataclass(frozen=True)
class Rewards(Stored):
    """Objectives that are the stored reward times these factors, after its change of sign in every other state.

    Args:
        is_summed: Whether their sum is one objective.
    """

    factors: tuple[float, ...] = (1.0, 1.0)
    weights: tuple[float, ...] = (1.0, 3.0)
    is_summed: bool = False

    def objective_weights(self, inputs):
        return (1.0,) if self.is_summed else self.weights

    def build(self, policy, data):
        return RewardsModel(RewardSpec.of(self, policy), policy.features, policy.codec)


class RewardsModel(StoredModel):
    def objectives(self, batch, policy):
        config, reward = self.about.config, self.reward(batch, policy)
        signs = (batch.obs[ARM][:, :, 0] > 0).float() * torch.arange(len(config.factors)) * 2 - 1
        rewards = reward * signs * torch.tensor(config.factors)
        return rewards.sum(1, keepdim=True) if config.is_summed else rewards


def episodes(*lengths: int) -> Dataset:
    rng = np.random.default_rng(0)

    def episode(n: int) -> Episode:
        return Episode({ARM: rng.normal(size=(n + 1, 2)).astype(np.float32),
                        LEGS: rng.normal(size=(n + 1, 1)).astype(np.float32),
                        "action": rng.uniform(-1, 1, (n, 1)).astype(np.float32),
                        "next.reward": rng.normal(size=n).astype(np.float32), "next.terminated": np.arange(n) == n - 2})
    return Dataset([episode(n) for n in lengths])


def learner_on(data, reward, **fields):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = Policy(POLICY, data.features()).fit_statistics(data)
        return replace(SMALL, reward=reward, **fields).build(policy, 0, 100, data)


def test_the_loss_of_a_batch_is_that_by_hand():
    """The smaller of two products is taken in each objective: with a ratio of 1.5 one of these is clipped alone."""
    data = episodes(4)
    learner = learner_on(data, Rewards())
    batch = learner.batch_sampler(learner.annotate(data, 0)).windows.gather(np.arange(4))
    ratio = torch.tensor([[1.5], [0.5], [1.0], [1.1]])
    advantages = torch.tensor([[0.0, 100], [0, -300], [0, 100], [4, 100]])  # -.5 -.5 -.5 1.5, and .5 -1.5 .5 .5
    errors = torch.tensor([[1.0, 2], [0, 0], [0, 4], [3, 0]])
    with torch.no_grad():
        log_prob, values = learner.log_prob(learner.policy, batch), learner.values(batch.obs)
    batch = batch.replace(extra={**batch.extra, LOG_PROB: log_prob - ratio.log(), ADVANTAGE: advantages[:, None],
                                 RETURN: (values - errors)[:, None]})
    assert learner.value_loss(batch, torch.Generator()).tolist() == pytest.approx([2.5, 0, 8, 4.5], abs=1e-4)
    first, second = [0.75, 0.4, 0.5, -1.65], [-0.6, 1.2, -0.5, -0.55]
    expected = sum(0.25 * a + 0.75 * b for a, b in zip(first, second, strict=True)) / 4
    assert learner.update(batch)["loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("is_summed", [False, True])
def test_the_unit_of_an_objective_changes_nothing_unless_it_is_summed(is_summed):
    """Also for the values that are learned and for later rounds. A round without a reward has no unit."""
    weights = []
    for factor in (1.0, 100.0):
        data = episodes(7, 9)
        learner = learner_on(data, Rewards(factors=(1.0, factor), is_summed=is_summed))
        for scale in (0.0, 1.0, 2.0):
            round = data.map(lambda e, s=scale: e.replace({"next.reward": np.float32(s) * e.steps["next.reward"]}))
            sampler = learner.batch_sampler(learner.annotate(round, 0))
            for _ in range(4):
                learner.update(sampler.batch(4, learner.n_updates))
        weights.append(torch.cat([p.flatten() for p in learner.policy.parameters()]))
    assert torch.allclose(*weights, rtol=1e-3, atol=1e-4) != is_summed


def test_a_learner_that_continues_has_the_units_of_the_rewards():
    data = episodes(7, 9)
    learner, later = (learner_on(data, Rewards(factors=(1.0, 100.0))) for _ in range(2))
    learner.annotate(data.map(lambda e: e.replace({"next.reward": 9 * e.steps["next.reward"]})), None)
    assert learner.reward_units == [0, 0], "demonstrations have no say"
    annotated = learner.annotate(data, 0)
    rms = float(np.sqrt(np.mean(np.concatenate([e.steps["next.reward"] for e in data]) ** 2)))
    assert learner.reward_units == pytest.approx([rms, 100 * rms], rel=1e-5)
    learner.annotate(data.map(lambda e: e.replace({"next.reward": 2 * e.steps["next.reward"]})), 1)  # they stay
    later.batch_sampler(annotated)
    assert later.reward_units == learner.reward_units == annotated[0].metadata["reward_units"]


def test_one_objective_is_plain_ppo_bit_by_bit():
    data, results = episodes(7, 9), []
    for reward in (None, Rewards(factors=(-1.0,), weights=(0.3,))):
        learner = learner_on(data, reward)
        sampler = learner.batch_sampler(learner.annotate(data, 0))
        for step in range(4):
            learner.update(sampler.batch(4, step))
        results.append([*learner.policy.parameters(), *learner.value.parameters()])
    assert all(map(torch.equal, *results))


def test_each_objective_has_its_own_value_and_advantages():
    data = episodes(5, 6)
    learner = learner_on(data, Rewards(factors=(1.0, 7.0)), value=CriticConfig((8,), n_critics=2))
    assert len(learner.value.layers) == 4
    for episode, annotated in zip(data, learner.annotate(data, 0), strict=True):
        obs = {name: torch.from_numpy(episode.steps[name])[:, None] for name in (ARM, LEGS)}
        with torch.no_grad():
            networks = learner.value.scores(obs)
        reward, terminated = (torch.from_numpy(episode.steps[f"next.{k}"]) for k in ("reward", "terminated"))
        signs = (obs[ARM][:-1, 0, 0] > 0).float() * 2 - 1
        last = torch.arange(len(episode)) == len(episode) - 1
        for k, earned in enumerate((-reward / learner.reward_units[0], 7 * reward * signs / learner.reward_units[1])):
            value = networks[2 * k:2 * k + 2].amin(0)
            expected = gae(earned, value[:-1], value[1:], terminated, last, 0.99, 0.95)
            np.testing.assert_allclose(annotated.steps[ADVANTAGE][:, k], expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(annotated.steps[RETURN][:, k], expected + value[:-1], rtol=1e-4, atol=1e-5)


# -- the reward -----------------------------------------------------------------------------------------------------

SMALL_REWARD = CompositeReward(discriminator=DiscriminatorReward("gail", "next", hidden=(8,)))


def test_contracts():
    check_reward_model(SMALL_REWARD)
    check_reward_model(replace(SMALL_REWARD, task_weight=0.0, discriminator=DiscriminatorReward("airl", hidden=(8,))))
    check_learner(replace(SMALL, reward=SMALL_REWARD), [replace(POLICY, inputs=("observation.state",))])


def test_a_discriminator_compares_its_own_column():
    data = episodes(6)
    learner = learner_on(data, SMALL_REWARD)
    batch = learner.policy.windows(data, extra=("next.reward", "next.terminated"), next_obs=True).gather(np.arange(5))
    moved = {k: v if k == LEGS else v + 1 for k, v in batch.next.items()}
    with torch.no_grad():
        before = learner.reward.objectives(batch, learner.policy)
        after = learner.reward.objectives(replace(batch, next=moved), learner.policy)
        total = learner.reward.reward(batch, learner.policy)
    assert torch.equal((before != after).any(0), torch.tensor([True, False, False]))
    assert torch.equal(before[:, 2], batch.extra["next.reward"][:, 0])
    torch.testing.assert_close(total, before @ torch.tensor([[0.25], [0.25], [0.5]]))
    torch.testing.assert_close(learner.objective_weights, torch.tensor([0.75, 0.75, 1.5]))


def test_discriminators_learn_from_clips_that_do_not_belong_together():
    """The order of the steps of one column changes nothing for the discriminator of the other."""
    data = episodes(6)
    shuffled = data.map(lambda e: e.replace({LEGS: e.steps[LEGS][::-1].copy()}))
    losses = []
    for demonstrations in (data, shuffled):
        learner = learner_on(data, SMALL_REWARD)
        expert, own = (learner.policy.windows(d, extra=("next.reward", "next.terminated"), next_obs=True).gather(
            np.arange(5)) for d in (demonstrations, data))
        learner.reward.loss(own, expert, torch.Generator().manual_seed(0)).sum().backward()
        losses.append([[p.grad for p in model.layers.parameters()] for model in learner.reward.discriminators])
    (arm, legs), (same_arm, other_legs) = losses
    assert all(map(torch.equal, arm, same_arm)) and not any(map(torch.equal, legs[:1], other_legs[:1]))


def test_what_it_cannot_do_is_refused():
    data = episodes(6)
    with pytest.raises(ConfigError, match=r"does not read observation.head\n.*name some of observation.arm"):
        learner_on(data, CompositeReward(("observation.head",)))
    learner = learner_on(data, SMALL_REWARD)
    with pytest.raises(Unsupported, match="what the environment says"):
        learner.reward({}, torch.zeros(1, 1, 1))


def test_it_learns_classes():
    columns = example_columns("composite-motion")
    check_method("composite-motion", {**columns, "action": Feature("int64", (1,), "discrete", num_classes=(3,))})


def test_the_method_compares_the_named_columns_without_actions():
    features = {name: Feature("float32", (2,)) for name in (ARM, LEGS, "action")}
    reward = find_method("composite-motion", features, compared=(LEGS,), task_weight=0.25).learner.reward
    assert reward.objective_weights((ARM, LEGS)) == (0.75, 0.25) and reward.discriminator.inputs == "next"
    assert CompositeReward(task_weight=0.0).objective_weights((ARM, LEGS)) == (0.5, 0.5)


@pytest.mark.slow
def test_stopped_within_and_between_rounds_it_is_the_same_run():
    env = make("fork", 2, limit=6)
    method = find_method("composite-motion", n_rounds=2, n_steps=16, n_epochs=2)
    reward = replace(method.learner.reward, discriminator=SMALL_REWARD.discriminator)
    method = replace(method, policy=replace(method.policy, trunk=FeedForward((8,), "tanh")),
                     learner=replace(method.learner, batch_size=8, reward=reward))
    check_collection(method, random_episodes(env, 6, 0), lambda rows: make("fork", rows, limit=6))
