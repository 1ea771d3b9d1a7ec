"""Runs a loop at a fixed rate."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Keeps a loop at a fixed rate.

    Args:
        fps: Turns per second.
    """

    def __init__(self, fps: float, clock: Callable[[], float] = time.perf_counter,
                 sleep: Callable[[float], None] = time.sleep):
        self.period, self.clock, self.sleep = 1 / fps, clock, sleep
        self.n_late = 0  # turns that took longer than a period
        self.n_missed = 0  # whole periods that late turns took in addition
        self._due = clock()

    def restart(self) -> None:
        """Starts counting the turns of the loop from now."""
        self._due = self.clock()

    def wait(self) -> None:
        """Waits until the next turn of the loop is due. A late turn is not made up for."""
        self._due += self.period
        remaining = self._due - self.clock()
        if remaining > 0:
            self.sleep(remaining)
        else:
            self.n_late += 1
            self.n_missed += int(-remaining / self.period)
            self._due = self.clock()
