"""Handover of a robot to a person: the robot and the device of the person come to the same pose without a jump."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal

import numpy as np

from .base import DrivenTeleoperator, Robot, RobotError, Teleoperator

Mover = Literal["leader", "robot", "nobody"]
_EQUAL = 1e-3  # units of the action: the rounding of what was sent
_FOLLOW_SECONDS = 10.0  # in which the device is driven, at most
_NEAR = 2.0  # units of the action: as near, the robot goes to the device at once


class Handover:
    """The actions of a person from the moment of a takeover on.

    Args:
        teleop: The device, connected. One that moves relative to the last action begins at the pose of the robot.
        mover: Who moves where the poses differ. "leader": the device is driven to the pose of the robot and released,
            if it has motors; what remains, the robot goes. "robot": the robot goes to the pose of the device.
            "nobody": the difference stays, as long as the person acts.
        seconds: Time in which the robot goes to the pose of the device, at least. Its safety limits may need longer.
        max_velocity: Largest velocity of each joint, in units of the action per second.

    Attributes:
        is_complete: Whether the robot does what the device says.
    """

    def __init__(self, teleop: Teleoperator, max_velocity: Sequence[float], mover: Mover = "leader",
                 seconds: float = 1.0, clock: Callable[[], float] = time.perf_counter,
                 sleep: Callable[[float], None] = time.sleep):
        self.teleop, self.mover, self.seconds = teleop, mover, seconds
        self.max_velocity, self.clock, self.sleep = np.array(max_velocity, np.float64), clock, sleep
        self.is_complete, self._offset = True, np.zeros(len(self.max_velocity))
        self._origin, self._began, self._last, self._ramp = self._offset, clock(), clock(), seconds

    def begin(self, robot: Robot, period: float, show: Callable[[str], None] = lambda text: None) -> None:
        """The person takes over. While the device is driven, the robot holds its pose.

        Args:
            period: Time between two commands of the device (s).
        """
        pose = robot.position(robot.observe())
        if self.mover == "leader" and isinstance(self.teleop, DrivenTeleoperator):
            pose = robot.stop()
            ends = self.clock() + _FOLLOW_SECONDS
            try:
                while not self.teleop.follow(pose) and self.clock() < ends:
                    show("hold the leader loosely: it goes to the pose of the robot, and is released there")
                    self.sleep(period)
            except BaseException:  # it is lost on the way, or Ctrl-C is pressed
                with suppress(RobotError):
                    self.teleop.release()
                raise
            self.teleop.release()
        self.teleop.start(pose)
        self._origin, self._began, self.is_complete = np.array(pose, np.float64), self.clock(), False
        self._last = self._began
        difference = self.teleop.read() - pose
        self._offset = difference if self.mover == "nobody" else np.zeros(len(pose))
        self._ramp = 0.0 if (np.abs(difference - self._offset) <= _NEAR).all() else self.seconds

    def read(self, goal: np.ndarray) -> np.ndarray:
        """Returns the action of the person, (A,).

        Args:
            goal: The last action that was sent, (A,).
        """
        action, now = self.teleop.read() - self._offset, self.clock()
        elapsed, self._last = now - self._last, now
        if self.is_complete:
            return action
        part = min((now - self._began) / self._ramp, 1.0) if self._ramp > 0 else 1.0
        command = self._origin + part * (action - self._origin)
        reach = self.max_velocity * elapsed
        self.is_complete = part >= 1 and bool((np.abs(action - goal) <= np.maximum(reach, _EQUAL)).all())
        return command
