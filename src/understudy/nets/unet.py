"""The conditional U-Net over time of Diffusion Policy (Chi et al. 2023), after Janner et al. 2022."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Context, Unsupported, UserError
from .base import CachesContext, SharedTimeTrunk
from .convolution import Convolution, Down, GroupNormMish, Layout, Up
from .linear import Linear, linear


@dataclass(frozen=True)
class UNet(SharedTimeTrunk):
    """Convolutions along the chunk at ever coarser time and back; time and context scale and shift every block (FiLM).

    Modules and parameter shapes are those of the original, so that its weights can be copied one to one; UNet((256,
    512, 1024), step_width=256) is its default, UNet((512, 1024, 2048)) LeRobot's. A time t is told as sinusoids of
    span * t, where the original takes the number k of its noise level: as any k linear in t is a rotation of these, a
    rotation of the first time layer's columns makes up for it exactly.

    The horizon may be anything: chunks are padded at the end with zeros to a multiple of 2^(len(widths) - 1), and cut.

    layout: how convolutions are worked out (see nets.convolution); the function and the parameters are the same.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    kernel: int = 5
    groups: int = 8
    time_width: int = 128
    time_scale: float = 100.0
    layout: Layout = "auto"

    def build(self, inputs, outputs, n_times, spec):
        if n_times > 1:
            raise Unsupported(
                f"UNet knows at most one time a row, found {n_times}", hint="take the Transformer or the MLP"
            )
        if self.kernel % 2 == 0:
            raise UserError(f"expected an odd kernel, found {self.kernel}", where="UNet.kernel", hint="such as 5")
        for width in self.widths:
            if width % self.groups:
                raise UserError(f"expected multiples of groups={self.groups}, found {width}", where="UNet.widths",
                                hint=f"such as {-(-width // self.groups) * self.groups}")
        return _UNetNet(self, inputs, outputs, n_times, spec)


@dataclass(frozen=True)
class _UNetContext(Context):
    """Shares of all blocks' scales and shifts, side by side: the context's (B, W), and a time's (W,) or none."""

    film: Tensor | None = None
    time_film: Tensor | None = None


class _UNetNet(CachesContext):
    def __init__(self, spec, inputs, outputs, times, shape):
        super().__init__()
        step = spec.time_width if times else 0
        self.time_embedding = _SinusoidalEmbedding(spec.time_width, spec.time_scale) if times else None
        # A head that feeds nothing (regression) still needs something to convolve.
        self.learned_input = None if inputs else nn.Parameter(torch.randn(1, 1, shape.horizon))
        sizes = (inputs or 1, *spec.widths)
        pairs = list(zip(sizes[:-1], sizes[1:], strict=True))

        def block(size, out):
            return _ResidualBlock(size, out, step, shape.tokens * shape.width, spec)

        self.down = nn.ModuleList(nn.ModuleDict({
            "first": block(a, b), "second": block(b, b),
            **({"resize": Down(b, spec.layout)} if i + 1 < len(pairs) else {})}) for i, (a, b) in enumerate(pairs))
        self.middle = nn.ModuleList(block(sizes[-1], sizes[-1]) for _ in range(2))
        self.up = nn.ModuleList(nn.ModuleDict({
            "first": block(2 * b, a), "second": block(a, a), "resize": Up(a, spec.layout)})
            for a, b in reversed(pairs[1:]))
        self.output_layer = nn.Sequential(_ConvNormMish(sizes[1], sizes[1], spec),
                                   Convolution(sizes[1], outputs, 1, spec.layout))
        self.multiple = 2 ** (len(spec.widths) - 1)

    def blocks(self) -> list[_ResidualBlock]:
        return [*(d[k] for d in self.down for k in ("first", "second")), *self.middle,
                *(u[k] for u in self.up for k in ("first", "second"))]

    def precompute(self, context):
        if isinstance(context, _UNetContext):
            return context
        flat = F.mish(context.flat())
        return _UNetContext(
            context.tokens, context.mask, torch.cat([b.context_film_of(flat) for b in self.blocks()], -1)
        )

    def embed_time(self, times):
        step = F.mish(self.time_embedding(times[:, 0]))
        return torch.cat([b.time_film_of(step) for b in self.blocks()], -1)

    def with_time_embedding(self, context, embedding):
        return replace(self.precompute(context), time_film=embedding)

    def _films(self, t: Tensor, context: Context) -> Iterator[Tensor]:
        """Of each block, (B, 2 * out)."""
        context = self.precompute(context)
        film = context.film
        if context.time_film is not None:
            film = film + context.time_film
        elif self.time_embedding is not None:
            film = film + self.embed_time(t[:, 0])
        return iter(film.split([b.film.out_features for b in self.blocks()], -1))

    def forward(self, x, t, context):
        horizon = x.shape[1]
        film = self._films(t, context)
        x = x if self.learned_input is None else self.learned_input.transpose(1, 2).expand(x.shape[0], -1, -1)
        x = F.pad(x, (0, 0, 0, -horizon % self.multiple))
        seen = []
        for stage in self.down:
            x = stage["second"](stage["first"](x, next(film)), next(film))
            seen.append(x)
            x = stage["resize"](x) if "resize" in stage else x
        for block in self.middle:
            x = block(x, next(film))
        for stage in self.up:
            x = torch.cat([x, seen.pop()], -1)
            x = stage["resize"](stage["second"](stage["first"](x, next(film)), next(film)))
        return self.output_layer(x)[:, :horizon]


class _ConvNormMish(nn.Sequential):
    def __init__(self, size, out, spec):
        super().__init__(Convolution(size, out, spec.kernel, spec.layout), GroupNormMish(spec.groups, out))


class _ResidualBlock(nn.Module):
    def __init__(self, size, out, step, context, spec):
        super().__init__()
        self.first, self.second = _ConvNormMish(size, out, spec), _ConvNormMish(out, out, spec)
        self.film = Linear(step + context, 2 * out)  # of Mish([time, context]); scales, then shifts
        self.skip = Convolution(size, out, 1, spec.layout) if size != out else nn.Identity()
        self.time_film = step

    def context_film_of(self, activated: Tensor) -> Tensor:
        return linear(activated, self.film.weight[:, self.time_film:], self.film.bias)

    def time_film_of(self, activated: Tensor) -> Tensor:
        return linear(activated, self.film.weight[:, :self.time_film])

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        scale, shift = film.unsqueeze(1).chunk(2, -1)
        return self.second(torch.addcmul(shift, self.first(x), scale)) + self.skip(x)


class _SinusoidalEmbedding(nn.Module):
    """(B,) -> (B, width), through two layers (Vaswani et al. 2017; Ho et al. 2020)."""

    def __init__(self, width: int, span: float):
        super().__init__()
        half = width // 2
        self.register_buffer("rate", span * torch.exp(torch.arange(half) * (-math.log(10_000) / (half - 1))),
                             persistent=False)
        self.body = nn.Sequential(Linear(width, 4 * width), nn.Mish(), Linear(4 * width, width))

    def forward(self, t: Tensor) -> Tensor:
        angle = t.unsqueeze(-1) * self.rate
        return self.body(torch.cat([angle.sin(), angle.cos()], -1))
