"""The conditional U-Net over time of Diffusion Policy (Chi et al. 2023), after Janner et al. 2022."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Context, Unsupported, UserError
from .base import Primes, RowTime


@dataclass(frozen=True)
class UNet(RowTime):
    """Convolutions along the chunk at ever coarser time and back; time and context scale and shift every block (FiLM).

    Modules and parameter shapes are those of the original, so that its weights can be copied one to one; UNet((256,
    512, 1024), step_width=256) is its default, UNet((512, 1024, 2048)) LeRobot's. A time t is told as sinusoids of
    span * t, where the original takes the number k of its noise level: as any k linear in t is a rotation of these, a
    rotation of the first time layer's columns makes up for it exactly.

    The horizon may be anything: chunks are padded at the end with zeros to a multiple of 2^(len(widths) - 1), and cut.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    kernel: int = 5
    groups: int = 8
    step_width: int = 128
    span: float = 100.0

    def build(self, inputs, outputs, times, shape):
        if times > 1:
            raise Unsupported(f"UNet knows at most one time a row, found {times}", do="take the Transformer or the MLP")
        if self.kernel % 2 == 0:
            raise UserError(f"expected an odd kernel, found {self.kernel}", where="UNet.kernel")
        for width in self.widths:
            if width % self.groups:
                raise UserError(f"expected multiples of groups={self.groups}, found {width}", where="UNet.widths")
        return _UNet(self, inputs, outputs, times, shape)


@dataclass(frozen=True)
class _Filmed(Context):
    films: tuple[Tensor, ...] = ()  # of each block, its share that is the context's


class _UNet(Primes):
    def __init__(self, spec, inputs, outputs, times, shape):
        super().__init__()
        step = spec.step_width if times else 0
        self.step = _Sinusoids(spec.step_width, spec.span) if times else None
        # A head that feeds nothing (regression) still needs something to convolve.
        self.start = None if inputs else nn.Parameter(torch.randn(1, 1, shape.horizon))
        sizes = (inputs or 1, *spec.widths)
        pairs = list(zip(sizes[:-1], sizes[1:], strict=True))

        def block(size, out):
            return _Block(size, out, step, shape.tokens * shape.width, spec)

        self.down = nn.ModuleList(nn.ModuleDict({
            "first": block(a, b), "second": block(b, b),
            **({"resize": nn.Conv1d(b, b, 3, 2, 1)} if i + 1 < len(pairs) else {})}) for i, (a, b) in enumerate(pairs))
        self.middle = nn.ModuleList(block(sizes[-1], sizes[-1]) for _ in range(2))
        self.up = nn.ModuleList(nn.ModuleDict({
            "first": block(2 * b, a), "second": block(a, a), "resize": nn.ConvTranspose1d(a, a, 4, 2, 1)})
            for a, b in reversed(pairs[1:]))
        self.leave = nn.Sequential(_Convolved(sizes[1], sizes[1], spec), nn.Conv1d(sizes[1], outputs, 1))
        self.multiple = 2 ** (len(spec.widths) - 1)

    def blocks(self) -> list[_Block]:
        return [*(d[k] for d in self.down for k in ("first", "second")), *self.middle,
                *(u[k] for u in self.up for k in ("first", "second"))]

    def prime(self, context):
        if isinstance(context, _Filmed):
            return context
        flat = F.mish(context.flat())
        return _Filmed(context.tokens, context.mask, tuple(b.film_of_context(flat) for b in self.blocks()))

    def forward(self, x, t, context):
        horizon = x.shape[1]
        films = self.prime(context).films
        if self.step is not None:
            step = F.mish(self.step(t[:, 0, 0]))
            films = [film + b.film_of_step(step) for film, b in zip(films, self.blocks(), strict=True)]
        film = iter(films)
        x = x.transpose(1, 2) if self.start is None else self.start.expand(x.shape[0], -1, -1)
        x = F.pad(x, (0, -horizon % self.multiple))
        seen = []
        for stage in self.down:
            x = stage["second"](stage["first"](x, next(film)), next(film))
            seen.append(x)
            x = stage["resize"](x) if "resize" in stage else x
        for block in self.middle:
            x = block(x, next(film))
        for stage in self.up:
            x = torch.cat([x, seen.pop()], 1)
            x = stage["resize"](stage["second"](stage["first"](x, next(film)), next(film)))
        return self.leave(x)[..., :horizon].transpose(1, 2)


class _Convolved(nn.Sequential):
    def __init__(self, size, out, spec):
        super().__init__(nn.Conv1d(size, out, spec.kernel, padding=spec.kernel // 2), nn.GroupNorm(spec.groups, out),
                         nn.Mish())


class _Block(nn.Module):
    def __init__(self, size, out, step, context, spec):
        super().__init__()
        self.first, self.second = _Convolved(size, out, spec), _Convolved(out, out, spec)
        self.film = nn.Linear(step + context, 2 * out)  # of Mish([time, context]); scales, then shifts
        self.past = nn.Conv1d(size, out, 1) if size != out else nn.Identity()
        self.of_step = step

    def film_of_context(self, activated: Tensor) -> Tensor:
        return F.linear(activated, self.film.weight[:, self.of_step:], self.film.bias)

    def film_of_step(self, activated: Tensor) -> Tensor:
        return F.linear(activated, self.film.weight[:, :self.of_step])

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        scale, shift = film.unsqueeze(-1).chunk(2, 1)
        return self.second(self.first(x) * scale + shift) + self.past(x)


class _Sinusoids(nn.Module):
    """(B,) -> (B, width), through two layers (Vaswani et al. 2017; Ho et al. 2020)."""

    def __init__(self, width: int, span: float):
        super().__init__()
        half = width // 2
        self.register_buffer("rate", span * torch.exp(torch.arange(half) * (-math.log(10_000) / (half - 1))),
                             persistent=False)
        self.body = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))

    def forward(self, t: Tensor) -> Tensor:
        angle = t.unsqueeze(-1) * self.rate
        return self.body(torch.cat([angle.sin(), angle.cos()], -1))
