"""Gymnasium-Robotics (de Lazcano et al. 2023): Fetch, mazes, the kitchen and the hands. The door is in adroit.py."""

from __future__ import annotations

import gymnasium
import gymnasium_robotics
from gymnasium import spaces

from ..core import UserError
from . import gym
from .single import Seen

gymnasium.register_envs(gymnasium_robotics)
FAMILIES = ("Fetch", "Hand", "PointMaze", "AntMaze", "FrankaKitchen", "Adroit")
RENAMED = {"observation": "state", "desired_goal": "goal", "achieved_goal": "achieved_goal"}


def make(name: str, rows: int = 1, **options) -> Seen:
    """name: "FetchReach-v4", "PointMaze_UMaze-v3", "FrankaKitchen-v1", ... options: gymnasium.make's."""
    if name not in gymnasium.registry:
        from . import nearest

        raise UserError(f"expected an environment of Gymnasium-Robotics, found {name!r}", where=name,
                        do=nearest(name, [i for i in gymnasium.registry if i.startswith(FAMILIES)]))
    vec = gym.side_by_side(lambda: Goal(gym.build(name, **options)), rows)
    kitchen = name.startswith("FrankaKitchen")
    facts = {**gym.facts_of(vec.envs[0], name),
             "success": "all its tasks are done" if kitchen else "the goal is reached at any step"}
    return Seen(vec, facts)


class Goal(gymnasium.Wrapper):
    """observation.state, and where there is a goal observation.goal and observation.achieved_goal."""

    def __init__(self, env):
        super().__init__(env)
        if isinstance(env.observation_space, spaces.Dict):
            self.observation_space = spaces.Dict(_named(env.observation_space))

    def reset(self, *, seed=None, options=None):
        seen, info = self.env.reset(seed=seed, options=options)
        return _named(seen), info

    def step(self, action):
        seen, reward, terminated, truncated, info = self.env.step(action)
        if "tasks_to_complete" in info:
            info = {**info, "success": not info["tasks_to_complete"]}
        return _named(seen), reward, terminated, truncated, info


def _named(seen):
    return {RENAMED[k]: v for k, v in seen.items()} if hasattr(seen, "items") else seen
