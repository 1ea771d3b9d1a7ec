"""Adapter to the control suite of dm_control (Tunyasuvunakool et al. 2020), on MuJoCo."""

from __future__ import annotations

from importlib.metadata import version

import gymnasium
import numpy as np
from dm_control import suite
from dm_env import specs
from gymnasium import spaces

from ...core import unknown_name
from .. import gymnasium_adapter
from ..mujoco import MujocoVector

CAMERA = {"height": 240, "width": 320, "camera_id": 0}


def make(name: str, rows: int = 1, limit: int | None = None) -> DmControlVector:
    """Makes a task of the control suite. It defines no success. The reward of a step is from 0 to 1.

    Args:
        name: "dm_control/DOMAIN-TASK", such as "dm_control/cartpole-swingup".
        limit: Number of steps of an episode. None for the limit of the task, which is 1000 for most.
    """
    domain, _, task = name.removeprefix("dm_control/").partition("-")
    if (domain, task) not in suite.ALL_TASKS:
        raise unknown_name("domain and task", f"{domain}-{task}", map("-".join, suite.ALL_TASKS), name,
                           owner="the control suite")
    vec = gymnasium_adapter.vectorize(lambda: DMControlEnv(domain, task, limit), rows)
    first = vec.envs[0]
    return DmControlVector(vec, {"env": name, "version": f"dm_control {version('dm-control')}", "limit": first.limit,
                                 "fps": round(1 / first.env.control_timestep(), 6)})


class DMControlEnv(gymnasium.Env):
    """A task of dm_control as a gymnasium.Env. Each episode draws from its own generator."""

    render_mode, metadata = "rgb_array", {"render_modes": ["rgb_array"]}

    def __init__(self, domain: str, task: str, limit: int | None):
        self.env = suite.load(domain, task, task_kwargs={"random": 0})
        if limit is not None:
            self.env._step_limit = limit  # in small steps of time it would depend on rounding
        self.limit = None if np.isinf(self.env._step_limit) else int(self.env._step_limit)
        self.model, self.data = self.env.physics.model.ptr, self.env.physics.data.ptr
        self.observation_space = spaces.Dict({k: spaces.Box(-np.inf, np.inf, spec.shape, np.float64)
                                              for k, spec in self.env.observation_spec().items()})
        self.action_space = _box_space(self.env.action_spec())

    def reset(self, *, seed=None, options=None):
        self.env.task._random = np.random.RandomState(seed)
        return dict(self.env.reset().observation), {}

    def step(self, action):
        now = self.env.step(action)
        over = now.last()
        return dict(now.observation), now.reward or 0.0, over and now.discount == 0, over and now.discount != 0, {}

    def render(self):
        return self.env.physics.render(**CAMERA)


def _box_space(spec: specs.BoundedArray) -> spaces.Box:
    low, high = (np.broadcast_to(limit, spec.shape).astype(np.float64) for limit in (spec.minimum, spec.maximum))
    return spaces.Box(low, high, spec.shape, np.float64)


class DmControlVector(MujocoVector):
    """A task of the control suite, with a column for each of its observations: observation.position, ..."""

    def _observe_restored(self, row, steps, i):
        env = self.vec.envs[row].env
        for name, value in env.task.get_observation(env.physics).items():
            self.last_obs[f"observation.{name}"][row] = np.asarray(value).reshape(-1)
