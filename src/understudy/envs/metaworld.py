"""Meta-World (Yu et al. 2020): a Sawyer arm at fifty tasks, with the scripted policy that comes with each."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import gymnasium
import metaworld  # noqa: F401  (names the environments)
import numpy as np
import torch
from metaworld.policies import ENV_POLICY_MAP

from ..core import UserError
from ..execute.actor import Actor
from . import gym
from .base import Pictures, Scripted
from .mujoco import plainly


def make(name: str, rows: int = 1, limit: int = 500, terminate_on_success: bool = True, **options) -> MetaWorld:
    """name: "metaworld/door-open-v3". An episode is a success if the task is done at any of its `limit` steps, as the
    benchmark has it; so it ends there, unless terminate_on_success is False, which changes returns but no success."""
    task = name.removeprefix("metaworld/")
    if task not in ENV_POLICY_MAP:
        near = difflib.get_close_matches(task, ENV_POLICY_MAP, 3, 0.4)
        raise UserError(f"expected a Meta-World task, found {task!r}", where=name,
                        do=f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(ENV_POLICY_MAP)}")
    options = {"render_mode": "rgb_array", "max_episode_steps": limit, "terminate_on_success": terminate_on_success,
               **options}
    vec = gym.side_by_side(lambda: Fresh(task, options), rows)
    facts = {**gym.facts_of(vec.envs[0].env, name), "limit": limit,
             "success": "info['success'] at any step, as the benchmark counts"}
    return MetaWorld(vec, facts, task)


class Fresh(gymnasium.Env):
    """A new copy for every episode: Meta-World's reset(seed) does not repeat an episode, a new copy does."""

    def __init__(self, task: str, options: dict):
        self.task, self.options = task, options
        self._build(0)
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space
        self.metadata, self.render_mode = self.env.metadata, options["render_mode"]

    def _build(self, seed):
        self.env = gymnasium.make("Meta-World/MT1", env_name=self.task, seed=seed, disable_env_checker=True,
                                  **self.options)
        plainly(self.env.unwrapped.model)

    def reset(self, *, seed=None, options=None):
        self.env.close()
        self._build(seed)
        return self.env.reset()

    def step(self, action):
        return self.env.step(action)

    def render(self):
        return self.env.render()

    def close(self):
        self.env.close()


class MetaWorld(gym.Vector, Scripted, Pictures):
    """observation.state (39): hand, gripper and objects now and one step before, and the goal."""

    def __init__(self, vec, facts, task: str):
        self.task = task
        super().__init__(vec, facts)

    def expert(self):
        return Expert(self.task)

    def frame(self, row):
        return gym.drawn(self.vec, row)


@dataclass(frozen=True)
class Expert(Actor):
    """Meta-World's own scripted policy of a task. It always does the same in the same state."""

    task: str

    def start(self, obs, key):
        return {}

    def act(self, obs, state):
        policy = ENV_POLICY_MAP[self.task]()
        actions = [policy.get_action(row.double().numpy()) for row in obs["observation.state"]]
        return torch.from_numpy(np.clip(np.stack(actions), -1, 1).astype(np.float32)), state
