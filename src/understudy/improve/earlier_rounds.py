"""Loads the episodes that an improved run has learned: its first data, and the episodes of its collection rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..checkpoint import find_checkpoint
from ..data.episode import Dataset, Episode
from ..data.formats import open_dataset
from ..data.mixture import ROUND
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import (
    Method,
    TrainedRun,
    find_references,
    load_references,
    resolve_references,
    training_data,
)
from ..learn.run import Run
from .collection import EXECUTED_ACTION, CollectionRounds
from .gates import INTERVENTION


@dataclass(frozen=True)
class LabelsAsInterventions:
    """Adds the column `intervention`, true at every step, to episodes whose actions a supervisor labeled."""

    def __call__(self, episode: Episode) -> Episode:
        if EXECUTED_ACTION not in episode.steps:
            return episode
        return episode.replace({INTERVENTION: np.ones(len(episode), bool)})


def with_earlier_rounds(data: Dataset, run: Path, trust: Sequence[str] = ()) -> tuple[Dataset, int]:
    """Returns the episodes that a checkpoint of a run was trained on, its rounds included.

    They can be given to a training with the transforms of the same method. Rounds that would be changed once more by
    these, as by an operation that adds episodes, are left out.

    Args:
        data: The episodes that were there before the first round.
        run: A run that collected episodes (its last checkpoint; "RUN/best" for its best), or a checkpoint.

    Returns:
        The episodes, and how many were left out.
    """
    folder = find_checkpoint(run)
    method = TrainedRun.load(run, tuple(trust), transforms=True).method
    assert isinstance(method.collection, CollectionRounds)
    rule = method.collection.retention
    retention = resolve_references(rule, load_references(find_references(rule), folder.parents[1], tuple(trust)))
    lines = Run(folder.parents[1]).read_metrics()
    rounds = [int(line["round"]) for line in lines if "round" in line and line["step"] < int(folder.name)]
    stored = list(data)
    for number in rounds:
        episodes = open_dataset(folder.parents[1] / "collection" / f"{number:06d}" / "episodes.npz")
        stored = list(retention.keep(Dataset([*stored, *episodes])))
    first = [episode for episode in stored if ROUND not in episode.metadata]
    collected = [episode for episode in stored if ROUND in episode.metadata]
    if not isinstance(method.learner, BehaviorCloning):  # other learners also use bad actions
        collected = [episode for episode in collected if {INTERVENTION, EXECUTED_ACTION} & episode.steps.keys()]
        first = list(data)  # they began the policy, even if the learner reads only its own episodes
    kept = [LabelsAsInterventions()(e) for e in collected if _is_unchanged(e, method)]
    return Dataset([*first, *kept], data.metadata), len(collected) - len(kept)


def _is_unchanged(episode: Episode, method: Method) -> bool:
    """Returns whether transforming an episode again by the transforms of a method leaves it unchanged."""
    changed = list(training_data(Dataset([episode]), method))
    return len(changed) == 1 and changed[0].steps.keys() == episode.steps.keys() and all(
        np.array_equal(np.asarray(changed[0].steps[k]), np.asarray(v)) for k, v in episode.steps.items())
