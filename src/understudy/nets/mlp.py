"""A multilayer perceptron over everything at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..core import Context
from .base import CachesContext, Trunk
from .fourier import FourierFeatures
from .linear import Linear, linear


@dataclass(frozen=True)
class MLP(Trunk):
    """The whole chunk, its times and the flat context in, the whole chunk out, through `depth` residual blocks of two
    layers each with normalized input (as in IDQL, Hansen-Estruch et al. 2023).

    waves: octaves by which each time is told (only of heads that know time).
    """

    width: int = 256
    depth: int = 2
    dropout: float = 0.0
    n_frequencies: int = 6

    def build(self, inputs, outputs, n_times, spec):
        return _MLPNet(self, inputs, outputs, n_times, spec)


@dataclass(frozen=True)
class _MLPContext(Context):
    """Shares of the first layer: the context's (B, width), and a time's (width,) or none."""

    context_features: Tensor | None = None
    time_features: Tensor | None = None


class _MLPNet(CachesContext):
    def __init__(self, spec, inputs, outputs, times, shape):
        super().__init__()
        self.fourier = FourierFeatures(spec.n_frequencies)
        self.horizon, self.outputs = shape.horizon, outputs
        self.sizes = (
            shape.horizon * inputs,
            shape.horizon * 2 * spec.n_frequencies * times,
            shape.tokens * shape.width,
        )
        self.input_layer = Linear(sum(self.sizes), spec.width)
        self.blocks = nn.ModuleList(_block(spec.width, spec.dropout) for _ in range(spec.depth))
        self.output_layer = nn.Sequential(
            nn.LayerNorm(spec.width), nn.SiLU(), Linear(spec.width, shape.horizon * outputs)
        )

    def precompute(self, context):
        if isinstance(context, _MLPContext):
            return context
        return _MLPContext(
            context.tokens, context.mask, linear(context.flat(), self._input_weights()[2], self.input_layer.bias)
        )

    def embed_time(self, times):
        # Steps that share their time are told apart by its weights alone, which then add up.
        return linear(self.fourier(times), self._input_weights()[1].unflatten(1, (self.horizon, -1)).sum(1))

    def with_time_embedding(self, context, embedding):
        return replace(self.precompute(context), time_features=embedding)

    def _input_weights(self) -> tuple[Tensor, ...]:
        """The first layer's weights for the chunk, its times and the context."""
        return self.input_layer.weight.split(self.sizes, 1)

    def forward(self, x, t, context):
        if isinstance(context, _MLPContext) and context.time_features is not None:
            h = linear(x.flatten(1), self._input_weights()[0]) + (context.context_features + context.time_features)
        else:
            h = self.input_layer(torch.cat([x.flatten(1), self.fourier(t).flatten(1), context.flat()], -1))
        for block in self.blocks:
            h = h + block(h)
        return self.output_layer(h).unflatten(-1, (self.horizon, self.outputs))


def _block(width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), Linear(width, width), nn.SiLU(), nn.Dropout(dropout),
                         Linear(width, width))
