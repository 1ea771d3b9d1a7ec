"""Convolutions over time of (B, T, C), computed in the fastest way for their size."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import is_autocast_on, product_dtype
from .linear import linear

Layout = Literal["auto", "conv", "channels_last", "gemm"]


def choose_layout(layout: Layout, size: int, out: int, device: str, dtype: torch.dtype) -> Layout:
    """Chooses how a convolution from `size` to `out` channels is computed.

    Args:
        layout: Returned as it is, unless it is "auto".
        device: Type of the device, such as "cpu".
        dtype: Type in which products are computed.

    Returns:
        "conv" (conv1d, channels before time), "channels_last" (conv2d of height 1, time before channels) or "gemm"
        (neighbors concatenated, then one matrix product).
    """
    if layout != "auto":
        return layout
    if device != "cpu":
        return "conv"  # other layouts were measured on the CPU only
    # Milliseconds on one core of Zen 5, PyTorch 2.13, forward and backward with a kernel of 5 (conv, channels_last,
    # gemm):       64 -> 64, 16 x 256 rows   512 -> 512, 8 x 128   1024 -> 1024, 4 x 128   2048 -> 2048, 4 x 32
    #     bf16     2.0  1.5  2.1             29    28   21         150   170    43         336   441    91
    #     fp32     4.2  2.2  3.3             46    37   38         132   174    76         396   478   121
    weights = size * out
    if dtype == torch.float32:
        return "channels_last" if weights <= 512 * 512 else "gemm"
    return "channels_last" if weights <= 64 * 64 else "gemm"


def _store_kernel_first(module: nn.Conv1d | nn.ConvTranspose1d, layout: Layout) -> None:
    """Stores a weight (a, b, kernel) in memory as (a, kernel, b). All layouts but "conv" read it in this order."""
    if layout != "conv":
        w = module.weight.detach()
        module.weight = nn.Parameter(w.transpose(1, 2).contiguous().transpose(1, 2))


def _flat_weight(weight: Tensor) -> Tensor:
    """(a, b, kernel) -> (a, kernel * b), a view of what `_store_kernel_first` stored."""
    return weight.transpose(1, 2).flatten(1)


class Convolution(nn.Conv1d):
    """Convolution over time, (B, T, size) -> (B, T / stride, out), padded with zeros."""

    def __init__(self, size: int, out: int, kernel: int, layout: Layout, stride: int = 1):
        super().__init__(size, out, kernel, stride, kernel // 2)
        self.layout = layout
        _store_kernel_first(self, layout)

    def forward(self, x: Tensor) -> Tensor:
        layout = choose_layout(self.layout, *self.weight.shape[1::-1], x.device.type, product_dtype(x))
        (kernel,), (stride,) = self.kernel_size, self.stride
        side = kernel // 2
        if layout == "gemm":
            return linear(gather_neighbors(x, kernel, stride), _flat_weight(self.weight), self.bias)
        x = x.transpose(1, 2)
        if layout == "conv":
            return F.conv1d(x, self.weight, self.bias, stride, side).transpose(1, 2)
        y = F.conv2d(x.unsqueeze(2), self.weight.unsqueeze(2), self.bias, (1, stride), (0, side))
        return y.squeeze(2).transpose(1, 2)


class Down(Convolution):
    """Convolution that halves the time steps, (B, T, C) -> (B, T / 2, C), with kernel 3 and stride 2."""

    def __init__(self, size: int, layout: Layout):
        super().__init__(size, size, 3, layout, 2)


class Up(nn.ConvTranspose1d):
    """(B, T, C) -> (B, 2 T, C): position t adds to positions 2 t - 1 to 2 t + 2."""

    def __init__(self, size: int, layout: Layout):
        super().__init__(size, size, 4, 2, 1)
        self.layout = layout
        _store_kernel_first(self, layout)

    def forward(self, x: Tensor) -> Tensor:  # ty: ignore[incompatible-method-override]  (its output has one size)
        layout = choose_layout(self.layout, *self.weight.shape[:2], x.device.type, product_dtype(x))
        if layout == "gemm":
            to_before, to_even, to_odd, to_after = linear(x, _flat_weight(self.weight).t()).chunk(4, -1)
            assert self.bias is not None
            y = torch.stack([to_even + F.pad(to_after, (0, 0, 1, -1)), to_odd + F.pad(to_before, (0, 0, -1, 1))], 2)
            return y.flatten(1, 2) + self.bias
        x = x.transpose(1, 2)
        if layout == "conv":
            return F.conv_transpose1d(x, self.weight, self.bias, 2, 1).transpose(1, 2)
        y = F.conv_transpose2d(x.unsqueeze(2), self.weight.unsqueeze(2), self.bias, (1, 2), (0, 1))
        return y.squeeze(2).transpose(1, 2)


class GroupNormMish(nn.GroupNorm):
    """Group normalization of (B, T, C) over time and the channels of each group, then Mish. Both in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False) if is_autocast_on(x) else nullcontext():
            # As an image of height 1: that kernel supports channels that are adjacent in memory. It is slow in bf16.
            y = super().forward(x.to(self.weight.dtype).transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)
            return mish(y).to(x.dtype)


def mish(x: Tensor) -> Tensor:
    """Computes the Mish activation, x * tanh(softplus(x)) (Misra 2019)."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.mish(x)
    return _Mish.apply(x)


class _Mish(torch.autograd.Function):
    """Mish with one exponential: tanh(softplus(x)) = n / (n + 2) for n = e^x (e^x + 2).

    The derivative is computed in the forward pass. PyTorch's implementation takes 5 times as long on a CPU.
    """

    @staticmethod
    def forward(ctx, x):
        e = x.clamp(max=20.0).exp_()  # above 20, mish(x) equals x
        n = (e + 2).mul_(e)
        buffer = n + 2
        gate = n.div_(buffer)  # tanh(softplus(x))
        if ctx.needs_input_grad[0]:
            gated = e.div_(torch.add(e, 1, out=buffer)).mul_(x)  # x * sigmoid(x)
            torch.mul(gated, gate, out=buffer)
            ctx.save_for_backward(gated.addcmul_(buffer, gate, value=-1).add_(gate))
        return gate.mul_(x)

    @staticmethod
    def backward(ctx, grad):  # ty: ignore[incompatible-method-override]  (one output, so one gradient)
        derivative, = ctx.saved_tensors
        return grad * derivative


def gather_neighbors(x: Tensor, count: int, stride: int = 1) -> Tensor:
    """Concatenates the neighbors of each position.

    Args:
        x: (B, T, C).
        count: Number of neighbors, including the position itself. Odd.
        stride: Distance of the positions.

    Returns:
        (B, ceil(T / stride), count * C), with zeros for neighbors beyond the ends.
    """
    x = x.to(product_dtype(x))
    if count == 1:
        return x
    if torch.compiler.is_compiling():
        steps, side = x.shape[1], count // 2
        x = F.pad(x, (0, 0, side, side))
        return torch.cat([x[:, i:i + steps:stride] for i in range(count)], -1)
    return _GatherNeighbors.apply(x, count, stride)


class _GatherNeighbors(torch.autograd.Function):
    """Writes and adds in place, where padding, slices and `cat` would each allocate tensors."""

    @staticmethod
    def _slices(steps, count, stride):
        """Yields (neighbor, slice of the result, slice of the input)."""
        positions = -(-steps // stride)
        for neighbor in range(count):
            first = max(-((neighbor - count // 2) // stride), 0)  # the first position whose neighbor exists
            last = min((steps - 1 - neighbor + count // 2) // stride, positions - 1)
            if first <= last:
                source = first * stride + neighbor - count // 2
                yield neighbor, slice(first, last + 1), slice(source, source + (last - first) * stride + 1, stride)

    @staticmethod
    def forward(ctx, x, count, stride):
        (rows, steps, size), positions = x.shape, -(-x.shape[1] // stride)
        ctx.sizes = x.shape, count, stride
        y = x.new_zeros(rows, positions, count, size)
        for neighbor, result, source in _GatherNeighbors._slices(steps, count, stride):
            y[:, result, neighbor] = x[:, source]
        return y.flatten(2)

    @staticmethod
    def backward(ctx, grad):  # ty: ignore[incompatible-method-override]  (one output, so one gradient)
        shape, count, stride = ctx.sizes
        grad, x = grad.unflatten(-1, (count, -1)), grad.new_zeros(shape)
        for neighbor, result, source in _GatherNeighbors._slices(shape[1], count, stride):
            x[:, source] += grad[:, result, neighbor]
        return x, None, None
