"""Advantage weighted actor-critic: losses of a peer, and weights in closed form."""

from __future__ import annotations

import pytest
import torch
from fixtures.d3rlpy import HIDDEN, LOSSES, STATE, TanhNet, fill_critic, make_batch, make_policy, sines
from fixtures.learning import call_step

from understudy.core import Unsupported
from understudy.data.episode import Dataset
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.heads.likelihood.gmm import GMM
from understudy.learn.algorithm import Engine
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.critic_learning import draw_plans
from understudy.learn.devices import Processes
from understudy.methods.offline_rl.awac import AWAC
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig
from understudy.testing import check_learner

RNG = torch.Generator().manual_seed(0)


def test_it_keeps_the_contract_of_learners():
    check_learner(AWAC(batch_size=8, critic=CriticConfig((8,)), n_samples=2), (
        PolicyConfig(Gaussian(), MLP(16, 1, dropout=0.2), inputs=(STATE,)),
        PolicyConfig(GMM(2), MLP(16, 1), inputs=(STATE,))))


@pytest.fixture
def learner() -> Engine:
    config = AWAC(critic=CriticConfig(HIDDEN), n_samples=4, temperature=2.0)
    learner = config.build(make_policy(Gaussian(min_std=0.0)), 0, 1, Dataset([]))
    learner.policy.net = TanhNet(101, LOSSES["awac"]["std"])
    fill_critic(learner.nets.critic, 200)
    fill_critic(learner.nets.target.critic, 300)
    return learner


def test_losses_equal_those_of_d3rlpy(learner, monkeypatch):
    """The peer draws its noise sample by sample, and adds the loss up over the batch."""
    expected, batch = LOSSES["awac"], make_batch()
    noise = sines((4, 6, 2), 20).transpose(0, 1).reshape(24, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *shape, **options: noise)
        weights = call_step(learner, "weight", batch, RNG)
    assert weights.tolist() == pytest.approx(expected["weights"], abs=1e-5)
    learner.minimize("policy", learner.policy.loss, batch, weights, normalize="rows")
    assert 6 * learner.end_update()["loss"] == pytest.approx(expected["policy"], rel=1e-5)


def test_the_weights_of_two_processes_are_those_of_one(learner, monkeypatch):
    batch, scores = make_batch(), (torch.linspace(-3, 5, 6), torch.zeros(6, 4))
    monkeypatch.setattr(AWAC, "compared_scores", lambda self, nets, part, rng: tuple(
        s[part.extra["row"][:, 0]] for s in scores))
    batch = batch.replace(extra={"row": torch.arange(6)[:, None]})

    def weights(rank, all_reduce, rows=(slice(0, 2), slice(2, 6))):
        monkeypatch.setattr(Processes, "all_reduce", all_reduce)
        monkeypatch.setattr(Processes, "current", lambda: Processes(rank, 2))
        return call_step(learner, "weight", batch.select_rows(rows[rank]), RNG)
    whole, given = call_step(learner, "weight", batch, RNG), []
    for rank in range(2):
        weights(rank, lambda self, tensors: given.append([t.clone() for t in tensors]))
    parts = [weights(rank, lambda self, tensors: [t.copy_(sum(g)) for t, *g in zip(tensors, *given, strict=True)])
             for rank in range(2)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_targets_are_of_the_policys_own_actions(learner):
    batch = make_batch()
    with torch.no_grad():
        plan = draw_plans(learner.policy, batch.next, 1, torch.Generator().manual_seed(5))[:, 0]
        following = torch.stack([layers(torch.cat([batch.next["observation.state"][:, 0], plan[:, 0]], -1))[:, 0]
                                 for layers in learner.nets.target.critic.layers]).amin(0)
        reward, ends = (batch.extra[k][:, 0] for k in ("next.reward", "next.terminated"))
        scores = learner.nets.critic.scores(batch.obs, batch.action)
        expected = (scores - reward - 0.99 * ~ends * following).square().sum(0)
        torch.testing.assert_close(call_step(learner, "critic_loss", batch, torch.Generator().manual_seed(5)), expected)
    assert plan.abs().max() <= 1


def test_a_head_without_temperature_is_refused():
    learner = AWAC(batch_size=6).build(make_policy(Flow()), 0, 1, Dataset([]))
    with pytest.raises(Unsupported, match="Flow has no temperature"):
        learner.update(make_batch())
