"""Flow Q-learning: losses of the authors' code, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fixtures.d3rlpy import STATE, make_batch, make_policy
from fixtures.fql import LOSSES, Critic, FlowNet, OneStepNet, inject
from fixtures.learning import call_step

from understudy.core import ConfigError, Unsupported
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.learn.critic import CriticConfig
from understudy.methods.offline_rl.fql import FQL
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig
from understudy.testing import check_learner

ONE_STEP, RNG = Flow(1, prediction="sample"), torch.Generator()


def test_it_keeps_the_contract_of_learners():
    check_learner(FQL(batch_size=8, critic=CriticConfig((8,)), n_steps=2), (
        PolicyConfig(ONE_STEP, MLP(16, 1, dropout=0.2), window=Window(2, 3), inputs=(STATE,)),))


def test_losses_equal_those_of_the_authors(monkeypatch):
    """Theirs is the mean over the critic networks, and ours the sum."""
    learner, batch, expected = FQL().build(make_policy(ONE_STEP), 0, 1, Dataset([])), make_batch(), LOSSES["fql"]
    learner.nets.critic, learner.nets.target.critic = Critic(0), Critic(2)
    learner.policy.net, learner.nets.flow.net = OneStepNet(), FlowNet()
    inject(monkeypatch)
    losses = [call_step(learner, f"{name}_loss", batch, RNG).mean().item() for name in ("critic", "flow", "policy")]
    assert losses[0] / 2 == pytest.approx(expected["critic"], abs=1e-5)
    assert losses[1] == pytest.approx(expected["bc_flow_loss"], abs=1e-5)
    assert losses[2] == pytest.approx(10 * expected["distill_loss"] + expected["q_loss"], abs=1e-5)


def test_a_head_without_noise_of_the_actions_shape_is_refused():
    with pytest.raises(Unsupported, match=r"(?s)the head is Regression.*use Flow\(1, prediction=\"sample\"\)"):
        FQL().build(make_policy(Regression()), 0, 1, Dataset([]))


@pytest.mark.parametrize("options", [{"time_distribution": "beta"}, {"times": "each"},
                                     {"coupling": "optimal_transport"}, {"condition_weight": 2.0}])
def test_options_of_the_heads_loss_are_refused(options):
    with pytest.raises(ConfigError, match=f"Flow.{next(iter(options))}: no loss of the head trains the policy"):
        FQL().build(make_policy(replace(ONE_STEP, **options)), 0, 1, Dataset([]))
