"""An update of behavior cloning."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fixtures.learning import Recover, batches, clone, weights

from understudy.core import Diverged
from understudy.data.augment import GaussianNoise
from understudy.heads.denoising.flow import Flow
from understudy.heads.memory.neighbors import Neighbors
from understudy.learn.fit import fit
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.sample_weights import ColumnWeights
from understudy.nets.ema import ConstantDecay
from understudy.nets.mlp import MLP
from understudy.nets.unet import UNet
from understudy.policy import Policy


def test_the_loss_is_the_weighted_mean_over_steps_that_are_real(data):
    learner = clone(data, sample_weights=ColumnWeights("intervention", weight=5.0, other_weight=0.5))
    batch = batches(learner, data, extra=("intervention",))(0)
    assert not batch.mask.all()
    with torch.no_grad():
        each = learner.policy.loss(batch, torch.Generator())
    weight = torch.where(batch.extra["intervention"] > 0, 5.0, 0.5)
    real = batch.mask.nonzero().tolist()
    expected = sum(weight[i, h] * each[i, h] for i, h in real) / sum(weight[i, h] for i, h in real)
    assert learner.update(batch)["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_what_stands_beyond_the_end_teaches_nothing(data):
    """Nor where a weight says that it should."""
    def trained(spoil):
        learner = clone(data, head=Flow(), sample_weights=ColumnWeights("intervention", weight=2.0))
        windows = learner.policy.windows(data, extra=("intervention",))
        for n in range(3):
            b = windows.batch(32, n)
            ghost = ~b.mask
            action = torch.where(ghost.unsqueeze(-1), spoil, b.action)
            learner.update(b.replace(action=action, extra={**b.extra, "intervention": b.extra["intervention"]
                                                           + spoil * ghost}))
        return weights(learner)
    assert torch.equal(trained(0.0), trained(7.0))


def test_an_update_is_a_function_of_seed_number_weights_and_batch(data):
    recipe = {"trunk": MLP(width=32, depth=1, dropout=0.3), "augmentations": (GaussianNoise("observation.state", 0.1),)}

    def update(seed=0, before=0, outer=0):
        learner = clone(data, head=Flow(), seed=seed, recipe=recipe)
        draw = batches(learner, data)
        learner.n_updates = before
        torch.manual_seed(outer)
        return learner.update(draw(0))["loss"]
    assert update() == update(outer=1)  # not of the global generator
    assert len({update(), update(seed=1), update(before=1)}) == 3


def test_an_update_leaves_the_global_generator_alone(data):
    learner = clone(data, head=Flow(), recipe={"trunk": MLP(width=32, depth=1, dropout=0.3)})
    draw, before = batches(learner, data), torch.get_rng_state()
    learner.update(draw(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_average_is_that_of_the_weights(data):
    learner = clone(data, ema=ConstantDecay(0.75))
    draw, expected = batches(learner, data), weights(learner)
    for n in range(4):
        learner.update(draw(n))
        expected = 0.75 * expected + 0.25 * weights(learner)
    average = torch.cat([p.flatten() for p in learner.trained_policy.parameters()])
    torch.testing.assert_close(average, expected)
    last = clone(data)
    last.update(batches(last, data)(0))
    assert torch.equal(torch.cat([p.flatten() for p in last.trained_policy.parameters()]), weights(last))
    assert not last.trained_policy.training and last.policy.training


def test_a_loss_that_is_no_number_names_the_update_and_harms_nothing(data):
    learner = clone(data)
    draw = batches(learner, data)
    learner.update(draw(0))
    before, b = weights(learner), draw(1)
    with pytest.raises(Diverged, match=r"update 2: the loss is nan\n  -> lower the learning rate"):
        learner.update(b.replace(action=b.action * torch.nan))
    assert torch.equal(weights(learner), before) and torch.isfinite(weights(learner)).all()


def test_a_penalty_is_added_and_trains_with_the_policy(data):
    def first(scale):
        learner = clone(data, auxiliary_losses=(Recover(scale),), steps=200)
        return learner, learner.update(batches(learner, data)(0))["loss"]
    (_, none), (_, one), (learner, two) = first(0.0), first(1.0), first(2.0)
    assert two - one == pytest.approx(one - none, rel=1e-4) and one > none
    losses = []
    fit(learner, batches(learner, data), 200, start=1, callbacks=[lambda n, _, s: losses.append(s["loss"])])
    assert losses[-1] < 0.3 * two
    assert not any("decode" in k for k in learner.trained_policy.state_dict())
    tensors, facts = learner.state()
    assert any("decode" in k for k in tensors)  # goes on with it


def test_a_policy_without_weights_takes_updates_and_stays(data):
    learner = clone(data, head=Neighbors())
    before = learner.trained_policy.net.keys.clone()
    losses = [learner.update(batches(learner, data)(n))["loss"] for n in range(3)]
    assert all(np.isfinite(losses)) and torch.equal(learner.trained_policy.net.keys, before)


@pytest.mark.parametrize("head, trunk, precision", [
    (Flow(), MLP(width=32, depth=1, dropout=0.2), "fp32"), (Neighbors(), MLP(width=32, depth=1), "fp32"),
    (Flow(), UNet((8, 16), 3, 4, 8), "bf16")], ids=["flow", "neighbors", "unet in bf16"])
def test_a_restored_learner_goes_on_bit_by_bit(data, head, trunk, precision):
    """Also into a policy that never saw the data: statistics and memories are in the state."""
    def fresh():
        return clone(
            data,
            OptimizerConfig(warmup_steps=3, precision=precision),
            head=head,
            ema=ConstantDecay(0.9),
            auxiliary_losses=(Recover(),),
            recipe={"trunk": trunk},
        )
    one = fresh()
    draw = batches(one, data)
    fit(one, draw, 7)
    tensors, facts = one.state()
    tensors = {k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    bare = Policy(one.policy.config, data.features())
    other = one.config.build(bare, 0, 20, data)
    other.restore(tensors, json.loads(json.dumps(facts)))
    assert {k: v.tolist() for k, v in other.state()[0].items()} == {k: v.tolist() for k, v in tensors.items()}
    fit(one, draw, 15, start=7)
    fit(other, draw, 15, start=7)
    for (name, tensor), other_tensor in zip(one.state()[0].items(), other.state()[0].values(), strict=True):
        assert torch.equal(tensor, other_tensor), name
    assert all(torch.equal(a, b) for a, b in zip(one.trained_policy.state_dict().values(),
                                                 other.trained_policy.state_dict().values(), strict=True))
