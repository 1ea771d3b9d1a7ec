"""Layers whose outputs are quantiles of the return at any level."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from .feed_forward import feed_forward_layers
from .linear import Linear


class QuantileLayer(nn.Module):
    """A linear layer of features that are multiplied by learned features of the level, which are made of its cosines.

    Args:
        width: Number of features.
        n_quantiles: Number of equally spaced levels, if none are given.

    References:
        Dabney et al. (2018), Implicit Quantile Networks for Distributional Reinforcement Learning, arXiv:1806.06923.
    """

    def __init__(self, width: int, outputs: int, n_quantiles: int, n_cosines: int = 64):
        super().__init__()
        self.output_layer, self.level_layer = Linear(width, outputs), Linear(n_cosines, width)
        self.n_quantiles = n_quantiles

    def forward(self, features: Tensor, levels: Tensor | None = None) -> Tensor:
        """Returns the outputs at each level, (..., n, outputs).

        Args:
            features: (..., width).
            levels: From 0 to 1, (..., n).
        """
        if levels is None:
            levels = equal_levels(self.n_quantiles, features.device)
        frequencies = math.pi * torch.arange(1, self.level_layer.in_features + 1, device=features.device)
        of_level = self.level_layer(torch.cos(frequencies * levels.unsqueeze(-1))).relu()
        return self.output_layer(features.unsqueeze(-2) * of_level)


class QuantileNet(nn.Module):
    """A feed-forward network with a `QuantileLayer` of one output.

    Args:
        sizes: Width of the input and of each hidden layer.
    """

    def __init__(self, sizes: Sequence[int], n_quantiles: int, layer_norm: bool = False):
        super().__init__()
        self.hidden = feed_forward_layers((*sizes, 1), layer_norm=layer_norm)[:-1]
        self.quantile_layer = QuantileLayer(sizes[-1], 1, n_quantiles)

    def forward(self, x: Tensor, levels: Tensor | None = None) -> Tensor:
        """Returns the quantiles, (..., n), of inputs (..., size)."""
        return self.quantile_layer(self.hidden(x), levels).squeeze(-1)


def equal_levels(n: int, device: torch.device) -> Tensor:
    """Returns the middles of n equal parts of the numbers from 0 to 1, (n,)."""
    return (torch.arange(n, device=device) + 0.5) / n


def draw_levels(rows: int, n: int, rng: Generator) -> Tensor:
    """Draws levels uniformly, (rows, n)."""
    return torch.rand(rows, n, generator=rng, device=rng.device)
