"""Base class of the bundled toys: rows of NumPy state, so that a thousand copies step as one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import Feature, UserError
from .base import HasExpert, PlanarMap, Renderable, Restorable, StepResult
from .raster import Drawable, draw_map, map_square

Arrays = dict[str, np.ndarray]  # name -> (rows, ...)


class Toy(HasExpert, Restorable, PlanarMap, Renderable):
    """Base class of the bundled toys.

    The state is float32 and is observed as it is, so that a recorded observation restores it exactly. Every operation
    works row by row, so that an episode does not depend on the other rows, bit for bit.

    Actions outside `low` and `high` are clipped. After `restore`, the time limit and the random draws of a row start
    again.

    Attributes:
        state_columns: Columns that together determine the state.
    """

    low = -1.0
    high = 1.0
    state_columns: tuple[str, ...] = ("observation.state",)  # the columns that tell the whole state

    def __init__(self, rows: int, limit: int):
        if rows < 1 or limit < 1:
            raise UserError(f"needs at least one row and one step, but rows={rows}, limit={limit}",
                            where=type(self).__name__, hint="such as rows=16, limit=100")
        self.rows, self.limit = rows, limit
        if self.features["action"].kind == "vector":  # other actions are choices, whose numbers have no limits
            self.metadata = {**self.metadata, "low": float(self.low), "high": float(self.high)}
        self.key = torch.zeros(rows, dtype=torch.int64)
        self.clock = torch.zeros(rows, dtype=torch.int64)
        self.state = self.initial_state(self.key)

    @abstractmethod
    def initial_state(self, key: Tensor) -> Arrays:
        """Draws the first states of new rows with their keys, (n,)."""

    @abstractmethod
    def observe(self) -> Arrays:
        """Returns the observation columns of the current state."""

    @abstractmethod
    def state_from_columns(self, steps: Arrays) -> Arrays:
        """Returns the state that gives this observation, the inverse of `observe`."""

    @abstractmethod
    def advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Advances the state by one step.

        Args:
            action: Actions within the limits, (rows, A).

        Returns:
            Reward, success and failure, (rows,) each. Success and failure both end the episode.
        """

    def numbers(self) -> Arrays:
        """Returns whole numbers that describe each row, (rows,), for `info`. They become metadata of the episode."""
        return {}

    def reset(self, which, key):
        self._set_rows(which, self.initial_state(key), key)
        return self._observation()

    def restore(self, which, steps, key=None):
        if missing := [k for k in self.state_columns if k not in steps]:
            raise UserError(f"there is no column {missing[0]!r}, only {', '.join(sorted(steps))}",
                            where=self.metadata["env"], hint="restore from steps recorded in this environment")
        recorded = {}
        for k in self.state_columns:
            recorded[k] = torch.as_tensor(steps[k]).cpu().numpy().astype(self.features[k].dtype)
            if recorded[k].shape != (len(which), *self.features[k].shape):
                raise UserError(f"the shape must be {(len(which), *self.features[k].shape)}, not {recorded[k].shape}",
                                where=f"{self.metadata['env']}, column {k!r}",
                                hint="restore from steps recorded in this environment, one for each row")
        key = torch.zeros_like(which) if key is None else key
        self._set_rows(which, self.state_from_columns(recorded), key)
        return self._observation()

    def step(self, action):
        self.check_actions(action)
        self.clock = self.clock + 1
        push = action.detach().cpu().numpy().astype(np.float32)
        reward, success, failure = self.advance(np.clip(push, self.low, self.high))
        info = {} if self.metadata["success"] is None else {"success": torch.from_numpy(success)}
        info |= {k: torch.from_numpy(v.astype(np.int64)) for k, v in self.numbers().items()}
        return StepResult(
            self._observation(),
            torch.from_numpy(reward.astype(np.float32)),
            torch.from_numpy(success | failure),
            self.clock >= self.limit,
            info,
        )

    def _set_rows(self, which, state, key):
        rows = which.numpy()
        for name, value in state.items():
            self.state[name][rows] = value
        self.key[which], self.clock[which] = key, 0

    def _observation(self):
        return {k: torch.from_numpy(v.copy()) for k, v in self.observe().items()}


class MapToy(Toy, Drawable):
    """A toy whose picture is its map, with the shapes of its present state over it."""

    @abstractmethod
    def state_shapes(self, row: int) -> Iterable[Mapping[str, Any]]:
        """Returns what the state of one row adds to the map, in the form of the map's shapes."""

    @property
    def square(self):
        return map_square(self.map())

    def draw(self, surface, row):
        draw_map(surface, self.map(), self.state_shapes(row))


def named_vector(*names: str, unit: str | None = None) -> Feature:
    """Returns the feature of a float32 vector with a name for each component."""
    return Feature("float32", (len(names),), names=names, unit=unit)


def distance(a: np.ndarray, b) -> np.ndarray:
    """Returns the Euclidean distance along the last axis.

    Args:
        a: Points, (rows, D).
        b: A point, (D,), or points of the same shape as `a`.

    Returns:
        Distances, (rows,).
    """
    offset = a - np.asarray(b, np.float32)
    return np.sqrt((offset * offset).sum(-1))


def length(vectors: Tensor) -> Tensor:
    """Returns the Euclidean length of vectors, (rows, 1)."""
    return (vectors * vectors).sum(1, keepdim=True).sqrt()


def unit(vectors: Tensor) -> Tensor:
    """Returns vectors, (rows, D), divided by their lengths."""
    return vectors / length(vectors).clamp(min=1e-6)


def push_apart(still: np.ndarray, moved: np.ndarray, least: float) -> np.ndarray:
    """Returns how points must move to be at a distance from others: 0 if they are that far already.

    Args:
        still: Points that stay, (rows, ..., 2), to broadcast against `moved`.
        moved: Points that go away from them, (rows, ..., 2).

    Returns:
        Offsets of `moved`, (rows, ..., 2).
    """
    away = moved - still
    gap = np.maximum(distance(away, 0), 1e-6)[..., None]
    return away / gap * np.maximum(least - gap, 0)
