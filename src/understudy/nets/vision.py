"""Images to tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn


class VisionNet(nn.Module, ABC):
    tokens: int

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor:
        """(N, C, h, w) in [0, 1] -> (N, tokens, width)."""


class Vision(ABC):
    """A frozen dataclass."""

    @abstractmethod
    def build(self, shape: tuple[int, int, int], width: int) -> VisionNet:
        """For images of shape (h, w, C), after cropping. It scales the pixels as it likes to have them."""


class SpatialSoftmax(nn.Module):
    """(N, K, h, w) -> (N, 2 K): where each map is largest, as the mean position under its softmax, x then y of each,
    from -1 (left, top) to 1 (Levine et al. 2016; Finn et al. 2016)."""

    def forward(self, maps: Tensor) -> Tensor:
        h, w = maps.shape[-2:]
        share = maps.flatten(2).softmax(-1).unflatten(-1, (h, w))
        x = torch.linspace(-1, 1, w, device=maps.device, dtype=maps.dtype)
        y = torch.linspace(-1, 1, h, device=maps.device, dtype=maps.dtype)
        return torch.stack([(share.sum(-2) * x).sum(-1), (share.sum(-1) * y).sum(-1)], -1).flatten(1)


@dataclass(frozen=True)
class SmallConv(Vision):
    """Four convolutions, then keypoints: a network for a CPU. One token an image."""

    channels: tuple[int, ...] = (32, 32, 64, 64)
    keypoints: int = 32

    def build(self, shape, width):
        return _SmallConv(self, shape, width)


class _SmallConv(VisionNet):
    tokens = 1

    def __init__(self, spec, shape, width):
        super().__init__()
        layers, size = [], shape[-1]
        for i, channels in enumerate(spec.channels):
            stride = 2 if i < 2 else 1
            layers += [nn.Conv2d(size, channels, 3, stride, 1), nn.GroupNorm(8, channels), nn.SiLU()]
            size = channels
        self.body = nn.Sequential(*layers, nn.Conv2d(size, spec.keypoints, 1), SpatialSoftmax())
        self.leave = nn.Linear(2 * spec.keypoints, width)

    def forward(self, image):
        return self.leave(self.body(2 * image - 1)).unsqueeze(1)


def crop(image: Tensor, margin: int, rng: Generator | None) -> Tensor:
    """(N, C, h, w) -> (N, C, h - 2 margin, w - 2 margin): at a random place for each image, in the centre without
    `rng` (on the image's device)."""
    if not margin:
        return image
    n, _, h, w = image.shape
    h, w = h - 2 * margin, w - 2 * margin
    if rng is None:
        return image[..., margin:margin + h, margin:margin + w]
    top, left = torch.randint(0, 2 * margin + 1, (2, n, 1, 1), generator=rng, device=image.device)
    row = top + torch.arange(h, device=image.device)[:, None]
    column = left + torch.arange(w, device=image.device)
    which = torch.arange(n, device=image.device)[:, None, None]
    return image.permute(0, 2, 3, 1)[which, row, column].permute(0, 3, 1, 2)
