"""The optimizer: rates, clipping, precision and options."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from fixtures.learning import CPU, batches, clone, policy, weights
from torch import nn

from understudy.core import UserError
from understudy.data.window import Window
from understudy.heads.denoising.flow import Flow
from understudy.learn import optimizer
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit import fit
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.sample_weights import ColumnWeights
from understudy.nets.mlp import MLP
from understudy.nets.unet import UNet


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
    rates = []
    fit(learner, batches(learner, data), 10, callbacks=[lambda n, _, s: rates.append(s["rate"])])
    assert rates == pytest.approx([0.01 * learner.config.optimizer.lr_factor(n, 10) for n in range(10)])
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
    gpu_policy = policy(data, window=Window()).to("cuda")
    config, losses = BehaviorCloning(optimizer=OptimizerConfig(lr=3e-3, precision="fp16")), []
    learner = config.build(gpu_policy, 0, 200, data)
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
    for capabilities, fast in (({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False),
                               ({}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda told=capabilities: told)
        assert optimizer.has_fast_bf16(CPU) is fast
    assert not optimizer.has_fast_bf16(torch.device("mps"))


def test_steps_are_those_of_adamw():
    """Bit for bit, also if a weight has its first gradient later, and after the state was restored."""
    torch.manual_seed(0)
    own, other = (nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)) for _ in range(2))
    other.load_state_dict(own.state_dict())
    config = OptimizerConfig(lr=0.1, weight_decay=0.5, grad_clip_norm=None, lr_schedule="constant")
    state = config.build([own], 10, CPU)
    groups = [[p for p in other.parameters() if (p.ndim >= 2) == is_matrix] for is_matrix in (True, False)]
    adamw = torch.optim.AdamW([{"params": groups[0], "weight_decay": 0.5}, {"params": groups[1], "weight_decay": 0.0}],
                              0.1, fused=True)
    for update in range(8):
        x = torch.randn(5, 4)
        for network in (own, other):
            (network[0](x) if update % 3 == 0 else network(x)).square().mean().backward()
        state.step(update)
        adamw.step()
        adamw.zero_grad()
        assert all(map(torch.equal, own.parameters(), other.parameters()))
        if update == 4:
            restored = config.build([own], 10, CPU)
            restored.restore(*state.state())
            state = restored


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
@pytest.mark.parametrize("trunk, backend", [(MLP(width=32, depth=1), "inductor"),
                                            (UNet((8, 16), 3, 4, 8), "aot_eager")],  # whose graph is not translated
                         ids=["mlp", "unet"])
def test_compiled_networks_train_alike(data, trunk, backend, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))

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
