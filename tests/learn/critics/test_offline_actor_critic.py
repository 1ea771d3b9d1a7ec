"""The off-policy actor-critic on stored episodes: TD3+BC and CQL equal to d3rlpy, and the distances of ReBRAC."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.d3rlpy import (
    HIDDEN,
    LOSSES,
    QUANTILES,
    RNG,
    STATE,
    StateNet,
    TanhNet,
    fill_critic,
    inject_levels,
    inject_noise,
    losses_of,
    make_batch,
    make_policy,
    sines,
)
from fixtures.fql import LOSSES as LOSSES_OF_FQL
from fixtures.fql import ActorNet, inject
from fixtures.fql import Critic as SineCritic
from fixtures.learning import call_step

from understudy.core import Unsupported
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.heads.likelihood.regression import Regression
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.td3 import NEXT_ACTION, TD3
from understudy.methods import find_method
from understudy.methods.offline_rl import cql
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

CQL = cql.CQL(critic=CriticConfig(HIDDEN), temperature=0.5, target_entropy=None, n_samples=4)


@pytest.fixture
def noise(monkeypatch):
    inject_noise(monkeypatch)


@pytest.mark.parametrize(("n_quantiles", "draws"), [(1, False), (QUANTILES, False), (QUANTILES, True)])
def test_td3_bc_equals_d3rlpy(monkeypatch, noise, n_quantiles, draws):
    inject_levels(monkeypatch)
    config = CriticConfig(HIDDEN, n_quantiles=n_quantiles, draw_levels=draws)
    expected = losses_of("td3_bc", n_quantiles, draws)
    learner = TD3(critic=config, bc_weight=0.4).build(make_policy(Regression()), 0, 1, Dataset([]))
    learner.policy.net, learner.nets.target.policy.net = TanhNet(100), TanhNet(500)
    fill_critic(learner.nets.critic, 200)
    fill_critic(learner.nets.target.critic, 300)
    critic, policy = (call_step(learner, f"{name}_loss", make_batch(), RNG).mean().item()
                      for name in ("critic", "policy"))
    assert critic == pytest.approx(expected["critic"], abs=1e-5)
    if not draws:  # the peer also draws the levels of the score
        assert 2.5 * policy == pytest.approx(expected["policy"], abs=1e-5)  # the peer weighs the score by 2.5


def test_ddpg_equals_d3rlpy():
    """Its policy follows the score alone, as that of TD3 does."""
    learner = find_method("ddpg", make_policy(Regression()).features).learner
    learner = replace(learner, critic=CriticConfig(HIDDEN, n_critics=learner.critic.n_critics)).build(
        make_policy(Regression()), 0, 1, Dataset([]))
    learner.policy.net, learner.nets.target.policy.net = TanhNet(100), TanhNet(500)
    fill_critic(learner.nets.critic, 200)
    fill_critic(learner.nets.target.critic, 300)
    loss = call_step(learner, "critic_loss", make_batch(), RNG).mean().item()
    assert loss == pytest.approx(LOSSES["ddpg"]["critic"], abs=1e-5)
    assert learner.config.bc_weight == 0 and learner.config.policy_delay == 1


def test_cql_equals_d3rlpy(noise):
    learner, batch = CQL.build(make_policy(SquashedGaussian()), 0, 1, Dataset([])), make_batch()
    learner.policy.net.trunk = StateNet()
    fill_critic(learner.nets.critic, 200)
    fill_critic(learner.nets.target.critic, 300)
    scores = learner.nets.critic.scores(batch.obs, batch.action)
    conservative = learner.config.conservative_loss(learner.nets, scores, batch, RNG)
    assert conservative.mean().item() == pytest.approx(sum(LOSSES["cql"]["conservative"]), abs=1e-5)
    reward, ends = (batch.extra[k][:, 0] for k in ("next.reward", "next.terminated"))
    following = (call_step(learner, "target_value", batch, RNG) - reward) / 0.99
    expected = torch.tensor(LOSSES["cql"]["target"]) * ~ends
    torch.testing.assert_close(following, expected, atol=1e-5, rtol=1e-5)
    squared = (scores - call_step(learner, "target_value", batch, RNG)).square().sum(0)
    torch.testing.assert_close(call_step(learner, "critic_loss", batch, RNG), squared + 5 * conservative)


def numbered(terminated: bool) -> Episode:
    """Seven steps whose actions are their numbers."""
    ends = np.arange(7) == 6
    return Episode({STATE: np.zeros((8, 3), "f"), "action": np.arange(7, dtype="f")[:, None], "next.reward": ends * 1.0,
                    "next.terminated": ends & terminated})


@pytest.mark.parametrize(("horizon", "n_step", "ahead"), [(1, 0, 1), (2, 0, 2), (2, 3, 3)])
def test_targets_of_rebrac_stay_close_to_the_actions_that_follow(horizon, n_step, ahead):
    """The next plan is compared with the actions after the window, as far as there are any."""
    data, weight = Dataset([numbered(True), numbered(False)]), 0.5
    config = PolicyConfig(Regression(), MLP(8, 0), window=Window(1, horizon), codec=Normalizer(target="identity"))
    plain, close = (TD3(critic=CriticConfig((8,)), bc_weight=0.4, target_noise=0.0, n_step=n_step, critic_bc_weight=w)
                    .build(Policy(config, data.features()).fit_statistics(data), 0, 1, data) for w in (0.0, weight))
    plain.nets = close.nets
    batch = close.batch_sampler(data).gather(np.arange(14))
    rng = torch.Generator()
    coded = close.config.next_plan(close.nets, batch.next, rng)[:, :, 0].detach()
    first = torch.arange(7).repeat(2) + ahead
    following = first[:, None] + torch.arange(horizon)
    exists = following < 7
    distance = ((coded - following).square() * exists).sum(1) / exists.sum(1).clamp(min=1)
    goes_on = 1 - ((first > 6) & (torch.arange(14) < 7)).float()  # nothing follows a terminated episode
    steps = (7 - torch.arange(7).repeat(2)).clamp(max=n_step or horizon)
    expected = call_step(plain, "target_value", batch, rng) - weight * goes_on * 0.99**steps * distance
    torch.testing.assert_close(call_step(close, "target_value", batch, rng), expected)
    assert NEXT_ACTION not in plain.batch_sampler(data).gather(np.arange(2)).extra


def test_rebrac_equals_the_code_of_fql(monkeypatch):
    """Its distances are sums over two components, and its errors means over two networks. Its policy maximizes the
    smallest score, and ours the first.
    """
    batch, expected = make_batch(), LOSSES_OF_FQL["rebrac"]
    following = torch.cat([sines((6, 2), 7), torch.ones(6, 1)], 1)[:, None]
    batch = batch.replace(extra={**batch.extra, NEXT_ACTION: following})
    config = TD3(bc_weight=0.6, critic_bc_weight=0.4)
    learner = config.build(make_policy(Regression()), 0, 1, Dataset([]))
    learner.nets.critic, learner.nets.target.critic = SineCritic(0), SineCritic(2)
    learner.policy.net, learner.nets.target.policy.net = ActorNet(0.0), ActorNet(0.5)
    inject(monkeypatch)
    loss = call_step(learner, "critic_loss", batch, RNG).mean().item()
    assert loss / 2 == pytest.approx(expected["critic"], abs=1e-5)
    learner.nets.critic = SineCritic(0, only_smallest=True)
    assert call_step(learner, "policy_loss", batch, RNG).mean().item() == pytest.approx(
        expected["actor_loss"] + expected["bc_loss"], abs=1e-5)


def test_they_keep_the_contract_of_learners():
    small = CriticConfig((8,))
    check_learner(replace(CQL, critic=replace(small, n_quantiles=4), batch_size=8), (
        PolicyConfig(SquashedGaussian(), MLP(16, 1), window=Window(2, 3), inputs=(STATE,)),))
    check_learner(TD3(critic=small, batch_size=8, critic_bc_weight=0.1), (
        PolicyConfig(Regression(), MLP(16, 1, dropout=0.2), window=Window(2, 3), inputs=(STATE,)),))


def test_conservative_scores_need_a_range():
    data = Dataset([numbered(True)])
    unbounded = PolicyConfig(Gaussian(), MLP(8, 0), codec=Normalizer(target="zscore"))
    with pytest.raises(Unsupported, match="need a range of actions"):
        CQL.build(Policy(unbounded, data.features()), 0, 1, data)
