"""Residual multilayer perceptron over the whole chunk at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor, nn

from ..core import AtLeast, Below, Context, part
from .base import CachesContext, Trunk, check_not_causal
from .fourier import FourierFeatures
from .linear import Linear, linear


@part
class MLP(Trunk):
    """Residual MLP from the flat context, the whole chunk and its times to the whole chunk.

    Each block has two linear layers and normalizes its input, as in IDQL.

    References:
        Hansen-Estruch et al. (2023), IDQL: Implicit Q-Learning as an Actor-Critic Method with Diffusion Policies,
        arXiv:2304.10573.
    """

    width: Annotated[int, AtLeast(1)] = 256
    depth: Annotated[int, AtLeast(0)] = 2
    dropout: Annotated[float, AtLeast(0), Below(1)] = 0.0
    n_frequencies: Annotated[int, AtLeast(0)] = 6

    def build(self, inputs, outputs, n_times, spec):
        check_not_causal(self, spec)
        return _MLPNet(self, inputs, outputs, n_times, spec)


@dataclass(frozen=True)
class _MLPContext(Context):
    """A context, its contribution to the first layer, (B, width), and a fixed time's contribution, (width,) or None."""

    context_features: Tensor | None = None
    time_features: Tensor | None = None


class _MLPNet(CachesContext):
    def __init__(self, config, inputs, outputs, n_times, spec):
        super().__init__()
        self.fourier = FourierFeatures(config.n_frequencies)
        self.horizon, self.outputs = spec.horizon, outputs
        self.sizes = (spec.horizon * inputs, spec.horizon * 2 * config.n_frequencies * n_times,
                      spec.tokens * spec.width)
        self.input_layer = Linear(sum(self.sizes), config.width)
        self.blocks = nn.ModuleList(_residual_block(config.width, config.dropout) for _ in range(config.depth))
        self.output_layer = nn.Sequential(nn.LayerNorm(config.width), nn.SiLU(),
                                          Linear(config.width, spec.horizon * outputs))

    def precompute(self, context):
        if isinstance(context, _MLPContext):
            return context
        return _MLPContext(context.tokens, context.mask, context.named,
                           linear(context.flat(), self._input_weights()[2], self.input_layer.bias))

    def embed_time(self, times):
        # All steps have the same time, so the weights of the steps can be summed first.
        return linear(self.fourier(times), self._input_weights()[1].unflatten(1, (self.horizon, -1)).sum(1))

    def with_time_embedding(self, context, embedding):
        return replace(self.precompute(context), time_features=embedding)

    def _input_weights(self) -> tuple[Tensor, ...]:
        """Returns the weights of the first layer for the chunk, for its times and for the context."""
        return self.input_layer.weight.split(self.sizes, 1)

    def forward(self, x, t, context):
        if isinstance(context, _MLPContext) and context.time_features is not None:
            h = linear(x.flatten(1), self._input_weights()[0]) + (context.context_features + context.time_features)
        else:
            h = self.input_layer(torch.cat([x.flatten(1), self.fourier(t).flatten(1), context.flat()], -1))
        for block in self.blocks:
            h = h + block(h)
        return self.output_layer(h).unflatten(-1, (self.horizon, self.outputs))


def _residual_block(width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), Linear(width, width), nn.SiLU(), nn.Dropout(dropout),
                         Linear(width, width))
