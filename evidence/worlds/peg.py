"""Demonstrations of peg_insertion with one outline, so that the same thing is to be done in every episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evidence.experiment import DemonstrationSource, expert_of
from evidence.worlds.curation import cached_load, successful_rollouts
from understudy.envs import make
from understudy.envs.toys.peg_insertion import PegInsertion

ENV = "peg_insertion"
TOLERANCE, OUTLINES = 0.01, (2,)  # one outline, so that the same thing is to be done in every episode


@dataclass(frozen=True)
class PegDemonstrations(DemonstrationSource):
    """Successful episodes of the expert of peg_insertion."""

    episodes: int
    tolerance: float = TOLERANCE
    outlines: tuple[int, ...] = OUTLINES

    @cached_load
    def load(self, seed):
        options: dict[str, Any] = {"tolerance": self.tolerance, "outlines": self.outlines}
        return successful_rollouts(expert_of(make(ENV, **options)), ENV, self.episodes, seed, **options)


class WeakPeg(PegInsertion):
    """Peg insertion whose actuators have lost the fraction `loss` of each action (`shifts.WeakActuators`)."""

    def __init__(self, rows: int = 1, tolerance: float = 0.02, outlines: tuple[int, ...] = (0, 1, 2),
                 loss: float = 0.4):
        super().__init__(rows, tolerance=tolerance, outlines=outlines)
        self.loss = loss

    def advance(self, action):
        return super().advance((1 - self.loss) * action)
