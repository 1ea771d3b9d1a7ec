"""A number without its interval is not a result. Pure functions of counts and arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """low <= the truth <= high in `level` of all repetitions, as far as the method that made it promises."""

    estimate: float
    low: float
    high: float
    level: float = LEVEL

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def __neg__(self) -> Interval:
        return Interval(-self.estimate, -self.high, -self.low, self.level)


# -- one checkpoint -----------------------------------------------------------------------------------------------


def clopper_pearson(successes: float, trials: float, level: float = LEVEL) -> Interval:
    """Of a probability: covers at least `level` for every probability and number of trials (Clopper and Pearson
    1934). Counts need not be whole: see `two_level`."""
    _counts(successes, trials)
    tail = (1 - level) / 2
    low = stats.beta.ppf(tail, successes, trials - successes + 1) if successes > 0 else 0.0
    high = stats.beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return Interval(successes / trials if trials else math.nan, float(low), float(high), level)


def wilson(successes: int, trials: int, level: float = LEVEL) -> Interval:
    """Of a probability: narrower than Clopper-Pearson, and covers `level` on average over probabilities, not for
    each of them (Wilson 1927)."""
    _counts(successes, trials)
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0, level)
    z2 = stats.norm.isf((1 - level) / 2) ** 2
    middle = (successes + z2 / 2) / (trials + z2)
    half = math.sqrt(z2 * (successes * (trials - successes) / trials + z2 / 4)) / (trials + z2)
    # At the ends the two terms are equal, but for rounding.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == trials else middle + half
    return Interval(successes / trials, low, high, level)


def tango_z(b: float, c: float, n: float, difference: float) -> float:
    """The score statistic of a supposed `difference` of two paired proportions (Tango 1998, equation 11): b of n
    pairs are successes of the first only, c of the second only."""
    slope = (2 * n - b + c) * difference - b - c
    root = slope**2 + 8 * n * c * difference * (1 - difference)
    only = (math.sqrt(max(root, 0.0)) - slope) / (4 * n)  # the likeliest P(second only) if the difference were so
    variance = n * (2 * only + difference * (1 - difference))
    gap = b - c - n * difference
    if variance <= 0:  # no other outcome could have been, or none like this one
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def tango(b: float, c: float, n: float, level: float = LEVEL) -> Interval:
    """Of the difference of two paired proportions, first minus second: all differences that the score test does not
    reject (Tango 1998). Stays within [-1, 1] and is not empty when no pair differs. Counts need not be whole."""
    _counts(b + c, n)
    if n == 0:
        return Interval(math.nan, -1.0, 1.0, level)
    z, estimate = stats.norm.isf((1 - level) / 2), (b - c) / n
    # z falls as the supposed difference grows, from above +z to below -z unless the estimate is at that end.
    low = -1.0 if estimate <= -1 else optimize.brentq(lambda d: tango_z(b, c, n, d) - z, -1 + 1e-12, estimate)
    high = 1.0 if estimate >= 1 else optimize.brentq(lambda d: tango_z(b, c, n, d) + z, estimate, 1 - 1e-12)
    return Interval(estimate, float(low), float(high), level)


def newcombe(both: int, b: int, c: int, neither: int, level: float = LEVEL) -> Interval:
    """Of the same difference as `tango`, from Wilson's limits of the two proportions and their correlation (Newcombe
    1998, method 10): a second opinion of other make."""
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


def mcnemar(b: int, c: int) -> float:
    """The exact two-sided p that b against c (`tango`) is chance (McNemar 1947; a binomial test of the pairs that
    differ). 1 if none does."""
    return float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0


def mean(values: Sequence[float] | np.ndarray, level: float = LEVEL,
         weights: Sequence[float] | np.ndarray | None = None) -> Interval:
    """Of a mean of any distribution: the bias-corrected and accelerated bootstrap (Efron 1987) at the level that makes
    up for its narrowness with few values (Hesterberg 2015, section 3.1); 9,999 draws, the same at every call. From
    20 values on it covers about as promised unless a rare value decides the mean. Not finite where `values` are not,
    or where there are fewer than three; where all are equal, so are the limits. `weights` are drawn with their values:
    a mean over windows whose unit is the episode.
    """
    x = np.asarray(values, float)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, float)
    centre = float(np.average(x, weights=w)) if len(x) else math.nan
    if len(x) < 2 or not np.isfinite(x).all() or len(x) == 2 and x[0] != x[1]:
        return Interval(centre, math.nan, math.nan, level)
    if x.min() == x.max():  # nothing to draw from
        return Interval(float(x[0]), float(x[0]), float(x[0]), level)
    wider = 1 - 2 * stats.norm.sf(math.sqrt(len(x) / (len(x) - 1)) * stats.t.isf((1 - level) / 2, len(x) - 1))
    found = stats.bootstrap((x, w), lambda x, w, axis: (x * w).sum(axis) / w.sum(axis), paired=True, vectorized=True,
                            confidence_level=float(wider), method="BCa", rng=np.random.default_rng(0))
    return Interval(centre, float(found.confidence_interval.low), float(found.confidence_interval.high), level)


# -- methods: several training seeds ------------------------------------------------------------------------------


def two_level(success: Sequence[Sequence[float]] | np.ndarray, level: float = LEVEL) -> Interval:
    """Of the success rate of a METHOD, from 0s and 1s (training seeds, episodes): over new seeds and new starts.

    Clopper-Pearson with the effective number of episodes (Korn and Graubard 1998): as many independent ones as would
    have the variance of the grand mean, which is that of the seeds' means and that of the starts' means together
    (Owen 2007: never too small on average when seeds meet the same starts), made fewer by (z / t)^2 since few seeds
    tell their spread badly. Where everything succeeded or failed, no spread can be seen, and every start counts once.
    No interval from five seeds sees a collapse that happens to one seed in twenty.
    """
    x = _table(success)
    p = float(x.mean())
    n = _effective(x, p * (1 - p), level)
    return Interval(p, *_ends(clopper_pearson(p * n, n, level)), level)


def two_level_difference(first, second, level: float = LEVEL) -> tuple[Interval, float]:
    """Of the difference of two METHODS' success rates, first minus second, and its p; 0s and 1s (training seeds,
    episodes) of both, the same seeds and starts in the same places.

    Tango's interval with the effective number of pairs, as in `two_level`; p is of the same score statistic by
    Student's t with seeds - 1 degrees of freedom, so that p < 1 - level exactly when 0 is outside.
    """
    x, y = _table(first), _table(second)
    _same(x, y)
    d = x - y
    b, c = float((d > 0).mean()), float((d < 0).mean())
    n = _effective(d, b + c - (b - c) ** 2, level)
    shrunk = _shrink(len(d), level)
    z = tango_z(b * n, c * n, n, 0.0) / math.sqrt(shrunk) if b + c else 0.0
    return tango(b * n, c * n, n, level), float(2 * stats.t.sf(abs(z), len(d) - 1))


def two_level_mean(values, level: float = LEVEL) -> Interval:
    """Of a mean over new training seeds and new starts, from values (seeds, episodes): Student's t with seeds - 1
    degrees of freedom over the same variance as in `two_level`. For a difference give the differences."""
    x = _table(values)
    half = float(stats.t.isf((1 - level) / 2, len(x) - 1)) * math.sqrt(_variance(x))
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, level)


def _variance(x: np.ndarray) -> float:
    """Of the grand mean of (seeds, starts), both drawn anew: Var(seeds' means) / S + Var(starts' means) / E."""
    starts = x.mean(0).var(ddof=1) / x.shape[1] if x.shape[1] > 1 else 0.0
    return float(x.mean(1).var(ddof=1) / x.shape[0] + starts)


def _shrink(seeds: int, level: float) -> float:
    tail = (1 - level) / 2
    return float((stats.norm.isf(tail) / stats.t.isf(tail, seeds - 1)) ** 2)


def _effective(x: np.ndarray, single: float, level: float) -> float:
    """How many independent episodes, each of variance `single`, say as much as this table."""
    n = min(single / _variance(x), x.size) if single > 1e-12 and _variance(x) > 0 else x.shape[1]
    return n * _shrink(len(x), level)


def _table(values) -> np.ndarray:
    if len({len(row) for row in values}) != 1 or len(values) < 2:
        raise ValueError(f"expected at least two training seeds with equally many episodes, found "
                         f"{[len(row) for row in values]} episodes")
    return np.asarray([np.asarray(row, float) for row in values])


def _same(x, y) -> None:
    if x.shape != y.shape:
        raise ValueError(f"expected as many seeds and episodes of both, found {x.shape} and {y.shape}")


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def _counts(k: float, n: float) -> None:
    if not 0 <= k <= n:
        raise ValueError(f"expected 0 <= count <= trials, found {k} of {n}")


# -- what is believed, and what the pairs were worth --------------------------------------------------------------


def posterior(successes: float, trials: float, level: float = LEVEL,
              prior: tuple[float, float] = (0.5, 0.5)) -> Interval:
    """Of a probability: what to believe after these trials if Beta(*prior) was believed before. The estimate is the
    posterior's mean, the limits leave as much out on both sides. (0.5, 0.5) is Jeffreys' prior (1946), whose interval
    covers `level` on average (Brown, Cai and DasGupta 2001); (1, 1) is flat."""
    found = _believed(successes, trials, prior)
    return Interval(float(found.mean()), *map(float, found.interval(level)), level)


def chance_above(successes: float, trials: float, than: float, prior: tuple[float, float] = (0.5, 0.5)) -> float:
    """The posterior probability that the rate is above `than`."""
    return float(_believed(successes, trials, prior).sf(than))


def chance_better(k1: float, n1: float, k2: float, n2: float, prior: tuple[float, float] = (0.5, 0.5)) -> float:
    """The posterior probability that the first of two rates of independent trials is the higher one."""
    first, second = _believed(k1, n1, prior), _believed(k2, n2, prior)
    return float(np.mean(second.cdf(first.ppf((np.arange(20_000) + 0.5) / 20_000))))


def permutation(first, second) -> float:
    """The two-sided p that two policies or methods differ by chance, by exchanging what chance could have exchanged.

    (episodes,) of two checkpoints on the same starts, 0s and 1s or returns: who did which of each pair (Fisher 1935; of
    0s and 1s it is `mcnemar`). (training seeds, episodes) of two methods: which runs are whose, all judged on the same
    starts (Pitman 1937). The smallest p that 3 against 3 runs can give is 0.1, 4 against 4: 0.029, 5 against 5: 0.008.
    All changes, or 9,999 drawn, the same at every call.
    """
    x, y = np.asarray(first, float), np.asarray(second, float)
    if x.ndim != y.ndim or x.shape[-1:] != y.shape[-1:] or x.ndim not in (1, 2) or x.size == 0 or y.size == 0:
        raise ValueError(f"expected (episodes,) or (training seeds, episodes) of both, found {x.shape} and {y.shape}")
    if x.ndim == 1 and np.isin((x, y), (0, 1)).all():
        return mcnemar(int((x > y).sum()), int((y > x).sum()))
    rng = np.random.default_rng(0)
    if x.ndim == 1:
        return float(stats.permutation_test((x - y,), lambda d, axis: np.mean(d, axis), permutation_type="samples",
                                            vectorized=True, n_resamples=9_999, rng=rng).pvalue)
    return float(stats.permutation_test((x.mean(1), y.mean(1)), lambda a, b, axis: a.mean(axis) - b.mean(axis),
                                        vectorized=True, n_resamples=9_999, rng=rng).pvalue)


def pairing(first, second) -> float:
    """The share of the difference's variance that meeting the same starts took away, and so the share of rollouts that
    it saved: 1 - Var(paired) / Var(unpaired). (episodes,) of two checkpoints, or (training seeds, episodes) of two
    methods. Below 0 where one did well where the other did badly; not a number where nothing varies."""
    x, y = np.asarray(first, float), np.asarray(second, float)
    _same(x, y)

    def variance(v):
        return float(v.var(ddof=1)) if v.ndim == 1 else _variance(v)
    apart = variance(x) + variance(y)
    return 1 - variance(x - y) / apart if apart > 0 else math.nan


def _believed(successes: float, trials: float, prior: tuple[float, float]):
    _counts(successes, trials)
    if not min(prior) > 0:
        raise ValueError(f"expected a prior of two numbers above 0, found {prior}")
    return stats.beta(prior[0] + successes, prior[1] + trials - successes)
