"""Environments come in rows. One is a batch of one; there is no second interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from ..core import Schema
from ..execute.actor import Actor

Obs = Mapping[str, Tensor]  # full column name -> (B, ...), on the CPU


@dataclass(frozen=True)
class StepResult:
    obs: Obs
    reward: Tensor  # (B,) float32
    terminated: Tensor  # (B,) bool: nothing follows
    truncated: Tensor  # (B,) bool: something would have followed
    info: Mapping[str, Tensor] = field(default_factory=dict)  # "success" (B,) bool where defined, ...


class Env(ABC):
    """rows: how many run side by side. features: of observations and action. facts: "env" (its name), "version",
    "fps", "limit" (steps), "success" (its definition in words, or None), "low" and "high" (of actions that are
    vectors: a number, or one a component; where there are limits)."""

    rows: int
    features: Schema
    metadata: Mapping[str, Any]

    @abstractmethod
    def reset(self, which: Tensor, key: Tensor) -> Obs:
        """Restart rows `which` (n,), each decided by its `key` (n,) alone; observations of all rows."""

    @abstractmethod
    def step(self, action: Tensor) -> StepResult:
        """action (B, A). A row that ended is still stepped until reset, and its results are not read."""

    def close(self) -> None:
        """Gives back what the environment holds outside this process's memory."""


class EnvWrapper(Env):
    """An environment around another one. Subclasses change what they say they change.

    Args:
        env: The environment.
    """

    def __init__(self, env: Env):
        self.env, self.rows, self.features = env, env.rows, env.features
        self.metadata = {**env.metadata, "env": f"{env.metadata['env']}+{type(self).__name__}"}

    def reset(self, which, key):
        return self.env.reset(which, key)

    def step(self, action):
        return self.env.step(action)

    def close(self):
        self.env.close()


class HasExpert(Env):
    """Has its own expert."""

    @abstractmethod
    def expert(self) -> Actor: ...


class Restorable(Env):
    """Can be put where a recorded step was."""

    @abstractmethod
    def restore(self, which: Tensor, steps: Mapping[str, Tensor], key: Tensor | None = None) -> Obs:
        """Puts rows into the state that recorded steps describe.

        Args:
            which: The rows, (n,).
            steps: Columns of n rows. Numeric facts of their episodes may be among them under their names.
            key: Decides what is random afterwards in each row, (n,). None for keys of 0: then the same happens in all
                rows.

        Returns:
            The observations of all rows.

        Raises:
            UserError: If a column is missing. The message names it.
        """


class Renderable(Env):
    """Can be looked at."""

    @abstractmethod
    def frame(self, row: int) -> np.ndarray:
        """(H, W, 3) uint8."""


class PlanarMap(Env):
    """A toy in the plane, whose trajectories can be drawn over its map."""

    @abstractmethod
    def map(self) -> Mapping[str, Any]:
        """{"x": (low, high), "y": (low, high), "shapes": [{"kind": "circle", "at": (x, y), "radius": r, "role":
        "obstacle" | "goal" | "start"}, ...], "path": (column, i, j)}: which components of which observation column
        are the position to draw. Shapes that differ by episode stand under "marks", which may be absent, with
        "column": (column, i, j) in the place of "at"."""
