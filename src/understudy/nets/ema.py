"""An average of the weights along training."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import nn


class EMADecay(ABC):
    """A frozen dataclass."""

    @abstractmethod
    def value(self, count: int) -> float:
        """The share of the average that update number `count` (from 1) leaves as it was."""


@dataclass(frozen=True)
class ConstantDecay(EMADecay):
    decay: float = 0.999

    def value(self, count):
        return self.decay


@dataclass(frozen=True)
class WarmupDecay(EMADecay):
    """min(decay, (1 + n) / (10 + n)): early on, when the average is mostly the random start, it forgets faster."""

    decay: float = 0.999

    def value(self, count):
        return min(self.decay, (1 + count) / (10 + count))


@dataclass(frozen=True)
class PolynomialDecay(EMADecay):
    """1 - max(n^-power, minimum), n counted after the first `start` updates, of which nothing is kept (Block et al.
    2024, gradient variance amplification). Power 1 is the plain mean since then."""

    power: float = 2 / 3
    minimum: float = 1e-4
    start: int = 0

    def value(self, count):
        n = count - self.start
        return 0.0 if n < 1 else 1 - max(n ** -self.power, self.minimum)


class EMA:
    """`module` is the average. Its state is module.state_dict() and `count`: what was averaged before is in them."""

    def __init__(self, module: nn.Module, decay: EMADecay | float):
        self.decay = decay if isinstance(decay, EMADecay) else WarmupDecay(decay)
        self.module, self.updates = copy.deepcopy(module).requires_grad_(False).eval(), 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Parameters are averaged; buffers (statistics, memories) are copied."""
        self.updates += 1
        if mine := list(self.module.parameters()):
            torch._foreach_lerp_(mine, list(module.parameters()), 1 - self.decay.value(self.updates))
        for mine, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.resize_(theirs.shape).copy_(theirs)  # a memory may have grown
