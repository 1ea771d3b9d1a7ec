"""Detects that a person moves the leader arm on purpose."""

from __future__ import annotations

import numpy as np

from .limits import SafetyLimits

TAKEOVER_FRACTION = 0.05  # of the range of a joint between its limits, which by default is the calibrated range
FOLLOW_SECONDS = 2.0  # time constant with which the reference follows the leader
REST_SECONDS = 1.0  # in which the leader has to rest before a motion counts


class LeaderMotion:
    """Tells a motion of a leader arm by a person from drift, vibration and the weight of a resting arm.

    A reference follows the leader slowly. A motion counts once a joint is further from the reference than
    `TAKEOVER_FRACTION` of its range. It does not count before the leader has rested for `REST_SECONDS`, so that a
    person who gives back can put the leader down.

    Args:
        limits: Limits of the robot, in the units of the action.
    """

    def __init__(self, limits: SafetyLimits):
        self.threshold = TAKEOVER_FRACTION * np.subtract(limits.high, limits.low)
        self.begin()

    def begin(self) -> None:
        """Forgets the reference. The next position becomes the new one."""
        self._reference: np.ndarray | None = None
        self._rests_since = self._last = 0.0

    def is_moved(self, position: np.ndarray, now: float) -> bool:
        """Tells whether a person moves the leader. Call it at a fixed rate.

        Args:
            position: The leader's position in the units of the action, (A,).
            now: The present time (s).
        """
        position = np.asarray(position, np.float64)
        is_away = self._reference is not None and bool((np.abs(position - self._reference) > self.threshold).any())
        if self._reference is None or is_away and now - self._rests_since < REST_SECONDS:
            self._reference, self._rests_since = position, now
            is_away = False
        self._reference = self._reference - np.expm1((self._last - now) / FOLLOW_SECONDS) * (position - self._reference)
        self._last = now
        return is_away
