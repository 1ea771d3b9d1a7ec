"""What the bundled toys share: rows of NumPy state, so that a thousand copies step as one."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..core import Feature, UserError
from .base import HasExpert, PlanarMap, Renderable, Restorable, StepResult

Arrays = dict[str, np.ndarray]  # name -> (rows, ...)


class Toy(HasExpert, Restorable, PlanarMap, Renderable):
    """State is float32 and is what is shown, so that a recorded observation restores it exactly; every operation is
    by row, so that an episode is bit-identical whichever other rows run.

    Actions outside `low` and `high` are clipped. A restored row's time limit and random draws start again.
    """

    low = -1.0
    high = 1.0
    state_columns: tuple[str, ...] = ("observation.state",)  # the columns that tell the whole state

    def __init__(self, rows: int, limit: int):
        if rows < 1 or limit < 1:
            raise UserError(f"needs at least one row and one step, but rows={rows}, limit={limit}",
                            where=type(self).__name__, hint="such as rows=16, limit=100")
        self.rows, self.limit = rows, limit
        self.metadata = {**self.metadata, "low": float(self.low), "high": float(self.high)}
        self.key = torch.zeros(rows, dtype=torch.int64)
        self.clock = torch.zeros(rows, dtype=torch.int64)
        self.state = self.initial_state(self.key)

    @abstractmethod
    def initial_state(self, key: Tensor) -> Arrays:
        """The first state of new rows, drawn with their keys (n,)."""

    @abstractmethod
    def observe(self) -> Arrays:
        """The columns that a state is seen as."""

    @abstractmethod
    def state_from_columns(self, steps: Arrays) -> Arrays:
        """The state that was seen as these columns."""

    @abstractmethod
    def advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Changes the state by one step; (reward, success, failure), each (rows,). Either of the two ends a row."""

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
                raise UserError(f"expected shape {(len(which), *self.features[k].shape)}, found {recorded[k].shape}",
                                where=f"{self.metadata['env']}, column {k!r}",
                                hint="restore from steps recorded in this environment, one for each row")
        key = torch.zeros_like(which) if key is None else key
        self._set_rows(which, self.state_from_columns(recorded), key)
        return self._observation()

    def step(self, action):
        wanted = (self.rows, *self.features["action"].shape)
        if tuple(action.shape) != wanted:
            raise UserError(f"the actions have shape {tuple(action.shape)}, but must have shape {wanted}",
                            where=self.metadata["env"], hint="one row of action for each environment")
        self.clock = self.clock + 1
        push = action.detach().cpu().numpy().astype(np.float32)
        reward, success, failure = self.advance(np.clip(push, self.low, self.high))
        return StepResult(
            self._observation(),
            torch.from_numpy(reward.astype(np.float32)),
            torch.from_numpy(success | failure),
            self.clock >= self.limit,
            {"success": torch.from_numpy(success)},
        )

    def _set_rows(self, which, state, key):
        at = which.numpy()
        for name, value in state.items():
            self.state[name][at] = value
        self.key[which], self.clock[which] = key, 0

    def _observation(self):
        return {k: torch.from_numpy(v.copy()) for k, v in self.observe().items()}


class MultimodalToy(Toy):
    """A toy that can be done in several ways and tells which one was taken: `info["mode"]`, and so a fact of each
    episode. facts["modes"]: the ways in words, in the order of their numbers."""

    @abstractmethod
    def mode(self) -> np.ndarray:
        """(rows,) int64: the way that each row has taken, -1 while that is open."""

    def step(self, action):
        out = super().step(action)
        return replace(out, info={**out.info, "mode": torch.from_numpy(self.mode().astype(np.int64))})


def named_vector(*names: str, unit: str | None = None) -> Feature:
    """A float32 vector with a name for each component."""
    return Feature("float32", (len(names),), names=names, unit=unit)


def distance(a: np.ndarray, b) -> np.ndarray:
    """(rows,) Euclidean."""
    offset = a - np.asarray(b, np.float32)
    return np.sqrt((offset * offset).sum(-1))


