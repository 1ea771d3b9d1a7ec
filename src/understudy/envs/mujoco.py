"""What MuJoCo environments share: their state can be recorded and set, and their pictures can be made cheap."""

from __future__ import annotations

from abc import abstractmethod

import mujoco
import numpy as np
import torch

from ..core import Feature, UserError
from .base import Renderable, Restorable
from .gymnasium_adapter import GymVector, render_row

STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS | mujoco.mjtState.mjSTATE_WARMSTART
# observe all but the horizontal position, on which nothing depends
HIDE_X_POSITION = ("Hopper", "Walker2d", "HalfCheetah")


def disable_shadows(model) -> None:
    """Without shadows and smoothing a picture takes a tenth of the time on a CPU. Has to be set before the first."""
    model.vis.quality.shadowsize = model.vis.quality.offsamples = 0


class MujocoVector(GymVector, Renderable, Restorable):
    """Several copies of a MuJoCo environment, stepped one after the other.

    The column `simulator.state` is MuJoCo's full physics state and the warm start of the solver. An episode that is
    restored from it continues bit-identically.
    """

    def __init__(self, vec, facts, lift=()):
        self.models = [(e.unwrapped.model, e.unwrapped.data) for e in vec.envs]
        for model, _ in self.models:
            disable_shadows(model)
        super().__init__(vec, facts, lift)
        self.features = {**self.features, "simulator.state": Feature("float64", self._get_state(0).shape)}

    def _observation(self):
        states = np.stack([self._get_state(row) for row in range(self.rows)])
        return {**super()._observation(), "simulator.state": torch.from_numpy(states)}

    def frame(self, row):
        return render_row(self.vec, row)

    def _get_state(self, row: int) -> np.ndarray:
        """simulator.state of one row."""
        model, data = self.models[row]
        state = np.empty(mujoco.mj_stateSize(model, STATE))
        mujoco.mj_getState(model, data, state, STATE)
        return state

    def _set_state(self, row: int, state: np.ndarray) -> None:
        model, data = self.models[row]
        mujoco.mj_setState(model, data, state, STATE)
        mujoco.mj_forward(model, data)  # positions of bodies and sites
        mujoco.mj_setState(model, data, state, STATE)  # which has changed the warm start

    def _recorded_column(self, steps, i: int, column: str, size: int) -> np.ndarray:
        """Row i of a column that has to be of this size."""
        found = np.asarray(steps[column][i], np.float64)
        if found.shape != (size,):
            raise UserError(f"has shape {found.shape}, but must have {size} numbers",
                            where=f"{self.metadata['env']}, column {column!r}",
                            hint="restore from steps recorded in this environment")
        return found

    @abstractmethod
    def _restore_from_obs(self, row: int, steps, i: int) -> None:
        """Put a row where row i of `steps` was observed to be. Raises UserError naming a column it needs."""

    def restore(self, which, steps, key=None):
        self.reset(which, torch.zeros_like(which) if key is None else key)
        for i, row in enumerate(which.tolist()):
            if "simulator.state" in steps:
                self._set_state(row, self._recorded_column(steps, i, "simulator.state", len(self._get_state(row))))
            else:
                self._restore_from_obs(row, steps, i)
            for name, value in self._to_columns([self.vec.envs[row].unwrapped._get_obs()], 1).items():
                self.seen[name][row] = value[0]
                if {"simulator.state", name} <= set(steps):
                    # After a step MuJoCo shows positions of sites from just before its last small step, which are
                    # gone; they were recorded.
                    self.seen[name][row] = self._recorded_column(steps, i, name, value[0].size)
        return self._observation()


class Mujoco(MujocoVector):
    """Hopper, Walker2d and the like. Without `simulator.state` those that observe all but their horizontal position
    (Hopper, Walker2d, HalfCheetah) are restored from `observation.state` with position 0; recorded velocities are
    clipped to 10 in the first two."""

    def _restore_from_obs(self, row, steps, i):
        if "observation.state" not in steps or not self.metadata["env"].startswith(HIDE_X_POSITION):
            raise UserError(f"there is no column 'simulator.state', only {', '.join(sorted(steps))}",
                            where=self.metadata["env"], hint="record again with understudy record, which writes it")
        model, data = self.models[row]
        seen = self._recorded_column(steps, i, "observation.state", model.nq - 1 + model.nv)
        data.qpos[:], data.qvel[:] = [0.0, *seen[:model.nq - 1]], seen[model.nq - 1:]
        mujoco.mj_forward(model, data)
