"""Convolutions over time of (B, T, C), worked out in the way that is fastest for their size."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import linear

Layout = Literal["auto", "conv", "channels_last", "gemm"]


def choose_layout(layout: Layout, size: int, out: int, device: str, dtype: torch.dtype) -> Layout:
    """How a convolution of `size` to `out` channels is worked out: "conv" (conv1d, channels before time, the plain
    form), "channels_last" (conv2d of height 1, time before channels) or "gemm" (neighbors side by side, then one
    matrix product)."""
    if layout != "auto":
        return layout
    if device != "cpu":
        return "conv"  # not measured
    # CPU seconds on one core of Zen 5, PyTorch 2.13, forward and backward with a kernel of 5 (conv, channels_last,
    # gemm), ms:   64 -> 64, 16 x 256 rows   512 -> 512, 8 x 128   1024 -> 1024, 4 x 128   2048 -> 2048, 4 x 32
    #     bf16     2.0  1.5  2.1             29    28   21         150   170    43         336   441    91
    #     fp32     4.2  2.2  3.3             46    37   38         132   174    76         396   478   121
    weights = size * out
    if dtype == torch.float32:
        return "channels_last" if weights <= 512 * 512 else "gemm"
    return "channels_last" if weights <= 64 * 64 else "gemm"


def _autocast_enabled(x: Tensor) -> bool:
    return torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)


def _dtype(x: Tensor) -> torch.dtype:
    """That in which products of `x` are worked out here."""
    return torch.get_autocast_dtype(x.device.type) if _autocast_enabled(x) else x.dtype


def _store_taps_before_channels(module: nn.Module, layout: Layout) -> None:
    """Lays a weight (a, b, taps) out in memory as (a, taps, b), its shape unchanged: what all but "conv" read."""
    if layout != "conv":
        w = module.weight.detach()
        module.weight = nn.Parameter(w.transpose(1, 2).contiguous().transpose(1, 2))


def _flat_weight(weight: Tensor) -> Tensor:
    """(a, b, taps) -> (a, taps * b), a view of what _taps_outside laid out."""
    return weight.transpose(1, 2).flatten(1)


class Convolution(nn.Conv1d):
    """(B, T, size) -> (B, T, out), padded with zeros."""

    def __init__(self, size: int, out: int, kernel: int, layout: Layout):
        super().__init__(size, out, kernel, padding=kernel // 2)
        self.layout = layout
        _store_taps_before_channels(self, layout)

    def forward(self, x: Tensor) -> Tensor:
        how, side = choose_layout(self.layout, *self.weight.shape[1::-1], x.device.type, _dtype(x)), self.padding[0]
        if how == "gemm":
            return linear(gather_neighbors(x, 2 * side + 1), _flat_weight(self.weight), self.bias)
        x = x.transpose(1, 2)
        if how == "conv":
            return F.conv1d(x, self.weight, self.bias, 1, side).transpose(1, 2)
        y = F.conv2d(x.unsqueeze(2), self.weight.unsqueeze(2), self.bias, 1, (0, side))
        return y.squeeze(2).transpose(1, 2)


class Down(nn.Conv1d):
    """(B, T, C) -> (B, T / 2, C): every second position of a convolution of 3 taps."""

    def __init__(self, size: int, layout: Layout):
        super().__init__(size, size, 3, 2, 1)
        self.layout = layout
        _store_taps_before_channels(self, layout)

    def forward(self, x: Tensor) -> Tensor:
        how = choose_layout(self.layout, *self.weight.shape[1::-1], x.device.type, _dtype(x))
        if how == "gemm":
            return linear(gather_neighbors(x, 3, 2), _flat_weight(self.weight), self.bias)
        x = x.transpose(1, 2)
        if how == "conv":
            return F.conv1d(x, self.weight, self.bias, 2, 1).transpose(1, 2)
        y = F.conv2d(x.unsqueeze(2), self.weight.unsqueeze(2), self.bias, (1, 2), (0, 1))
        return y.squeeze(2).transpose(1, 2)


class Up(nn.ConvTranspose1d):
    """(B, T, C) -> (B, 2 T, C): position t adds to 2 t - 1 ... 2 t + 2."""

    def __init__(self, size: int, layout: Layout):
        super().__init__(size, size, 4, 2, 1)
        self.layout = layout
        _store_taps_before_channels(self, layout)

    def forward(self, x: Tensor) -> Tensor:
        how = choose_layout(self.layout, *self.weight.shape[:2], x.device.type, _dtype(x))
        if how == "gemm":
            one, even, odd, two = linear(x, _flat_weight(self.weight).t()).chunk(4, -1)
            y = torch.stack([even + F.pad(two, (0, 0, 1, -1)), odd + F.pad(one, (0, 0, -1, 1))], 2)
            return y.flatten(1, 2) + self.bias
        x = x.transpose(1, 2)
        if how == "conv":
            return F.conv_transpose1d(x, self.weight, self.bias, 2, 1).transpose(1, 2)
        y = F.conv_transpose2d(x.unsqueeze(2), self.weight.unsqueeze(2), self.bias, (1, 2), (0, 1))
        return y.squeeze(2).transpose(1, 2)


class GroupNormMish(nn.GroupNorm):
    """Mish of the group normalization of (B, T, C), over time and the channels of each group; both in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False) if _autocast_enabled(x) else nullcontext():
            # As an image of height 1: that kernel knows channels that lie next to each other (in bf16 it is slow).
            y = super().forward(x.to(self.weight.dtype).transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)
            return mish(y).to(x.dtype)


def mish(x: Tensor) -> Tensor:
    """x * tanh(softplus(x)) (Misra 2019)."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.mish(x)
    return _Mish.apply(x)


class _Mish(torch.autograd.Function):
    """With one exponential, tanh(softplus(x)) = n / (n + 2) for n = e^x (e^x + 2), and the slope worked out on the
    way: PyTorch's takes 5 times as long on a CPU."""

    @staticmethod
    def forward(ctx, x):
        e = x.clamp(max=20.0).exp_()  # beyond 20 it is x itself
        n = (e + 2).mul_(e)
        other = n + 2
        share = n.div_(other)
        if ctx.needs_input_grad[0]:
            rise = e.div_(torch.add(e, 1, out=other)).mul_(x)  # x * sigmoid(x)
            torch.mul(rise, share, out=other)
            ctx.save_for_backward(rise.addcmul_(other, share, value=-1).add_(share))
        return share.mul_(x)

    @staticmethod
    def backward(ctx, grad):
        slope, = ctx.saved_tensors
        return grad * slope


def gather_neighbors(x: Tensor, count: int, stride: int = 1) -> Tensor:
    """(B, T, C) -> (B, ceil(T / stride), count * C): each position's with zeros beyond the ends."""
    x = x.to(_dtype(x))
    if count == 1:
        return x
    if torch.compiler.is_compiling():
        steps, side = x.shape[1], count // 2
        x = F.pad(x, (0, 0, side, side))
        return torch.cat([x[:, i:i + steps:stride] for i in range(count)], -1)
    return _GatherNeighbors.apply(x, count, stride)


class _GatherNeighbors(torch.autograd.Function):
    """Writes and adds up in place, where padding, slices and cat would each make their own tensors."""

    @staticmethod
    def _pairs(steps, count, stride):
        """(tap, where in the result, where in the input)"""
        wide = -(-steps // stride)
        for tap in range(count):
            first = max(-((tap - count // 2) // stride), 0)  # the first position whose neighbor is there
            last = min((steps - 1 - tap + count // 2) // stride, wide - 1)
            if first <= last:
                at = first * stride + tap - count // 2
                yield tap, slice(first, last + 1), slice(at, at + (last - first) * stride + 1, stride)

    @staticmethod
    def forward(ctx, x, count, stride):
        (rows, steps, size), wide = x.shape, -(-x.shape[1] // stride)
        ctx.sizes = x.shape, count, stride
        y = x.new_zeros(rows, wide, count, size)
        for tap, there, here in _GatherNeighbors._pairs(steps, count, stride):
            y[:, there, tap] = x[:, here]
        return y.flatten(2)

    @staticmethod
    def backward(ctx, grad):
        shape, count, stride = ctx.sizes
        grad, x = grad.unflatten(-1, (count, -1)), grad.new_zeros(shape)
        for tap, there, here in _GatherNeighbors._pairs(shape[1], count, stride):
            x[:, here] += grad[:, there, tap]
        return x, None, None
