"""Batch-constrained Q-learning: losses of a peer, limits of the actions, and what each loss trains."""

from __future__ import annotations

import pytest
import torch
from fixtures.d3rlpy import (
    HIDDEN,
    LOSSES,
    QUANTILES,
    RNG,
    STATE,
    ActionNet,
    fill_critic,
    inject_noise,
    losses_of,
    make_batch,
    make_policy,
)
from fixtures.learning import call_step

from understudy.core import Unsupported, UserError
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.execute.planners import BestOfN
from understudy.heads.likelihood.cvae import CVAE
from understudy.learn.algorithm import Engine
from understudy.learn.critic import CriticConfig
from understudy.methods import find_method
from understudy.methods.offline_rl.bcq import BCQ, PerturbedCVAE
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig
from understudy.testing import check_learner

EXPECTED = LOSSES["bcq"]


@pytest.fixture
def learner() -> Engine:
    return build()


def build(n_quantiles: int = 1) -> Engine:
    config = BCQ(critic=CriticConfig(HIDDEN, n_quantiles=n_quantiles), n_samples=4)
    learner = config.build(make_policy(PerturbedCVAE(0.2)), 0, 1, Dataset([]))
    for policy, phase in ((learner.policy, 100), (learner.nets.target.policy, 500)):
        policy.net["perturbation"] = ActionNet(2, (2,), phase)
        policy.net["cvae"].posterior, policy.net["cvae"].decoder = ActionNet(2, (4, 4), 600), ActionNet(4, (2,), 700)
    fill_critic(learner.nets.critic, 200)
    fill_critic(learner.nets.target.critic, 300)
    return learner


def test_losses_equal_those_of_d3rlpy(learner, monkeypatch):
    """If the lagged autoencoder is the newest one, which the peer uses."""
    inject_noise(monkeypatch)
    batch = make_batch()
    cloning, score = call_step(learner, "policy_loss", batch, RNG)
    assert cloning.mean().item() == pytest.approx(EXPECTED["vae"], abs=1e-5)
    assert score.mean().item() == pytest.approx(EXPECTED["policy"], abs=1e-5)
    assert call_step(learner, "critic_loss", batch, RNG).mean().item() == pytest.approx(EXPECTED["critic"], abs=1e-5)


def test_the_loss_of_quantiles_equals_that_of_d3rlpy(monkeypatch):
    inject_noise(monkeypatch)
    expected = losses_of("bcq", QUANTILES)["critic"]
    loss = call_step(build(QUANTILES), "critic_loss", make_batch(), RNG).mean().item()
    assert loss == pytest.approx(expected, abs=1e-5)


def test_samples_differ_from_those_of_the_autoencoder_by_the_limit_at_most(learner):
    batch, noise = make_batch(), 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    context, net = learner.policy.context(batch.obs), learner.policy.net
    decoded, *changed = (PerturbedCVAE(limit).sample(net, context, noise) for limit in (0.0, 0.2, 0.4))
    torch.testing.assert_close(changed[0] - decoded, (changed[1] - decoded) / 2)
    assert 0.02 < (changed[0] - decoded).abs().max() < 0.2
    clipped = CVAE(temperature=1.0).sample(net["cvae"], context, noise.clamp(-0.5, 0.5))
    torch.testing.assert_close(decoded, clipped)


@pytest.mark.parametrize("term", [0, 1])
def test_cloning_trains_the_autoencoder_and_the_score_the_change(learner, term):
    call_step(learner, "policy_loss", make_batch(), torch.Generator().manual_seed(0))[term].sum().backward()
    for name, parameter in learner.policy.net.named_parameters():
        assert (parameter.grad is not None) == (name.startswith("cvae") == (term == 0)), name


def test_it_keeps_the_contract_of_learners():
    check_learner(BCQ(batch_size=8, critic=CriticConfig((8,)), n_samples=2), (
        PolicyConfig(PerturbedCVAE(), MLP(16, 1, dropout=0.2), window=Window(2, 3), inputs=(STATE,)),))


def test_the_best_of_as_many_actions_is_taken():
    method = find_method("bcq", n_samples=7)
    assert method.learner.n_samples == 7 and method.inference == (BestOfN(n=7),)


def test_bad_settings_are_refused():
    with pytest.raises(Unsupported, match="nothing keeps the actions of CVAE close to stored ones"):
        BCQ().build(make_policy(CVAE()), 0, 1, Dataset([]))
    for options, says in (({"max_perturbation": -0.1}, "max_perturbation"), ({"n_samples": 0}, "n_samples")):
        with pytest.raises(UserError, match=says):
            find_method("bcq", **options)
    with pytest.raises(UserError, match="min_weight"):
        BCQ(min_weight=1.5)
