"""Tests and intervals for the difference of two independent success rates: two policies on different starts.

Pairs are more informative (`stats.tango`, `stats.mcnemar`). These functions are for rollouts by other people, or for a
robot that cannot be set up twice in the same way. Arguments: successes and trials of the first policy, then of the
second.
"""

from __future__ import annotations

import math

import scipy

from .stats import LEVEL, Interval, _check_counts


def fisher_exact(k1: int, n1: int, k2: int, n2: int) -> float:
    """Computes the exact two-sided p-value of no difference of two rates, given the total number of successes.

    It is never too small, and somewhat too large.

    References:
        Fisher (1935), The Design of Experiments.
    """
    return float(scipy.stats.fisher_exact(_contingency_table(k1, n1, k2, n2)).pvalue)


def barnard_exact(k1: int, n1: int, k2: int, n2: int) -> float:
    """Computes the exact two-sided p-value of no difference of two rates by Barnard's test, which has more power.

    The statistic is the pooled score.

    References:
        Barnard (1945), A New Test for 2 x 2 Tables.
    """
    if k1 + k2 in (0, n1 + n2):
        return 1.0
    return float(min(scipy.stats.barnard_exact(_contingency_table(k1, n1, k2, n2)).pvalue, 1.0))


def score_z(k1: float, n1: float, k2: float, n2: float, difference: float) -> float:
    """Computes the score statistic of a hypothetical difference of two independent rates.

    The variance uses the most likely rates under the hypothesis.

    Args:
        difference: The hypothetical difference, first minus second.

    Returns:
        The statistic, standard normal under the hypothesis. Infinite if the result is impossible under it.

    References:
        Miettinen and Nurminen (1985), Comparative Analysis of Two Rates; Farrington and Manning (1990), Test Statistics
        and Sample Size Formulae for Comparative Binomial Trials.
    """
    second = _constrained_estimate(k1, n1, k2, n2, difference)
    first, n = second + difference, n1 + n2
    variance = (first * (1 - first) / n1 + second * (1 - second) / n2) * n / (n - 1)
    gap = k1 / n1 - k2 / n2 - difference
    if variance <= 1e-15:  # no other outcome was possible, or not this one
        return 0.0 if abs(gap) < 1e-12 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def miettinen_nurminen(k1: float, n1: float, k2: float, n2: float, level: float = LEVEL) -> Interval:
    """Computes the score interval of the difference of two independent rates, first minus second.

    It covers close to `level`.

    References:
        Miettinen and Nurminen (1985), Comparative Analysis of Two Rates.
    """
    _check_trials(k1, n1, k2, n2)
    z, estimate = scipy.stats.norm.isf((1 - level) / 2), k1 / n1 - k2 / n2
    first, last = -1 + 1e-12, 1 - 1e-12
    middle = min(max(estimate, first), last)
    low = -1.0 if estimate <= -1 else scipy.optimize.brentq(lambda d: score_z(k1, n1, k2, n2, d) - z, first, middle)
    high = 1.0 if estimate >= 1 else scipy.optimize.brentq(lambda d: score_z(k1, n1, k2, n2, d) + z, middle, last)
    return Interval(estimate, float(low), float(high), level)


def _constrained_estimate(k1: float, n1: float, k2: float, n2: float, d: float) -> float:
    """Computes the most likely second rate if the first is larger by d, as the root of a cubic equation."""
    n, k = n1 + n2, k1 + k2
    square, line, constant = (n1 + 2 * n2) * d - n - k, (n2 * d - n - 2 * k2) * d + k, k2 * d * (1 - d)
    q = square**3 / (27 * n**3) - square * line / (6 * n**2) + constant / (2 * n)
    reach = math.copysign(math.sqrt(max(square**2 / (9 * n**2) - line / (3 * n), 0.0)), q)
    turn = (math.pi + math.acos(min(max(q / reach**3, -1.0), 1.0))) / 3 if reach else 0.0
    return min(max(2 * reach * math.cos(turn) - square / (3 * n), 0.0, -d), 1.0, 1 - d)


def _contingency_table(k1, n1, k2, n2) -> list[list[int]]:
    _check_trials(k1, n1, k2, n2)
    return [[k1, k2], [n1 - k1, n2 - k2]]


def _check_trials(k1, n1, k2, n2) -> None:
    _check_counts(k1, n1)
    _check_counts(k2, n2)
    if min(n1, n2) < 1:
        raise ValueError(f"both policies need at least one trial, but they have {n1} and {n2}")
