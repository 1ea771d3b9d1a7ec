"""The multilayer perceptron of most published baselines: layers one after another, nothing beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from .base import Trunk, TrunkNet
from .fourier import FourierFeatures
from .linear import Linear

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class FeedForward(Trunk):
    """The whole chunk, its times and the flat context in, the whole chunk out. `nets.mlp.MLP`, with residuals and
    normalized inputs, learns faster; this one is for comparisons with what others published.

    widths: of the hidden layers. waves: octaves by which each time is told (only of heads that know time).
    """

    widths: tuple[int, ...] = (256, 256)
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    n_frequencies: int = 6

    def build(self, inputs, outputs, n_times, spec):
        return _FeedForwardNet(self, inputs, outputs, n_times, spec)


class _FeedForwardNet(TrunkNet):
    def __init__(self, spec, inputs, outputs, times, shape):
        super().__init__()
        self.fourier = FourierFeatures(spec.n_frequencies)
        self.horizon, self.outputs = shape.horizon, outputs
        entering = shape.horizon * (inputs + 2 * spec.n_frequencies * times) + shape.tokens * shape.width
        sizes, activation = (entering, *spec.widths), ACTIVATIONS[spec.activation]
        hidden = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (Linear(a, b), activation())]
        self.layers = nn.Sequential(*hidden, Linear(sizes[-1], shape.horizon * outputs))

    def forward(self, x, t, context):
        h = self.layers(torch.cat([x.flatten(1), self.fourier(t).flatten(1), context.flat()], -1))
        return h.unflatten(-1, (self.horizon, self.outputs))
