"""Text encoders. Text arrives as UTF-8 bytes, so that no vocabulary has to be shipped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from ..core import AtLeast, part
from .linear import Linear


class TextEncoder(ABC):
    """Config of an encoder of "text" columns. Subclasses are frozen dataclasses."""

    @abstractmethod
    def build(self, width: int) -> nn.Module:
        """Builds the module.

        Returns:
            A module that maps bytes (N, L) uint8, padded with 0, to (N, width). The padding does not change the result.
        """


@part
class ByteEncoder(TextEncoder):
    """Embeds bytes, applies two convolutions and takes the maximum of each channel over the text.

    It is trained with the policy. That is enough to distinguish the tasks of a dataset, but not to understand new
    words.

    Args:
        kernel: Kernel size of the convolutions, in bytes.

    References:
        Kim (2014), Convolutional Neural Networks for Sentence Classification, arXiv:1408.5882 (there on words).
    """

    channels: Annotated[int, AtLeast(1)] = 64
    kernel: Annotated[int, AtLeast(1)] = 5

    def build(self, width):
        return _ByteEncoderNet(self, width)


class _ByteEncoderNet(nn.Module):
    def __init__(self, config, width):
        super().__init__()
        self.embedding = nn.Embedding(256, config.channels, padding_idx=0)
        self.first = nn.Conv1d(config.channels, config.channels, config.kernel, padding="same")
        self.second = nn.Conv1d(config.channels, config.channels, config.kernel, padding="same")
        self.output_layer = Linear(config.channels, width)

    def forward(self, x: Tensor) -> Tensor:
        mask = (x != 0).unsqueeze(1)
        h = self.embedding(x.long()).transpose(1, 2)
        h = h + F.silu(self.first(h)) * mask  # positions after the end stay zero, like the padding of convolutions
        h = h + F.silu(self.second(h)) * mask
        # An empty text has no maximum. It is encoded as zeros.
        return self.output_layer(h.masked_fill(~mask, -1e4).amax(-1) * mask.any(-1))
