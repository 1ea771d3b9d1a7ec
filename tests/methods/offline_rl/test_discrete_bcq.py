"""Batch-constrained Q-learning for classes: losses of a peer, and which classes count."""

from __future__ import annotations

import pytest
import torch
from fixtures.d3rlpy import QUANTILES, RNG, STATE, fill, losses_of, make_classes, make_policy_of_classes
from fixtures.learning import call_step
from torch import nn

from understudy.core import Unsupported, UserError
from understudy.data.episode import Dataset
from understudy.heads.likelihood.categorical import Categorical
from understudy.learn.algorithm import Engine
from understudy.methods import find_method
from understudy.methods.offline_rl.discrete_bcq import EXCLUDED, DiscreteBCQ, FrequentClasses
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig
from understudy.testing import check_learner


class TwoNets(nn.Module):
    """The networks of the probabilities and of the values, as the peer has them."""

    def __init__(self, value_phase: int, n_quantiles: int):
        super().__init__()
        self.parts = nn.ModuleList(nn.Sequential(
            nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, n)) for n in (3, 3 * n_quantiles))
        fill(self.parts[0].parameters(), 108, 0.5)
        fill(self.parts[1].parameters(), value_phase)

    def forward(self, x, t, context):
        return torch.cat([part(context.flat()) for part in self.parts], -1).unsqueeze(1)


class Outputs(nn.Module):
    """The same probabilities and values for all observations."""

    def __init__(self, probabilities: list[float], values: list[float]):
        super().__init__()
        self.outputs = torch.cat([torch.tensor(probabilities).log(), torch.tensor(values)])

    def forward(self, x, t, context):
        return self.outputs.expand(len(context.tokens), 1, -1)


def build(head: Categorical, **options) -> Engine:
    return DiscreteBCQ(**options).build(make_policy_of_classes(100, head), 0, 1, Dataset([]))


def best_classes(learner: Engine, head: FrequentClasses) -> list[int]:
    context = learner.policy.context(make_classes().obs)
    return head.logits(learner.policy.net, context, torch.zeros(6, 1, 0))[:, 0].argmax(1).tolist()


@pytest.mark.parametrize("n_quantiles", [1, QUANTILES])
def test_losses_equal_those_of_d3rlpy(n_quantiles):
    learner, batch = build(FrequentClasses(threshold=0.3, n_quantiles=n_quantiles), logit_weight=0.0), make_classes()
    for policy, phase in ((learner.policy, 200), (learner.nets.target.policy, 300)):
        policy.net.trunk = TwoNets(phase, n_quantiles)
    expected = losses_of("discrete_bcq", n_quantiles)
    total = expected["value"] + expected["cloning"]
    assert call_step(learner, "value_loss", batch, RNG).mean().item() == pytest.approx(total, abs=1e-5)
    assert best_classes(learner, learner.policy.config.head) == expected["classes"]


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, 0), (0.1, 0), (0.3, 1), (0.9, 2), (1.0, 2)])
def test_the_best_of_the_likely_classes_is_taken(threshold, expected):
    learner, batch = build(FrequentClasses(threshold=threshold)), make_classes()
    learner.policy.net.trunk = Outputs([0.08, 0.3, 0.62], [3.0, 2.0, 1.0])
    learner.nets.target.policy.net.trunk = Outputs([0.98, 0.01, 0.01], [10.0, 20.0, 30.0])
    assert best_classes(learner, learner.policy.config.head) == [expected] * 6
    ends = batch.extra["next.terminated"][:, 0]
    target = batch.extra["next.reward"][:, 0] + 0.99 * (10.0, 20.0, 30.0)[expected] * ~ends
    torch.testing.assert_close(learner.config.target_value(learner.nets, batch)[0], target)


def test_large_logits_are_penalized():
    losses = []
    for weight in (0.0, 0.5):
        learner = build(FrequentClasses(), logit_weight=weight)
        learner.policy.net.trunk = Outputs([0.08, 0.3, 0.62], [3.0, 2.0, 1.0])
        learner.nets.target.policy.net.trunk = Outputs([0.08, 0.3, 0.62], [3.0, 2.0, 1.0])
        losses.append(call_step(learner, "value_loss", make_classes(), RNG))
    penalty = torch.tensor([0.08, 0.3, 0.62]).log().square().mean()
    torch.testing.assert_close(losses[1] - losses[0], (0.5 * penalty).expand(6))


def test_excluded_classes_leave_the_likelihood_finite():
    head = FrequentClasses(threshold=1.0)
    learner, batch = build(head), make_classes()
    context = learner.policy.context(batch.obs)
    learner.policy.net.trunk = Outputs([0.2, 0.3, 0.5], [3.0, 2.0, 1.0])
    logits = head.logits(learner.policy.net, context, torch.zeros(6, 1, 0))
    assert (logits == EXCLUDED).sum() == 12
    assert head.entropy(learner.policy.net, context, torch.zeros(6, 1, 3)).abs().max() < 1e-6
    loss = learner.policy.loss(batch, RNG)[:, 0]
    torch.testing.assert_close(loss, -torch.tensor([0.2, 0.3, 0.5]).log().repeat(2))


def test_it_keeps_the_contract_of_learners():
    config = PolicyConfig(FrequentClasses(), MLP(16, 1, dropout=0.2), inputs=(STATE,))
    check_learner(DiscreteBCQ(batch_size=8), (config,))


def test_bad_settings_are_refused():
    with pytest.raises(Unsupported, match="Categorical does not say which classes are in the data"):
        build(Categorical())
    for threshold in (-0.1, 1.1):
        with pytest.raises(UserError, match="threshold"):
            find_method("discrete-bcq", threshold=threshold)
