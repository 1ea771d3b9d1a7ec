"""An executor turns plans into actions. Its state is a value, one row per environment, so that a row can be reset,
moved, saved or forked by indexing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from ..core import State, UserError
from ..policy import Planner


class Executor(ABC):
    """A frozen dataclass."""

    @abstractmethod
    def start(self, policy: Planner, key: Tensor) -> State:
        """State for len(key) rows; `key` (B,) int64 is all the randomness a row will ever use. Every entry it will
        ever hold is there from the start, rows first."""

    @abstractmethod
    def act(self, policy: Planner, obs: Mapping[str, Tensor], state: State) -> tuple[Tensor, State]:
        """obs are windows (B, To, ...). Returns (B, A) in world units and the next state; changes nothing."""


def aligned(executor: Executor, policy: Planner, past: int = 0) -> None:
    """Raises UserError unless the policy's chunks begin `past` steps before now: else actions come early or late."""
    if policy.window.ahead != -past:
        raise UserError(f"expected chunks that begin {past} steps before now, as this executor reads them, found a "
                        f"window with ahead={policy.window.ahead}", where=type(executor).__name__,
                        do="an executor with skip=N runs policies trained with Window(ahead=-N)")


def blank(policy: Planner, key: Tensor, *shape: int) -> Tensor:
    """Room for chunks: (B, *shape, H, A)."""
    return torch.zeros(key.shape[0], *shape, policy.window.horizon, policy.dim, device=key.device)
