"""The one training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from ..checkpoint import CheckpointModule
from ..core import Batch
from ..policy import Policy


class Learner(ABC):
    """Its randomness in an update is a function of its seed and of how many updates went before, so that its state
    is only what it learned."""

    @property
    @abstractmethod
    def trained_policy(self) -> Policy:
        """The policy to act with (the average of the weights, where one is kept)."""

    @property
    def modules(self) -> dict[str, CheckpointModule]:
        """The modules that a checkpoint stores, by name. "policy" is the one to act with; further ones, such as a
        critic, are stored beside it, for planners and for later stages."""
        return {"policy": self.trained_policy}

    @abstractmethod
    def update(self, batch: Batch) -> dict[str, float]:
        """One step. Returns what to log; a value that is not finite is an error that names the step."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything an update depends on: tensors, and facts as JSON."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Afterwards updates are bit-equal to those of the learner whose state this was."""


class LearnerConfig(ABC):
    """A frozen dataclass: how a method learns, as data."""

    steps: int
    batch_size: int
    extra: tuple[str, ...] = ()  # further columns that its batches need, over the horizon
    next_obs: bool = False  # whether they need the observations after the horizon

    @abstractmethod
    def build(self, policy: Policy, seed: int, steps: int) -> Learner:
        """`steps` updates will be made in all: schedules need to know."""


Callback = Callable[[int, Learner, dict[str, float]], None]  # after each update: updates made, learner, what it said


def fit(learner: Learner, batch: Callable[[int], Batch], steps: int, *, start: int = 0,
        callbacks: Iterable[Callback] = ()) -> None:
    """Updates number start to steps - 1. `batch(n)` is the n-th batch: a function, so there is nothing to resume."""
    for step in range(start, steps):
        seen = learner.update(batch(step))
        for look in callbacks:
            look(step + 1, learner, seen)
