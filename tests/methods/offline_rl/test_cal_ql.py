"""Calibrated Q-learning: the conservative loss of a peer, complete returns, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures.d3rlpy import (
    HIDDEN,
    LOSSES,
    RNG,
    STATE,
    StateNet,
    fill_critic,
    inject_noise,
    make_batch,
    make_policy,
    sines,
)

from understudy.core import ConfigError, DataError, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.learn.critic import CriticConfig
from understudy.learn.rewards.reward_models import ConstantReward
from understudy.methods.offline_rl.cal_ql import RETURN, CalQL, CompleteReturns
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

SMALL = CalQL(critic=CriticConfig(HIDDEN), n_samples=4, discount=0.5)


def episode(n: int, terminated: bool) -> Episode:
    ends = np.arange(n) == n - 1
    return Episode({STATE: np.zeros((n + 1, 3), "f"), "action": np.linspace(-1, 1, n, dtype="f")[:, None],
                    "next.reward": np.ones(n, "f"), "next.terminated": ends & terminated})


def test_the_conservative_loss_equals_that_of_d3rlpy(monkeypatch):
    """Bounds of minus infinity leave that of CQL."""
    learner, batch = SMALL.build(make_policy(SquashedGaussian()), 0, 1, Dataset([])), make_batch()
    learner.policy.net.trunk = StateNet()
    fill_critic(learner.nets.critic, 200)
    inject_noise(monkeypatch)
    scores = learner.nets.critic.scores(batch.obs, batch.action)
    for bound, name in ((5 * sines(6, 11), "cal_ql"), (torch.full((6,), -torch.inf), "cql")):
        bounded = batch.replace(extra={**batch.extra, RETURN: bound[:, None, None]})
        loss = learner.config.conservative_loss(learner.nets, scores, bounded, RNG).mean().item()
        assert loss == pytest.approx(sum(LOSSES[name]["conservative"]), abs=1e-5)


def test_returns_are_complete_where_little_follows():
    """After a time limit 0.5 ** 7 < 0.01 of the value is missing."""
    returns = [CompleteReturns(0.5)(episode(9, terminated)).steps[RETURN][:, 0] for terminated in (True, False)]
    np.testing.assert_allclose(returns[0], 2 - 0.5 ** np.arange(8.0, -2, -1), rtol=1e-6)
    np.testing.assert_allclose(returns[1], np.where(np.arange(10) <= 2, returns[0], -np.inf))


@pytest.mark.parametrize(("horizon", "n_step"), [(1, 0), (2, 0), (2, 3)])
def test_bounds_are_the_returns_from_the_first_step_of_a_plan(horizon, n_step, monkeypatch):
    """Plans of the policy score no less, and uniform ones are as they were."""
    data = Dataset([episode(9, True), episode(9, False)])
    policy = Policy(PolicyConfig(SquashedGaussian(), MLP(8, 0), window=Window(1, horizon)), data.features())
    learner = CalQL(critic=CriticConfig((8,)), n_samples=1, discount=0.5, n_step=n_step).build(
        policy.fit_statistics(data), 0, 1, data)
    batch = learner.batch_sampler(data).gather(np.arange(18))
    monkeypatch.setattr(learner.nets.critic, "scores", lambda obs, plans: torch.zeros(2, 18, 3))
    scores = learner.config.conservative_scores(learner.nets, batch, torch.zeros(18, 3, horizon, 1))
    expected = torch.from_numpy(2 - 0.5 ** np.arange(8.0, -1, -1)).float()
    cut = torch.where(torch.arange(9) <= 2, expected, 0)
    torch.testing.assert_close(scores[:, :, :2], torch.cat([expected, cut])[None, :, None].expand(2, 18, 2))
    assert not scores[:, :, 2].any()


def test_it_keeps_the_contract_of_learners():
    check_learner(CalQL(critic=CriticConfig((8,)), batch_size=8, n_samples=4), (
        PolicyConfig(SquashedGaussian(), MLP(16, 1), window=Window(2, 3), inputs=(STATE,)),))


def test_data_without_complete_returns_and_bad_settings_are_refused():
    data = Dataset([episode(6, False)] * 2, {"path": "mine.npz"})
    policy = Policy(PolicyConfig(SquashedGaussian(), MLP(8, 0)), data.features()).fit_statistics(data)
    with pytest.raises(DataError, match=r"mine.npz, column 'next.terminated': no return is complete.*\n.*train cql"):
        SMALL.build(policy, 0, 1, data)
    SMALL.build(policy, 0, 1, Dataset([episode(7, False)]))  # all but 0.5 ** 7 of the first return is there
    with pytest.raises(ConfigError, match=r"CalQL.reward: .*\n  -> .*train cql"):
        CalQL(reward=ConstantReward())
    with pytest.raises(UserError, match="conservative_weight is 0.0, but must be above 0"):
        CalQL(conservative_weight=0.0)
