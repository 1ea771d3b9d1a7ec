"""Sample weights for cloning from learned progress: steps after which a task advances count more."""

from __future__ import annotations

import warnings
from typing import Annotated

import numpy as np

from ...checkpoint import FromStage
from ...core import AtLeast, DataError, DataWarning, Feature, part
from ...data.episode import Dataset, LabeledEpisodes
from ...data.operations import Operation
from ..targets import REWARD
from .learned_reward import LearnedReward
from .reward_models import RewardModel

PROGRESS_WEIGHT = "progress_weight"
_EPSILON = 1e-6
_NEARLY_ALL = 0.98


@part
class ProgressWeights(Operation):
    """Adds the column `progress_weight`, (T,): the weight of each step in cloning, by predicted progress (RA-BC).

    The gain of a step is the sum of rewards of the next `n_steps` steps. If the model rewards progress, as the model of
    `sarm` does, the gain is the progress in these steps. See `weights_of_gains`. `StoredWeights` clones with the
    weights.

    Args:
        model: The reward model, or the stage that has trained it.
        n_steps: Number of steps, such as the length of a chunk. Towards the end of an episode there are fewer.
        kappa: Gain above which a step counts fully.

    References:
        Chen et al. (2025), SARM: Stage-Aware Reward Modeling for Long Horizon Robot Manipulation, arXiv:2509.25358.
    """

    model: FromStage | RewardModel
    n_steps: Annotated[int, AtLeast(1)] = 1
    kappa: Annotated[float, AtLeast(0)] = 0.01

    def apply(self, data: Dataset) -> Dataset:
        rewards = [np.asarray(episode.steps[REWARD]) for episode in LearnedReward(self.model).apply(data)]
        gains = np.concatenate([gains_ahead(rewards_of_one, self.n_steps) for rewards_of_one in rewards])
        weights = weights_of_gains(gains, self.kappa)
        summary = (f"progress in {self.n_steps} steps is {gains.mean():.3g} on average, with a standard deviation of "
                   f"{gains.std():.3g}")
        if not weights.any():
            raise DataError(f"no step has a weight above 0: {summary}",
                            where=str(data.metadata.get("path", "data set")),
                            hint="train the model of progress longer, or on these episodes")
        if weights.mean() > _NEARLY_ALL:
            warnings.warn(f"The mean weight is {weights.mean():.3f}, so that this is nearly plain cloning: {summary}. "
                          f"Steps below kappa={self.kappa:g} count less: raise it (--progress-kappa).", DataWarning,
                          stacklevel=2)
        parts = np.split(weights, np.cumsum(data.lengths)[:-1])
        return Dataset(LabeledEpisodes(data, {PROGRESS_WEIGHT: Feature("float32", ())},
                                       lambda i: {PROGRESS_WEIGHT: parts[i]}), data.metadata)


def gains_ahead(rewards: np.ndarray, n_steps: int) -> np.ndarray:
    """Returns, for each step of an episode, the sum of `n_steps` rewards from this step on, (T,)."""
    total = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])
    start = np.arange(len(rewards))
    return total[np.minimum(start + n_steps, len(rewards))] - total[start]


def weights_of_gains(gains: np.ndarray, kappa: float) -> np.ndarray:
    """Converts gains of progress to weights from 0 to 1, (N,) float32.

    A gain above `kappa` has the weight 1, and one below 0 the weight 0. In between the weight rises from 0, two
    standard deviations below the mean, to 1, two above it. The mean counts as at least 0.
    """
    mean, std = max(float(gains.mean()), 0.0), max(float(gains.std()), _EPSILON)
    between = np.clip((gains - (mean - 2 * std)) / (4 * std + _EPSILON), 0, 1)
    return np.where(gains > kappa, 1.0, np.where(gains < 0, 0.0, between)).astype(np.float32)
