"""Critic regularized regression: losses of a peer, and weights in closed form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fixtures.d3rlpy import (
    HIDDEN,
    LOSSES,
    RNG,
    STATE,
    StateNet,
    fill,
    fill_critic,
    inject_noise,
    make_batch,
    make_policy,
)
from fixtures.learning import call_step

from understudy.core import UserError
from understudy.data.episode import Dataset
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.heads.likelihood.gmm import GMM
from understudy.learn.algorithm import Engine
from understudy.learn.critic import CriticConfig
from understudy.methods import find_method
from understudy.methods.offline_rl.crr import CRR
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig
from understudy.testing import check_learner

EXPECTED = LOSSES["crr"]


def build(**options) -> Engine:
    config = CRR(critic=CriticConfig(HIDDEN, n_critics=1), **options)
    learner = config.build(make_policy(Gaussian(min_std=0.0)), 0, 1, Dataset([]))
    learner.policy.net, learner.nets.target.policy.net = StateNet(is_gaussian=True), StateNet(is_gaussian=True)
    fill(learner.nets.target.policy.net.parameters(), 500)
    fill_critic(learner.nets.critic, 200)
    fill_critic(learner.nets.target.critic, 300)
    return learner


def test_it_keeps_the_contract_of_learners():
    check_learner(CRR(batch_size=8, critic=CriticConfig((8,)), n_samples=2), (
        PolicyConfig(Gaussian(), MLP(16, 1, dropout=0.2), inputs=(STATE,)),
        PolicyConfig(GMM(2), MLP(16, 1), inputs=(STATE,))))


def test_losses_equal_those_of_d3rlpy(monkeypatch):
    """With one critic network. The target is of the lagged policy."""
    learner, batch = build(temperature=2.0), make_batch()
    inject_noise(monkeypatch)
    weights = call_step(learner, "weight", batch, RNG)
    assert weights.tolist() == pytest.approx(EXPECTED["weights"], abs=1e-5)
    assert call_step(learner, "critic_loss", batch, RNG).mean().item() == pytest.approx(EXPECTED["critic"], abs=1e-5)
    binary = call_step(build(weight_type="binary", advantage_type="max"), "weight", batch, RNG)
    assert binary.tolist() == EXPECTED["binary"] and 0 < binary.sum() < 6
    learner.minimize("policy", learner.policy.loss, batch, weights, normalize="rows")
    assert learner.end_update()["loss"] == pytest.approx(EXPECTED["policy"], abs=1e-5)


@pytest.mark.parametrize(("options", "expected"), [
    ({}, [2.718282, 0.082085, 5.0]), ({"advantage_type": "max"}, [0.135335, 0.004087, 5.0]),
    ({"weight_type": "binary"}, [1.0, 0.0, 1.0]),
    ({"weight_type": "binary", "advantage_type": "max"}, [0.0, 0.0, 1.0])])
def test_weights_in_closed_form(options, expected, monkeypatch):
    """The scores of two actions of the policy are -1 and 2."""
    learner = build(temperature=0.5, max_weight=5.0, n_samples=2, **options)
    scores = torch.tensor([1.0, -0.75, 9.0]), torch.tensor([[-1.0, 2.0]]).expand(3, 2)
    monkeypatch.setattr(CRR, "compared_scores", lambda self, nets, batch, rng: scores)
    assert call_step(learner, "weight", make_batch(), RNG).tolist() == pytest.approx(expected, rel=1e-4)


def test_bad_settings_are_refused():
    for options, says in (({"weight_type": "linear"}, "weight_type"), ({"advantage_type": "min"}, "advantage_type"),
                          ({"temperature": 0.0}, "temperature"), ({"n_samples": 0}, "n_samples"),
                          ({"max_weight": 0.0}, "max_weight")):
        with pytest.raises(UserError, match=says):
            replace(CRR(), **options)
    with pytest.raises(UserError, match="weight_type"):
        find_method("crr", weight_type="linear")
