"""The contract of learners, kept and broken."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from fixtures.gradient_learners import TD, TDLearner

from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.sample_weights import ColumnWeights
from understudy.nets.ema import ConstantDecay
from understudy.testing import ContractViolation, check_learner

LEARNERS = {
    "behavior cloning": BehaviorCloning(batch_size=8),
    "all options": BehaviorCloning(batch_size=8, optimizer=OptimizerConfig(accumulation_steps=3, warmup_steps=2),
                                   ema=ConstantDecay(0.9), sample_weights=ColumnWeights(), n_noise_samples=2),
    "two networks": TD(batch_size=8),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_keep_their_contract(name):
    check_learner(LEARNERS[name])


class _Forgets(TDLearner):
    def state(self):
        tensors, metadata = super().state()
        return {k: v for k, v in tensors.items() if not k.startswith("targets")}, metadata

    def restore(self, tensors, metadata):
        own, _ = super().state()
        super().restore({**own, **tensors}, metadata)


class _UsesGlobalGenerator(TDLearner):
    def value_loss(self, batch, rng):
        return super().value_loss(batch, rng)

    def update(self, batch):
        batch = batch.replace(extra={**batch.extra, "next.reward": batch.extra["next.reward"] + torch.rand(1)})
        return super().update(batch)


class _Dropout(TDLearner):
    def evaluation(self):  # training mode outside of a loss: dropout draws from the global generator
        return torch.no_grad()


class _Reduces(TDLearner):
    def value_loss(self, batch, rng):
        return super().value_loss(batch, rng).mean()


@dataclass(frozen=True)
class Broken(TD):
    learner: type = TDLearner

    def build(self, policy, seed, steps, data):
        return self.learner(self, policy, seed, steps)


@pytest.mark.parametrize(("learner", "said"), [
    (_Forgets, "must be bit-equal after resuming|its metrics differ"), (_UsesGlobalGenerator, "global generator"),
    (_Dropout, "global generator")])
def test_broken_learners_are_found(learner, said):
    with pytest.raises(ContractViolation, match=said):
        check_learner(Broken(batch_size=8, learner=learner))


def test_reduced_losses_are_found():
    with pytest.raises(ValueError, match="not reduced"):
        check_learner(Broken(batch_size=8, learner=_Reduces))
