"""Quantiles at drawn levels are those of the returns, and are scored at equally spaced levels."""

from __future__ import annotations

import pytest
import torch
from fixtures.staged import episodes, method
from torch.distributions import Normal

from understudy.core import ConfigError
from understudy.heads.likelihood.categorical import Categorical
from understudy.learn.critic import CriticConfig
from understudy.learn.targets import td_loss
from understudy.nets.quantile_layer import QuantileNet, draw_levels
from understudy.policy import Policy


def test_a_network_learns_the_quantiles_of_normal_returns_at_any_level():
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    net = QuantileNet((1, 32, 32), 8)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for n in range(1500):
        mean, levels = torch.randint(0, 2, (256, 1), generator=rng).float(), draw_levels(256, 8, rng)
        target = mean[:, 0] + 0.5 * torch.randn(256, generator=rng)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - n / 1500)
        optimizer.zero_grad()
        td_loss(100 * net(mean, levels).T, 100 * target, levels.T).mean().backward()  # so that few errors are squared
        optimizer.step()
    levels = torch.tensor([0.1, 0.37, 0.5, 0.9])
    for mean in (0.0, 1.0):
        expected = Normal(mean, 0.5).icdf(levels)
        torch.testing.assert_close(net(torch.tensor([[mean]]), levels)[0], expected, atol=0.08, rtol=0)


def test_a_critic_scores_by_the_mean_of_equally_spaced_levels():
    data = episodes()
    policy = Policy(method().policy, data.features()).fit_statistics(data)
    batch = policy.windows(data).batch(6, 0)
    critic = CriticConfig((16,), n_critics=2, n_quantiles=4, draw_levels=True).build(policy)
    middles = torch.tensor([0.125, 0.375, 0.625, 0.875]).expand(6, 4)
    at_middles = torch.stack(critic.network_quantiles(batch.obs, batch.action, levels=middles))
    torch.testing.assert_close(critic.quantiles(batch.obs, batch.action), at_middles)
    torch.testing.assert_close(critic.scores(batch.obs, batch.action), at_middles.mean(1))
    plans = torch.stack([batch.action, -batch.action], 1)
    torch.testing.assert_close(critic.quantiles(batch.obs, plans)[..., 0], at_middles)
    quantiles, levels = critic.training_quantiles(batch.obs, batch.action, torch.Generator().manual_seed(0))
    assert quantiles.shape == (2, 4, 6) and levels.shape == (4, 6) and len(levels.unique()) == 24


def test_levels_of_a_mean_are_refused():
    with pytest.raises(ConfigError, match="levels are those of quantiles"):
        CriticConfig(draw_levels=True)
    for options in ({}, {"n_quantiles": 4, "autoregressive": True}):
        with pytest.raises(ConfigError, match="levels are those of quantiles"):
            Categorical(draw_levels=True, **options)
