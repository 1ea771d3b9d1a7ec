"""Makes a robot an environment, so that rollouts, evaluation and collection use it like a simulator."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ..envs.base import Env, StepResult
from .base import Robot
from .pace import Pace
from .safety import SafeRobot


class RobotEnv(Env):
    """Environment of one row that is a connected robot. A step takes one period of real time.

    Args:
        robot: The robot. It must be connected while the environment is used.
        max_episode_steps: Number of steps of an episode. None for no limit.
    """

    rows = 1

    def __init__(self, robot: Robot, fps: float = 30, max_episode_steps: int | None = None,
                 clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep):
        self.robot, self.max_episode_steps = robot, max_episode_steps
        self.pace, self.features = Pace(fps, clock, sleep), dict(robot.schema)
        robot.check_rate(fps)
        limits = robot.limits if isinstance(robot, SafeRobot) else None
        self.metadata = {"env": robot.name, "version": 1, "fps": fps, "limit": max_episode_steps, "success": None,
                         **({} if limits is None else {"low": limits.low, "high": limits.high})}
        self._n_steps = 0

    def reset(self, which, key):
        self._n_steps = 0
        self.pace.restart()
        return self._observe()

    def step(self, action):
        self.robot.send(action[0].double().cpu().numpy())
        self.pace.wait()
        self._n_steps += 1
        ended = self.max_episode_steps is not None and self._n_steps >= self.max_episode_steps
        return StepResult(self._observe(), torch.zeros(1), torch.zeros(1, dtype=torch.bool), torch.tensor([ended]))

    def close(self):
        self.robot.disconnect()

    def _observe(self):
        return {name: torch.as_tensor(value)[None] for name, value in self.robot.observe().items()}
