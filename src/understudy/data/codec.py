"""Between the world's units and the network's. What is fitted here is saved with the weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

from ..core import Batch, Schema


class Coder(nn.Module, ABC):
    """Statistics as buffers, so ONNX export and save/load need no second path."""

    width: int  # of one coded step of the target
    choices: tuple[int, ...]  # see core.Shape

    @abstractmethod
    def fit(self, scan: Callable[[], Iterator[Batch]]) -> None:
        """In one pass: `scan()` yields every window once. Padded steps (mask False) say nothing."""

    @abstractmethod
    def obs(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Same keys and shapes (B, To, *feature); what is no number (images, text, choices) is left alone."""

    @abstractmethod
    def encode(self, action: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """(B, H, A) in world units -> (B, H, width). `obs` as it came, not coded."""

    @abstractmethod
    def decode(self, coded: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """The inverse of encode."""


class Codec(ABC):
    @abstractmethod
    def build(self, features: Schema, inputs: tuple[str, ...], target: str) -> Coder: ...
