"""Conditional 1D U-Net over the action steps, the network of Diffusion Policy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Above, AtLeast, Context, Unsupported, UserError, part
from .base import CachesContext, SharedTimeTrunk, check_not_causal, record_intermediate
from .convolution import Convolution, Down, GroupNormMish, Layout, Up
from .linear import Linear, linear


@part
class UNet(SharedTimeTrunk):
    """Convolutions over the chunk at increasingly coarse time, and back. Time and context modulate each block (FiLM).

    Modules and parameter shapes are the same as in Diffusion Policy, so its weights can be copied one to one.
    ``UNet((256, 512, 1024), time_width=256)`` is the default of Diffusion Policy, ``UNet((512, 1024, 2048))`` the
    default of LeRobot. The time embedding is sinusoids of ``time_scale * t``, where the original uses the index k of
    the noise level. Since k is linear in t, a rotation of the columns of the first time layer makes the two equal.

    Any horizon works: chunks are padded with zeros at the end to a multiple of ``2 ** (len(widths) - 1)``. What the
    coarsest blocks make of a chunk is recorded as "trunk_bottleneck" (B, steps, widths[-1]), for auxiliary losses.

    Args:
        widths: Channels at each resolution.
        kernel: Kernel size of the convolutions. Odd.
        groups: Number of groups of the group normalization. Must divide all `widths`.
        time_width: Width of the embedded time, even and at least 4.
        time_scale: Factor of the time before it is embedded.
        layout: How convolutions are computed (see `nets.convolution`). It changes the speed, not the result.
        output_groups: Number of groups of the last normalization. None for `groups`. In Diffusion Policy and LeRobot it
            is always 8.
        condition: How the context enters. ``"film"``: it scales and shifts the channels of each block, as in Diffusion
            Policy. ``"input"``: it is concatenated to the input of each step. The time enters by FiLM in both cases.

    References:
        Chi et al. (2023), Diffusion Policy: Visuomotor Policy Learning via Action Diffusion, arXiv:2303.04137.
        Janner et al. (2022), Planning with Diffusion for Flexible Behavior Synthesis, arXiv:2205.09991.
        Perez et al. (2018), FiLM: Visual Reasoning with a General Conditioning Layer, arXiv:1709.07871.
        Yuan (2024), Unpacking the Individual Components of Diffusion Policy, arXiv:2412.00084 (FiLM or input).
    """

    widths: Annotated[tuple[int, ...], AtLeast(1)] = (64, 128, 256)
    kernel: Annotated[int, AtLeast(1)] = 5
    groups: Annotated[int, AtLeast(1)] = 8
    time_width: Annotated[int, AtLeast(1)] = 128
    time_scale: Annotated[float, Above(0)] = 100.0
    layout: Layout = "auto"
    output_groups: Annotated[int | None, AtLeast(1)] = None
    condition: Literal["film", "input"] = "film"

    def build(self, inputs, outputs, n_times, spec):
        check_not_causal(self, spec)
        if n_times > 1:
            raise Unsupported(f"UNet supports at most one time per batch row, and this head needs {n_times}.",
                              hint="Use the Transformer or the MLP trunk.")
        if self.kernel % 2 == 0:
            raise UserError(f"The kernel size must be odd, and it is {self.kernel}.", where="UNet.kernel",
                            hint="Use 5, for example.")
        if n_times and (self.time_width % 2 or self.time_width < 4):
            raise UserError(f"Sines and cosines of several frequencies embed the time, and {self.time_width} is no "
                            "width for them.", where="UNet.time_width", hint="Use an even width of at least 4.")
        if self.output_groups is not None and self.widths[0] % self.output_groups:
            raise UserError(f"The first width, {self.widths[0]}, is not a multiple of output_groups="
                            f"{self.output_groups}.", where="UNet.widths", hint="Use one that is.")
        for width in self.widths:
            if width % self.groups:
                raise UserError(f"{width} is not a multiple of groups={self.groups}.", where="UNet.widths",
                                hint=f"Use {-(-width // self.groups) * self.groups}, for example.")
        return _UNetNet(self, inputs, outputs, n_times, spec)


@dataclass(frozen=True)
class _UNetContext(Context):
    """A context, and what it and a fixed time add to the scales and shifts of all blocks: (B, W), and (W,) or None."""

    film: Tensor | None = None
    time_film: Tensor | None = None


class _UNetNet(CachesContext):
    # These are nn.ModuleLists of stages (nn.ModuleDict) and blocks. The type does not say what a list holds.
    down: Any
    middle: Any
    up: Any

    def __init__(self, config, inputs, outputs, n_times, spec):
        super().__init__()
        time_width = config.time_width if n_times else 0
        self.time_mlp = _SinusoidalEmbedding(config.time_width, config.time_scale) if n_times else None
        # Regression has no input, but something must be convolved.
        self.input_blocks = None if inputs else nn.Parameter(torch.randn(1, 1, spec.horizon))
        context_width = spec.tokens * spec.width
        self.context_as_input = config.condition == "input"
        sizes = ((inputs or 1) + context_width * self.context_as_input, *config.widths)
        pairs = list(zip(sizes[:-1], sizes[1:], strict=True))

        def block(size, out):
            return _ResidualBlock(size, out, time_width, 0 if self.context_as_input else context_width, config)

        self.down = nn.ModuleList(nn.ModuleDict({
            "first": block(a, b), "second": block(b, b),
            **({"resize": Down(b, config.layout)} if i + 1 < len(pairs) else {})}) for i, (a, b) in enumerate(pairs))
        self.middle = nn.ModuleList(block(sizes[-1], sizes[-1]) for _ in range(2))
        self.up = nn.ModuleList(nn.ModuleDict({
            "first": block(2 * b, a), "second": block(a, a), "resize": Up(a, config.layout)})
            for a, b in reversed(pairs[1:]))
        self.output_layer = nn.Sequential(_ConvNormMish(sizes[1], sizes[1], config, config.output_groups),
                                          Convolution(sizes[1], outputs, 1, config.layout))
        self.multiple = 2 ** (len(config.widths) - 1)

    def blocks(self) -> list[_ResidualBlock]:
        """Returns all residual blocks in the order of the forward pass."""
        return [*(d[k] for d in self.down for k in ("first", "second")), *self.middle,
                *(u[k] for u in self.up for k in ("first", "second"))]

    def precompute(self, context):
        if isinstance(context, _UNetContext):
            return context
        flat = context.flat()[:, :0] if self.context_as_input else F.mish(context.flat())
        return _UNetContext(context.tokens, context.mask, context.named,
                            torch.cat([b.context_film_of(flat) for b in self.blocks()], -1))

    def embed_time(self, times):
        assert self.time_mlp is not None  # a network without time is never asked
        time = F.mish(self.time_mlp(times[:, 0]))
        return torch.cat([b.time_film_of(time) for b in self.blocks()], -1)

    def with_time_embedding(self, context, embedding):
        return replace(self.precompute(context), time_film=embedding)

    def _films(self, t: Tensor, context: Context) -> Iterator[Tensor]:
        """Returns the scales and shifts of each block, (B, 2 * out)."""
        context = self.precompute(context)
        film = context.film
        if context.time_film is not None:
            film = film + context.time_film
        elif self.time_mlp is not None:
            film = film + self.embed_time(t[:, 0])
        return iter(film.split([b.film.out_features for b in self.blocks()], -1))

    def forward(self, x, t, context):
        horizon = x.shape[1]
        film = self._films(t, context)
        x = x if self.input_blocks is None else self.input_blocks.transpose(1, 2).expand(x.shape[0], -1, -1)
        if self.context_as_input:
            x = torch.cat([x, context.flat().unsqueeze(1).expand(-1, horizon, -1)], -1)
        x = F.pad(x, (0, 0, 0, -horizon % self.multiple))
        skips = []
        for stage in self.down:
            x = stage["second"](stage["first"](x, next(film)), next(film))
            skips.append(x)
            x = stage["resize"](x) if "resize" in stage else x
        for block in self.middle:
            x = block(x, next(film))
        record_intermediate("trunk_bottleneck", x)
        for stage in self.up:
            x = torch.cat([x, skips.pop()], -1)
            x = stage["resize"](stage["second"](stage["first"](x, next(film)), next(film)))
        return self.output_layer(x)[:, :horizon]


class _ConvNormMish(nn.Sequential):
    def __init__(self, size, out, config, groups=None):
        super().__init__(Convolution(size, out, config.kernel, config.layout),
                         GroupNormMish(groups or config.groups, out))


class _ResidualBlock(nn.Module):
    def __init__(self, size, out, time_width, context_width, config):
        super().__init__()
        self.first, self.second = _ConvNormMish(size, out, config), _ConvNormMish(out, out, config)
        self.film = Linear(time_width + context_width, 2 * out)  # reads Mish([time, context]); scales, then shifts
        if not time_width + context_width:  # a scale that depends on nothing begins at 1, not at 0
            nn.init.ones_(self.film.bias[:out])
        self.skip = Convolution(size, out, 1, config.layout) if size != out else nn.Identity()
        self.time_width = time_width

    def context_film_of(self, activated: Tensor) -> Tensor:
        return linear(activated, self.film.weight[:, self.time_width:], self.film.bias)

    def time_film_of(self, activated: Tensor) -> Tensor:
        return linear(activated, self.film.weight[:, :self.time_width])

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        scale, shift = film.unsqueeze(1).chunk(2, -1)
        return self.second(torch.addcmul(shift, self.first(x), scale)) + self.skip(x)


class _SinusoidalEmbedding(nn.Module):
    """Embeds times, (B,) -> (B, width), by sinusoids and two layers (Vaswani et al. 2017; Ho et al. 2020)."""

    rate: Tensor

    def __init__(self, width: int, time_scale: float):
        super().__init__()
        half = width // 2
        self.register_buffer("rate", time_scale * torch.exp(torch.arange(half) * (-math.log(10_000) / (half - 1))),
                             persistent=False)
        self.body = nn.Sequential(Linear(width, 4 * width), nn.Mish(), Linear(4 * width, width))

    def forward(self, t: Tensor) -> Tensor:
        angle = t.unsqueeze(-1) * self.rate
        return self.body(torch.cat([angle.sin(), angle.cos()], -1))
