"""PLAS: losses of a peer, limits of the latent, and what each loss trains."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fixtures.d3rlpy import (
    HIDDEN,
    LOSSES,
    QUANTILES,
    RNG,
    STATE,
    ActionNet,
    fill,
    fill_critic,
    inject_noise,
    losses_of,
    make_batch,
    make_policy,
)
from fixtures.learning import call_step
from torch import nn

from understudy.core import Unsupported, UserError
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.heads.likelihood.cvae import CVAE
from understudy.learn.algorithm import Engine
from understudy.learn.critic import CriticConfig
from understudy.methods import find_method
from understudy.methods.offline_rl.plas import PLAS, ChosenLatent
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

EXPECTED = LOSSES["plas"]


class LatentNet(nn.Module):
    """A network of an observation with four outputs, as the peer has it."""

    def __init__(self, phase: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4))
        fill(self.layers.parameters(), phase, 0.3)

    def forward(self, x, t, context):
        return self.layers(context.flat()).unsqueeze(1)


def build(max_perturbation: float = 0.0, n_quantiles: int = 1) -> Engine:
    policy = make_policy(ChosenLatent(max_perturbation=max_perturbation))
    learner = PLAS(critic=CriticConfig(HIDDEN, n_quantiles=n_quantiles)).build(policy, 0, 1, Dataset([]))
    for policy, phase in ((learner.policy, 100), (learner.nets.target.policy, 500)):
        policy.net["latent"] = LatentNet(phase)
        if max_perturbation:
            policy.net["perturbation"] = ActionNet(2, (2,), {100: 800, 500: 900}[phase])
        policy.net["cvae"].posterior, policy.net["cvae"].decoder = ActionNet(2, (4, 4), 600), ActionNet(4, (2,), 700)
    fill_critic(learner.nets.critic, 200)
    fill_critic(learner.nets.target.critic, 300)
    return learner


def test_losses_equal_those_of_d3rlpy(monkeypatch):
    inject_noise(monkeypatch)
    learner, batch = build(), make_batch()
    assert learner.policy.loss(batch, RNG).mean().item() == pytest.approx(EXPECTED["vae"], abs=1e-5)
    assert call_step(learner, "policy_loss", batch, RNG).mean().item() == pytest.approx(EXPECTED["policy"], abs=1e-5)
    assert call_step(learner, "critic_loss", batch, RNG).mean().item() == pytest.approx(EXPECTED["critic"], abs=1e-5)


def test_the_loss_of_quantiles_equals_that_of_d3rlpy():
    loss = call_step(build(n_quantiles=QUANTILES), "critic_loss", make_batch(), RNG).mean().item()
    assert loss == pytest.approx(losses_of("plas", QUANTILES)["critic"], abs=1e-5)


def test_losses_with_a_perturbation_equal_those_of_d3rlpy(monkeypatch):
    inject_noise(monkeypatch)
    learner, batch, expected = build(0.2), make_batch(), LOSSES["plas_with_perturbation"]
    assert learner.policy.loss(batch, RNG).mean().item() == pytest.approx(EXPECTED["vae"], abs=1e-5)
    assert call_step(learner, "policy_loss", batch, RNG).mean().item() == pytest.approx(expected["policy"], abs=1e-5)
    assert call_step(learner, "critic_loss", batch, RNG).mean().item() == pytest.approx(expected["critic"], abs=1e-5)
    assert abs(expected["policy"] - EXPECTED["policy"]) > 0.01


@pytest.mark.parametrize("limit", [0.0, 0.5])
def test_plans_are_those_of_the_autoencoder_within_the_limit(limit):
    learner, batch = build(), make_batch()
    context, net = learner.policy.context(batch.obs), learner.policy.net
    for parameter in net["latent"].parameters():
        parameter.data *= 1e3  # so that the tanh is -1 or 1
    signs = net["latent"](None, None, context)[:, 0].sign()
    plan = ChosenLatent(max(limit, 1e-9)).sample(net, context, torch.zeros(6, 1, 0))
    torch.testing.assert_close(plan, CVAE(temperature=1.0).sample(net["cvae"], context, limit * signs))


@pytest.mark.parametrize("kind", ["loss", "policy_loss"])
@pytest.mark.parametrize("limit", [0.0, 0.2])
def test_cloning_trains_the_autoencoder_and_the_score_the_others(kind, limit):
    learner, batch, rng = build(limit), make_batch(), torch.Generator().manual_seed(0)
    loss = learner.policy.loss(batch, rng) if kind == "loss" else call_step(learner, "policy_loss", batch, rng)
    loss.sum().backward()
    for name, parameter in learner.policy.net.named_parameters():
        assert (parameter.grad is not None) == (name.startswith("cvae") == (kind == "loss")), name


def test_the_gradient_of_the_latent_also_passes_the_perturbation():
    gradients = []
    for limit in (0.0, 1e-9):  # the second changes nothing that one could measure
        learner = build(limit)
        call_step(learner, "policy_loss", make_batch(), RNG).sum().backward()
        gradients.append(learner.policy.net["latent"].layers[0].weight.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 1e-3


def test_first_updates_train_the_autoencoder_alone_and_later_ones_leave_it():
    config = PLAS(critic=CriticConfig(HIDDEN), cloning_fraction=0.5)
    learner = config.build(make_policy(ChosenLatent()), 0, 4, Dataset([]))
    for update, changes in enumerate((True, True, False, False)):
        before = {name: p.detach().clone() for name, p in learner.policy.net.named_parameters()}
        critic = learner.nets.critic.layers[0][0].weight.detach().clone()
        learner.update(make_batch())
        for name, parameter in learner.policy.net.named_parameters():
            assert (not parameter.equal(before[name])) == (name.startswith("cvae") == changes), (update, name)
        assert critic.equal(learner.nets.critic.layers[0][0].weight) == changes


def test_later_updates_leave_the_encoder_that_the_autoencoder_reads():
    plain = make_policy(ChosenLatent())
    policy = Policy(replace(plain.config, encoder=TokenEncoder(8)), plain.features)
    policy.codec.load_state_dict(plain.codec.state_dict())
    learner = PLAS(critic=CriticConfig(HIDDEN), cloning_fraction=0.5).build(policy, 0, 4, Dataset([]))
    for changes in (True, True, False, False):
        weights = list(policy.encoder.parameters())
        before = [p.detach().clone() for p in weights]
        learner.update(make_batch())
        assert weights and all(p.equal(old) != changes for p, old in zip(weights, before, strict=True))


def test_the_warm_up_of_the_critic_begins_after_the_autoencoder():
    config = PLAS(critic=CriticConfig(HIDDEN), cloning_fraction=0.5, critic_warmup_updates=3)
    learner = config.build(make_policy(ChosenLatent()), 0, 8, Dataset([]))
    names = [learner.update(make_batch()).keys() for _ in range(8)]
    assert ["loss" in update for update in names] == 4 * [True] + 3 * [False] + [True]


def test_it_keeps_the_contract_of_learners():
    check_learner(PLAS(batch_size=8, critic=CriticConfig((8,))), (
        PolicyConfig(ChosenLatent(), MLP(16, 1, dropout=0.2), window=Window(2, 3), inputs=(STATE,)),))


def test_bad_settings_are_refused():
    with pytest.raises(Unsupported, match="CVAE has no latent to choose"):
        PLAS().build(make_policy(CVAE()), 0, 1, Dataset([]))
    for options, says in (({"max_latent": 0.0}, "max_latent"), ({"max_perturbation": -0.1}, "max_perturbation"),
                          ({"cloning_fraction": 1.0}, "cloning_fraction")):
        with pytest.raises(UserError, match=says):
            find_method("plas", **options)
