"""Teleoperators that are not arms: a keyboard or a gamepad that moves joints with a velocity."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from ..envs.devices import TeleopDevice
from .base import Teleoperator

_LONGEST_STEP = 0.2  # s; a device that was not read for longer does not make up for it


class VelocityTeleoperator(Teleoperator):
    """Teleoperator whose device gives velocities, by which its last action is moved.

    Args:
        device: Gives a velocity for each joint, as a fraction of the largest: a gamepad or `JointKeyboard`.
        max_velocity: Largest velocity of each joint, in units of the action per second.
    """

    def __init__(self, device: TeleopDevice, max_velocity: Sequence[float], low: Sequence[float],
                 high: Sequence[float], clock: Callable[[], float] = time.monotonic):
        self.device, self.max_velocity, self.clock = device, np.array(max_velocity, np.float64), clock
        self.low, self.high = np.array(low, np.float64), np.array(high, np.float64)
        self._action, self._last = np.zeros(len(self.low)), clock()

    def start(self, position):
        self._action, self._last = np.array(position, np.float64), self.clock()

    def read(self):
        now = self.clock()
        elapsed, self._last = min(max(now - self._last, 0.0), _LONGEST_STEP), now
        moved = np.zeros(len(self._action))
        axes = np.asarray(self.device.read(), np.float64)[:len(moved)]
        moved[:len(axes)] = axes
        self._action = np.clip(self._action + moved * self.max_velocity * elapsed, self.low, self.high)
        return self._action.astype(np.float32)
