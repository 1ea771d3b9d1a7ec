"""Exponential moving average of the weights during training."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ..core import Above, AtLeast, AtMost, part


class EMADecay(ABC):
    """Schedule of the decay. Subclasses are frozen dataclasses."""

    @abstractmethod
    def value(self, count: int) -> float:
        """Returns the decay of update number `count` (the first is 1): the weight of the old average."""


@part
class ConstantDecay(EMADecay):
    """The same decay at every update.

    Args:
        decay: Weight of the old average, between 0 and 1.
    """

    decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.999

    def value(self, count):
        return self.decay


@part
class WarmupDecay(EMADecay):
    """``min(decay, (1 + n) / (10 + n))`` at update n.

    At first, when the average is mostly the random initial weights, it forgets faster.

    Args:
        decay: Largest weight of the old average.
    """

    decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.999

    def value(self, count):
        return min(self.decay, (1 + count) / (10 + count))


@part
class PolynomialDecay(EMADecay):
    """``1 - max(n ** -power, minimum)``, where n counts the updates after the first `start`.

    With power 1 this is the plain mean since then.

    Args:
        minimum: Smallest weight of the new values.
        start: Number of updates whose weights are not averaged.

    References:
        Block et al. (2024), Butterfly Effects of SGD Noise: Error Amplification in Behavior Cloning and
        Autoregression, arXiv:2310.11428.
    """

    power: Annotated[float, Above(0)] = 2 / 3
    minimum: Annotated[float, AtLeast(0), AtMost(1)] = 1e-4
    start: Annotated[int, AtLeast(0)] = 0

    def value(self, count):
        n = count - self.start
        return 0.0 if n < 1 else 1 - max(n ** -self.power, self.minimum)


class EMA:
    """Keeps the average of a module's weights in a copy of it.

    The state to save is ``module.state_dict()`` and `updates`.

    Args:
        decay: Schedule of the decay. A number means `WarmupDecay` with that decay.
    """

    def __init__(self, module: nn.Module, decay: EMADecay | float):
        self.decay = decay if isinstance(decay, EMADecay) else WarmupDecay(decay)
        self.module, self.updates = copy.deepcopy(module).requires_grad_(False).eval(), 0
        self._source, self._averages, self._values = module, _tensors(self.module), _tensors(module)
        self._copied: list[tuple[Tensor | None, int]] = [(None, 0)] * len(self._averages[1])  # buffers and versions

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Updates the average with the parameters of `module`, and copies its buffers (statistics, memories)."""
        self.updates += 1
        if module is not self._source:
            self._source, self._values = module, _tensors(module)
        self._move(1 - self.decay.value(self.updates))

    @torch.no_grad()
    def restart(self, module: nn.Module) -> None:
        """Sets the average to the weights of `module`, whose buffers may be others than before."""
        self._source, self._values = module, _tensors(module)
        self._move(1.0)

    @property
    def weights(self) -> list[Tensor]:
        """The averaged weights."""
        return self._averages[0]

    @property
    def sources(self) -> list[Tensor]:
        """The weights that are averaged."""
        return self._values[0]

    def _move(self, weight: float) -> None:
        if self.weights:
            torch._foreach_lerp_(self.weights, self.sources, weight)
        self.copy_buffers()

    def copy_buffers(self) -> None:
        """Copies the buffers that have changed."""
        (_, own_buffers), (_, buffers) = self._averages, self._values
        for i, ((own_places, name), (places, _)) in enumerate(zip(own_buffers, buffers, strict=True)):
            value, (copied, version) = places[name], self._copied[i]
            if value is not copied or value._version != version:  # most buffers never change
                own_places[name].resize_(value.shape).copy_(value)  # a memory may have grown
                self._copied[i] = value, value._version


# A walk through all modules takes longer than an update of a small network, so that it is done once.
def _tensors(module: nn.Module) -> tuple[list[Tensor], list[tuple[dict[str, Any], str]]]:
    """The parameters, and the places of the buffers, which another tensor can take."""
    places = [(m._buffers, name) for m in module.modules() for name, buffer in m._buffers.items() if buffer is not None]
    return list(module.parameters()), places
