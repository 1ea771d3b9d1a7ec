"""Interface of environments. A batch of environments has one row per copy, and a single one is a batch of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from ..core import Schema, UserError
from ..execute.actor import Actor

ROUNDED = "rounded"  # metadata of an environment: columns whose changes float32 does not show, each with why
Obs = Mapping[str, Tensor]  # full column name -> (B, ...), on the CPU


@dataclass(frozen=True)
class StepResult:
    """Result of one step of all rows (copies of the environment).

    Attributes:
        obs: Observations by column, (B, ...).
        reward: Rewards, (B,) float32.
        terminated: True where the episode is over and nothing would follow, (B,) bool.
        truncated: True where the episode was cut off, for example by a time limit, (B,) bool.
        info: Further values of each row, such as "success" (B,) bool if the environment defines success.
    """

    obs: Obs
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    info: Mapping[str, Tensor] = field(default_factory=dict)


class Env(ABC):
    """One or several copies of an environment that are stepped together, one per row.

    Attributes:
        rows: Number of copies.
        features: Columns of the observation, and the action.
        metadata: "env" (its name), "version", "fps", "limit" (largest number of steps), "success" (definition of
            success as text, or None), and for bounded actions "low" and "high" (one number, or one per component).
    """

    rows: int
    features: Schema
    metadata: Mapping[str, Any]

    @abstractmethod
    def reset(self, which: Tensor, key: Tensor) -> Obs:
        """Restarts some rows, also at the first call. A row that has never been restarted may show anything.

        Args:
            which: Rows to restart, (n,).
            key: Source of all randomness of each restarted row, (n,) int64. Nothing else affects its start.
        """

    @abstractmethod
    def step(self, action: Tensor) -> StepResult:
        """Steps all rows.

        Args:
            action: Actions, (B, A). A row whose episode has ended is stepped too until it is reset. Its results are not
                read.
        """

    def check_actions(self, action: Tensor) -> None:
        """Raises UserError if there is not one action for each row."""
        expected_shape = (self.rows, *self.features["action"].shape)
        if tuple(action.shape) != expected_shape:
            raise UserError(f"the actions have shape {tuple(action.shape)}, but must have shape {expected_shape}",
                            where=self.metadata["env"], hint="one row of action for each environment")

    def close(self) -> None:
        """Releases resources outside this process's memory, such as processes and windows."""


class EnvWrapper(Env):
    """Base class of wrappers: an environment around another one. Subclasses override what they change."""

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
    """An environment with an expert that demonstrates its task."""

    @abstractmethod
    def expert(self) -> Actor: ...


class Restorable(Env):
    """An environment whose state can be set to recorded states."""

    @abstractmethod
    def restore(self, which: Tensor, steps: Mapping[str, Tensor], key: Tensor | None = None) -> Obs:
        """Sets rows (copies of the environment) to the states that recorded steps describe.

        Args:
            which: The rows, (n,).
            steps: Columns with n rows. They may include numbers from the metadata of the episodes, under their names.
            key: Source of all later randomness in each row, (n,). None uses 0 for all rows, so that the same happens in
                each.
        """


class Renderable(Env):
    """An environment that can be rendered."""

    @abstractmethod
    def frame(self, row: int) -> np.ndarray:
        """Returns an image of one row, (H, W, 3) uint8."""


class HasCameras(Renderable):
    """An environment with named cameras.

    Attributes:
        cameras: Their names. The first is the usual one.
    """

    cameras: tuple[str, ...]

    @abstractmethod
    def view(self, row: int, camera: str, size: int) -> np.ndarray:
        """Returns the picture that a camera takes of one row, (size, size, 3) uint8."""


class HasProprioception(Env):
    """An environment of a robot that knows which numbers the robot's own sensors measure.

    Attributes:
        proprioception: For each observation column with such numbers, their components. What other columns and
            components say comes from the simulator.
    """

    proprioception: Mapping[str, tuple[int, ...]]


class PlanarMap(Env):
    """An environment in the plane, with a map over which trajectories can be drawn."""

    @abstractmethod
    def map(self) -> Mapping[str, Any]:
        """The map of the environment, as a dict of JSON values.

        Returns:
            "x" and "y": ranges of the axes, (low, high). "shapes": a list such as ``{"kind": "circle", "at": (x, y),
            "radius": r, "role": "obstacle" | "goal" | "start"}``. "path": ``(column, i, j)``, the components of an
            observation column that are the position to draw. "marks", optional: shapes that differ from episode to
            episode, with ``"column": (column, i, j)`` instead of "at". "control", optional: ``{"column": column,
            "components": (i, j), "step": s}``, the components of a column that are the position which the same
            components of the action move, and how far an action of 1 moves it in a step. "step" is None for actions
            that are positions. The image of `Renderable.frame` then shows the map as `raster.render_map` does, so
            that a click on it is a point of the map.
        """
