"""SPOT: the loss of the policy in closed form, the two phases, and plans among several that are stored."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from fixtures.d3rlpy import (
    HIDDEN,
    LOSSES,
    RNG,
    STATE,
    ActionNet,
    TanhNet,
    fill_critic,
    inject_noise,
    make_batch,
    make_policy,
)
from fixtures.learning import call_step

from understudy.core import UserError
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.algorithm import Engine
from understudy.learn.critic import CriticConfig
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.methods.offline_rl.spot import SPOT
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig
from understudy.testing import check_learner

FAST = OptimizerConfig(lr=0.03, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)


def build(steps: int = 1, **options) -> Engine:
    config = SPOT(critic=CriticConfig(HIDDEN), **options)
    return config.build(make_policy(Regression(), trunk=MLP(16, 1)), 0, steps, Dataset([]))


def test_losses_equal_a_peer_and_the_closed_form(monkeypatch):
    """The autoencoder's is that of d3rlpy. The policy's is the same for its own plan, less a score of mean size 1."""
    inject_noise(monkeypatch)
    learner, batch = build(bc_weight=0.7, beta=0.25), make_batch()
    learner.policy.net = TanhNet(400)
    posterior, decoder = ActionNet(2, (4, 4), 600), ActionNet(4, (2,), 700)
    learner.nets.behavior.net.posterior, learner.nets.behavior.net.decoder = posterior, decoder
    fill_critic(learner.nets.critic, 200)
    context = learner.policy.context(batch.obs)
    plan = learner.policy.net(None, None, context)
    out = posterior(torch.cat([plan, torch.ones(6, 1, 1)], -1), plan[..., :0], context)[:, 0]
    mean, log_std = out.chunk(2, -1)
    latent = mean + log_std.exp() * torch.randn(6, 4, generator=RNG)
    error = (decoder(latent[:, None], plan[..., :0], context) - plan).square().mean((1, 2))
    divergence = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).mean(1)
    score = learner.nets.critic.scores(batch.obs, plan)[0]
    expected = 0.7 * (error + 0.25 * divergence) - score / score.abs().mean()
    torch.testing.assert_close(call_step(learner, "policy_loss", batch, RNG), expected)
    learner.config = replace(learner.config, beta=0.5)
    loss = call_step(learner, "behavior_loss", batch, RNG).mean().item()
    assert loss == pytest.approx(LOSSES["bear"]["vae"], abs=1e-5)


def test_the_autoencoder_learns_first_and_then_stays():
    learner, batch, weights = build(4, cloning_fraction=0.5), make_batch(), []
    for _ in range(4):
        metrics = learner.update(batch)
        weights.append([torch.cat([p.flatten() for p in net.parameters()]).clone()
                        for net in (learner.nets.behavior, learner.nets.critic)])
        assert ("behavior/loss" in metrics) != ("critic/loss" in metrics)
    first, second, third, fourth = weights
    assert not first[0].equal(second[0]) and second[0].equal(fourth[0])
    assert first[1].equal(second[1]) and not third[1].equal(fourth[1])


def test_the_warm_up_of_the_critic_begins_after_the_autoencoder():
    learner = build(8, cloning_fraction=0.5, critic_warmup_updates=3, policy_delay=1)
    names = [learner.update(make_batch()).keys() for _ in range(8)]
    assert ["critic/loss" in update for update in names] == 4 * [False] + 4 * [True]
    assert ["loss" in update for update in names] == 7 * [False] + [True]


def test_parts_of_a_batch_have_latents_of_their_own():
    learner, batch = build(), make_batch()
    losses = [call_step(learner, "policy_loss", batch, torch.Generator().manual_seed(seed)) for seed in (0, 1, 0)]
    assert not losses[0].equal(losses[1]) and losses[0].equal(losses[2])


def trained(**options) -> torch.Tensor:
    """Plans where -0.5 and 0.5 are stored, in both components, and scores favor a larger first one a little."""
    torch.manual_seed(0)
    updates, batch = 200, make_batch()
    learner = build(updates, bc_weight=10.0, optimizer=FAST, cloning_fraction=0.5, **options)
    sides = (torch.arange(6) % 2 - 0.5).view(6, 1, 1).expand(6, 1, 2)
    batch = batch.replace(obs={STATE: torch.zeros(6, 1, 3)}, action=sides)
    learner.nets.critic.scores = lambda obs, plan, n_critics=2: plan[..., 0].sum(-1).expand(n_critics, 6)
    for _ in range(updates):
        name = "behavior" if learner.n_updates < learner.config.cloning_updates(updates) else "policy"
        learner.minimize(name, partial(call_step, learner, f"{name}_loss"), batch)
        learner.end_update()
    with torch.no_grad():
        return learner.policy.sample(learner.policy.context(batch.obs), RNG)[0, 0]


def test_plans_are_those_that_are_stored_and_not_their_mean():
    assert (trained(beta=0.05) - 0.5).abs().max() < 0.25


def test_it_keeps_the_contract_of_learners():
    check_learner(SPOT(batch_size=8, critic=CriticConfig((8,))), (
        PolicyConfig(Regression(), MLP(16, 1, dropout=0.2), window=Window(2, 3), inputs=(STATE,)),))


def test_bad_settings_are_refused():
    for options in ({"bc_weight": -0.1}, {"cloning_fraction": 1.0}):
        with pytest.raises(UserError, match="bc_weight|cloning_fraction"):
            find_method("spot", **options)
