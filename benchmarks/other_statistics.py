"""Statistics that understudy does not use, for comparison with those that it uses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from understudy.evaluate.stats import LEVEL, Interval, wilson


def newcombe_paired(both: int, b: int, c: int, neither: int, level: float = LEVEL) -> Interval:
    """Interval of the same difference as `stats.tango`.

    It combines Wilson's limits of the two proportions with their correlation.

    References:
        Newcombe (1998), Improved Confidence Intervals for the Difference between Binomial Proportions Based on Paired
        Data, method 10.
    """
    n = both + b + c + neither
    first, second = wilson(both + b, n, level), wilson(both + c, n, level)
    margins = (both + b) * (c + neither) * (both + c) * (b + neither)
    cross = both * neither - b * c
    if cross > 0:
        cross = max(cross - n / 2, 0)  # his continuity correction, for positive correlation only
    phi = cross / math.sqrt(margins) if margins else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(x**2 - 2 * phi * x * y + y**2, 0.0))
    d = first.estimate - second.estimate
    return Interval(d, d - reach(first.estimate - first.low, second.high - second.estimate),
                    d + reach(first.high - first.estimate, second.estimate - second.low), level)


def newcombe_independent(k1: int, n1: int, k2: int, n2: int, level: float = LEVEL) -> Interval:
    """Interval of the same difference as `independent.miettinen_nurminen`. It uses Wilson's limits of both
    rates.

    References:
        Newcombe (1998), Interval Estimation for the Difference between Independent Proportions, method 10.
    """
    first, second = wilson(k1, n1, level), wilson(k2, n2, level)
    d = first.estimate - second.estimate
    return Interval(d, d - math.hypot(first.estimate - first.low, second.high - second.estimate),
                    d + math.hypot(first.high - first.estimate, second.estimate - second.low), level)


def bonferroni(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p-values, in the given order.

    The probability that any true null hypothesis falls below alpha is at most alpha, whatever the dependence of the
    tests (Dunn 1961).
    """
    return np.minimum(np.asarray(p) * len(p), 1.0)
