"""Finds the best policy of a data collection: the policies of all rounds are compared on the same starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..envs.base import Env
from ..evaluate.evaluation import Evaluation, compare_outcomes, evaluate, validation_seed
from ..evaluate.stats import Interval, clopper_pearson
from ..execute.actor import Actor
from ..learn.run import IS_SUCCESS, Run, comparable_scores


@dataclass(frozen=True)
class Promotion:
    """A score of checkpoints, for `train(..., score=...)`, that also compares each with the earlier best.

    A checkpoint is promoted, which makes it the best of the run, if it does at least as well as the best before it, so
    that the interval of their difference does not lie below 0. Comparing with the best, and not with the last, stops a
    slow decline. Every line of the metrics has all outcomes, so that nothing is evaluated again after a kill.

    Args:
        episodes: Number of starts. They are drawn with `validation_seed(seed)`, and no policy trains on them.
        base: The evaluation of the first checkpoint, if it is known.
    """

    env: Env
    episodes: int
    seed: int
    run: Run
    base: Evaluation | None = None

    def __call__(self, actor: Actor) -> dict[str, Any]:
        lines = compared_checkpoints(self.run)
        evaluation = self.base if self.base is not None and not lines else self.evaluate(actor)
        outcomes = evaluation.episode_returns if evaluation.successes is None else evaluation.successes
        *before, new = _comparable([*lines, _metrics(outcomes, evaluation.success or evaluation.returns,
                                                     evaluation.success is not None)])
        if not before:
            return {**new, "promoted": True}
        best = best_checkpoint(before)
        gain = compare_outcomes(np.array(new["outcomes"]), np.array(best["outcomes"]),
                                "success" if new[IS_SUCCESS] else "return")
        return {**new, "against": best["step"], "gain": gain.difference, "gain/low": gain.low,
                "gain/high": gain.high, "promoted": new["score"] >= best["score"]}

    def evaluate(self, actor: Actor) -> Evaluation:
        """Evaluates an actor on the starts of the comparison."""
        return evaluate(actor, self.env, self.episodes, validation_seed(self.seed))


def compared_checkpoints(run: Run) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics that `Promotion` wrote, in order."""
    return _comparable([line for line in run.read_metrics() if "outcomes" in line])


def _metrics(outcomes: np.ndarray, rate: Interval, is_success: bool) -> dict[str, Any]:
    return {"score": rate.estimate, "score/low": rate.low, "score/high": rate.high, "outcomes": outcomes.tolist(),
            IS_SUCCESS: float(is_success)}


def _comparable(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns lines of metrics, as `comparable_scores`, with the outcomes and intervals of the scores."""
    return [line if line is scored else {**line, **_metrics(np.zeros(n, bool), clopper_pearson(0, n), True)}
            for line, scored in zip(lines, comparable_scores(lines), strict=True) for n in [len(line["outcomes"])]]


def best_checkpoint(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Returns the line of the best checkpoint. Of equals it is the latest, as in `train`."""
    return max(lines, key=lambda line: (line["score"], line["step"]))
