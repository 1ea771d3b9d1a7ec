"""What only training does to observations. What inference must also do (a crop) belongs to the encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


class Augment(ABC):
    """A frozen dataclass."""

    @abstractmethod
    def __call__(self, obs: Mapping[str, Tensor], rng: Generator) -> Mapping[str, Tensor]:
        """obs[name] (B, To, *feature) as recorded, not coded; `rng` is on its device. Changes nothing in place."""


@dataclass(frozen=True)
class Drop(Augment):
    """Hide a key from a share of the windows, all its rows at once, so that the policy can also answer without it
    (classifier-free guidance, Ho and Salimans 2022; a sensor that may fail)."""

    key: str
    chance: float = 0.1

    def __call__(self, obs, rng):
        x = obs[self.key]
        here = torch.rand(x.shape[0], 1, generator=rng, device=x.device) >= self.chance
        already = obs.get(self.key + "?", torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
        return {**obs, self.key + "?": already & here}
