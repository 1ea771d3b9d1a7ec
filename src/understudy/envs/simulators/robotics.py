"""Adapter to Gymnasium-Robotics (de Lazcano et al. 2023): Fetch, mazes, kitchen and hands, but not the door."""

from __future__ import annotations

import gymnasium
import gymnasium_robotics
from gymnasium import spaces

from ...core import unknown_name
from .. import gymnasium_adapter
from ..gymnasium_adapter import RenderableGymVector

gymnasium.register_envs(gymnasium_robotics)
FAMILIES = ("Fetch", "Hand", "PointMaze", "AntMaze", "FrankaKitchen", "Adroit")
RENAMED = {"observation": "state", "desired_goal": "goal", "achieved_goal": "achieved_goal"}


def make(name: str, rows: int = 1, **options) -> RenderableGymVector:
    """Makes an environment of Gymnasium-Robotics.

    Args:
        name: Gymnasium id, such as "FetchReach-v4", "PointMaze_UMaze-v3" or "FrankaKitchen-v1".
        **options: Arguments of `gymnasium.make`.
    """
    if name not in gymnasium.registry:
        raise unknown_name("environment", name, (i for i in gymnasium.registry if i.startswith(FAMILIES)), name,
                           owner="Gymnasium-Robotics")
    vec = gymnasium_adapter.vectorize(lambda: ObservationColumns(gymnasium_adapter.build(name, **options)), rows)
    kitchen = name.startswith("FrankaKitchen")
    metadata = {**gymnasium_adapter.env_metadata(vec.envs[0], name),
                "success": "all its tasks are done" if kitchen else "the goal is reached at any step"}
    return RenderableGymVector(vec, metadata)


class ObservationColumns(gymnasium.Wrapper):
    """Adapter of the observations: observation.state and, where there is a goal, its two columns."""

    def __init__(self, env):
        super().__init__(env)
        if isinstance(env.observation_space, spaces.Dict):
            self.observation_space = spaces.Dict(_named(env.observation_space))

    def reset(self, *, seed=None, options=None):
        obs, info = self.env.reset(seed=seed, options=options)
        return _named(obs), info

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        if "tasks_to_complete" in info:
            info = {**info, "success": not info["tasks_to_complete"]}
        return _named(obs), reward, terminated, truncated, info


def _named(obs):
    return {RENAMED[k]: v for k, v in obs.items()} if hasattr(obs, "items") else obs
