"""Change-point detection: finds when a running loss rises, so that a new task must have begun."""

from __future__ import annotations

import math


class DriftDetector:
    """Detector of a rising loss: one-sided CUSUM, in standard deviations from the moving average of the loss.

    It adds up log-likelihood ratios between a rise by `shift` and no rise. The sum starts again at 0 where it falls
    below 0. The detector alarms when it exceeds ``log(interval)``, and then starts again. It allows a loss that falls
    slowly.

    Args:
        shift: Rise that is found soonest, in standard deviations.
        interval: Mean number of values between false alarms, at least, for a stationary Gaussian loss.
        memory: Number of values that the average covers. There is no alarm before it has seen this many values.

    References:
        Page (1954), Continuous Inspection Schemes, Biometrika 41:100.
        Lorden (1971), Procedures for Reacting to a Change in Distribution, Annals of Mathematical Statistics 42:1897.

    Example:
        >>> detector = DriftDetector()
        >>> alarms = [step for step, loss in enumerate(losses) if detector.update(loss)]
    """

    def __init__(self, shift: float = 1.0, interval: float = 1000.0, memory: int = 50):
        self.shift, self.threshold, self.memory = shift, math.log(interval), memory
        self._restart()

    def _restart(self) -> None:
        self.n, self.mean, self.variance, self.sum = 0, 0.0, 0.0, 0.0

    def update(self, loss: float) -> bool:
        """Takes the next loss. Returns whether it raises an alarm."""
        difference = loss - self.mean
        if self.n >= self.memory:
            deviation = difference / max(math.sqrt(self.variance), 1e-12)
            self.sum = max(0.0, self.sum + self.shift * (deviation - self.shift / 2))
            if self.sum > self.threshold:
                self._restart()
                return True
        self.n += 1
        rate = 1 / min(self.n, self.memory)
        self.mean += rate * difference
        self.variance = (1 - rate) * (self.variance + rate * difference**2)
        return False
