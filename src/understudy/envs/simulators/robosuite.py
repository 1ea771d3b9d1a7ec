"""Adapter to robosuite (Zhu et al. 2020): arms on MuJoCo, the tasks of robomimic."""

from __future__ import annotations

import logging

import gymnasium
import numpy as np
from gymnasium import spaces

from ...core import unknown_name
from .. import gymnasium_adapter

logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
import robosuite  # noqa: E402  (greets)


def make(
    name: str, rows: int = 1, limit: int = 400, robots: str | tuple[str, ...] | None = None, **options
) -> gymnasium_adapter.GymVector:
    """Makes a task of robosuite. An episode ends with the first success.

    Args:
        name: "robosuite/TASK", such as "robosuite/Lift".
        robots: Names of the robots. None uses "Panda", or two of them in tasks with two arms.
        **options: Arguments of `robosuite.make`.
    """
    task = name.removeprefix("robosuite/")
    if task not in robosuite.ALL_ENVIRONMENTS:
        raise unknown_name("environment", task, robosuite.ALL_ENVIRONMENTS, name, owner="robosuite")
    arms = robots or (["Panda", "Panda"] if task.startswith("TwoArm") else "Panda")
    vec = gymnasium_adapter.vectorize(lambda: RobosuiteArm(task, arms, limit, options), rows)
    return gymnasium_adapter.GymVector(
        vec,
        {
            "env": name,
            "version": f"robosuite {robosuite.__version__}",
            "limit": limit,
            "fps": vec.envs[0].env.control_freq,
            "success": "robosuite's own check, at any step",
        },
    )


class RobosuiteArm(gymnasium.Env):
    """A column for each of robosuite's observations, named as robomimic does; observation.object joins all observations
    of objects."""

    def __init__(self, task, robots, limit, options):
        self.env = robosuite.make(task, robots=robots, **{
            "has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False, "ignore_done": True,
            **options, "hard_reset": True})  # a soft one leaves the gripper and the controller as they were
        self.limit, self.clock = limit, 0
        self.model = self.env.sim.model._model
        obs = self._columns(self.env.reset())
        self.observation_space = spaces.Dict({k: spaces.Box(-np.inf, np.inf, v.shape, np.float64)
                                              for k, v in obs.items()})
        low, high = self.env.action_spec
        self.action_space = spaces.Box(low, high, dtype=np.float64)

    def reset(self, *, seed=None, options=None):
        # One generator is in the hands of robots and placements alike: what is set is its state.
        self.env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self.clock = 0
        return self._columns(self.env.reset()), {"success": False}

    def step(self, action):
        obs, reward, _, _ = self.env.step(action)
        self.clock, success = self.clock + 1, bool(self.env._check_success())
        return self._columns(obs), reward, success, self.clock >= self.limit, {"success": success}

    def close(self):
        self.env.close()

    @staticmethod
    def _columns(obs):
        return {"object" if k == "object-state" else k: np.asarray(v, np.float64).reshape(-1)
                for k, v in obs.items() if not k.endswith("proprio-state")}
