"""Words to vectors. Text arrives as UTF-8 bytes, so that there is no vocabulary to ship."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from .linear import Linear


class TextEncoder(ABC):
    """A frozen dataclass: reads the bytes of a "text" column."""

    @abstractmethod
    def build(self, width: int) -> nn.Module:
        """A module (N, L) uint8, padded with 0 -> (N, width). The padding changes nothing."""


@dataclass(frozen=True)
class ByteEncoder(TextEncoder):
    """Bytes embedded, two convolutions, the largest value of each channel (Kim 2014, on bytes). Trained with the
    policy: enough to tell apart the tasks of a data set, not to understand new words."""

    channels: int = 64
    kernel: int = 5

    def build(self, width):
        return _ByteEncoderNet(self, width)


class _ByteEncoderNet(nn.Module):
    def __init__(self, spec, width):
        super().__init__()
        self.embedding = nn.Embedding(256, spec.channels, padding_idx=0)
        self.first = nn.Conv1d(spec.channels, spec.channels, spec.kernel, padding="same")
        self.second = nn.Conv1d(spec.channels, spec.channels, spec.kernel, padding="same")
        self.output_layer = Linear(spec.channels, width)

    def forward(self, x: Tensor) -> Tensor:
        here = (x != 0).unsqueeze(1)
        h = self.embedding(x.long()).transpose(1, 2)
        h = h + F.silu(self.first(h)) * here  # beyond the end all stays zero, as the convolutions' own padding is
        h = h + F.silu(self.second(h)) * here
        # An empty text has no largest value; it reads as zeros.
        return self.output_layer(h.masked_fill(~here, -1e4).amax(-1) * here.any(-1))
