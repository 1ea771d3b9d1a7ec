"""A multilayer perceptron over everything at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..core import Context
from .base import Primes, Trunk
from .linear import Linear, linear
from .waves import Waves


@dataclass(frozen=True)
class MLP(Trunk):
    """The whole chunk, its times and the flat context in, the whole chunk out, through `depth` residual blocks of two
    layers each with normalised input (as in IDQL, Hansen-Estruch et al. 2023).

    waves: octaves by which each time is told (only of heads that know time).
    """

    width: int = 256
    depth: int = 2
    dropout: float = 0.0
    waves: int = 6

    def build(self, inputs, outputs, times, shape):
        return _MLP(self, inputs, outputs, times, shape)


@dataclass(frozen=True)
class _Entered(Context):
    """Shares of the first layer: the context's (B, width), and a time's (width,) or none."""

    share: Tensor | None = None
    of_time: Tensor | None = None


class _MLP(Primes):
    def __init__(self, spec, inputs, outputs, times, shape):
        super().__init__()
        self.waves = Waves(spec.waves)
        self.horizon, self.outputs = shape.horizon, outputs
        self.sizes = (shape.horizon * inputs, shape.horizon * 2 * spec.waves * times, shape.tokens * shape.width)
        self.enter = Linear(sum(self.sizes), spec.width)
        self.blocks = nn.ModuleList(_block(spec.width, spec.dropout) for _ in range(spec.depth))
        self.leave = nn.Sequential(nn.LayerNorm(spec.width), nn.SiLU(), Linear(spec.width, shape.horizon * outputs))

    def prime(self, context):
        if isinstance(context, _Entered):
            return context
        return _Entered(context.tokens, context.mask, linear(context.flat(), self._enter()[2], self.enter.bias))

    def tell(self, times):
        # Steps that share their time are told apart by its weights alone, which then add up.
        return linear(self.waves(times), self._enter()[1].unflatten(1, (self.horizon, -1)).sum(1))

    def at(self, context, told):
        return replace(self.prime(context), of_time=told)

    def _enter(self) -> tuple[Tensor, ...]:
        """The first layer's weights for the chunk, its times and the context."""
        return self.enter.weight.split(self.sizes, 1)

    def forward(self, x, t, context):
        if isinstance(context, _Entered) and context.of_time is not None:
            h = linear(x.flatten(1), self._enter()[0]) + (context.share + context.of_time)
        else:
            h = self.enter(torch.cat([x.flatten(1), self.waves(t).flatten(1), context.flat()], -1))
        for block in self.blocks:
            h = h + block(h)
        return self.leave(h).unflatten(-1, (self.horizon, self.outputs))


def _block(width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), Linear(width, width), nn.SiLU(), nn.Dropout(dropout),
                         Linear(width, width))
