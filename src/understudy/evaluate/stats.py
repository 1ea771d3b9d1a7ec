"""Statistical intervals and tests, as pure functions of counts and arrays.

`level` is the confidence level, from 0 to 1. Outcomes of two policies are compared in pairs. `b` counts the pairs in
which only the first policy succeeds, and `c` the pairs in which only the second policy succeeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with limits: low <= truth <= high in a fraction `level` of repetitions, as far as the method
    guarantees it."""

    estimate: float
    low: float
    high: float
    level: float = LEVEL

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_json(self) -> dict[str, float]:
        """The estimate and the limits."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high}

    def __neg__(self) -> Interval:
        return Interval(0.0 - self.estimate, 0.0 - self.high, 0.0 - self.low, self.level)  # no negative zero


# -- one checkpoint -----------------------------------------------------------------------------------------------


def clopper_pearson(successes: float, trials: float, level: float = LEVEL) -> Interval:
    """Computes the Clopper-Pearson interval of a probability, which covers it with at least `level`.

    Args:
        successes: Number of successes. It need not be whole: see `two_level_rate`.

    Returns:
        The rate and its interval. The estimate is NaN without trials.

    References:
        Clopper and Pearson (1934), The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial.
    """
    _check_counts(successes, trials)
    tail = (1 - level) / 2
    low = scipy.stats.beta.ppf(tail, successes, trials - successes + 1) if successes > 0 else 0.0
    high = scipy.stats.beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return Interval(successes / trials if trials else math.nan, float(low), float(high), level)


def wilson(successes: int, trials: int, level: float = LEVEL) -> Interval:
    """Interval of a probability that covers `level` on average over probabilities. It is narrower than
    Clopper-Pearson's. The estimate is NaN without trials.

    References:
        Wilson (1927), Probable Inference, the Law of Succession, and Statistical Inference.
    """
    _check_counts(successes, trials)
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0, level)
    z2 = scipy.stats.norm.isf((1 - level) / 2) ** 2
    middle = (successes + z2 / 2) / (trials + z2)
    half = math.sqrt(z2 * (successes * (trials - successes) / trials + z2 / 4)) / (trials + z2)
    # At the ends the two terms are equal, except for rounding.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == trials else middle + half
    return Interval(successes / trials, low, high, level)


def tango_z(b: float, c: float, n: float, difference: float) -> float:
    """Computes the score statistic of a hypothetical difference of two paired proportions.

    Args:
        difference: The hypothetical difference, first minus second.

    Returns:
        The statistic, standard normal under the hypothesis. Infinite if the result is impossible under it.

    References:
        Tango (1998), Equivalence Test and Confidence Interval for the Difference in Proportions for the Paired-Sample
        Design, equation 11.
    """
    slope = (2 * n - b + c) * difference - b - c
    root = slope**2 + 8 * n * c * difference * (1 - difference)
    only = (math.sqrt(max(root, 0.0)) - slope) / (4 * n)  # the most likely P(second only) under the hypothesis
    variance = n * (2 * only + difference * (1 - difference))
    gap = b - c - n * difference
    if variance <= 0:  # no other outcome could have been, or none like this one
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def tango(b: float, c: float, n: float, level: float = LEVEL) -> Interval:
    """Computes Tango's score interval of the difference of two paired proportions, first minus second.

    It stays within [-1, 1], and has a positive width even if no pair differs. The counts need not be whole.

    Returns:
        The difference and its interval. The estimate is NaN without pairs.

    References:
        Tango (1998), Equivalence Test and Confidence Interval for the Difference in Proportions for the Paired-Sample
        Design.
    """
    _check_counts(b + c, n)
    _check_counts(min(b, c), n)
    if n == 0:
        return Interval(math.nan, -1.0, 1.0, level)
    z, estimate = scipy.stats.norm.isf((1 - level) / 2), (b - c) / n
    # z falls as the hypothetical difference grows, from above +z to below -z unless the estimate is at that end.
    low = -1.0 if estimate <= -1 else scipy.optimize.brentq(lambda d: tango_z(b, c, n, d) - z, -1 + 1e-12, estimate)
    high = 1.0 if estimate >= 1 else scipy.optimize.brentq(lambda d: tango_z(b, c, n, d) + z, estimate, 1 - 1e-12)
    return Interval(estimate, float(low), float(high), level)


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p-value of no difference between two paired proportions: a binomial test of the pairs that
    differ. It is 1 if none does.

    References:
        McNemar (1947), Note on the Sampling Error of the Difference between Correlated Proportions or Percentages.
    """
    return float(scipy.stats.binomtest(b, b + c).pvalue) if b + c else 1.0


def are_too_few(n: int, level: float = LEVEL) -> bool:
    """Returns whether n values are too few for an interval between them that has this confidence level."""
    return n < 2 or 2.0 ** (1 - n) > 1 - level


def bootstrap_mean(values: Sequence[float] | np.ndarray, level: float = LEVEL,
                   weights: Sequence[float] | np.ndarray | None = None) -> Interval:
    """Interval of a mean of any distribution: bias-corrected and accelerated bootstrap, with its level adjusted for few
    values.

    From 20 values on, the coverage is about as promised, unless a rare value determines the mean. It uses 9,999 draws,
    the same at every call. No limit lies beyond the values, and all n of them lie on one side of the truth with a
    probability of about 2^(1 - n). With so few values that this is more than 1 - level, there is no interval.

    Args:
        weights: Weight of each value, drawn together with it: for a mean over windows with the episode as unit. None
            for equal weights.

    Returns:
        The mean and its interval. The limits are NaN if a value is not finite, or for fewer than six values at a level
        of 0.95. If all values are equal, so are the limits.

    References:
        Efron (1987), Better Bootstrap Confidence Intervals; Hesterberg (2015), What Teachers Should Know about the
        Bootstrap, section 3.1.
    """
    x = np.asarray(values, float)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, float)
    centre = float(np.average(x, weights=w)) if len(x) else math.nan
    if are_too_few(len(x), level) or not np.isfinite(x).all():
        return Interval(centre, math.nan, math.nan, level)
    if x.min() == x.max():  # all draws would be equal
        return Interval(float(x[0]), float(x[0]), float(x[0]), level)
    quantile = scipy.stats.t.isf((1 - level) / 2, len(x) - 1)
    wider = 1 - 2 * scipy.stats.norm.sf(math.sqrt(len(x) / (len(x) - 1)) * quantile)
    limits = scipy.stats.bootstrap((x, w), lambda x, w, axis: (x * w).sum(axis) / w.sum(axis), paired=True,
                                   vectorized=True, confidence_level=float(wider), method="BCa",
                                   rng=np.random.default_rng(0)).confidence_interval
    return Interval(centre, float(limits.low), float(limits.high), level)


# -- methods: several training seeds ------------------------------------------------------------------------------

Kind = Literal["rate", "real", "bounded"]  # 0s and 1s; any number; a number from 0 to 1, such as an AUROC


def two_level_rate(
    values: Sequence[Sequence[float] | np.ndarray] | np.ndarray, level: float = LEVEL, *, kind: Kind = "rate"
) -> Interval:
    """Computes the interval for the mean success of a method over new training seeds and new starts.

    A rate gets the Clopper-Pearson interval with the effective number of episodes (Korn and Graubard 1998): as many
    independent episodes as would give the grand mean the same variance. That variance is the sum of the variance due to
    seeds and the variance due to starts (Owen 2007), which counts the residual twice and so is rather too large.

    The number is then multiplied by (z / t)^2, because few seeds estimate their spread badly. If all episodes succeeded
    or all failed, no spread is visible and each start counts once.

    A bounded measure gets the same interval with the effective number that its own variance gives. A real measure
    gets Student's t with seeds - 1 degrees of freedom and the same variance. Both have width zero if all values are
    equal.

    No interval contains what did not happen in the sample: see `seeds_not_excluded`. docs/statistics.md has tables of
    the coverage.

    Args:
        values: One row per training seed, one column per start, (seeds, episodes). The starts are the same for all
            seeds. A measure with one value per training run has one column.
        kind: What the values are. A measure that happens to be all 0 and 1 is not a rate unless declared.

    References:
        Korn and Graubard (1998), Survey Methodology 24:193. Owen (2007), Annals of Applied Statistics 1:386.
    """
    x = _check_table(values, kind)
    mean, variance = float(x.mean()), _two_level_variance(x)
    if kind == "real" or kind == "bounded" and x.min() == x.max():
        half = float(scipy.stats.t.isf((1 - level) / 2, len(x) - 1)) * math.sqrt(variance)
        return Interval(mean, mean - half, mean + half, level)
    n = mean * (1 - mean) / variance if 0 < mean < 1 and variance > 0 else x.shape[1]
    n = min(n, x.size) if kind == "rate" else n
    n *= _tail_adjustment(len(x), level)
    interval = clopper_pearson(mean * n, n, level)
    return Interval(mean, interval.low, interval.high, level)


def two_level_mean(values: Sequence[Sequence[float] | np.ndarray] | np.ndarray, level: float = LEVEL) -> Interval:
    """Computes the interval for the mean of a real measure over new training seeds and starts."""
    return two_level_rate(values, level, kind="real")


def two_level_difference(first: Sequence[Sequence[float]] | np.ndarray, second: Sequence[Sequence[float]] | np.ndarray,
                         level: float = LEVEL, *, kind: Kind = "rate") -> tuple[Interval, float]:
    """Computes the interval for the difference of two methods' means, first minus second, and its p-value.

    Seeds and starts are both random and crossed: every seed meets every start. The mean difference has two errors, from
    the seeds and from the starts. The spread of seeds is estimated with seeds - 1 degrees of freedom. The margin of
    each is Student's t times its standard error, and the two margins are added in squares (MOVER, Zou and Donner 2008).
    p < 1 - level exactly when the interval excludes 0.

    If all differences of a rate are equal, no spread is visible. Tango's interval with one pair per start then stands
    in for the interval of width zero.

    Args:
        first: Values of the first method, (seeds, episodes).
        second: Values of the second method on the same seeds and starts, in the same places. Seeds are paired because
            both methods of a seed usually learn from the same demonstrations.
        kind: What the values are, as in `two_level_rate`.

    References:
        Zou and Donner (2008), Statistics in Medicine 27:1693. Searle, Casella and McCulloch (1992), Variance
        Components.
    """
    x, y = _check_table(first, kind), _check_table(second, kind)
    _check_paired(x, y)
    d = x - y
    p = 2 * difference_p(d if d.mean() >= 0 else -d, 0.0, kind)
    if kind == "rate" and d.min() == d.max():
        b, c, n = _ties(d)
        n *= _tail_adjustment(len(d), level)
        return tango(b * n, c * n, n, level), p
    mean, half = float(d.mean()), float(crossed_margin(d, (1 - level) / 2, kind))
    most = math.inf if kind == "real" else 1.0
    return Interval(mean, max(mean - half, -most), min(mean + half, most), level), p


def difference_p(d: np.ndarray, supposed: float, kind: Kind = "rate") -> float:
    """Computes the one-sided p-value of the hypothesis that a difference of methods is `supposed` or less.

    This is the test that belongs to the interval of `two_level_difference`.

    Args:
        d: Differences of the two methods' values, (seeds, episodes).
    """
    if kind == "rate" and d.min() == d.max():
        b, c, n = _ties(d)
        return float(scipy.stats.t.sf(tango_z(b * n, c * n, n, supposed), len(d) - 1))
    gap, (seeds, starts) = float(d.mean()) - supposed, crossed_errors(d, kind)
    if gap == 0 or math.isnan(gap):
        return 0.5 if gap == 0 else math.nan
    if not seeds + starts > 0:
        return float(gap < 0)

    def excess(log: float) -> float:
        return float(_margin(d.shape, seeds, starts, math.exp(log))) - abs(gap)
    least = -500.0  # SciPy has no quantile of exp(-600) for 3 degrees of freedom
    tail = math.exp(scipy.optimize.brentq(excess, least, math.log(0.5))) if excess(least) > 0 else 0.0
    return tail if gap > 0 else 1 - tail


def crossed_margin(d: np.ndarray, tail: float, kind: Kind = "real") -> np.ndarray:
    """Computes half the width of the interval of a mean over crossed seeds and starts.

    Each standard error of `crossed_errors` is multiplied by Student's t. The two margins are added in squares. With one
    value per seed this is Student's t interval.

    Args:
        d: Values of any number of tables, (..., seeds, episodes).
        tail: Probability left out on each side.

    Returns:
        The margin, (...).
    """
    return _margin(d.shape, *crossed_errors(d, kind), tail)


def crossed_errors(d: np.ndarray, kind: Kind = "real") -> tuple[np.ndarray, np.ndarray]:
    """Computes the standard errors of the grand mean that seeds and starts cause, from values (..., seeds, episodes).

    The error of the seeds is computed from the means of seeds, which contain the residual. The error of the starts is
    computed from their mean square minus the residual, so that the residual is not counted twice.

    The mean of a rate is a multiple of 1 / episodes, so the means of a few seeds are often equal by chance. Their
    variance then counts as the variance of rounding, 1 / (12 episodes^2), and not as 0.
    """
    by_seed, by_start, residual = mean_squares(d)
    if kind == "rate":
        by_seed = np.maximum(by_seed, 1 / (12 * d.shape[-1]))
    count = d.shape[-2] * d.shape[-1]
    return np.sqrt(by_seed / count), np.sqrt(np.maximum(by_start - residual, 0) / count)


def _margin(shape: tuple[int, ...], of_seeds: np.ndarray, of_starts: np.ndarray, tail: float) -> np.ndarray:
    seeds, starts = (-scipy.special.stdtrit(max(n - 1, 1), tail) for n in shape[-2:])  # Student's t
    return np.hypot(seeds * of_seeds, starts * of_starts)


def mean_squares(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes mean squares of seeds, of starts and of the residual, from values (..., seeds, episodes)."""
    seeds, starts = x.shape[-2:]
    rows, columns, grand = x.mean(-1), x.mean(-2), x.mean((-2, -1))
    by_seed = starts * np.asarray(rows.var(-1, ddof=1))
    if starts == 1:
        return by_seed, np.zeros_like(by_seed), np.zeros_like(by_seed)
    by_start = seeds * np.asarray(columns.var(-1, ddof=1))
    residual = x - rows[..., None] - columns[..., None, :] + grand[..., None, None]
    return by_seed, by_start, (residual**2).sum((-2, -1)) / ((seeds - 1) * (starts - 1))


def seeds_not_excluded(seeds: int, level: float = LEVEL) -> float:
    """Computes the largest fraction of bad training seeds that n of n good ones do not exclude.

    If a fraction f of all seeds collapses, n seeds without a collapse have probability (1 - f)^n. This is the exact
    one-sided binomial bound, 1 - (1 - level)^(1 / n): 0.63 for 3 seeds, 0.45 for 5, 0.26 for 10, 0.14 for 20.

    Args:
        seeds: Number of training seeds, all of them good.
    """
    if seeds < 1:
        raise ValueError(f"The number of training seeds must be at least 1, not {seeds}.")
    return 1 - (1 - level) ** (1 / seeds)


def seeds_caveat(seeds: int, level: float = LEVEL) -> str:
    """Returns a sentence on what few training seeds cannot exclude, to print with every summary over seeds."""
    failing = seeds_not_excluded(seeds, level)
    return (f"Even if {seeds} of {seeds} training seeds succeed, up to {failing:.0%} of all seeds may fail "
            f"({level:.0%} confidence).")


def _ties(d: np.ndarray) -> tuple[float, float, float]:
    """Returns which method won all pairs, as 0 or 1 each, and the number of starts, if all differences are equal."""
    return float(d.min() > 0), float(d.max() < 0), float(d.shape[1])


def _two_level_variance(x: np.ndarray) -> float:
    """Computes the variance of the grand mean over new training seeds and new starts."""
    by_seed, by_start, _ = mean_squares(x)
    return float(by_seed + by_start) / x.size


def _tail_adjustment(seeds: int, level: float) -> float:
    tail = (1 - level) / 2
    return float((scipy.stats.norm.isf(tail) / scipy.stats.t.isf(tail, seeds - 1)) ** 2)


def _check_table(values, kind: Kind = "real") -> np.ndarray:
    if len({len(row) for row in values}) != 1 or len(values) < 2:
        raise ValueError(f"An interval over training seeds needs at least two training seeds with equally many "
                         f"episodes. The seeds have {[len(row) for row in values]} episodes.")
    x = np.asarray([np.asarray(row, float) for row in values])
    is_invalid = ~np.isin(x, (0, 1)) if kind == "rate" else ~((x >= 0) & (x <= 1)) if kind == "bounded" else np.zeros(1)
    if is_invalid.any():
        seed, episode = np.argwhere(is_invalid)[0]
        allowed = "0 or 1" if kind == "rate" else "between 0 and 1"
        raise ValueError(f"Each value of a {kind} measure is {allowed}, but seed {seed}, episode {episode} has "
                         f"{x[seed, episode]:g}. Declare the measure as kind='real'"
                         f"{' or bounded' if kind == 'rate' else ''}.")
    return x


def _check_paired(x, y) -> None:
    if x.shape != y.shape:
        raise ValueError(f"Both methods need as many seeds and episodes, but the first has {x.shape}, the second "
                         f"{y.shape}.")


def _check_counts(k: float, n: float) -> None:
    if not 0 <= k <= n:
        raise ValueError(f"the count must be between 0 and the number of trials, unlike {k} of {n}")


# -- posteriors, permutations and the gain of pairing --------------------------------------------------------------


def beta_posterior(successes: float, trials: float, level: float = LEVEL,
                   prior: tuple[float, float] = (0.5, 0.5)) -> Interval:
    """Computes the credible interval of a probability, with a beta prior.

    Args:
        level: Posterior probability of the interval. Both sides leave out equal probabilities.
        prior: Parameters of the beta distribution. (0.5, 0.5) is Jeffreys' prior. Its interval covers `level` on
            average (Brown, Cai and DasGupta 2001). (1, 1) is flat.

    Returns:
        The mean of the posterior, and the limits.

    References:
        Jeffreys (1946), An Invariant Form for the Prior Probability in Estimation Problems.
    """
    _check_counts(successes, trials)
    if not min(prior) > 0:
        raise ValueError(f"the prior must be two positive numbers, not {prior}")
    posterior = scipy.stats.beta(prior[0] + successes, prior[1] + trials - successes)
    return Interval(float(posterior.mean()), *map(float, posterior.interval(level)), level)


def sign_flip_p_value(d: np.ndarray) -> float:
    """The p-value of no mean difference: the fraction of all (or of 9,999 random) sign changes of paired differences
    that give a mean at least as large.

    Args:
        d: The differences, (n,).

    References:
        Fisher (1935), The Design of Experiments.
    """
    if not np.isfinite(d).all():
        return math.nan
    if not d.any() or len(d) == 1:  # a single difference has the same size with either sign
        return 1.0
    return float(scipy.stats.permutation_test((d,), lambda x, axis: np.mean(x, axis=axis), vectorized=True,
                                              permutation_type="samples", n_resamples=9_999,
                                              rng=np.random.default_rng(0)).pvalue)


def permutation_p_value(first, second) -> float:
    """Computes the two-sided permutation p-value of no difference between two policies or methods.

    All permutations are used, or 9,999 random ones, the same at every call.

    Args:
        first: Results of the first. For two checkpoints on the same starts, (episodes,), 0s and 1s or returns: the two
            results of each pair are exchanged (`sign_flip_p_value`; for 0s and 1s it is `mcnemar`). For two methods,
            (training seeds, episodes), all on the same starts: runs are exchanged (Pitman 1937).
        second: Results of the second, of the same form.

    Returns:
        The p-value. The smallest one is 0.1 with 3 against 3 runs, 0.029 with 4 against 4, and 0.008 with 5 against 5.
    """
    x, y = np.asarray(first, float), np.asarray(second, float)
    if x.ndim != y.ndim or x.shape[-1:] != y.shape[-1:] or x.ndim not in (1, 2) or x.size == 0 or y.size == 0:
        raise ValueError(f"both must have the same shape (episodes,) or (training seeds, episodes), unlike {x.shape} "
                         f"and {y.shape}")
    if x.ndim == 1:
        is_rate = np.isin((x, y), (0, 1)).all()
        return mcnemar(int((x > y).sum()), int((y > x).sum())) if is_rate else sign_flip_p_value(x - y)
    return float(scipy.stats.permutation_test((x.mean(1), y.mean(1)), lambda a, b, axis: a.mean(axis) - b.mean(axis),
                                              vectorized=True, n_resamples=9_999, rng=np.random.default_rng(0)).pvalue)


def pairing_gain(first, second) -> float:
    """Computes the fraction of a difference's variance that common starts remove: 1 - Var(paired) / Var(unpaired).

    This is also the fraction of rollouts that pairing saves.

    Args:
        first: Results of the first policy or method, (episodes,), or (training seeds, episodes).
        second: Results of the second on the same starts, of the same shape.

    Returns:
        The fraction. Negative if the first tends to succeed where the second fails. NaN if nothing varies.
    """
    x, y = np.asarray(first, float), np.asarray(second, float)
    _check_paired(x, y)

    def variance(v):
        return float(v.var(ddof=1)) if v.ndim == 1 else _two_level_variance(v)
    apart = variance(x) + variance(y)
    return 1 - variance(x - y) / apart if apart > 0 else math.nan
