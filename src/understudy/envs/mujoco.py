"""What MuJoCo environments share: their state can be recorded and set, and their pictures can be made cheap."""

from __future__ import annotations

import mujoco
import numpy as np
import torch

from ..core import Feature, UserError
from .base import Pictures, Replays
from .gym import Vector, drawn

STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS | mujoco.mjtState.mjSTATE_WARMSTART
FLAT = ("Hopper", "Walker2d", "HalfCheetah")  # observe all but the horizontal position, on which nothing depends


class Simulated(Vector, Pictures, Replays):
    """Single MuJoCo environments stepped in turn. `simulator.state` is what MuJoCo calls its full physics state,
    with the solver's warm start: restoring it continues to the last bit."""

    def __init__(self, vec, facts, lift=()):
        self.models = [(e.unwrapped.model, e.unwrapped.data) for e in vec.envs]
        for model, _ in self.models:
            # Without shadows and smoothing a picture takes a tenth of the time on a CPU; it has to be set before
            # the first one.
            model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
        super().__init__(vec, facts, lift)
        size = mujoco.mj_stateSize(self.models[0][0], STATE)
        self.features = {**self.features, "simulator.state": Feature("float64", (size,))}

    def _shown(self):
        return {**super()._shown(), "simulator.state": torch.from_numpy(np.stack([_state(*m) for m in self.models]))}

    def frame(self, row):
        return drawn(self.vec, row)

    def _set(self, row: int, state: np.ndarray) -> None:
        """`state`: simulator.state of one row."""
        model, data = self.models[row]
        mujoco.mj_setState(model, data, state, STATE)
        mujoco.mj_forward(model, data)  # positions of bodies and sites
        mujoco.mj_setState(model, data, state, STATE)  # which has changed the warm start

    def _look(self, rows) -> None:
        """What these rows show now."""
        for row in rows:
            look = self.vec.envs[row].unwrapped._get_obs()
            for name, value in self._columns([look], 1).items():
                self.seen[name][row] = value[0]


class Mujoco(Simulated):
    """Hopper, Walker2d and the like. Without `simulator.state` those that observe all but their horizontal position
    (Hopper, Walker2d, HalfCheetah) are restored from `observation.state` with position 0; recorded velocities are
    clipped to 10 in the first two."""

    def restore(self, which, steps):
        self.reset(which, torch.zeros_like(which))
        for i, row in enumerate(which.tolist()):
            model, data = self.models[row]
            if "simulator.state" in steps:
                state = np.asarray(steps["simulator.state"][i], np.float64)
                if state.shape != self.features["simulator.state"].shape:
                    raise UserError(f"expected {self.features['simulator.state'].shape[0]} numbers, found "
                                    f"{state.shape}", where=f"{self.facts['env']}, column 'simulator.state'",
                                    do="restore from steps recorded in this environment")
                self._set(row, state)
                continue
            if "observation.state" not in steps or not self.facts["env"].startswith(FLAT):
                raise UserError(f"expected a column 'simulator.state', found {', '.join(sorted(steps))}",
                                where=self.facts["env"], do="record again with understudy record, which writes it")
            seen = np.asarray(steps["observation.state"][i], np.float64)
            if seen.shape != (model.nq - 1 + model.nv,):
                raise UserError(f"expected {model.nq - 1 + model.nv} numbers, found {seen.shape}",
                                where=f"{self.facts['env']}, column 'observation.state'")
            data.qpos[:], data.qvel[:] = [0.0, *seen[:model.nq - 1]], seen[model.nq - 1:]
            mujoco.mj_forward(model, data)
        self._look(which.tolist())
        return self._shown()


def _state(model, data):
    state = np.empty(mujoco.mj_stateSize(model, STATE))
    mujoco.mj_getState(model, data, state, STATE)
    return state
