"""Fitted Q evaluation: the loss of a peer, exact values in a table, and resamples of episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures.d3rlpy import HIDDEN, QUANTILES, TanhNet, fill, inject_levels, losses_of, make_batch, make_policy
from fixtures.tables import STATE, few_actions

from understudy.core import ConfigError
from understudy.data.episode import Dataset, Episode
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.regression import Regression
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.fitted_q import FittedQ
from understudy.learn.fit import fit
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig

RNG = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("n_quantiles", "draws"), [(1, False), (QUANTILES, False), (QUANTILES, True)])
def test_the_loss_equals_that_of_d3rlpy(monkeypatch, n_quantiles, draws):
    inject_levels(monkeypatch)
    policy = make_policy(Regression())
    policy.net = TanhNet(100)
    data = Dataset([Episode({"next.reward": np.ones(1, np.float32), "action": np.zeros((1, 2), np.float32)})])
    critic = CriticConfig(HIDDEN, n_quantiles=n_quantiles, draw_levels=draws)
    learner = FittedQ(critic=critic, n_resamples=2).build(policy, 0, 1, data)
    fill(learner.critic.layers[0].parameters(), 200)
    fill(learner.target_critic.layers[0].parameters(), 300)
    learner.counts[1:] = 0  # the first critic alone
    batch = make_batch()
    batch = batch.replace(extra={**batch.extra, "index": torch.zeros(6, 1, dtype=torch.int64)})
    expected = losses_of("fitted_q", n_quantiles, draws)["loss"]
    assert learner.critic_loss(batch, RNG).mean().item() == pytest.approx(expected, abs=1e-5)


def untrained(data: Dataset) -> Policy:
    """A policy that takes the same class in a state at all times."""
    torch.manual_seed(3)
    policy = Policy(PolicyConfig(Categorical(), FeedForward((16,)), ConcatEncoder()), data.features())
    return policy.fit_statistics(data)


def test_each_critic_has_a_resample_and_the_first_has_all():
    data, _ = few_actions()
    learner = FittedQ(n_resamples=5, critic=CriticConfig((4,))).build(untrained(data), 0, 1, data)
    assert (learner.counts[0] == 1).all() and (learner.counts.sum(1) == len(data)).all()
    assert len({tuple(row) for row in learner.counts}) == 6
    batch = learner.batch_sampler(data).gather(np.array([7, 0]))  # episodes of one step
    assert np.array_equal(learner.episode_counts(batch).numpy(), learner.counts[:, [7, 0]])


def exact_value(data: Dataset, policy: Policy, discount: float) -> float:
    """The mean value of the policy at the starts of episodes of one step, by the equation of Bellman."""
    rows = np.stack([e.steps[STATE] for e in data])
    before, after = rows.argmax(-1).T
    action = np.array([e.steps["action"][0, 0] for e in data])
    reward, goes_on = (np.array([float(e.steps[k][0]) for e in data]) for k in ("next.reward", "next.terminated"))
    goes_on = 1 - goes_on
    taken = policy.plan({STATE: torch.eye(rows.shape[-1])[:, None]},
                        torch.zeros(rows.shape[-1], *policy.noise_shape))[:, 0, 0].numpy().astype(int)
    value = np.zeros((rows.shape[-1], 4))
    for _ in range(200):
        value[before, action] = reward + discount * goes_on * value[after, taken[after]]
    return value[before, taken[before]].mean()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_values_are_exact_in_a_table(seed):
    data, _ = few_actions(4)
    policy = untrained(data)
    config = FittedQ(discount=0.8, target_decay=0.8, steps=1500, critic=CriticConfig((64,)), n_resamples=2,
                     optimizer=OptimizerConfig(lr=3e-3, weight_decay=0.0, grad_clip_norm=None))
    learner = config.build(policy, seed, config.steps, data)
    learner.counts[1:] = learner.counts[0]  # a state without one of its actions has no exact value
    batch = learner.batch_sampler(data).gather(np.arange(data.steps))
    fit(learner, lambda n: batch, config.steps)
    exact = exact_value(data, policy, 0.8)
    assert learner.values(data) == pytest.approx(exact, abs=0.03)
    assert abs(exact_value(data, untrained(data), 0.5) - exact) > 0.1  # the test could fail


def test_a_subset_of_the_critics_is_refused():
    """Each critic is its own target."""
    data, _ = few_actions(4)
    with pytest.raises(ConfigError, match="CriticConfig.target_subset_size"):
        FittedQ(critic=CriticConfig(target_subset_size=1)).build(untrained(data), 0, 1, data)


def test_a_plan_has_the_steps_that_are_carried_out_and_a_seed_any_sign():
    data, _ = few_actions(4)
    with pytest.raises(ConfigError, match="plans have 1 steps, but skip=1 and n_action_steps=1 need more"):
        FittedQ(skip=1).build(untrained(data), 0, 1, data)
    counts = FittedQ().build(untrained(data), -1, 1, data).counts
    assert (counts.sum(1) == len(data)).all()
