"""Base classes for MuJoCo environments: recording and setting their state, and drawing cheap pictures."""

from __future__ import annotations

import atexit
import weakref
from abc import abstractmethod

import mujoco
import numpy as np
import torch

from ..core import Feature, UserError
from .base import HasCameras, Restorable
from .gymnasium_adapter import GymVector, render_errors, render_row

STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS | mujoco.mjtState.mjSTATE_WARMSTART
FREE_CAMERA = "free"
# observe all but the horizontal position, on which nothing depends
HIDE_X_POSITION = ("Hopper", "Walker2d", "HalfCheetah")


def disable_shadows(model) -> None:
    """Switches shadows and smoothing off, which makes drawing on a CPU ten times as fast. Call it before drawing."""
    model.vis.quality.shadowsize = model.vis.quality.offsamples = 0


class SceneRenderer:
    """Draws square images of MuJoCo models without a window.

    Args:
        model: A model. Further models from the same file, such as one for each episode, can be drawn, too.
        size: Width and height of the images, in pixels.
    """

    def __init__(self, model, size: int):
        self.size = size
        with render_errors(mujoco=True):
            for side in ("offwidth", "offheight"):
                setattr(model.vis.global_, side, max(size, getattr(model.vis.global_, side)))
            self._gl = mujoco.GLContext(size, size)
            self._gl.make_current()
            self._scene = mujoco.MjvScene(model, maxgeom=10_000)
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        if not _renderers:
            atexit.register(_close_renderers)  # later than the driver's own, and so called before it
        _renderers.add(self)

    def draw(self, model, data, camera: str) -> np.ndarray:
        """Draws the picture of one camera.

        Args:
            camera: Name of a camera of the model, or "free" for MuJoCo's own view of the whole.

        Returns:
            (size, size, 3) uint8.
        """
        view = mujoco.MjvCamera()
        if camera == FREE_CAMERA:
            mujoco.mjv_defaultFreeCamera(model, view)
        else:
            view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, model.camera(camera).id
        area, image = mujoco.MjrRect(0, 0, self.size, self.size), np.empty((self.size, self.size, 3), np.uint8)
        with render_errors(mujoco=True):
            self._gl.make_current()
            mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, view, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
            mujoco.mjr_render(area, self._scene, self._context)
            mujoco.mjr_readPixels(image, None, area, self._context)
        return image[::-1].copy()

    def close(self) -> None:
        """Frees the resources of the graphics driver."""
        _renderers.discard(self)
        self._gl.make_current()
        self._context.free()
        self._gl.free()


_renderers: weakref.WeakSet[SceneRenderer] = weakref.WeakSet()


def _close_renderers() -> None:
    for renderer in list(_renderers):
        renderer.close()


class MujocoCameras(GymVector, HasCameras):
    """Rows of MuJoCo environments that are drawn from named cameras."""

    def __init__(self, vec, metadata, lift=()):
        super().__init__(vec, metadata, lift)
        model, _ = self._simulation(0)
        names = [model.camera(i).name for i in range(model.ncam)]
        self.cameras = (*filter(None, names), FREE_CAMERA)
        self._renderers: dict[int, SceneRenderer] = {}  # by size
        self._drawn: dict[int, tuple] = {}  # by row, the model and a state of it for drawing

    @abstractmethod
    def _simulation(self, row: int) -> tuple:
        """Returns MuJoCo's model and state of one row."""

    def frame(self, row):
        return render_row(self.vec, row)

    def view(self, row, camera, size):
        model, data = self._simulation(row)
        if size not in self._renderers:
            self._renderers[size] = SceneRenderer(model, size)
        if row not in self._drawn or self._drawn[row][0] is not model:
            self._drawn[row] = model, mujoco.MjData(model)
        # After a step, MuJoCo's positions of bodies are from before its last small step. The positions of the present
        # state are computed in other data, because computing them in `data` would change the steps that follow.
        drawn, kind = self._drawn[row][1], mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(model, kind))
        mujoco.mj_getState(model, data, state, kind)
        mujoco.mj_setState(model, drawn, state, kind)
        mujoco.mj_forward(model, drawn)
        return self._renderers[size].draw(model, drawn, camera)

    def close(self):
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
        super().close()


class MujocoVector(MujocoCameras, Restorable):
    """Several copies of a MuJoCo environment, stepped one after another.

    The column `simulator.state` is MuJoCo's full physics state and the warm start of the solver. An episode that is
    restored from this column continues bit-identically.
    """

    def __init__(self, vec, metadata, lift=()):
        self.models = [(e.unwrapped.model, e.unwrapped.data) for e in vec.envs]
        for model, _ in self.models:
            disable_shadows(model)
        super().__init__(vec, metadata, lift)
        self.features = {**self.features, "simulator.state": Feature("float64", self._get_state(0).shape)}

    def _observation(self):
        states = np.stack([self._get_state(row) for row in range(self.rows)])
        return {**super()._observation(), "simulator.state": torch.from_numpy(states)}

    def _simulation(self, row):
        return self.models[row]

    def _get_state(self, row: int) -> np.ndarray:
        """Returns simulator.state of one row."""
        model, data = self.models[row]
        state = np.empty(mujoco.mj_stateSize(model, STATE))
        mujoco.mj_getState(model, data, state, STATE)
        return state

    def _set_state(self, row: int, state: np.ndarray) -> None:
        model, data = self.models[row]
        mujoco.mj_setState(model, data, state, STATE)
        mujoco.mj_forward(model, data)  # positions of bodies and sites
        mujoco.mj_setState(model, data, state, STATE)  # again: mj_forward has changed the warm start

    def _recorded_column(self, steps, i: int, column: str, size: int) -> np.ndarray:
        """Returns row i of a recorded column, which must exist and have this size."""
        if column not in steps:
            raise UserError(f"there is no column {column!r}, only {', '.join(sorted(steps))}",
                            where=self.metadata["env"], hint="restore from steps recorded in this environment")
        components = np.asarray(steps[column][i], np.float64)
        if components.shape != (size,):
            raise UserError(f"has shape {components.shape}, but must have {size} numbers",
                            where=f"{self.metadata['env']}, column {column!r}",
                            hint="restore from steps recorded in this environment")
        return components

    def _restore_from_obs(self, row: int, steps, i: int) -> None:
        """Sets a row to the state that was observed in row i of `steps`. Raises UserError naming a missing column."""
        raise UserError(f"there is no column 'simulator.state', only {', '.join(sorted(steps))}",
                        where=self.metadata["env"], hint="record again with understudy record, which writes it")

    def restore(self, which, steps, key=None):
        self.reset(which, torch.zeros_like(which) if key is None else key)
        for i, row in enumerate(which.tolist()):
            if "simulator.state" in steps:
                self._set_state(row, self._recorded_column(steps, i, "simulator.state", len(self._get_state(row))))
            else:
                self._restore_from_obs(row, steps, i)
            self._observe_restored(row, steps, i)
        return self._observation()

    def _observe_restored(self, row: int, steps, i: int) -> None:
        """Writes into `seen` the observation of a row that was restored from row i of `steps`."""
        for name, value in self._to_columns([self.vec.envs[row].unwrapped._get_obs()], 1).items():
            self.last_obs[name][row] = value[0]
            if {"simulator.state", name} <= set(steps):
                # After a step MuJoCo shows the positions of sites before its last small step. They cannot be computed
                # from the state, so the recorded ones are taken.
                self.last_obs[name][row] = self._recorded_column(steps, i, name, value[0].size)


class Mujoco(MujocoVector):
    """MuJoCo environments of Gymnasium, such as Hopper and Walker2d.

    Hopper, Walker2d and HalfCheetah observe all but their horizontal position. Without `simulator.state` they are
    restored from `observation.state`, with position 0. Velocities of Hopper and Walker2d are clipped to 10 there.
    """

    def _restore_from_obs(self, row, steps, i):
        if "observation.state" not in steps or not self.metadata["env"].startswith(HIDE_X_POSITION):
            super()._restore_from_obs(row, steps, i)
        model, data = self.models[row]
        state = self._recorded_column(steps, i, "observation.state", model.nq - 1 + model.nv)
        data.qpos[:], data.qvel[:] = [0.0, *state[:model.nq - 1]], state[model.nq - 1:]
        mujoco.mj_forward(model, data)
