"""Bootstrap intervals for returns, times and partial scores, for one task and over several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy

from .stats import LEVEL, Interval

N_BOOTSTRAP = 9_999
Statistic = Callable[..., np.ndarray]  # statistic(values, axis=-1), as numpy's


def interquartile_mean(values, axis: int | None = None):
    """Computes the mean without the lowest and the highest quarter of the values.

    Rare values affect it less than the mean, and it uses more of the data than the median.

    Args:
        axis: Axis to average over. None for all values.

    References:
        Agarwal et al. (2021), Deep Reinforcement Learning at the Edge of the Statistical Precipice, arXiv 2108.13264.
    """
    return scipy.stats.trim_mean(np.asarray(values, float), 0.25, axis=axis)


def bootstrap(values: Sequence[float] | np.ndarray, statistic: Statistic = np.mean, level: float = LEVEL,
              method: Literal["percentile", "BCa"] = "BCa") -> Interval:
    """Computes the bootstrap interval of a statistic of independent values with any distribution.

    It uses 9,999 draws, the same at every call. For a mean, `stats.bootstrap_mean` also corrects for few values.

    Args:
        values: One value per episode, (n,).
        statistic: A function of values and `axis`, such as `np.mean`.
        method: "percentile" is the simplest method, and too narrow for few values. "BCa" also corrects bias and
            skewness.

    Returns:
        The statistic and its interval. The limits are NaN for fewer than three values, or if a value is not finite.

    References:
        Efron (1987), Better Bootstrap Confidence Intervals.
    """
    x = np.asarray(values, float)
    if x.ndim != 1:
        raise ValueError(f"the values must be one list, not an array of shape {x.shape}")
    estimate = float(statistic(x, axis=-1)) if x.size else math.nan
    if len(x) < 3 or not np.isfinite(x).all():
        return Interval(estimate, math.nan, math.nan, level)
    if x.min() == x.max():  # all draws would be equal
        return Interval(estimate, estimate, estimate, level)
    interval = scipy.stats.bootstrap(
        (x,),
        statistic,
        n_resamples=N_BOOTSTRAP,
        vectorized=True,
        confidence_level=level,
        method=method,
        rng=np.random.default_rng(0)).confidence_interval
    return Interval(estimate, float(interval.low), float(interval.high), level)


def aggregate_over_tasks(values: Sequence[Sequence[float]] | np.ndarray, statistic: Statistic = interquartile_mean,
                         level: float = LEVEL) -> Interval:
    """Computes the interval of a statistic over several tasks.

    The stratified bootstrap draws runs within each task and keeps the tasks, so the result is about these tasks. With
    few runs per task, the percentile interval is too narrow.

    Args:
        values: Values on a common scale, (runs, tasks). A run is a training seed of a method, or an episode of a
            checkpoint.

    References:
        Agarwal et al. (2021), Deep Reinforcement Learning at the Edge of the Statistical Precipice, arXiv 2108.13264.
    """
    x = _check_runs(values)
    estimate = float(statistic(x.reshape(-1), axis=-1))
    if len(x) < 2 or not np.isfinite(x).all():
        return Interval(estimate, math.nan, math.nan, level)
    rng, tasks, drawn = np.random.default_rng(0), np.arange(x.shape[1]), []
    block = max(1, 5_000_000 // x.size)
    for first in range(0, N_BOOTSTRAP, block):
        some = rng.integers(len(x), size=(min(block, N_BOOTSTRAP - first), *x.shape))
        drawn.append(statistic(x[some, tasks].reshape(len(some), -1), axis=-1))
    low, high = _percentile_interval(np.concatenate(drawn), level)
    return Interval(estimate, float(low), float(high), level)


@dataclass(frozen=True)
class PerformanceProfile:
    """The fraction of runs that score above each threshold, (thresholds,), with a band."""

    thresholds: np.ndarray
    fraction: np.ndarray
    low: np.ndarray
    high: np.ndarray
    level: float


def performance_profile(values: Sequence[Sequence[float]] | np.ndarray, thresholds: Sequence[float] | np.ndarray,
                        level: float = LEVEL) -> PerformanceProfile:
    """Computes the fraction of runs above each threshold: the whole distribution of values as one curve.

    A method with a curve that is higher everywhere is better by any measure. The band is the stratified bootstrap of
    `aggregate_over_tasks`.

    Args:
        values: Values on a common scale, (runs, tasks).
        thresholds: Where the curve is computed, (k,).
        level: Confidence level of the band at each threshold, not for the whole curve.

    References:
        Agarwal et al. (2021), arXiv 2108.13264; Dolan and More (2002), Benchmarking Optimization Software with
        Performance Profiles.
    """
    x, at = _check_runs(values), np.asarray(thresholds, float)
    above = np.where(np.isnan(x), np.nan, 1.0)[..., None] * (x[..., None] > at)  # runs, tasks, thresholds
    often = np.random.default_rng(0).multinomial(len(x), np.full(len(x), 1 / len(x)), size=(N_BOOTSTRAP, x.shape[1]))
    drawn = np.einsum("dtr,rtk->dk", often, above, optimize=True) / x.size
    return PerformanceProfile(at, above.mean((0, 1)), *_percentile_interval(drawn, level), level)


def _percentile_interval(drawn: np.ndarray, level: float) -> np.ndarray:
    return np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)


def _check_runs(values) -> np.ndarray:
    if len({len(row) for row in values}) != 1 or not len(values[0]):
        raise ValueError(f"every run must have a value of every task, but they have {[len(row) for row in values]}")
    return np.asarray(values, float)
