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
    def start(self, planner: Planner, key: Tensor) -> State:
        """State for len(key) rows; `key` (B,) int64 is all the randomness a row will ever use. Every entry it will
        ever hold is there from the start, rows first."""

    @abstractmethod
    def act(self, planner: Planner, obs: Mapping[str, Tensor], state: State) -> tuple[Tensor, State]:
        """obs are windows (B, To, ...). Returns (B, A) in world units and the next state; changes nothing."""


def check_alignment(executor: Executor, planner: Planner, past: int = 0) -> None:
    """Raises UserError unless the policy's chunks begin `past` steps before now: else actions come early or late."""
    if planner.window.action_offset != -past:
        raise UserError(f"expected chunks that begin {past} steps before now, as this executor reads them, found a "
                        f"window with ahead={planner.window.action_offset}", where=type(executor).__name__,
                        hint="an executor with skip=N runs policies trained with Window(action_offset=-N)")


def empty_chunks(planner: Planner, key: Tensor, *shape: int) -> Tensor:
    """Room for chunks: (B, *shape, H, A)."""
    return torch.zeros(key.shape[0], *shape, planner.window.horizon, planner.action_dim, device=key.device)
