"""What a method declares, and the steps that the engine makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from understudy.core import ConfigError, part
from understudy.heads.likelihood.regression import Regression
from understudy.learn.algorithm import Algorithm, Net, first, loss, prepare
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner, random_dataset
from understudy.testing.methods import VECTOR

STATE = "observation.state"
CONSTANT = OptimizerConfig(lr=0.1, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)


@part
class Halves(Algorithm):
    """Cloning, weighted by a value that learns to be 1, and that is at most a half."""

    steps: int = 10
    batch_size: int = 4
    limit: float = 0.5

    def networks(self, policy, data):
        value = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(value.weight)
        return {"value": Net(value, CONSTANT, target=0.5), "policy": Net(policy, CONSTANT)}

    @prepare
    def ones(self, nets, batch, rng):
        assert not torch.is_grad_enabled()
        return batch.replace(extra={**batch.extra, "one": torch.ones(len(batch), 1)}), {"drawn": torch.ones(3)}

    @loss("value")
    def value_loss(self, nets, batch, rng):
        value = nets.value(batch.extra["one"])[:, 0]
        return (value - 1).square(), {"error": value}

    def weight(self, nets, batch, rng):
        return nets.value(batch.extra["one"])[:, 0].clamp(0, self.limit)

    @loss("policy", weights="weight", normalize="rows", when=lambda method, n_updates, steps: n_updates % 2 == 1)
    def policy_loss(self, nets, batch, rng):
        return nets.policy.loss(batch, rng)


def build(method: Algorithm) -> tuple[Any, Any]:
    data = random_dataset({STATE: VECTOR, "action": VECTOR}, episodes=3, steps=9)
    torch.manual_seed(0)
    policy = Policy(PolicyConfig(Regression(), MLP(8, 1)), data.features()).fit_statistics(data)
    learner = method.build(policy, 0, method.steps, data)
    return learner, learner.batch_sampler(data)


def test_a_method_keeps_the_contract_of_learners():
    check_learner(Halves())


def test_steps_are_made_in_order_and_when_they_are_due():
    learner, sampler = build(Halves())
    metrics = [learner.update(sampler.batch(4, step)) for step in range(2)]
    # the value has moved by 0.1 per update before the weight is read, and its copy half of the way each time
    assert metrics[0]["drawn"] == 1 and metrics[0]["value/error"] == 0 and "weight" not in metrics[0]
    assert metrics[1]["weight"] == pytest.approx(0.2, rel=5e-3)
    assert metrics[1]["value/error"] == pytest.approx(0.1, rel=5e-3)
    assert learner.nets.value.weight.item() == pytest.approx(0.2, rel=5e-3)
    assert learner.nets.target.value.weight.item() == pytest.approx(0.125, rel=5e-3)
    assert "loss" not in metrics[0] and metrics[1]["loss"] > 0


@part
class Replaced(Halves):
    """Its policy learns in the place of that of the base class, with the same decorator; a step comes before all."""

    @first
    @prepare
    def zeros(self, nets, batch, rng):
        return batch.replace(extra={**batch.extra, "zero": torch.zeros(len(batch))})

    def policy_loss(self, nets, batch, rng):
        return super().policy_loss(nets, batch, rng) + batch.extra["zero"].unsqueeze(1)


@part
class WithoutPolicy(Halves):
    """A step is left out."""

    policy_loss = None


def test_a_function_that_replaces_a_step_keeps_its_place_and_its_decorator():
    names = [step.name for step in Halves.steps_of_update()]
    assert names == ["ones", "value_loss", "policy_loss"]
    assert [step.name for step in Replaced.steps_of_update()] == ["zeros", *names]
    assert [step for step in Replaced.steps_of_update() if step.name in names] == Halves.steps_of_update()
    (learner, sampler), (other, _) = build(Halves()), build(Replaced())
    for step in range(4):
        assert learner.update(sampler.batch(4, step)) == other.update(sampler.batch(4, step))


def test_a_step_can_be_left_out():
    assert [step.name for step in WithoutPolicy.steps_of_update()] == ["ones", "value_loss"]
    learner, sampler = build(WithoutPolicy())
    before = learner.policy.net.state_dict()
    metrics = learner.update(sampler.batch(4, 0))
    assert metrics["loss"] == 1 and "value/loss" not in metrics
    assert all(torch.equal(before[name], value) for name, value in learner.policy.net.state_dict().items())


def test_a_loss_that_is_reduced_is_refused():
    class Reduced(Halves):
        @loss("value")
        def value_loss(self, nets, batch, rng):
            return super().value_loss(nets, batch, rng)[0].mean()
    learner, sampler = build(Reduced())
    with pytest.raises(ValueError, match=r"'value' has shape \(\): return one number per window"):
        learner.update(sampler.batch(4, 0))


def test_what_a_step_names_must_be_there():
    class OtherNetwork(Halves):
        @loss("valu")
        def value_loss(self, nets, batch, rng):
            return super().value_loss(nets, batch, rng)

    class OtherWeights(Halves):
        @loss("policy", weights="wieght")
        def policy_loss(self, nets, batch, rng):
            return super().policy_loss(nets, batch, rng)
    class NoOptimizer(Halves):
        def networks(self, policy, data):
            nets = super().networks(policy, data)
            return {**nets, "value": replace(nets["value"], optimizer=None)}
    with pytest.raises(ConfigError, match=r"value_loss: the network 'value' has weights, but no optimizer"):
        build(NoOptimizer())
    with pytest.raises(ConfigError, match=r"OtherNetwork.value_loss: .* has no network 'valu'(.|\n)*'value'"):
        build(OtherNetwork())
    with pytest.raises(ConfigError, match="OtherWeights.policy_loss: the method has no 'wieght'"):
        build(OtherWeights())


def test_a_network_is_trained_with_another_and_is_read_by_its_own_name():
    @part
    class Shared(Halves):
        def networks(self, policy, data):
            nets = super().networks(policy, data)
            return {**nets, "scale": Net(nn.Linear(1, 1), trained_with="value")}

        @loss("value")
        def value_loss(self, nets, batch, rng):
            return (nets.scale(nets.value(batch.extra["one"]))[:, 0] - 1).square()
    learner, sampler = build(Shared())
    before = learner.nets.scale.bias.item()
    learner.update(sampler.batch(4, 0))
    assert learner.nets.scale.bias.item() != before
    assert "networks.value.1.bias" in learner.state()[0] and "scale" not in learner.networks


def test_fields_are_options():
    learner, sampler = build(replace(Halves(), limit=0.05))
    metrics = [learner.update(sampler.batch(4, step)) for step in range(2)]
    assert metrics[1]["weight"] == pytest.approx(0.05)


def test_a_class_that_is_no_method_is_refused_with_what_it_lacks(tmp_path, monkeypatch):
    (tmp_path / "classless.py").write_text("class Steady:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"classless:Steady: the class Steady has no function `method`"):
        find_method("classless:Steady", trust=("classless",))
