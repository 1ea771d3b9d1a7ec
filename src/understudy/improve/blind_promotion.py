"""Finds the best policy of a data collection on a robot: a person judges blind trials of two checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..execute.actor import Actor
from ..learn.run import Run


@dataclass(frozen=True)
class BlindPromotion:
    """A score of checkpoints, for `train(..., score=...)`, that compares each with the earlier best in blind trials.

    A checkpoint is promoted, which makes it the best of the run, if it succeeded at least as often as the best before
    it, so that the interval of their difference does not lie below 0. The score counts promotions. A checkpoint that is
    not promoted, or that is not compared, scores lower than the best.

    Args:
        compare: Lets a person judge trials of two checkpoints, the newer one first, and returns the result
            (`TrialDesign.result`). It gets the number of the round as well. None if nothing is compared.
    """

    run: Run
    compare: Callable[[Path, Path, int], Mapping[str, Any]] | None

    def __call__(self, actor: Actor) -> dict[str, Any]:
        before = judged_checkpoints(self.run)
        if not before:
            return {"score": 0.0, "promoted": True}
        best = max(before, key=lambda line: line["score"])
        if self.compare is None:
            return {"score": best["score"] - 1, "promoted": False}
        newest = self.run.checkpoint_path(max(self.run.saved_steps()))
        result = self.compare(newest, self.run.checkpoint_path(best["step"]), len(before))
        difference = result["difference"]
        promoted = result["rounds"] > 0 and difference["estimate"] >= 0 and difference["high"] >= 0
        return {"score": best["score"] + (1 if promoted else -1), "promoted": promoted, "against": best["step"],
                "pairs": result["rounds"], "successes": [policy["successes"] for policy in result["policies"]],
                "difference": difference["estimate"], "difference/low": difference["low"],
                "difference/high": difference["high"]}


def judged_checkpoints(run: Run) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics that `BlindPromotion` wrote, in order."""
    return [line for line in run.read_metrics() if "promoted" in line]
