"""Whether two learners rank components, such as encoders, alike, and whose scores depend more on the training seed.

A table holds the scores of one learner: (components, tasks, training seeds). Scores of different tasks have one scale,
such as success rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy

from .stats import LEVEL, Interval, two_level_mean

Table = Sequence[Sequence[Sequence[float]]] | np.ndarray


def rank_agreement(first: Table, second: Table, level: float = LEVEL) -> Interval:
    """Kendall's tau-b of two learners' orders of components: 1 if they agree, 0 if unrelated, -1 if reversed.

    Components are ordered by their mean over tasks and seeds. The interval is of 1,999 bootstrap draws, the same at
    every call, of components and of tasks. With few components it is wide: six that agree in 14 of 15 pairs are no
    proof of one order. Noise lowers tau, so that a small one does not show that learners differ. Compare it with the
    tau of a learner on half of the seeds and on the others.

    Args:
        first: Scores of the first learner, (components, tasks, seeds).
        second: Those of the second. It may have another number of seeds.

    Returns:
        Tau and its interval. They are NaN if a score is not finite or all components are equal.
    """
    means = [np.asarray(table, float).mean(-1) for table in (first, second)]
    _check(*means)
    rng, (n, tasks) = np.random.default_rng(0), means[0].shape
    drawn, drawn_tasks = rng.integers(n, size=(1_999, n, 1)), rng.integers(tasks, size=(1_999, 1, tasks))
    i, j = np.triu_indices(n, 1)
    signs = [np.sign(mean[:, i] - mean[:, j]) for x in means for mean in (x[drawn, drawn_tasks].mean(-1),)]
    size = np.sqrt((signs[0] ** 2).sum(1) * (signs[1] ** 2).sum(1))  # pairs that are no ties
    taus = (signs[0] * signs[1]).sum(1)[size > 0] / size[size > 0]
    estimate = float(scipy.stats.kendalltau(*(x.mean(1) for x in means)).statistic)
    if math.isnan(estimate) or not np.isfinite(means).all():
        return Interval(math.nan, math.nan, math.nan, level)
    low, high = np.quantile(taus, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), level)


def seed_variance_ratio(first: Table, second: Table, level: float = LEVEL, rounding: float = 0.0) -> Interval:
    """Logarithm of the ratio of two learners' variances over training seeds: the first's divided by the second's.

    It is the mean over components and tasks, both of which are drawn (`stats.two_level_mean`).

    Args:
        first: Scores of the first learner, (components, tasks, seeds).
        second: Those of the second.
        rounding: Step of the scores, such as 0.01 for a rate of 100 episodes. No variance is smaller than that of
            rounding, rounding^2 / 12, so that equal scores are not taken to be without variance.
    """
    variances = [np.maximum(np.asarray(x, float).var(-1, ddof=1), rounding**2 / 12) for x in (first, second)]
    _check(*variances)
    if not np.all(np.array(variances) > 0):
        raise ValueError("the scores of some component and task are equal for all seeds: give the step to which they "
                         "are rounded, such as rounding=0.01 for a rate of 100 episodes")
    return two_level_mean(np.log(variances[0]) - np.log(variances[1]), level)


def _check(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape or first.ndim != 2 or len(first) < 2:
        raise ValueError(f"both tables must be (components, tasks, seeds) with the same components and tasks, at least "
                         f"two components, unlike {first.shape} and {second.shape} without seeds")
