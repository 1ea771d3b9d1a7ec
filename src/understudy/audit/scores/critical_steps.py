"""Marks critical steps, at which somebody decides what to do or something changes."""

from __future__ import annotations

import numpy as np

from ...core import Feature, UserError, part
from ...data.column_changes import get_column, with_column
from ...data.episode import Episode

CRITICAL = "critical"  # the column of `MarkCriticalSteps`, unless another is named


@part
class MarkCriticalSteps:
    """Marks critical steps, at which a plan changes or something happens, with 1 in a column that is 0 elsewhere.

    ``BehaviorCloning(sample_weights=ColumnWeights("critical", 1.0, 0.0))`` learns the actions of these steps alone.
    Other steps are still read in the history. Whoever fine-tunes a policy does without what it can do already.

    Args:
        plans: Columns that say what is intended, such as the subtask. A step is critical if one of them has another
            value than at the step before. The first step of an episode is critical.
        events: Columns that change when something is done or noticed, such as what is held. A step is critical if one
            of them has another value at the next step. At the last step this needs the observation after it.
        into: Name of the column, (T, 1).

    References:
        Chen et al. (2025), ATLaS: Agent Tuning via Learning Critical Steps, arXiv:2503.02197, where a language model
        reads the episode and names the steps at which a plan is made, something decisive is noticed or done, or a
        mistake is corrected.

    Example:
        >>> marked = open_dataset("demos").map(MarkCriticalSteps(events=("observation.gripper",)))
    """

    plans: tuple[str, ...] = ("subtask",)
    events: tuple[str, ...] = ()
    into: str = CRITICAL

    def __post_init__(self):
        if not self.plans and not self.events:
            raise UserError("no column says which steps are critical", where="MarkCriticalSteps",
                            hint='name one, such as plans=("subtask",)')

    def __call__(self, episode: Episode) -> Episode:
        is_critical = np.zeros(len(episode), bool)
        for name in self.plans:
            is_critical[:1] = True
            is_critical[1:] |= _changes(episode, name)[: len(episode) - 1]
        for name in self.events:
            changes = _changes(episode, name)[: len(episode)]
            is_critical[: len(changes)] |= changes
        return with_column(episode, self.into, is_critical[:, None].astype(np.float32), Feature("float32", (1,)))


def _changes(episode: Episode, name: str) -> np.ndarray:
    """Returns whether a column changes from each of its rows to the next, (rows - 1,) bool."""
    values = get_column(episode, name)
    differs = values[1:] != values[:-1]
    return differs.any(tuple(range(1, differs.ndim)))
