"""Plain feed-forward network (multilayer perceptron), as in most published baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from .base import Trunk, TrunkNet, check_not_causal
from .fourier import FourierFeatures
from .linear import Linear

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class FeedForward(Trunk):
    """Feed-forward network from the flat context, the whole chunk and its times to the whole chunk.

    `nets.mlp.MLP`, with residual blocks and normalized inputs, learns faster. Use this one for comparisons with
    published numbers.

    Args:
        widths: Widths of the hidden layers.
        activation: Activation function after each hidden layer.
        n_frequencies: Number of Fourier frequencies that embed each time.
    """

    widths: tuple[int, ...] = (256, 256)
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    n_frequencies: int = 6

    def build(self, inputs, outputs, n_times, spec):
        check_not_causal(self, spec)
        return _FeedForwardNet(self, inputs, outputs, n_times, spec)


class _FeedForwardNet(TrunkNet):
    def __init__(self, config, inputs, outputs, n_times, spec):
        super().__init__()
        self.fourier = FourierFeatures(config.n_frequencies)
        self.horizon, self.outputs = spec.horizon, outputs
        size = spec.horizon * (inputs + 2 * config.n_frequencies * n_times) + spec.tokens * spec.width
        sizes, activation = (size, *config.widths), ACTIVATIONS[config.activation]
        hidden = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (Linear(a, b), activation())]
        self.layers = nn.Sequential(*hidden, Linear(sizes[-1], spec.horizon * outputs))

    def forward(self, x, t, context):
        h = self.layers(torch.cat([x.flatten(1), self.fourier(t).flatten(1), context.flat()], -1))
        return h.unflatten(-1, (self.horizon, self.outputs))
