"""Adapter of Gymnasium's environments, single ones and vectors, to `Env`."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from importlib import metadata
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from ..core import DataWarning, UserCodeError, UserError
from ..user_code import describe_place, locate_user_error
from .base import ROUNDED, Env, Renderable, StepResult
from .flags import SUCCESS_KEYS, check_flags
from .gymnasium_spaces import (
    RoundingCheck,
    action_feature,
    action_limits,
    add_batch_axis,
    find_misfit,
    space_columns,
    space_feature,
    to_array,
)
from .physics import mujoco_model
from .resting_rows import RestingRows

ACTION_MASK = "action_mask"  # what infos and observations call it
NEW_API_HINT = (
    "write it for Gymnasium 0.26 or later: reset(*, seed, options) -> (observation, info), and step(action) -> "
    "(observation, reward, terminated, truncated, info)"
)


class GymVector(Env):
    """A Gymnasium vector environment as an `Env`.

    A row ends with its own last observation, and starts again only when it is reset, with a seed made of its key. This
    holds for every autoreset mode that can be supported.

    Observations: a Box of numbers is `observation.state` (float32, flattened). An image, which is a uint8 Box (H, W),
    (H, W, 1 or 3) or (1 or 3, H, W), is `observation.images.camera`. Key k of a Dict is `observation.k`, or
    `observation.images.k`. Discrete, MultiDiscrete and MultiBinary are classes counted from 0. Text is UTF-8 bytes.
    Actions: a Box is clipped to its bounds, and rounded if it holds integers. Classes are (B, 1) or (B, n) int64.

    Success is the entry "success" or "is_success" of an info. Some environments report it at the end of an episode
    only. StepResult has no "success" before the first report.

    Args:
        metadata: Metadata of the environment. "env" is required.
        lift: Flags of the infos that are passed on in `StepResult.info`.
    """

    def __init__(self, vec: VectorEnv, metadata: Mapping[str, Any], lift: tuple[str, ...] = ()):
        self.vec, self.rows, self.info_flags = vec, vec.num_envs, (*lift, *SUCCESS_KEYS)
        if isinstance(vec, RestingRows):
            vec.info_flags = self.info_flags
        self.mode = _autoreset_mode(vec)
        name = str(metadata["env"])
        self.columns = space_columns(vec.single_observation_space, name)
        self.features = {k: space_feature(space, f"{name}, {k}") for k, (_, space) in self.columns.items()}
        self.features["action"] = action_feature(vec.single_action_space, name)
        self.started, self.finished, self.n_steps = False, np.zeros(self.rows, bool), 0
        self.metadata = {"success": None, **action_limits(vec.single_action_space), **metadata}
        self.reports_success = False
        self._rounding = RoundingCheck()
        self._probe_info()

    def _probe_info(self) -> None:
        """Makes one step, because most environments report success and action masks at every step."""
        self.reset(torch.arange(self.rows), torch.zeros(self.rows, dtype=torch.int64))
        still = torch.zeros(self.rows, *self.features["action"].shape)
        info = self._step(still)[4]
        self._detect_success_flag(info)
        if ACTION_MASK in info or any(ACTION_MASK in path for path, _ in self.columns.values()):
            warnings.warn(f"{self.metadata['env']} reports {ACTION_MASK!r}. Action masks are not supported: policies "
                          "and random actions may choose actions that it forbids", DataWarning, stacklevel=2)
        self.started, self.n_steps = False, 0

    def _detect_success_flag(self, info) -> None:
        merged_info = {**info, **info.get("final_info", {})}
        if not self.reports_success and (flag := next((f for f in SUCCESS_KEYS if f in merged_info), None)):
            self.reports_success = True
            self.metadata = {**self.metadata, "success": self.metadata["success"] or f"info[{flag!r}] at any step"}

    def reset(self, which, key):
        mask, seeds = np.zeros(self.rows, bool), [0] * self.rows
        mask[which.numpy()] = True
        for row, k in zip(which.tolist(), key.tolist(), strict=True):
            seeds[row] = k % 2**31  # every generator takes such a seed
        if not self.started:  # the first reset is of all rows, because each needs some state
            with self._named_errors("reset"):
                obs, _ = self.vec.reset(seed=seeds)
            self.last_obs, self.started, self.finished = self._to_columns(obs, self.rows), True, ~mask
        else:
            self._restart(mask, seeds)
        return self._observation()

    def _restart(self, mask, seeds):
        with self._named_errors("reset"):
            obs, _ = self.vec.reset(seed=seeds, options={"reset_mask": mask.copy()})
        for name, new in self._to_columns(obs, self.rows).items():
            self.last_obs[name][mask] = new[mask]
        self.finished[mask] = False

    def step(self, action):
        self.check_actions(action)
        live = ~self.finished
        action = torch.where(torch.from_numpy(live).unsqueeze(1), action, torch.zeros_like(action))
        resting = np.zeros(self.rows, bool)
        if isinstance(self.vec, RestingRows):
            self.vec.resting = resting = self.finished
        elif self.mode is AutoresetMode.DISABLED and self.finished.any():  # `vec` cannot step finished rows
            self._restart(self.finished.copy(), [0] * self.rows)
        obs, reward, terminated, truncated, info = self._step(action)
        terminated, truncated = (check_flags(flags, name, live, self.metadata["env"])
                                 for name, flags in (("terminated", terminated), ("truncated", truncated)))
        self.last_obs, self.finished = self._to_columns(obs, self.rows), resting | terminated | truncated
        self._detect_success_flag(info)
        if self.mode is AutoresetMode.SAME_STEP and self.finished.any():
            last = info.get("final_info", {})
            for row in self.finished.nonzero()[0]:  # `obs` already shows the next episode
                self._check_last_observation(info["final_obs"][row], row)
                for name, value in self._to_columns(add_batch_axis(info["final_obs"][row]), 1).items():
                    self.last_obs[name][row] = value[0]
            running, ended = self._flags(info, live & ~self.finished), self._flags(last, live & self.finished)
            flags = {k: running[k] | ended[k] for k in running}
        else:
            flags = self._flags(info, live)
        if live.any():
            self._rounding.update("next.reward", np.asarray(reward, np.float64)[live, None])
        if self.finished[live].any() and (rounded := self._rounding.problems()) != self.metadata.get(ROUNDED, {}):
            self.metadata = {**self.metadata, ROUNDED: rounded}
        success = torch.stack([flags.pop(k) for k in SUCCESS_KEYS]).any(0)
        return StepResult(self._observation(), torch.as_tensor(np.asarray(reward, np.float32)),
                          torch.from_numpy(terminated), torch.from_numpy(truncated),
                          {**flags, **({"success": success} if self.reports_success else {})})

    def _flags(self, info: Mapping[str, Any], live: np.ndarray) -> dict[str, torch.Tensor]:
        """Returns the flags in an info, (rows,) bool each. They are False where a row is not live, or has none."""
        return {k: torch.from_numpy(check_flags(info.get(k, [None] * self.rows), k, live, self.metadata["env"]) & live)
                for k in self.info_flags}

    def _check_last_observation(self, last, row) -> None:
        """Raises UserCodeError if `reset` has overwritten the arrays of the last observation."""
        inner = self.vec.unwrapped
        if not isinstance(inner, SyncVectorEnv):
            return  # other processes send copies, which do not show it
        for name, (path, _) in self.columns.items():
            old, new = (reduce(lambda value, key: value[key], path, obs) for obs in (last, inner._env_obs[row]))
            if isinstance(old, np.ndarray) and isinstance(new, np.ndarray) and np.shares_memory(old, new):
                raise UserCodeError(
                    f"reset and step return the same array as {name}, so with AutoresetMode.SAME_STEP the last "
                    "observation of an episode is lost", where=self.metadata["env"],
                    hint="return a copy of the array, or build the vector environment with "
                         "autoreset_mode=AutoresetMode.DISABLED")

    def close(self):
        self.vec.close()

    def _step(self, action: torch.Tensor):
        native, self.n_steps = self._to_native(action), self.n_steps + 1
        with self._named_errors(f"step {self.n_steps}"):
            return self.vec.step(native)

    @contextmanager
    def _named_errors(self, when: str) -> Iterator[None]:
        """Adds the name of the environment and the step number to errors that it raises. A context manager."""
        try:
            yield
        except (UserError, MemoryError, OSError):  # these are reported as they are
            raise
        except Exception as error:
            place, user_error = f"{self.metadata['env']}, {when}", locate_user_error(error)
            if user_error is not None:
                place += f": {user_error.where}"
            raise UserCodeError(
                f"{type(error).__name__}: {error}", where=place,
                hint="correct the environment. gymnasium.utils.env_checker.check_env finds what does not fit its spaces"
            ) from error

    def _observation(self):
        return {k: torch.from_numpy(v.copy()) for k, v in self.last_obs.items()}

    def _to_columns(self, obs, rows) -> dict[str, np.ndarray]:
        out = {}
        for name, (path, space) in self.columns.items():
            value = obs
            try:
                for key in path:
                    value = value[key]
                out[name] = to_array(space, value, rows)
                if self.features[name].dtype == "float32" and not np.can_cast(space.dtype, np.float32):
                    self._rounding.update(name, np.asarray(value).reshape(rows, -1))
            except (ValueError, TypeError, LookupError) as error:
                raise UserCodeError(f"{name} does not fit its space {space}: {error}", where=self.metadata["env"],
                                    hint="correct the observation, or the space that the environment declares"
                                    ) from error
        return out

    def _to_native(self, action: torch.Tensor):
        space = self.vec.single_action_space
        action = action.detach().cpu().numpy()
        if isinstance(space, spaces.Box):
            action = np.clip(action.reshape(self.rows, *space.shape), space.low, space.high)
            return (np.rint(action) if space.dtype.kind in "iu" else action).astype(space.dtype)
        action = np.rint(action).astype(np.int64)
        limits = np.array(self.features["action"].num_classes)
        if (action < 0).any() or (action >= limits).any():
            raise UserError(f"the action {action.tolist()} is not below {limits.tolist()}, the numbers of choices",
                            where=f"{self.metadata['env']}, action", hint="choices count from 0")
        if isinstance(space, spaces.Discrete):
            return action[:, 0] + space.start
        return (action + getattr(space, "start", 0)).astype(space.dtype)


class CheckedEnv(gymnasium.Wrapper):
    """Wraps a Gymnasium environment so that observations and rewards are checked at every step.

    Gymnasium itself fails on a wrong shape far from its cause, and accepts a class that does not exist. Numbers outside
    the bounds of a Box are accepted, as in Gymnasium.
    """

    def reset(self, *, seed=None, options=None):
        obs, info = self.env.reset(seed=seed, options=options)
        self._check("reset", find_misfit(self.observation_space, obs, "the observation"))
        return obs, info

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._check("step", find_misfit(self.observation_space, obs, "the observation"))
        if np.ndim(reward) or np.asarray(reward).dtype.kind not in "biuf":
            self._check("step", f"the reward is {reward!r} and not a number")
        return obs, reward, terminated, truncated, info

    def _check(self, method: str, problem: str) -> None:
        if problem:
            raise UserCodeError(problem, where=describe_place(getattr(self.env.unwrapped, method)),
                                hint="correct what it returns, or the space that the environment declares")


class RenderableGymVector(GymVector, Renderable):
    """A Gymnasium vector environment with render_mode "rgb_array", as an `Env` that can be rendered."""

    def frame(self, row):
        """Returns an image of one row, (H, W, 3) uint8.

        Raises:
            UserError: The vector environment has `AutoresetMode.SAME_STEP`, or this machine cannot render it.
        """
        if self.mode is AutoresetMode.SAME_STEP:
            raise UserError("with AutoresetMode.SAME_STEP the last image of an episode cannot be rendered, because the "
                            "next episode has started by then", where=self.metadata["env"],
                            hint="build the vector environment with autoreset_mode=AutoresetMode.DISABLED")
        return render_row(self.vec, row)


_render_error: list[UserError] = []  # MuJoCo ends the process at the second attempt to draw without OpenGL


def render_row(vec: VectorEnv, row: int) -> np.ndarray:
    """Renders one row, (H, W, 3) uint8."""
    inner = vec.unwrapped
    with render_errors(not (isinstance(inner, SyncVectorEnv) and mujoco_model(inner.envs[row]) is None)):
        frame = inner.envs[row].render() if isinstance(inner, SyncVectorEnv) else vec.render()[row]
    return np.asarray(frame, np.uint8)


@contextmanager
def render_errors(mujoco: bool) -> Iterator[None]:
    """Turns rendering errors of a simulator into errors that say what is missing. A context manager.

    Args:
        mujoco: Whether MuJoCo draws, or may draw.
    """
    if _render_error and mujoco:
        raise _render_error[0]
    try:
        yield
    except Exception as error:  # a driver, a library, a display: each simulator says it in its own type
        problem = UserError(
            f"this machine cannot draw it ({type(error).__name__}: {error})", where="pictures of an environment",
            hint="without a display MuJoCo needs MUJOCO_GL=egl and libegl1 (or osmesa); others need pygame")
        if type(error).__module__.startswith("mujoco"):
            _render_error.append(problem)
        raise problem from error


def wrap_vector(vec: VectorEnv, metadata: Mapping[str, Any]) -> Env:
    """Wraps a Gymnasium vector environment as an `Env`.

    Args:
        metadata: Metadata of the environment. "env" is required.
    """
    return (RenderableGymVector if vec.render_mode == "rgb_array" else GymVector)(vec, metadata)


def vectorize(build: Callable[[], gymnasium.Env], rows: int) -> RestingRows:
    """Makes a vector environment whose copies are stepped one after another, each until its episode ends.

    Args:
        build: Makes one environment. It must return a new one at each call.
    """
    return RestingRows([build] * rows)


def build(name: str, **options) -> gymnasium.Env:
    """Calls `gymnasium.make`, with render_mode "rgb_array" if the environment supports it."""
    creator = gymnasium.spec(name).entry_point
    if isinstance(creator, str):
        creator = load_env_creator(creator)
    if "rgb_array" in getattr(creator, "metadata", {}).get("render_modes", ()):
        options = {"render_mode": "rgb_array", **options}
    return gymnasium.make(name, **options)


def check_api(env: gymnasium.Env, name: str) -> None:
    """Checks that an environment has the signatures of Gymnasium. The old Gym has different ones.

    Args:
        env: The environment. It is reset and stepped once.
    """
    while isinstance(env, gymnasium.Wrapper) and type(env).__module__.startswith("gymnasium."):
        env = env.env  # whatever its author wrote
    signature = inspect.signature(env.reset)
    keywords = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    if not keywords and not {"seed", "options"} <= set(signature.parameters):
        raise UserError(f"it has reset{signature}, not reset(*, seed, options)", where=name, hint=NEW_API_HINT)
    returned = env.reset(seed=0, options=None)
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], Mapping)):
        raise UserError("reset must return (observation, info), but returned something else", where=name,
                        hint=NEW_API_HINT)
    env.action_space.seed(0)
    returned = env.step(env.action_space.sample())
    count = len(returned) if isinstance(returned, tuple) else "something else"
    if count != 5:
        raise UserError(f"step must return 5 values, but returned {count}", where=name, hint=NEW_API_HINT)


def is_mujoco(env: gymnasium.Env) -> bool:
    """Returns whether an environment is one of Gymnasium's MuJoCo environments, whose state can be set."""
    if "mujoco" not in sys.modules:
        return False
    from gymnasium.envs.mujoco import MujocoEnv

    return isinstance(env.unwrapped, MujocoEnv)


def env_metadata(env: gymnasium.Env, name: str) -> dict[str, Any]:
    """Returns the metadata of a Gymnasium environment, such as its rate and limits.

    Returns:
        "env" (the name), "version" (package and version), "fps" and "limit" (number of steps).
    """
    limit = None if env.spec is None else env.spec.max_episode_steps
    package = type(env.unwrapped).__module__.split(".")[0]
    try:
        version = f"{package} {metadata.version(package.replace('_', '-'))}"
    except metadata.PackageNotFoundError:
        version = package
    return {"env": name, "version": version, "fps": env.metadata.get("render_fps"), "limit": limit}


def _autoreset_mode(vec):
    mode = vec.metadata.get("autoreset_mode")
    inner = vec.unwrapped
    if not isinstance(inner, (SyncVectorEnv, AsyncVectorEnv)) and mode is not AutoresetMode.DISABLED:
        raise UserError(f"its rows cannot be reset one by one: {type(inner).__name__} "
                        f"with autoreset_mode {mode}", where="gymnasium",
                        hint="build it with autoreset_mode=AutoresetMode.DISABLED and support options['reset_mask']")
    if isinstance(inner, AsyncVectorEnv) and not inner.shared_memory and mode is AutoresetMode.NEXT_STEP:
        # Its workers forget the reset that they were told and make another one.
        raise UserError("AsyncVectorEnv with AutoresetMode.NEXT_STEP needs shared memory, but has "
                        "shared_memory=False", where="gymnasium", hint="use AutoresetMode.DISABLED or SAME_STEP")
    return AutoresetMode(mode)
