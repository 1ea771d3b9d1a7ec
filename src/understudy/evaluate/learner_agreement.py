"""Tests whether two learners rank components, such as encoders, alike, and which learner's scores vary more with seeds.

A table has the scores of one learner, (components, tasks, training seeds), on one scale for all tasks.
"""

from __future__ import annotations

import math

import numpy as np
import scipy

from .stats import LEVEL, Interval, two_level_mean


def rank_agreement(first: np.ndarray, second: np.ndarray, level: float = LEVEL) -> Interval:
    """Computes Kendall's tau-b of two learners' rankings of components: 1 if they agree, -1 if reversed.

    The mean over tasks and seeds orders components. The interval is of 1,999 bootstrap draws of components and of
    tasks, the same at every call. Few components make it wide. Noise lowers tau, so that a small tau alone does not
    show that learners differ. Compare it with the tau of one learner with itself: of half of its seeds with its
    remaining seeds.

    Args:
        first: Scores of the first learner, (components, tasks, seeds).
        second: Scores of the second learner. The number of seeds may differ.

    Returns:
        Tau and its interval, all NaN if a score is not finite, or all components of a learner are equal.
    """
    means = [np.asarray(table, float).mean(-1) for table in (first, second)]
    _check(*means)
    tau = float(scipy.stats.kendalltau(*(x.mean(1) for x in means)).statistic)
    if not np.isfinite([tau, *np.ravel(means)]).all():
        return Interval(math.nan, math.nan, math.nan, level)
    rng, (n, tasks), pairs = np.random.default_rng(0), means[0].shape, np.triu_indices(len(means[0]), 1)
    drawn = rng.integers(n, size=(1_999, n, 1)), rng.integers(tasks, size=(1_999, 1, tasks))
    x, y = (np.sign(np.diff(table[drawn].mean(2)[:, pairs], axis=1)[:, 0]) for table in means)
    size = np.sqrt((x**2).sum(1) * (y**2).sum(1))  # the number of pairs that are not ties
    limits = np.quantile((x * y).sum(1)[size > 0] / size[size > 0], [(1 - level) / 2, (1 + level) / 2])
    return Interval(tau, *limits.tolist(), level)


def seed_variance_ratio(first: np.ndarray, second: np.ndarray, level: float = LEVEL, rounding: float = 0.0) -> Interval:
    """Computes the log ratio of two learners' variances over seeds, over components and tasks.

    Args:
        rounding: Step of the scores, such as 0.01 for a rate of 100 episodes. Variances count as at least the variance
            of rounding to this step.
    """
    x, y = (np.maximum(np.asarray(table, float).var(-1, ddof=1), rounding**2 / 12) for table in (first, second))
    _check(x, y)
    if not (x > 0).all() or not (y > 0).all():
        raise ValueError("some component and task has equal scores for all seeds: give their step, such as "
                         "rounding=0.01 for a rate of 100 episodes")
    return two_level_mean(np.log(x / y), level)


def _check(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape or first.ndim != 2 or len(first) < 2:
        raise ValueError("both tables must be (components, tasks, seeds), of the same tasks and at least two components"
                         f", unlike {first.shape} and {second.shape} without seeds")
