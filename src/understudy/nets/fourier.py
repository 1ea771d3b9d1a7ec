"""Fourier features of times."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """Sines and cosines of times in [0, 1], at `count` frequencies that double.

    The lowest frequency covers a quarter period, so it is one-to-one on [0, 1] and no two times have equal features.

    References:
        Tancik et al. (2020), Fourier Features Let Networks Learn High Frequency Functions, arXiv:2006.10739.
    """

    rate: Tensor

    def __init__(self, count: int):
        super().__init__()
        self.register_buffer("rate", 2.0 ** torch.arange(count) * math.pi / 2, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """(..., K) times -> (..., 2 * count * K) features."""
        angle = (t.unsqueeze(-1) * self.rate).flatten(-2)
        return torch.cat([angle.sin(), angle.cos()], -1)
