"""Samplers that compose batches of earlier and new tasks, or of flagged and other steps, during data collection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from ..core import Above, AtLeast, Below, part
from ..data.batch_sampler import BatchSampler, MixtureSampler
from ..data.episode import Dataset, Episode
from ..data.mixture import ROUND
from ..data.window import SamplingWeights
from ..learn.fit import Learner


@part
class PowerLawRehearsal:
    """Sampling rule in which earlier tasks reappear in proportion to a power of their age.

    Rounds must be tasks (`TaskSequenceCollector`). The rest of each batch is of the newest task. The age of a task is
    the number of rounds since it was the newest, whereas in the paper it begins again whenever the task reappears.

    Args:
        exponent: A task of age a reappears in proportion to ``a ** -exponent``. With 0 all reappear equally often.
        fraction: Part of each batch that is of earlier tasks.

    References:
        Gandhi et al. (2024), Natural Mitigation of Catastrophic Interference, arXiv:2401.10393.

    Example:
        >>> rounds = CollectionRounds(7, TaskSequenceCollector(), rehearsal=PowerLawRehearsal())
    """

    exponent: Annotated[float, AtLeast(0)] = 1.0
    fraction: Annotated[float, Above(0), Below(1)] = 0.5

    def fractions(self, ages: np.ndarray) -> np.ndarray:
        """Returns the fraction of each batch that comes from each task, (K,), from the ages of the tasks, (K,)."""
        weights = np.where(ages > 0, np.maximum(ages, 1.0) ** -self.exponent, 0.0)
        if not weights.any():
            return np.ones(len(ages))
        return np.where(ages > 0, self.fraction * weights / weights.sum(), 1 - self.fraction)

    def sampler(self, learner: Learner, data: Dataset, sampling_weights: SamplingWeights | None) -> BatchSampler:
        """Builds a sampler of batches from episodes of several collection rounds, each of which is a task."""
        number = np.array([episode.metadata.get(ROUND, -1) for episode in data])
        tasks = np.unique(number)
        samplers = [learner.batch_sampler(data.select(np.flatnonzero(number == task)), sampling_weights)
                    for task in tasks]
        return MixtureSampler(samplers, self.fractions(tasks[-1] - tasks).tolist())


@dataclass(frozen=True)
class FlagSamplingWeights:
    """Sampling weights that draw only windows at steps where a flag column has a given value, all equally often."""

    column: str
    value: bool

    def __call__(self, episode: Episode) -> np.ndarray:
        flags = np.asarray(episode.steps[self.column][:len(episode)], bool).reshape(-1)
        return (flags == self.value).astype(float)


def flag_halves(learner: Learner, data: Dataset, column: str) -> BatchSampler:
    """Builds a sampler that draws half of each batch from steps where a flag is true, and half from other steps."""
    flags = np.concatenate([np.asarray(e.steps[column][:len(e)], bool).reshape(-1) for e in data])
    if flags.all() or not flags.any():
        return learner.batch_sampler(data)
    samplers = [learner.batch_sampler(data, FlagSamplingWeights(column, value)) for value in (True, False)]
    return MixtureSampler(samplers, (0.5, 0.5))
