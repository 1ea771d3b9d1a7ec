"""What only training does to observations. What inference must also do (a crop) belongs to the encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


class Augmentation(ABC):
    """A frozen dataclass."""

    @abstractmethod
    def __call__(self, obs: Mapping[str, Tensor], rng: Generator) -> Mapping[str, Tensor]:
        """obs[name] (B, To, *feature) as recorded, not coded; `rng` is on its device. Changes nothing in place."""


@dataclass(frozen=True)
class ConditionDropout(Augmentation):
    """Hide a key from a share of the windows, all its rows at once, so that the policy can also answer without it
    (classifier-free guidance, Ho and Salimans 2022; a sensor that may fail)."""

    key: str
    p: float = 0.1

    def __call__(self, obs, rng):
        x = obs[self.key]
        here = torch.rand(x.shape[0], 1, generator=rng, device=x.device) >= self.p
        already = obs.get(self.key + "?", torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
        return {**obs, self.key + "?": already & here}


@dataclass(frozen=True)
class GaussianNoise(Augmentation):
    """Gaussian noise on every row of a vector, in the units of the data: one number, or one for each component."""

    key: str
    std: float | tuple[float, ...] = 0.01

    def __call__(self, obs, rng):
        x = obs[self.key]
        noise = torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
        return {**obs, self.key: x + torch.as_tensor(self.std, device=x.device, dtype=x.dtype) * noise}


@dataclass(frozen=True)
class ColorJitter(Augmentation):
    """Colors of images changed by one random factor each, from [1 - field, 1 + field], the same for all rows of a
    window: light does not change between two frames.

    brightness scales the pixels, contrast their distance from the image's mean grey, saturation their distance from
    their own grey (weights of ITU-R BT.601), in this order, cut off at 0 and 255 after each.
    """

    key: str
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3

    def __call__(self, obs, rng):
        image = obs[self.key]  # (B, To, h, w, C) uint8
        draw = 2 * torch.rand(3, image.shape[0], 1, 1, 1, 1, generator=rng, device=image.device) - 1
        x = (image * (1 + self.brightness * draw[0])).clamp(0, 255)
        x = _scale_around(x, _grayscale(x).mean((2, 3), keepdim=True), 1 + self.contrast * draw[1])
        x = _scale_around(x, _grayscale(x), 1 + self.saturation * draw[2])
        return {**obs, self.key: x.round().to(image.dtype)}


def _scale_around(x: Tensor, origin: Tensor, factor: Tensor) -> Tensor:
    return (origin + factor * (x - origin)).clamp(0, 255)


def _grayscale(x: Tensor) -> Tensor:
    if x.shape[-1] != 3:
        return x.mean(-1, keepdim=True)
    return (x * x.new_tensor((0.299, 0.587, 0.114))).sum(-1, keepdim=True)
