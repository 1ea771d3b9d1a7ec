"""The U-Net: its published size and weights, layouts and precision."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures.networks import arguments, built, rng
from safetensors.torch import load_file
from torch import nn

from understudy.core import HeadSpec, UserError
from understudy.nets import convolution
from understudy.nets.transformer import scaled_dot_product
from understudy.nets.unet import UNet
from understudy.nets.vision import (
    SmallConv,
)


def test_the_size_of_diffusion_policys_network():
    """The notebook of Diffusion Policy (state of PushT: 5 numbers, 2 rows, 2 actions) prints 6.535322e+07."""
    net = UNet((256, 512, 1024), time_width=256).build(2, 2, 1, HeadSpec(16, 2, 5))
    assert f"{sum(p.numel() for p in net.parameters()):e}" == "6.535322e+07"


def original_names(net, widths):
    """Parameters under the names of diffusion_policy's ConditionalUnet1D."""
    def block(b, name):
        return {f"{name}.blocks.0.block.0": b.first[0], f"{name}.blocks.0.block.1": b.first[1],
                f"{name}.blocks.1.block.0": b.second[0], f"{name}.blocks.1.block.1": b.second[1],
                f"{name}.cond_encoder.1": b.film,
                **({f"{name}.residual_conv": b.skip} if isinstance(b.skip, nn.Conv1d) else {})}
    modules = {"diffusion_step_encoder.1": net.time_mlp.body[0],
               "diffusion_step_encoder.3": net.time_mlp.body[2],
               "final_conv.0.block.0": net.output_layer[0][0], "final_conv.0.block.1": net.output_layer[0][1],
               "final_conv.1": net.output_layer[1]}
    for i, b in enumerate(net.middle):
        modules |= block(b, f"mid_modules.{i}")
    for part, stages in (("down", net.down), ("up", net.up)):
        for i, stage in enumerate(stages):
            modules |= block(stage["first"], f"{part}_modules.{i}.0") | block(stage["second"], f"{part}_modules.{i}.1")
            if "resize" in stage:
                modules[f"{part}_modules.{i}.2.conv"] = stage["resize"]
    weights = {f"{k}.{n}": p for k, m in modules.items() for n, p in m.named_parameters()}
    assert sum(p.numel() for p in weights.values()) == sum(p.numel() for p in net.parameters()), "all are named"
    return weights


def original(w, x, k, condition, step_width, levels, groups):
    """What that network computes, from its weights by name: x (B, H, A), k (B,) as it embeds it, condition (B, C).

    `test_the_plain_writing_gives_the_numbers_of_lerobot` compares it with LeRobot.
    """
    def conv(x, name, **kw):
        return F.conv1d(x, w[f"{name}.weight"], w[f"{name}.bias"], **kw)

    def norm(x, name):
        return F.group_norm(x, groups, w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def convolved(x, name):
        return F.mish(norm(conv(x, f"{name}.0", padding=w[f"{name}.0.weight"].shape[-1] // 2), f"{name}.1"))

    def block(x, name):
        y = convolved(x, f"{name}.blocks.0.block")
        scale, shift = linear(F.mish(feature), f"{name}.cond_encoder.1").reshape(len(x), 2, -1, 1).unbind(1)
        y = convolved(scale * y + shift, f"{name}.blocks.1.block")
        return y + (conv(x, f"{name}.residual_conv") if f"{name}.residual_conv.weight" in w else x)
    half = step_width // 2
    angle = k[:, None] * torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
    step = linear(F.mish(linear(torch.cat([angle.sin(), angle.cos()], -1), "diffusion_step_encoder.1")),
                  "diffusion_step_encoder.3")
    feature = torch.cat([step, condition], -1)
    x, skips = x.transpose(1, 2), []
    for i in range(levels):
        x = block(block(x, f"down_modules.{i}.0"), f"down_modules.{i}.1")
        skips.append(x)
        if i + 1 < levels:
            x = conv(x, f"down_modules.{i}.2.conv", stride=2, padding=1)
    x = block(block(x, "mid_modules.0"), "mid_modules.1")
    for i in range(levels - 1):
        x = block(block(torch.cat([x, skips.pop()], 1), f"up_modules.{i}.0"), f"up_modules.{i}.1")
        x = F.conv_transpose1d(x, w[f"up_modules.{i}.2.conv.weight"], w[f"up_modules.{i}.2.conv.bias"], 2, 1)
    return conv(convolved(x, "final_conv.0.block"), "final_conv.1").transpose(1, 2)


def test_the_plain_writing_gives_the_numbers_of_lerobot(shared):
    """Its class DiffusionConditionalUnet1d is that of diffusion_policy; lerobot 0.4.4 computed the outputs."""
    folder = shared / "fixtures" / "lerobot_policies" / "diffusion_state"
    if not folder.is_dir():
        pytest.skip("no fixtures of LeRobot policies")
    stored = load_file(folder / "pretrained_model" / "model.safetensors")
    names = {"diffusion.unet.": "", ".conv1": ".blocks.0", ".conv2": ".blocks.1", "_modules.0.2": "_modules.0.2.conv"}
    w = {}
    for name, weight in stored.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        w[name] = weight
    inputs, outputs = (dict(np.load(folder / f"{part}.npz")) for part in ("inputs", "outputs"))
    noise, k, condition, want = map(torch.from_numpy, (
        inputs["noise"], inputs["train.timesteps"], outputs["global_condition"], outputs["unet"]))
    torch.testing.assert_close(original(w, noise, k.float(), condition, 32, 2, 8), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("widths", [(16,), (8, 16), (8, 16, 24)])
def test_weights_of_the_original_compute_the_same(widths):
    net = built(UNet(widths, 5, 4, 8), 12, 3, 3)
    x, t, c = arguments(horizon=12, shared=True)
    want = original(original_names(net, widths), x, 100 * t[:, 0, 0], c.flat(), 8, len(widths), 4)
    torch.testing.assert_close(net(x, t, c), want, rtol=1e-4, atol=1e-5)


def test_noise_levels_of_the_original_are_a_rotation_of_ours():
    """It is told k, 99 for pure noise and 0 next to none; with t = 1 - (k + 1) / 100 the same weights, turned."""
    net = built(UNet((8, 16), 5, 4, 8), 8, 3, 3)
    x, _, c = arguments(horizon=8)
    k = torch.tensor([0, 3, 50, 98, 99])
    want = original(original_names(net, (8, 16)), x, k.float(), c.flat(), 8, 2, 4)
    rate = torch.exp(torch.arange(4) * -(math.log(10000) / 3))
    turn, (sin, cos) = net.time_mlp.body[0].weight, net.time_mlp.body[0].weight.detach().chunk(2, 1)
    s, co = (99 * rate).sin(), (99 * rate).cos()  # k = 99 - 100 t: sin(k r) = s cos(100 t r) - co sin(100 t r)
    with torch.no_grad():
        turn.copy_(torch.cat([-sin * co + cos * s, sin * s + cos * co], 1))
    t = (1 - (k + 1) / 100).view(-1, 1, 1).expand(-1, 8, 1)
    torch.testing.assert_close(net(x, t, c), want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("horizon", [1, 3, 5, 6, 7])
def test_other_horizons_are_padded_with_zeros_and_cut(horizon):
    spec = UNet((8, 16, 24), 5, 4, 8)
    short, whole = built(spec, horizon), built(spec, 8)
    whole.load_state_dict(short.state_dict())
    x, t, c = arguments(horizon=horizon, shared=True)
    padded = F.pad(x, (0, 0, 0, -horizon % 4))
    want = whole(padded, t[:, :1].expand(-1, padded.shape[1], -1), c)[:, :horizon]
    assert torch.equal(short(x, t, c), want)


@pytest.mark.parametrize("layout", ["auto", "channels_last", "gemm"])
@pytest.mark.parametrize("horizon", [1, 5, 16])
def test_every_layout_is_the_same_network(layout, horizon):
    """The same weights from the same draws, the same outputs, and the same slopes of every weight."""
    plain, fast = (built(UNet((8, 16, 24), 5, 4, 8, layout=x), horizon) for x in ("conv", layout))
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), fast.state_dict().values(), strict=True))
    x, t, c = arguments(horizon=horizon, shared=True)
    want, output = plain(x, t, c), fast(x, t, c)
    torch.testing.assert_close(output, want, rtol=1e-5, atol=1e-5)
    weights = torch.randn(want.shape, generator=rng(3))
    slopes = [torch.autograd.grad((y * weights).sum(), list(net.parameters()))
              for y, net in ((want, plain), (output, fast))]
    for (name, _), a, b in zip(plain.named_parameters(), *slopes, strict=True):
        scale = max(1.0, float(a.abs().max()))  # rounding grows with the sums that a slope is made of
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5 * scale, msg=lambda m, name=name: f"{name}: {m}")


def test_a_fast_layout_stays_when_a_network_is_copied_or_loaded():
    net = built(UNet((8, 16), 5, 4, 8))
    strides = [p.stride() for p in net.parameters()]
    assert any(not p.is_contiguous() for p in net.parameters())
    other = copy.deepcopy(net)
    other.load_state_dict({k: v.clone(memory_format=torch.contiguous_format) for k, v in net.state_dict().items()})
    assert [p.stride() for p in other.parameters()] == strides
    assert [p.stride() for p in other.double().float().parameters()] == strides


@pytest.mark.parametrize("size, out, dtype, want", [
    (64, 64, torch.bfloat16, "channels_last"), (128, 128, torch.bfloat16, "gemm"),
    (64, 64, torch.float32, "channels_last"), (512, 512, torch.float32, "channels_last"),
    (1024, 1024, torch.float32, "gemm"), (2048, 2048, torch.float32, "gemm")])
def test_the_layout_follows_size_and_precision(size, out, dtype, want):
    assert convolution.choose_layout("auto", size, out, "cpu", dtype) == want
    assert convolution.choose_layout("conv", size, out, "cpu", dtype) == "conv"
    assert convolution.choose_layout("auto", size, out, "cuda", dtype) == "conv"


def test_the_layout_that_is_chosen_is_the_one_that_runs(monkeypatch):
    """By the precision in effect: within autocast it is that of autocast."""
    layouts = []
    chosen = convolution.choose_layout
    monkeypatch.setattr(convolution, "choose_layout", lambda *a: layouts.append(a[1:]) or chosen(*a))
    net = convolution.Convolution(16, 24, 3, "auto")
    net(torch.zeros(2, 4, 16))
    with torch.autocast("cpu", torch.bfloat16):
        assert net(torch.zeros(2, 4, 16)).dtype == torch.bfloat16
    assert layouts == [(16, 24, "cpu", torch.float32), (16, 24, "cpu", torch.bfloat16)]


def test_mish_and_its_slope():
    x = torch.linspace(-60, 60, 4001, dtype=torch.float64, requires_grad=True)
    got, want = convolution.mish(x), x * torch.tanh(F.softplus(x))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)
    slopes = [torch.autograd.grad(y.sum(), x)[0] for y in (got, F.mish(x))]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count, stride", [(1, 1), (3, 1), (5, 1), (7, 1), (3, 2)])
def test_neighbours_are_zero_beyond_the_ends(steps, count, stride):
    x = torch.randn(2, steps, 3, dtype=torch.float64, generator=rng(), requires_grad=True)
    padded = F.pad(x, (0, 0, count // 2, count // 2))
    want = torch.cat([padded[:, i:i + steps:stride] for i in range(count)], -1)
    assert torch.equal(convolution.gather_neighbors(x, count, stride), want)
    assert torch.autograd.gradcheck(lambda x: convolution.gather_neighbors(x, count, stride), x)


def test_attention_in_bf16_is_that_of_fp32_to_its_digits():
    q, k, v = (torch.randn(3, 2, n, 8, generator=rng(n), requires_grad=True) for n in (5, 7, 7))
    keep = torch.rand(3, 1, 1, 7, generator=rng(1)) < 0.6
    keep[..., 0] = True
    for mask in (None, keep):
        want = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        got = scaled_dot_product(*(x.bfloat16() for x in (q, k, v)), mask)
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), want, rtol=0.03, atol=0.02)
        for a, b in zip(torch.autograd.grad(got.float().square().sum(), (q, k, v)),
                        torch.autograd.grad(want.square().sum(), (q, k, v)), strict=True):
            torch.testing.assert_close(a, b, rtol=0.05, atol=0.08)


def test_channels_that_cannot_be_grouped_are_refused():
    with pytest.raises(UserError, match="multiples of 8"):
        SmallConv((8, 12)).build((16, 16, 3), 4)


@pytest.mark.parametrize("spec, said", [(UNet((12,), groups=8), "multiple of groups=8"), (UNet(kernel=4), "odd"),
                                        (UNet(time_width=2), "2 is no width"), (UNet(time_width=9), "9 is no width")])
def test_a_unet_that_cannot_be_is_refused(spec, said):
    with pytest.raises(UserError, match=said):
        built(spec)
