"""Demonstrations of peg_insertion with one outline, so that the same thing is to be done in every episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from claims.worlds.curation import cached_load, successful_rollouts
from understudy.claims.base import (
    DemonstrationSource,
    expert_of,
    smaller,
)
from understudy.envs import make

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

    def for_probe(self):
        return smaller(self, episodes=8)
