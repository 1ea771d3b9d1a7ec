"""Times in [0, 1] as something a network can tell apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """(..., K) in [0, 1] -> (..., 2 * count * K): sines and cosines at octaves of a quarter period (Fourier
    features, Tancik et al. 2020). The slowest is one to one on [0, 1], so that no two times look alike."""

    def __init__(self, count: int):
        super().__init__()
        self.register_buffer("rate", 2.0 ** torch.arange(count) * math.pi / 2, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angle = (t.unsqueeze(-1) * self.rate).flatten(-2)
        return torch.cat([angle.sin(), angle.cos()], -1)
