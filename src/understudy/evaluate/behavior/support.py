"""Compares success from starts that are like demonstrated ones with success from other starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from ...data.episode import Dataset
from ..independent import miettinen_nurminen
from ..stats import LEVEL, Interval
from .scaling import TrajectoryScaling, evenly_spaced

MIN_STARTS = 5  # smallest number of episodes of each kind


@dataclass(frozen=True)
class SuccessBySupport:
    """Successes and numbers of episodes, for starts near demonstrated ones, and for other starts.

    Attributes:
        difference: Success from starts near demonstrated starts minus success from other starts.
    """

    successes: int
    episodes: int
    other_successes: int
    other_episodes: int
    difference: Interval

    def describe(self) -> str:
        d = self.difference
        return (f"Success from starts as in the demonstrations: {self.successes} of {self.episodes}; from others, "
                f"farther from all of these than they are from each other: {self.other_successes} of "
                f"{self.other_episodes}. The difference is {100 * d.estimate:+.0f} points [{100 * d.low:+.0f}, "
                f"{100 * d.high:+.0f}].")

    def to_json(self) -> dict[str, Any]:
        return {"successes": self.successes, "episodes": self.episodes, "other_successes": self.other_successes,
                "other_episodes": self.other_episodes, "difference": self.difference.to_json()}


def success_by_support(episodes: Dataset, demonstrations: Dataset, scaling: TrajectoryScaling, level: float = LEVEL
                       ) -> SuccessBySupport | None:
    """Compares success between episodes that start near demonstrated starts, and other episodes.

    A policy may imitate well where it was shown what to do, and be able to do little elsewhere. Errors of predicted
    actions and human-likeness do not show this, because they are measured where demonstrations are.

    A start is supported if its distance to the nearest start of a demonstration is at most the largest that such a
    start has to the nearest other one. The goal is part of a start if it is a numeric observation.

    Returns:
        The comparison, with Miettinen and Nurminen's interval. None where success is not defined, or for fewer than
        five episodes of a kind.

    References:
        Gudibande et al. (2023), The False Promise of Imitating Proprietary LLMs, arXiv 2305.15717.
    """
    if not scaling.n_components or any("success" not in e.metadata for e in episodes):
        return None
    demonstrated, starts = (np.nan_to_num([scaling.states(e)[0] for e in part])
                            for part in (evenly_spaced(demonstrations), episodes))
    if len(demonstrated) < 2:
        return None
    tree = scipy.spatial.cKDTree(demonstrated)
    usual = tree.query(demonstrated, [2])[0].max()  # the nearest one of a start is itself
    is_supported = tree.query(starts)[0] <= usual * (1 + 1e-6) + 1e-6
    succeeded = np.array([bool(e.metadata["success"]) for e in episodes])
    k, n = int(succeeded[is_supported].sum()), int(is_supported.sum())
    other_k, other_n = int(succeeded.sum()) - k, len(succeeded) - n
    if min(n, other_n) < MIN_STARTS:
        return None
    return SuccessBySupport(k, n, other_k, other_n, miettinen_nurminen(k, n, other_k, other_n, level))
