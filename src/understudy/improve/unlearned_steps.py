"""Steps of a takeover that are stored but never learned: handovers, and takeovers that the person takes back."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from ..core import Unsupported, part
from ..data.episode import Dataset, Episode, EpisodeList
from ..learn.sample_weights import SampleWeights, UniformWeights, WeightFunction
from .gates import INTERVENTION

HANDOVER = "handover"  # column: True at steps to a common pose of robot and device, and where a robot asks for help
UNDONE = "undone"  # column: True at the steps of a takeover that the person does not want to be learned
UNLEARNED = (HANDOVER, UNDONE)


def count_learned(episodes: Iterable[Episode]) -> int:
    """Returns the number of steps at which the supervisor acted, without the steps that are never learned."""
    return sum(int(np.asarray(episode.steps[INTERVENTION], bool)[first:stop].sum()) for episode in episodes
               for first, stop in _unflagged_runs(episode, UNLEARNED))


@dataclass(frozen=True)
class UnlearnedColumns:
    """Adds the columns `handover` and `undone`, which are false, to episodes without a person."""

    def __call__(self, episode: Episode) -> Episode:
        return episode.replace({name: np.zeros(len(episode), bool) for name in UNLEARNED if name not in episode.steps})


@part
class LearnedStepWeights(SampleWeights):
    """Sample weights that are 0 at handover steps and undone takeovers, and otherwise the given weights."""

    weights: SampleWeights = field(default_factory=UniformWeights)

    @property
    def columns(self):
        return tuple(dict.fromkeys((*self.weights.columns, *UNLEARNED)))

    def build(self, policy, data):
        function = self.weights.build(policy, data)
        if isinstance(function, nn.Module):
            raise Unsupported(f"{type(self.weights).__name__} has networks of its own", where="LearnedStepWeights",
                              hint="use weights that are computed from columns")
        return _LearnedSteps(function)


class _LearnedSteps(WeightFunction):
    def __init__(self, function: WeightFunction):
        self.function, self.fit, self.after_update = function, function.fit, function.after_update

    def __call__(self, batch, policy):
        weights = self.function(batch, policy)
        unlearned = sum(batch.extra[name].reshape(batch.mask.shape).float() for name in UNLEARNED)
        return torch.where(torch.as_tensor(unlearned) > 0, 0.0, weights.reshape(len(batch), -1))


class UnflaggedParts(EpisodeList):
    """Cuts episodes at flagged steps: each run of steps without a flag becomes an episode.

    A part before a flagged step is cut off there, and keeps the observation after its last step: what follows has a
    value, and returns have no reward of a flagged step or of a later one. Histories begin with the part.

    Args:
        columns: Names of the flags. A flag that an episode lacks is false.
    """

    def __init__(self, data: Dataset, columns: Collection[str]):
        bounds = [(number, start, stop) for number, episode in enumerate(data)
                  for start, stop in _unflagged_runs(episode, columns)]
        self._data = data
        self._numbers, self._starts, self._stops = np.array(bounds, np.int64).reshape(-1, 3).T

    def __len__(self):
        return len(self._numbers)

    def episode(self, number, read=None):
        whole, start, stop = self._data[int(self._numbers[number])], self._starts[number], self._stops[number]
        columns = {name: np.asarray(whole.steps[name]) for name in whole.steps}
        return Episode({name: column[start:stop + (len(column) > len(whole))] for name, column in columns.items()},
                       whole.metadata, rows=int(stop - start), schema=whole.schema)

    def lengths_of(self, indices):
        at = np.asarray(indices, np.int64)
        return self._stops[at] - self._starts[at]

    def contiguous(self, name, indices):
        at = np.asarray(indices, np.int64)
        numbers = self._numbers[at]
        place = self._data.source.contiguous(name, np.asarray(self._data.indices, np.int64)[numbers])
        if place is None:
            return None
        array, starts, rows = place
        return array, starts + self._starts[at], self.lengths_of(at) + (rows > self._data.lengths[numbers])

    def select(self, indices):
        return self, indices


def _unflagged_runs(episode: Episode, columns: Collection[str]) -> list[tuple[int, int]]:
    """Returns the first step, and the step after the last, of each run of steps at which no flag is true."""
    n = len(episode)
    flagged = np.ones(n + 2, bool)
    flagged[1:-1] = False
    for name in columns:
        if name in episode.steps:
            flagged[1:-1] |= np.asarray(episode.steps[name][:n], bool).reshape(n)
    edges = np.flatnonzero(flagged[1:] != flagged[:-1])
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
