"""Bootstrap intervals for returns, times and partial scores, for one task and over several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from .stats import LEVEL, Interval

N_BOOTSTRAP = 9_999
Statistic = Callable[..., np.ndarray]  # statistic(values, axis=-1), as numpy's


def interquartile_mean(values, axis: int | None = None):
    """The mean without the lowest and the highest quarter.

    Rare values affect it less than the mean, and it uses more of the data than the median (Agarwal et al. 2021).
    """
    return stats.trim_mean(np.asarray(values, float), 0.25, axis=axis)


def bootstrap(values: Sequence[float] | np.ndarray, statistic: Statistic = np.mean, level: float = LEVEL,
              method: Literal["percentile", "BCa"] = "BCa") -> Interval:
    """Bootstrap interval of a statistic of independent values (episodes) with any distribution.

    "percentile" is the simplest method, and too narrow for few values. "BCa" also corrects bias and skewness (Efron
    1987). For a mean, `stats.bootstrap_mean` also corrects for few values. It uses 9,999 draws, the same at every call.
    The limits are not finite for fewer than three values, or if a value is not finite.
    """
    x = np.asarray(values, float)
    if x.ndim != 1:
        raise ValueError(f"the values must be one list, not an array of shape {x.shape}")
    estimate = float(statistic(x, axis=-1)) if x.size else math.nan
    if len(x) < 3 or not np.isfinite(x).all():
        return Interval(estimate, math.nan, math.nan, level)
    if x.min() == x.max():  # all draws would be equal
        return Interval(estimate, estimate, estimate, level)
    found = stats.bootstrap(
        (x,),
        statistic,
        n_resamples=N_BOOTSTRAP,
        vectorized=True,
        confidence_level=level,
        method=method,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(estimate, float(found.low), float(found.high), level)


def aggregate_over_tasks(values: Sequence[Sequence[float]] | np.ndarray, statistic: Statistic = interquartile_mean,
               level: float = LEVEL) -> Interval:
    """Interval of a statistic over several tasks, from values (runs, tasks) on a common scale.

    The stratified bootstrap draws runs within each task and keeps the tasks (Agarwal et al. 2021). The result is about
    these tasks. The unit is the run: a training seed of a method, or an episode of a checkpoint. With few runs per
    task, the percentile interval is too narrow.
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
    """Fraction of runs that score above each threshold, with a band. (thresholds,) each."""

    thresholds: np.ndarray
    fraction: np.ndarray
    low: np.ndarray
    high: np.ndarray
    level: float


def performance_profile(values: Sequence[Sequence[float]] | np.ndarray, thresholds: Sequence[float] | np.ndarray,
            level: float = LEVEL) -> PerformanceProfile:
    """The performance profile of values (runs, tasks): the whole distribution as one curve.

    A method whose curve is higher everywhere is better by any measure (Agarwal et al. 2021; Dolan and More 2002). The
    band has level `level` at each threshold, not for the whole curve. It is the stratified bootstrap of
    `aggregate_over_tasks`.
    """
    x, at = _check_runs(values), np.asarray(thresholds, float)
    above = (x[..., None] > at).astype(float)  # runs, tasks, thresholds
    often = np.random.default_rng(0).multinomial(len(x), np.full(len(x), 1 / len(x)), size=(N_BOOTSTRAP, x.shape[1]))
    drawn = np.einsum("dtr,rtk->dk", often, above, optimize=True) / x.size
    return PerformanceProfile(at, above.mean((0, 1)), *_percentile_interval(drawn, level), level)


def _percentile_interval(drawn: np.ndarray, level: float) -> np.ndarray:
    return np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)


def _check_runs(values) -> np.ndarray:
    if len({len(row) for row in values}) != 1 or not len(values[0]):
        raise ValueError(f"expected (runs, tasks), as many values of every task, found rows of "
                         f"{[len(row) for row in values]}")
    return np.asarray(values, float)
