"""Adapter to Meta-World (Yu et al. 2020): a Sawyer arm at fifty tasks, each with a scripted policy."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as GOALS
from metaworld.policies import ENV_POLICY_MAP

from ...core import unknown_name
from ...execute.actor import Actor
from .. import gymnasium_adapter
from ..base import HasExpert, HasProprioception
from ..mujoco import MujocoCameras, disable_shadows


def make(name: str, rows: int = 1, limit: int = 500, terminate_on_success: bool = True) -> MetaWorld:
    """Makes a task of Meta-World. As in the benchmark, an episode succeeds if the task is done at any of its steps.

    Args:
        name: "metaworld/TASK", such as "metaworld/door-open-v3".
        limit: Number of steps of an episode, at most 500.
        terminate_on_success: End an episode with its first success. False changes returns, but not success.
    """
    task = name.removeprefix("metaworld/")
    if task not in ENV_POLICY_MAP:
        raise unknown_name("task", task, ENV_POLICY_MAP, name, owner="Meta-World")
    vec = gymnasium_adapter.vectorize(lambda: FreshTaskEnv(task, limit, terminate_on_success), rows)
    metadata = {**gymnasium_adapter.env_metadata(vec.envs[0].env, name), "limit": limit,
             "success": "info['success'] at any step, as the benchmark counts"}
    return MetaWorld(vec, metadata, task)


@cache
def _compiled_model(path: str) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_path(path)


class _CompiledOnce:
    """Compiles the model of a task once and copies it, because compiling takes most of the time of a reset."""

    def _initialize_simulation(self: Any) -> tuple[mujoco.MjModel, mujoco.MjData]:
        model = copy.copy(_compiled_model(self.fullpath))
        buffer = model.vis.global_
        buffer.offwidth, buffer.offheight = max(buffer.offwidth, self.width), max(buffer.offheight, self.height)
        return model, mujoco.MjData(model)


@cache
def _task_class(task: str) -> Any:
    goal_class = GOALS[f"{task}-goal-observable"]  # calls super(type(self), self), which fails in a subclass
    own = {"__init__": goal_class.__init__, "__module__": goal_class.__module__}  # the module tells the version
    return type(goal_class.__name__, (_CompiledOnce, *goal_class.__bases__), own)


class FreshTaskEnv(gymnasium.Env):
    """A task of Meta-World that is built again for every episode, because its ``reset(seed)`` does not repeat an
    episode.

    The seed decides the positions of objects and goal. The goal is observed.
    """

    render_mode = "rgb_array"

    def __init__(self, task: str, limit: int, terminate_on_success: bool):
        self.task, self.limit, self.terminate_on_success = task, limit, terminate_on_success
        self._build(0)
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space
        self.metadata = self.env.metadata

    def _build(self, seed):
        self.env, self.clock = _task_class(self.task)(seed=seed, render_mode=self.render_mode), 0
        disable_shadows(self.env.model)

    def reset(self, *, seed=None, options=None):
        self.env.close()
        self._build(seed)
        return self.env.reset()

    def step(self, action):
        self.clock += 1
        obs, reward, terminated, truncated, info = self.env.step(action)
        done = self.terminate_on_success and info["success"] > 0
        return obs, reward, terminated or done, truncated or self.clock >= self.limit, info

    def render(self):
        return self.env.render()

    def close(self):
        self.env.close()


class MetaWorld(MujocoCameras, HasExpert, HasProprioception):
    """Adapter to a Meta-World task. observation.state (39): hand, gripper and objects now and before, and the goal.

    The robot itself measures the position of its hand and how far the gripper is open. MuJoCo draws images from the
    corners upside down; here they are upright. LeRobot turns images of "corner2" as well, and also moves this camera.
    """

    proprioception = {"observation.state": (0, 1, 2, 3)}

    def __init__(self, vec, metadata, task: str):
        self.task = task
        super().__init__(vec, metadata)
        self.cameras = tuple(sorted(self.cameras, key=lambda name: name != "corner2"))

    def expert(self):
        return MetaWorldExpert(self.task)

    def view(self, row, camera, size):
        image = super().view(row, camera, size)
        return image[::-1, ::-1].copy() if camera.startswith("corner") else image

    def _simulation(self, row):
        single = self.vec.envs[row].env.unwrapped
        return single.model, single.data


@dataclass(frozen=True)
class MetaWorldExpert(Actor):
    """Meta-World's own scripted policy of a task, as an expert. It is deterministic."""

    task: str

    def start(self, obs, key):
        return {}

    def act(self, obs, state):
        policy = ENV_POLICY_MAP[self.task]()
        actions = [policy.get_action(row.double().numpy()) for row in obs["observation.state"]]
        return torch.from_numpy(np.clip(np.stack(actions), -1, 1).astype(np.float32)), state
