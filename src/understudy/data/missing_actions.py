"""Operations for episodes that were recorded without some of their actions, such as videos."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..core import DataError, DataWarning, Feature, role
from .episode import Dataset, Episode, LabeledEpisodes
from .operations import ConcatSource, Operation, SlicedSource

NEXT_OBSERVATION_HINT = ("record one observation more than there are actions, or give a model that reads no next "
                         "observation")
FEW_LABELS = 30  # steps with actions: with fewer, a model of actions can hardly be right


class NoActions(DataError):
    """Raised when no step of a data set has an action to learn from."""


def has_action(episode: Episode) -> np.ndarray:
    """Returns whether the action of each step was recorded, (T,). An action with a NaN was not."""
    if "action" not in episode.steps:
        return np.zeros(len(episode), bool)
    action = np.asarray(episode.steps["action"])[:len(episode)]
    missing = np.isnan(action.astype(float)).reshape(len(action), -1)
    return np.logical_not(missing.any(axis=1))


def lacks_next_observation(data: Dataset, columns: Sequence[str]) -> np.ndarray:
    """Returns whether the observation after the last step of each episode is missing, (E,)."""
    return np.any([data.rows(name) <= data.lengths for name in columns], axis=0)


def with_actions(data: Dataset, actions: Sequence[np.ndarray | None], feature: Feature) -> Dataset:
    """Returns the episodes with their actions replaced, without episodes that are left without a step.

    Args:
        actions: For each episode None to keep its actions, or the new ones. They may be fewer than there are steps. The
            episode is then shorter.
    """
    replaced = [{} if a is None else {"action": a} for a in actions]
    changed = _ChangedActions(data, {"action": feature}, replaced.__getitem__)
    changed.n_steps = np.array([n if a is None else len(a) for n, a in zip(data.lengths, actions, strict=True)])
    if not changed.n_steps.any():
        raise DataError("no step without an action is followed by an observation, so that nothing tells its action",
                        where=data.metadata.get("path", "data set"), hint=NEXT_OBSERVATION_HINT)
    return Dataset(changed, data.metadata, np.flatnonzero(changed.n_steps))


class _ChangedActions(LabeledEpisodes):
    n_steps: np.ndarray  # steps of each episode, (E,)

    def lengths_of(self, indices):
        return self.n_steps[np.asarray(indices, np.int64)]


def _no_actions(data: Dataset) -> NoActions:
    return NoActions("no episode has actions", where=data.metadata.get("path", "data set"),
                     hint="add a few episodes with actions (understudy record; --prior DATA), hold fewer episodes out "
                          "(--val-fraction 0), or name the column that has them (--columns action=NAME)")


@dataclass(frozen=True)
class LabeledSteps(Operation):
    """Cuts episodes into runs of steps with recorded actions, for models that learn from actions.

    Each has the observation after its last step, if that was recorded.

    Args:
        followed: Leave out steps that no observation follows, for models that read the next observation.
    """

    followed: bool = False

    def apply(self, data: Dataset) -> Dataset:
        runs, left_out = [], 0
        observed = [name for name in data.features() if role(name) == "observation"]
        no_end = lacks_next_observation(data, observed) if self.followed and observed else np.zeros(len(data), bool)
        for number, (episode, is_short) in enumerate(zip(data.iterate_once(), no_end, strict=True)):
            recorded = has_action(episode)
            left_out += int(is_short and recorded[-1])
            recorded[-1] &= not is_short
            edges = np.flatnonzero(np.diff(recorded.astype(int), prepend=0, append=0)).tolist()
            runs += [(number, start, stop) for start, stop in list(pairwise(edges))[::2]]
        if not runs and left_out:
            raise NoActions("no step with an action is followed by an observation, so that nothing shows what an "
                            "action does", where=data.metadata.get("path", "data set"), hint=NEXT_OBSERVATION_HINT)
        if not runs:
            raise _no_actions(data)
        if [stop - start for _, start, stop in runs] == data.lengths.tolist():
            return data
        numbers, start, stop = map(list, zip(*runs, strict=True))
        if (n_labeled := sum(stop) - sum(start)) < FEW_LABELS and n_labeled + left_out < data.steps:
            warnings.warn(f"{data.metadata.get('path', 'data set')}: only {n_labeled} of {data.steps} steps have an "
                          "action to learn from. Record more episodes with actions (understudy record), or hold fewer "
                          "episodes out (--val-fraction 0).", DataWarning, stacklevel=2)
        labeled = data.select(numbers)
        source = _Runs(ConcatSource([(labeled.source, list(labeled.indices))]), np.array(start), np.array(stop))
        return Dataset(source, data.metadata)


class _Runs(SlicedSource):
    """Source of runs of steps, each an episode, with the observation after its last step if it was recorded."""

    def rows(self, name):
        if role(name) != "observation":
            return super().rows(name)
        return np.minimum(self.inner.rows(name) - self._start, self.lengths + 1)

    def column(self, name, episode):
        if role(name) != "observation":
            return super().column(name, episode)
        start = self._start[episode]
        return self.inner.column(name, episode)[start:start + self.lengths[episode] + 1]


@dataclass(frozen=True)
class KnownActions(Operation):
    """Adds a column that is 1 at steps with a recorded action and 0 at the others, as `ConcatColumns` reads it.

    It must come before `PlaceholderActions`, which fills the other steps.

    Args:
        into: Name of the column.
    """

    into: str = "action_known"

    def apply(self, data: Dataset) -> Dataset:
        recorded = [{self.into: has_action(episode).astype(np.float32)} for episode in data.iterate_once()]
        if not any(columns[self.into].any() for columns in recorded):
            raise _no_actions(data)
        return Dataset(LabeledEpisodes(data, {self.into: Feature("float32", ())}, recorded.__getitem__), data.metadata)


@dataclass(frozen=True)
class PlaceholderActions(Operation):
    """Fills steps without an action with a random recorded action, as a placeholder that nothing learns.

    The column then has about the same statistics as the recorded actions. A last step without a next observation is
    left out.
    """

    def apply(self, data: Dataset) -> Dataset:
        recorded = [has_action(episode) for episode in data]
        features = next((e.features() for e, steps in zip(data, recorded, strict=True) if steps.any()), None)
        if features is None:
            raise NoActions("no episode has actions", where=data.metadata.get("path", "data set"),
                            hint="record practice with actions, of any quality, and train on both: understudy record "
                                 "ENV --actor random --out PRACTICE; understudy train METHOD DATA --prior PRACTICE")
        if all(steps.all() for steps in recorded):
            return data
        choices = np.concatenate([np.asarray(e.steps["action"])[:len(e)][steps]
                                  for e, steps in zip(data, recorded, strict=True) if steps.any()])
        columns = [name for name in data.features() if role(name) == "observation"]
        no_end, rng = lacks_next_observation(data, columns), np.random.default_rng(0)
        actions: list[np.ndarray | None] = []
        for episode, steps, is_short in zip(data, recorded, no_end, strict=True):
            if steps.all():
                actions.append(None)
                continue
            drawn = choices[rng.integers(len(choices), size=len(steps))]
            if steps.any():
                drawn[steps] = np.asarray(episode.steps["action"])[:len(steps)][steps]
            actions.append(drawn[:-1] if is_short and not steps[-1] else drawn)
        return with_actions(data, actions, features["action"])
