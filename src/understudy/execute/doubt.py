"""An actor that records the doubt of a policy while it acts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from .followed import FollowedActor

DOUBT = "doubt"  # column: the score of each step

DoubtMeasure = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]
"""(observation windows (B, To, ...), key of each row (B,), number of the step (B,)) -> doubt of each row, (B,)."""


@dataclass(frozen=True)
class DoubtActor(FollowedActor):
    """Wraps the actor of a policy to record its doubt at each step in the column `doubt`."""

    measure: DoubtMeasure

    def follow(self, moment):
        return {DOUBT: self.measure(moment.obs, moment.key, moment.count)}
