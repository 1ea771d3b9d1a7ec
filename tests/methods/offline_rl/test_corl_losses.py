"""Losses of EDAC, SPOT, ReBRAC, AWAC and CQL equal those of CORL's single files, for fixed weights and one batch."""

from __future__ import annotations

import json

import pytest
import torch
from fixtures.d3rlpy import (
    HIDDEN,
    RNG,
    ActionNet,
    StateNet,
    TanhNet,
    fill,
    fill_critic,
    inject_noise,
    make_batch,
    make_policy,
    sines,
)
from fixtures.fql import ActorNet
from fixtures.fql import Critic as SineCritic
from fixtures.learning import call_step
from folders import TESTS

from understudy.data.episode import Dataset
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.heads.likelihood.regression import Regression
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.td3 import NEXT_ACTION, TD3
from understudy.methods.offline_rl.awac import AWAC
from understudy.methods.offline_rl.cql import CQL
from understudy.methods.offline_rl.edac import EDAC
from understudy.methods.offline_rl.spot import SPOT
from understudy.nets.mlp import MLP

LOSSES = json.loads((TESTS / "fixtures" / "corl_losses.json").read_text(encoding="utf-8"))
TWO = CriticConfig(HIDDEN)


@pytest.fixture(autouse=True)
def noise(monkeypatch):
    inject_noise(monkeypatch)


def built(config, head, **options):
    learner = config.build(make_policy(head, **options), 0, 1, Dataset([]))
    fill_critic(learner.networks["critic"], 200)
    fill_critic(learner.targets["critic"].module, 300)
    return learner


def equals(loss: torch.Tensor, expected: float) -> None:
    assert loss.mean().item() == pytest.approx(expected, abs=1e-5)


def test_edac():
    """Of three critics. Its temperature is adjusted to an entropy of -1 for each of two components."""
    learner = built(EDAC(critic=CriticConfig(HIDDEN, n_critics=3), temperature=0.5, target_entropy=-1.0,
                                   bc_weight=0.0, diversity_weight=0.7), SquashedGaussian())
    learner.policy.net.trunk = StateNet()
    fill(learner.policy.net.trunk.parameters(), 100, 0.3)
    expected, batch = LOSSES["edac"], make_batch()
    equals(call_step(learner, "critic_loss", batch, RNG), expected["critic"])
    equals(learner.config.similarity(learner.nets, batch), expected["diversity"])
    policy, temperature = call_step(learner, "policy_loss", batch, RNG)
    equals(policy, expected["policy"])
    equals(temperature, expected["temperature"])


def test_spot():
    learner = built(SPOT(critic=TWO, bc_weight=0.7, beta=0.25), Regression(), trunk=MLP(16, 1))
    learner.policy.net, learner.nets.target.policy.net = TanhNet(400), TanhNet(500)
    autoencoder = learner.nets.behavior.net
    autoencoder.posterior, autoencoder.decoder = ActionNet(2, (4, 4), 600), ActionNet(4, (2,), 700)
    expected, batch = LOSSES["spot"], make_batch()
    equals(call_step(learner, "behavior_loss", batch, RNG), expected["vae"])
    equals(call_step(learner, "critic_loss", batch, RNG), expected["critic"])
    equals(call_step(learner, "policy_loss", batch, RNG), expected["policy"])


def test_rebrac():
    """Its distances are sums over two components. Its policy maximizes the smallest score, and ours the first."""
    learner = built(TD3(critic=TWO, bc_weight=0.6, critic_bc_weight=0.4), Regression())
    learner.nets.critic, learner.nets.target.critic = SineCritic(0), SineCritic(2)
    learner.policy.net, learner.nets.target.policy.net = ActorNet(0.0), ActorNet(0.5)
    batch = make_batch()
    following = torch.cat([sines((6, 2), 7), torch.ones(6, 1)], 1)[:, None]
    equals(call_step(learner, "critic_loss", batch.replace(extra={**batch.extra, NEXT_ACTION: following}), RNG),
           LOSSES["rebrac"]["critic"])
    learner.nets.critic = SineCritic(0, only_smallest=True)
    equals(call_step(learner, "policy_loss", batch, RNG), LOSSES["rebrac"]["policy"])


def test_awac():
    """Its weights are exponentials of advantages of the smaller score, and ours their softmax over the batch."""
    learner, batch = built(AWAC(critic=TWO, temperature=2.0), Gaussian(std=0.6)), make_batch()
    learner.policy.net = TanhNet(100)
    equals(call_step(learner, "critic_loss", batch, RNG), LOSSES["awac"]["critic"])
    score, sampled = learner.config.compared_scores(learner.nets, batch, RNG)
    exponentials = ((score - sampled.mean(1)) / 2).exp()
    torch.testing.assert_close(call_step(learner, "weight", batch, RNG), exponentials / exponentials.mean())
    equals(exponentials * learner.policy.loss(batch, RNG)[:, 0], LOSSES["awac"]["policy"])


def test_cql():
    learner = built(CQL(critic=TWO, temperature=0.5, target_entropy=None, n_samples=4), SquashedGaussian())
    learner.policy.net.trunk = StateNet()
    equals(call_step(learner, "critic_loss", make_batch(), RNG), LOSSES["cql"]["critic"])
