"""Learning: the optimizer's options, what an update of Clone is, weights, devices and what looks on."""

from __future__ import annotations

import io
import json
import math
import sys
import types
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from understudy.core import Batch, Unsupported, UserError
from understudy.data.augment import GaussianNoise
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.base import Head
from understudy.heads.flow import Flow
from understudy.heads.neighbors import Neighbors
from understudy.heads.regression import Regression
from understudy.learn import devices, optimizer
from understudy.learn.behavior_cloning import AuxiliaryLoss, BehaviorCloning, BehaviorCloningLearner
from understudy.learn.callbacks import LossCurve, ProgressBar, format_duration
from understudy.learn.fit import fit
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.sample_weights import AdvantageWeights, ColumnWeights, CurriculumWeights, UniformWeights
from understudy.learn.train import check_method, train
from understudy.methods.behavior_cloning.bc import bc
from understudy.nets.ema import ConstantDecay
from understudy.nets.mlp import MLP
from understudy.nets.unet import UNet
from understudy.policy import Policy, PolicyConfig

CPU = torch.device("cpu")
LAST = ConstantDecay(0.0)  # what acts are the last weights


@pytest.fixture(scope="module")
def data() -> Dataset:
    rng = np.random.default_rng(0)

    def episode(n):
        seen = rng.normal(size=(n, 3)).astype(np.float32)
        return Episode({"observation.state": seen, "action": np.tanh(seen[:, :2] + seen[:, 1:]),
                        "intervention": (np.arange(n) % 3 == 0).astype(np.float32)})
    return Dataset([episode(n) for n in (17, 9, 23, 12)])


def policy(data, head: Head | None = None, seed: int = 0, **recipe) -> Policy:
    torch.manual_seed(seed)
    recipe = {"trunk": MLP(width=32, depth=1), "window": Window(2, 4), **recipe}
    recipe = PolicyConfig(head or Regression(), inputs=("observation.state",), **recipe)
    return Policy(recipe, data.features()).fit_statistics(data)


def clone(
    data, optim: OptimizerConfig | None = None, *, head=None, steps=20, seed=0, recipe=None, **learning
) -> BehaviorCloningLearner:
    learning = {"ema": LAST, "batch_size": 32, **learning}
    return BehaviorCloning(optimizer=optim or OptimizerConfig(), **learning).build(
        policy(data, head, **recipe or {}), seed, steps, data
    )


def batches(learner: BehaviorCloningLearner, data, size=32, **options):
    windows = learner.policy.windows(data, **options)
    return lambda n: windows.batch(size, n)


def weights(learner: BehaviorCloningLearner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.policy.parameters()])


# -- OptimizerConfig
# -----------------------------------------------------------------------------------------------------------


def test_the_rate_warms_up_in_a_line_and_falls_as_a_cosine():
    optimizer = OptimizerConfig(warmup_steps=4)
    assert [optimizer.lr_factor(n, 104) for n in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert optimizer.lr_factor(4 + 25, 104) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert optimizer.lr_factor(54, 104) == pytest.approx(0.5)
    assert optimizer.lr_factor(104, 104) == pytest.approx(0.0)
    assert [OptimizerConfig(lr_schedule="constant").lr_factor(n, 10) for n in (0, 5, 9)] == [1.0, 1.0, 1.0]
    rates = [optimizer.lr_factor(n, 104) for n in range(104)]
    assert rates[4:] == sorted(rates[4:], reverse=True) and min(rates) > 0


def test_the_rate_that_an_update_reports_is_the_one_it_took(data):
    learner = clone(data, OptimizerConfig(lr=0.01, warmup_steps=2, grad_clip_norm=None), steps=10)
    seen = []
    fit(learner, batches(learner, data), 10, callbacks=[lambda n, _, s: seen.append(s["rate"])])
    assert seen == pytest.approx([0.01 * learner.config.optimizer.lr_factor(n, 10) for n in range(10)])
    # Adam's very first step moves each weight with a gradient by the rate (Kingma and Ba 2015, section 2.1).
    first = clone(data, OptimizerConfig(lr=0.01, warmup_steps=1, weight_decay=0, grad_clip_norm=None))
    before = weights(first)
    first.update(batches(first, data)(0))
    assert (weights(first) - before).abs().max().item() == pytest.approx(0.005, rel=1e-3)


def test_parts_of_a_batch_add_up_to_the_batch(data):
    """With padding and weights, so that the parts count unequally; 32 rows in 3 are 10, 11 and 11."""
    def trained(parts):
        learner = clone(data, OptimizerConfig(accumulation_steps=parts), sample_weights=ColumnWeights())
        fit(learner, batches(learner, data, extra=("intervention",)), 8)
        return weights(learner)
    whole = trained(1)
    for parts in (2, 3, 8):
        torch.testing.assert_close(trained(parts), whole, rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="each batch is split into 33 parts"):
        clone(data, OptimizerConfig(accumulation_steps=33))


def test_a_gradient_is_clipped_to_its_norm_and_reported_before(data):
    def gradient(clip):
        learner = clone(data, OptimizerConfig(grad_clip_norm=clip))
        batch = batches(learner, data)(0)
        optimizer = learner.optimizers["policy"]
        optimizer.backward(learner.policy.loss(batch, torch.Generator()).sum())
        norm = optimizer.clip_gradients()
        return norm, torch.cat([p.grad.flatten() for p in optimizer.parameters if p.grad is not None])
    free, plain = gradient(None)
    assert plain.norm().item() == pytest.approx(free.item(), rel=1e-5) and free > 0.1
    norm, clipped = gradient(0.05)
    assert norm.item() == pytest.approx(free.item(), rel=1e-6)
    assert clipped.norm().item() == pytest.approx(0.05, rel=1e-4)
    torch.testing.assert_close(clipped / clipped.norm(), plain / plain.norm())


def test_decay_shrinks_matrices_and_nothing_else():
    module = nn.Linear(3, 2)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    descent = OptimizerConfig(lr=0.1, weight_decay=0.5, lr_schedule="constant").build([module], 1, CPU)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    descent.clip_gradients()
    descent.step(0)
    torch.testing.assert_close(module.weight.data, before["weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(module.bias.data, before["bias"])


def test_bfloat16_trains_and_keeps_the_weights_in_float32(data):
    def last(precision):
        learner = clone(data, OptimizerConfig(lr=3e-3, precision=precision), steps=150, recipe={"window": Window()})
        losses = []
        fit(learner, batches(learner, data), 150, callbacks=[lambda n, _, s: losses.append(s["loss"])])
        assert all(p.dtype == torch.float32 for p in learner.trained_policy.parameters())
        return losses
    half, full = last("bf16"), last("fp32")
    assert half != full  # it did compute otherwise
    assert np.mean(half[-20:]) < 0.1 * half[0]
    assert np.mean(half[-20:]) == pytest.approx(np.mean(full[-20:]), rel=0.3)


def test_float16_needs_cuda(data):
    with pytest.raises(UserError, match="precision 'fp16' needs a CUDA device, but the device is cpu"):
        clone(data, OptimizerConfig(precision="fp16"))


@pytest.mark.gpu
def test_float16_trains_on_a_gpu(data):
    made = policy(data, window=Window()).to("cuda")
    config, losses = BehaviorCloning(optimizer=OptimizerConfig(lr=3e-3, precision="fp16")), []
    learner = config.build(made, 0, 200, data)
    fit(learner, batches(learner, data), 200, callbacks=[lambda n, _, s: losses.append(s["loss"])])
    assert np.mean(losses[-20:]) < 0.1 * losses[0] and learner.optimizers["policy"].scaler.get_scale() > 1
    tensors, facts = learner.state()
    again = BehaviorCloning(optimizer=OptimizerConfig(lr=3e-3, precision="fp16")).build(
        policy(data, window=Window()).to("cuda"), 0, 200, data
    )
    again.restore(tensors, json.loads(json.dumps(facts)))
    assert again.optimizers["policy"].scaler.get_scale() == learner.optimizers["policy"].scaler.get_scale()


def test_precision_follows_size_and_hardware(data, monkeypatch):
    cuda = torch.device("cuda")
    for fast in (True, False):
        monkeypatch.setattr(optimizer, "has_fast_bf16", lambda device, fast=fast: fast)
        assert (
            optimizer.automatic_precision(CPU, 4_000_000)
            == optimizer.automatic_precision(cuda, 10**9)
            == ("bf16" if fast else "fp32")
        )
        assert optimizer.automatic_precision(CPU, 3_999_999) == "fp32"
    monkeypatch.setattr(optimizer, "has_fast_bf16", lambda device: True)
    assert clone(data).optimizers["policy"].precision == "fp32", "a small MLP"
    large = {"recipe": {"trunk": MLP(width=1024, depth=2), "window": Window()}}
    assert clone(data, **large).optimizers["policy"].precision == "bf16"
    assert clone(data, OptimizerConfig(precision="fp32"), **large).optimizers["policy"].precision == "fp32"


def test_bf16_is_fast_where_the_processor_says_so(monkeypatch):
    for told, fast in (({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False),
                       ({}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda told=told: told)
        assert optimizer.has_fast_bf16(CPU) is fast
    assert not optimizer.has_fast_bf16(torch.device("mps"))


def test_steps_are_those_of_the_weights_however_they_lie_in_memory():
    """The fused step goes through memory in order: gradient and moments must lie as the weight does, restored ones
    as well."""
    rng = torch.Generator().manual_seed(0)
    start, pulls = torch.randn(4, 6, 5, generator=rng), torch.randn(6, 4, 6, 5, generator=rng)
    plain, turned = nn.Linear(1, 1), nn.Linear(1, 1)
    plain.weight = nn.Parameter(start.clone())
    turned.weight = nn.Parameter(start.transpose(1, 2).contiguous().transpose(1, 2))
    descents = [OptimizerConfig(lr=0.1, weight_decay=0.1).build([m], 6, CPU) for m in (plain, turned)]
    for n, pull in enumerate(pulls):
        for module, descent in zip((plain, turned), descents, strict=True):
            descent.backward((module.weight * pull).sum())
            descent.clip_gradients()
            descent.step(n)
        if n == 2:  # as from a file
            tensors, facts = descents[1].state()
            assert {v.shape for v in tensors.values() if v.ndim == 3} == {start.shape}
            torch.testing.assert_close(tensors["0.exp_avg"], descents[0].state()[0]["0.exp_avg"])
            descents[1] = OptimizerConfig(lr=0.1, weight_decay=0.1).build([turned], 6, CPU)
            descents[1].restore({k: v.contiguous().clone() for k, v in tensors.items()}, facts)
    assert not turned.weight.is_contiguous()
    torch.testing.assert_close(turned.weight, plain.weight)


@pytest.mark.slow  # the compiler takes its time
@pytest.mark.parametrize("trunk", [MLP(width=32, depth=1), UNet((8, 16), 3, 4, 8)], ids=["mlp", "unet"])
def test_compiled_networks_train_alike(data, trunk):
    def trained(compiled):
        learner = clone(data, OptimizerConfig(compile=compiled), head=Flow(), steps=5, recipe={"trunk": trunk})
        fit(learner, batches(learner, data), 5)
        return learner
    torch._dynamo.utils.counters.clear()
    compiled = trained(True)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    plain = trained(False)
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=1e-3, atol=1e-4)
    assert compiled.policy.state_dict().keys() == plain.policy.state_dict().keys()


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"accumulation_steps": 0},
        {"grad_clip_norm": 0.0},
        {"warmup_steps": -1},
        {"lr_schedule": "linear"},
        {"precision": "fp8"},
    ],
)
def test_options_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        OptimizerConfig(**wrong)


# -- an update -------------------------------------------------------------------------------------------------------


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
    found = torch.cat([p.flatten() for p in learner.trained_policy.parameters()])
    torch.testing.assert_close(found, expected)
    last = clone(data)
    last.update(batches(last, data)(0))
    assert torch.equal(torch.cat([p.flatten() for p in last.trained_policy.parameters()]), weights(last))
    assert not last.trained_policy.training and last.policy.training


def test_a_loss_that_is_no_number_names_the_update_and_harms_nothing(data):
    learner = clone(data)
    draw = batches(learner, data)
    learner.update(draw(0))
    before, b = weights(learner), draw(1)
    with pytest.raises(UserError, match=r"update 2: the loss is nan\n  -> lower the learning rate"):
        learner.update(b.replace(action=b.action * torch.nan))
    assert torch.equal(weights(learner), before) and torch.isfinite(weights(learner)).all()


@dataclass(frozen=True)
class Recover(AuxiliaryLoss):
    """The observation from the context: an auxiliary loss with weights of its own."""

    scale: float = 1.0

    def build(self, policy):
        return _Recover(self, policy)


class _Recover(nn.Module):
    def __init__(self, spec, policy):
        super().__init__()
        self.spec, self.decode = spec, nn.Linear(policy.encoder.tokens * policy.encoder.width, 3)

    def forward(self, policy, batch: Batch, rng, captured):
        gap = self.decode(policy.context(batch.obs).flat()) - batch.obs["observation.state"][:, -1]
        return self.spec.scale * gap.square().mean(-1)


def test_a_penalty_is_added_and_trains_with_the_policy(data):
    def first(scale):
        learner = clone(data, auxiliary_losses=(Recover(scale),), steps=200)
        return learner, learner.update(batches(learner, data)(0))["loss"]
    (_, none), (_, one), (learner, two) = first(0.0), first(1.0), first(2.0)
    assert two - one == pytest.approx(one - none, rel=1e-4) and one > none
    seen = []
    fit(learner, batches(learner, data), 200, start=1, callbacks=[lambda n, _, s: seen.append(s["loss"])])
    assert seen[-1] < 0.3 * two
    assert not any("decode" in k for k in learner.trained_policy.state_dict())
    tensors, facts = learner.state()
    assert any("decode" in k for k in tensors)  # goes on with it


def test_a_policy_without_weights_takes_updates_and_stays(data):
    learner = clone(data, head=Neighbors())
    before = learner.trained_policy.net.keys.clone()
    seen = [learner.update(batches(learner, data)(n))["loss"] for n in range(3)]
    assert all(np.isfinite(seen)) and torch.equal(learner.trained_policy.net.keys, before)


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
    for (name, mine), theirs in zip(one.state()[0].items(), other.state()[0].values(), strict=True):
        assert torch.equal(mine, theirs), name
    assert all(torch.equal(a, b) for a, b in zip(one.trained_policy.state_dict().values(),
                                                 other.trained_policy.state_dict().values(), strict=True))


# -- weights ---------------------------------------------------------------------------------------------------------


def test_weights(data):
    made = policy(data)
    batch = made.windows(data, extra=("intervention",)).batch(8, 0)
    assert torch.equal(UniformWeights()(batch, made), torch.ones(8))
    column = ColumnWeights("intervention", 4.0, 0.25)
    assert torch.equal(column(batch, made), torch.where(batch.extra["intervention"] == 1, 4.0, 0.25))
    assert BehaviorCloning(sample_weights=column).extra == ("intervention",) and BehaviorCloning().extra == ()
    with pytest.raises(UserError, match="the batch has no column 'takeover' in extra; it has intervention, index"):
        ColumnWeights("takeover")(batch, made)
    advantage = torch.linspace(-1, 3, 8)
    found = AdvantageWeights(lambda b: advantage, beta=2.0, max_weight=10.0)(batch, made)
    assert found.tolist() == pytest.approx([min(math.exp(2 * a), 10.0) for a in advantage.tolist()], rel=1e-5)


def test_weights_choose_what_is_learned():
    """Two answers for one observation, at odds of 3 to 1 by weight: the mean is theirs."""
    seen = np.zeros((64, 1), np.float32)
    answer = (np.arange(64) % 2).astype(np.float32)
    data = Dataset([Episode({"observation.state": seen, "action": answer[:, None], "intervention": answer})])
    learner = clone(data, OptimizerConfig(lr=0.01), steps=200, sample_weights=ColumnWeights("intervention", 3.0, 1.0),
                    recipe={"window": Window()})
    windows = learner.policy.windows(data, extra=("intervention",))
    fit(learner, lambda n: windows.gather(np.arange(64)), 200)
    plan = learner.trained_policy.plan({"observation.state": torch.zeros(1, 1, 1)}, torch.zeros(1, 1, 0))
    assert plan.item() == pytest.approx(0.75, abs=0.01)


def test_a_curriculum_settles_on_one_of_two_answers():
    """With equal weights it is their mean, 2/3."""
    answer = (np.arange(60) % 3 > 0).astype(np.float32)
    data = Dataset([Episode({"observation.state": np.zeros((60, 1), np.float32), "action": answer[:, None]})])
    learner = clone(data, OptimizerConfig(lr=0.01), steps=200, sample_weights=CurriculumWeights(0.2),
                    recipe={"window": Window()})
    windows = learner.policy.windows(data)
    fit(learner, lambda n: windows.gather(np.arange(60)), 200)
    policy, batch = learner.trained_policy, windows.gather(np.arange(60))
    plan = policy.plan({"observation.state": torch.zeros(1, 1, 1)}, torch.zeros(1, 1, 0)).item()
    assert min(abs(plan), abs(plan - 1)) < 0.05
    weights, near = CurriculumWeights(2.0)(batch, policy), torch.from_numpy(answer == round(plan))
    gap = policy.loss(batch, torch.Generator())[:2, 0].diff().abs().item()
    assert (weights[near] == 1).all() and weights[~near].numpy() == pytest.approx(math.exp(-gap / 2), rel=1e-4)
    with pytest.raises(Unsupported, match="the loss of Flow is no log-likelihood"):
        CurriculumWeights().build(Policy(PolicyConfig(Flow(), MLP(8, 1)), data.features()), data)
    with pytest.raises(UserError, match="temperature is 0"):
        CurriculumWeights(0)


# -- devices ---------------------------------------------------------------------------------------------------------


def test_devices():
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert devices.choose_device("auto").type == best
    assert devices.choose_device("cpu") == CPU
    with pytest.raises(UserError, match="no device 'gpu'"):
        devices.choose_device("gpu")
    absent = "mps" if best != "mps" else "cuda"
    with pytest.raises(UserError, match=f"no {absent} device that PyTorch can use"):
        devices.choose_device(absent)


def test_shares_make_up_the_batch():
    for count in (1, 2, 3, 7):
        rows = [i for rank in range(count) for i in range(32)[devices.Processes(rank, count).row_slice(32)]]
        assert rows == list(range(32))


def test_a_share_is_those_rows_of_the_batch(data):
    from understudy.data.window import Goal

    for window in (Window(2, 4), Window(2, 4, goals=(Goal("observation.state"),))):
        made = window.windows(data, ("observation.state", *(g.into for g in window.goals)), "action")
        whole, part = made.batch(16, 5, 1), made.batch(16, 5, 1, slice(4, 9))
        assert torch.equal(part.action, whole.action[4:9])
        assert all(torch.equal(part.obs[k], whole.obs[k][4:9]) for k in whole.obs)
        assert torch.equal(part.extra["index"], whole.extra["index"][4:9])


def test_batches_made_ahead_are_the_same_batches():
    made = []

    def batch(n):
        made.append(n)
        return n * n
    draw = devices.prefetch(batch, torch.device("cuda"), 6)
    assert [draw(n) for n in (0, 1, 2)] == [0, 1, 4]
    assert [draw(n) for n in (5, 0)] == [25, 0]  # out of turn, as after a resume
    assert max(made) == 5  # none beyond the last
    assert devices.prefetch(batch, CPU, 6) is batch


# -- what looks on ---------------------------------------------------------------------------------------------------


def test_a_curve_is_the_mean_of_each_stretch_however_it_was_interrupted():
    said, losses = [], [1.0, 2.0, 6.0, 4.0, 5.0, 9.0, 7.0]
    curve = LossCurve(3, lambda **line: said.append(line))
    for step, loss in enumerate(losses, 1):
        if step in (2, 5):
            curve = LossCurve(3, curve.write, json.loads(json.dumps(curve.state)))
        curve(step, None, {"loss": loss})
    assert said == [{"step": 3, "loss": 3.0}, {"step": 6, "loss": 6.0}]


def _watched(monkeypatch, steps, seconds, bar):
    from rich.console import Console

    from understudy.learn import callbacks

    out, clock = io.StringIO(), iter(range(1000))
    progress = ProgressBar(steps, bar=bar)
    progress.console = Console(file=out)
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: seconds * next(clock))
    with progress:
        for n in range(1, 15):
            progress(n, None, {"loss": 1.0})
    return out.getvalue()


def test_what_takes_long_says_so_once_and_what_does_not_is_quiet(monkeypatch):
    said = _watched(monkeypatch, 100_011, 0.1, None)
    assert said.count("about 2.8 hours") == 1 and "10 a second" in said and "Ctrl-C" in said
    assert _watched(monkeypatch, 9_000, 0.1, None) == ""  # 15 minutes
    assert _watched(monkeypatch, 100_011, 0.1, False) == ""


def test_durations_in_words():
    assert [format_duration(s) for s in (40, 900, 5400, 7200, 90_000, 400_000)] == [
        "40 seconds", "15 minutes", "1.5 hours", "2 hours", "25 hours", "4.6 days"]


def test_metrics_for_others(monkeypatch):
    """Neither package is needed to run the tests: what they are told is what counts."""
    from understudy.learn import callbacks

    told = []

    class Writer:
        def __init__(self, folder, purge_step):
            told.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            told.append((name, value, step))

        def flush(self):
            told.append("flush")

        def close(self):
            told.append("close")
    board = types.ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    look = callbacks.TensorBoard("logs", every=2)
    assert not told, "only the process that logs writes"
    for step, seen in ((1, {"loss": 3.0}), (2, {"loss": 2.0}), (3, {"score": 1.0})):
        look(step, None, seen)
    look.close()
    # updates now and then, judgements always; a resumed run drops what was logged after its checkpoint
    assert told == [("logs", 2), ("loss", 2.0, 2), "flush", ("score", 1.0, 3), "flush", "close"]

    biases = types.ModuleType("wandb")
    biases.setup = lambda: types.SimpleNamespace(settings=types.SimpleNamespace(mode="offline"))
    biases.init = lambda **options: types.SimpleNamespace(
        define_metric=lambda name, step_metric: told.append((name, step_metric)),
        log=lambda line: told.append((options, line)), finish=lambda: told.append("finish"))
    monkeypatch.setitem(sys.modules, "wandb", biases)
    look = callbacks.Wandb(every=1, project="toys")
    look(4, None, {"loss": 1.0})
    look.close()
    assert told[-3:] == [("*", "step"), ({"project": "toys"}, {"loss": 1.0, "step": 4}), "finish"]

    for name, package, options in (("TensorBoard", "torch.utils.tensorboard", ["logs"]), ("Wandb", "wandb", [])):
        monkeypatch.setitem(sys.modules, package, None)  # not installed
        with pytest.raises(UserError, match="pip install"):
            getattr(callbacks, name)(*options)


def test_methods_learn_as_data():
    from understudy import config
    from understudy.learn.method import Method

    learning = BehaviorCloning(
        steps=7,
        optimizer=OptimizerConfig(grad_clip_norm=None, betas=(0.8, 0.9)),
        ema=ConstantDecay(0.5),
        sample_weights=ColumnWeights("x"),
    )
    method = replace(Method(PolicyConfig(Flow())), learner=learning)
    assert config.load(json.loads(json.dumps(config.dump(method)))) == method


def test_a_choice_that_was_never_shown_is_refused():
    def data(most):
        steps = {"observation.state": np.zeros((4, 2), np.float32), "action": np.array([[0], [1], [most], [0]])}
        return Dataset([Episode(steps)])
    policy = Policy(bc(features=data(1).features()).policy, data(1).features())
    policy.windows(data(1))
    with pytest.raises(UserError, match=r"knows \(2,\) classes.*\(4,\)"):
        policy.windows(data(3))


@dataclass(frozen=True)
class Looks(BehaviorCloning):
    """Asks for what follows, and learns as cloning does."""

    next_obs: bool = True


def test_what_follows_a_chunk_has_to_come_after_it_was_chosen(tmp_path):
    data = Dataset([Episode({"observation.state": np.zeros((6, 2)), "action": np.zeros((6, 1))}) for _ in range(2)])
    for ahead, horizon in ((-2, 1), (-3, 2)):
        method = Method(PolicyConfig(Regression(), window=Window(1, horizon, ahead)), learner=Looks(steps=1))
        with pytest.raises(UserError, match=f"action_offset={ahead} and horizon={horizon}"):
            train(method, data, tmp_path / "no", val_fraction=0)
    method = Method(PolicyConfig(Regression(), window=Window(1, 3, -2)), RecedingHorizon(1, skip=2), Looks(steps=1))
    train(method, data, tmp_path / "yes", val_fraction=0)


@pytest.mark.parametrize(("window", "target", "there"), [
    (Window(1, 2, action_offset=5), "action", False), (Window(1, 2, action_offset=3), "action", True),
    (Window(1, 1, action_offset=4), "observation.state", True),  # which has one row more
    (Window(1, 1, action_offset=-4), "action", False), (Window(1, 1, action_offset=-3), "action", True)])
def test_targets_beyond_every_episode_are_refused_before_training(window, target, there):
    data = Dataset([Episode({"observation.state": np.zeros((n + 1, 2), np.float32), "action": np.zeros((n, 2))})
                    for n in (2, 4)])
    method = Method(PolicyConfig(Regression(), window=window, target=target, inputs=("observation.state",)))
    found = (
        nullcontext()
        if there
        else pytest.raises(UserError, match=f"action_offset={window.action_offset}.*\n  -> look less far")
    )
    with found:
        check_method(method, data)
    if there:
        assert next(window.windows(data, ("observation.state",), target).scan()).mask.any()
    else:
        assert not next(window.windows(data, ("observation.state",), target).scan()).mask.any()
