"""Plain feed-forward network (multilayer perceptron), as in most published baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import nn

from ..core import AtLeast, part
from .base import Trunk, TrunkNet, check_not_causal, record_intermediate
from .fourier import FourierFeatures
from .linear import Linear

Activation = Literal["relu", "gelu", "silu", "elu", "tanh"]
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "elu": nn.ELU, "tanh": nn.Tanh}


def feed_forward_layers(sizes: Sequence[int], activation: Activation = "relu", layer_norm: bool = False
                        ) -> nn.Sequential:
    """Builds linear layers with activation functions between them.

    Args:
        sizes: Width of the input, of each hidden layer and of the output.
    """
    layers: list[nn.Module] = []
    for entering, leaving in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [Linear(entering, leaving), *([nn.LayerNorm(leaving)] if layer_norm else []),
                   ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[: -2 if layer_norm else -1])


@part
class FeedForward(Trunk):
    """Feed-forward network from the flat context, the whole chunk and its times to the whole chunk.

    `nets.mlp.MLP`, with residual blocks and normalized inputs, learns faster. Use this one for comparisons with
    published numbers. The last hidden layer is recorded as "hidden" (B, 1, D), for auxiliary losses.

    Args:
        n_frequencies: Number of Fourier frequencies that embed each time.
    """

    widths: Annotated[tuple[int, ...], AtLeast(1)] = (256, 256)
    activation: Activation = "relu"
    n_frequencies: Annotated[int, AtLeast(0)] = 6

    def build(self, inputs, outputs, n_times, spec):
        check_not_causal(self, spec)
        return _FeedForwardNet(self, inputs, outputs, n_times, spec)


class _FeedForwardNet(TrunkNet):
    def __init__(self, config, inputs, outputs, n_times, spec):
        super().__init__()
        self.fourier = FourierFeatures(config.n_frequencies)
        self.horizon, self.outputs = spec.horizon, outputs
        size = spec.horizon * (inputs + 2 * config.n_frequencies * n_times) + spec.tokens * spec.width
        self.layers = feed_forward_layers((size, *config.widths, spec.horizon * outputs), config.activation)

    def forward(self, x, t, context):
        h = torch.cat([x.flatten(1), self.fourier(t).flatten(1), context.flat()], -1)
        *hidden, output_layer = self.layers
        for layer in hidden:
            h = layer(h)
        record_intermediate("hidden", h.unsqueeze(1))
        return output_layer(h).unflatten(-1, (self.horizon, self.outputs))
