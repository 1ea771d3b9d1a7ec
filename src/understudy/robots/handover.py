"""Handover of a robot to a person: robot and teleoperator come to the same pose without a jump."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import numpy as np

from .base import DrivenTeleoperator, Robot, RobotError, Teleoperator
from .leader_motion import LeaderMotion
from .limits import SafetyLimits
from .teleoperators import VelocityTeleoperator

Mover = Literal["leader", "robot", "nobody"]
_EQUAL = 1e-3  # units of the action: the rounding of what was sent
_FOLLOW_SECONDS = 10.0  # longest time in which the device is driven
_ALIGNED_DISTANCE = 2.0  # units of the action: as near, the robot goes to the device at once
_STALLED_SECONDS = 5.0  # in which the robot comes no nearer to the device: something blocks it


class Handover:
    """Handover of a robot: the actions of a person from the moment of a takeover on.

    Args:
        teleop: The device, connected. A device that moves relative to the last action begins at the pose of the robot.
        mover: Who moves where the poses differ. "leader": the device, if it has motors, is driven to the pose of the
            robot and released; then the robot moves the rest of the way. "robot": the robot goes to the pose of the
            device. "nobody": the difference stays, as long as the person acts.
        seconds: Time in which the robot goes to the pose of the device, at least. Its safety limits may need longer.
        limits: Limits of the robot. A device may be beyond them: then the robot goes as far as they let it.

    Attributes:
        is_complete: Whether the robot does what the device says, within its limits.
        problem: The joints that do not come to the pose of the device, in words, once the robot has come no nearer for
            5 s. Empty otherwise.
    """

    def __init__(self, teleop: Teleoperator, limits: SafetyLimits, mover: Mover = "leader",
                 seconds: float = 1.0, clock: Callable[[], float] = time.perf_counter,
                 sleep: Callable[[float], None] = time.sleep):
        self.teleop, self.limits, self.mover, self.seconds = teleop, limits, mover, seconds
        self.max_velocity, self.clock, self.sleep = np.array(limits.max_velocity, np.float64), clock, sleep
        self.is_complete, self.problem, self._offset = True, "", np.zeros(len(self.max_velocity))
        self._origin, self._began, self._last, self._ramp = self._offset, clock(), clock(), seconds
        self._names: tuple[str, ...] = ()
        self._least, self._nearer_at = np.inf, self._began  # smallest distance so far, and when it became smaller
        self._motion = LeaderMotion(limits)

    def watch(self) -> None:
        """Begins to watch whether the person moves the device while the policy acts."""
        self._motion.begin()

    def is_wanted(self) -> bool:
        """Tells whether the person has moved the device since `watch`. Never for one that gives velocities."""
        if isinstance(self.teleop, VelocityTeleoperator):
            return False
        return self._motion.is_moved(self.teleop.read(), self.clock())

    def begin(self, robot: Robot, period: float, show: Callable[[str], None] = lambda text: None) -> None:
        """Begins a handover to a person. While the person's device is driven to its pose, the robot holds.

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
            except BaseException:  # the device is lost, or Ctrl-C is pressed
                with suppress(RobotError):
                    self.teleop.release()
                raise
            self.teleop.release()
        self.teleop.start(pose)
        self._origin, self._began, self.is_complete = np.array(pose, np.float64), self.clock(), False
        self._last, self._least, self._nearer_at, self.problem = self._began, np.inf, self._began, ""
        self._names = robot.schema["action"].names or tuple(f"joint {i}" for i in range(len(pose)))
        difference = self.teleop.read() - pose
        self._offset = difference if self.mover == "nobody" else np.zeros(len(pose))
        self._ramp = 0.0 if (np.abs(difference - self._offset) <= _ALIGNED_DISTANCE).all() else self.seconds

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
        distance = np.abs(self.limits.reachable(goal, action) - goal)
        is_apart = distance > np.maximum(self.max_velocity * elapsed, _EQUAL)
        self.is_complete = part >= 1 and not is_apart.any()
        if part < 1 or distance.sum() < self._least - _EQUAL:
            self._least, self._nearer_at = distance.sum(), now
        if not self.is_complete and now - self._nearer_at > _STALLED_SECONDS:
            self.problem = ", ".join(f"{self._names[i]} is at {goal[i]:.1f}, your device at {action[i]:.1f}"
                                     for i in np.flatnonzero(is_apart))
        return command
