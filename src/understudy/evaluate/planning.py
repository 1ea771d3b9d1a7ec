"""Sample-size planning: how many rollouts a comparison of policies needs.

How many rollouts a question needs, by the exact power of the tests that answer it, and what more demonstrations would
bring, by a power law.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from ..core import UserError
from .sequential import SequentialDifferenceTest, SequentialRateTest
from .stats import LEVEL, Interval

ASSUMED_CORRELATIONS = (0.0, 0.25, 0.5, 0.75)  # correlations of two policies' outcomes on the same starts
MAX_ROLLOUTS = 100_000  # upper bound of rollouts of each policy


@dataclass(frozen=True)
class RolloutPlan:
    """The result of `plan`: numbers of rollouts of each policy that detect a difference.

    Attributes:
        paired: By the correlation of the two outcomes on the same starts, as far as such different rates can be
            correlated.
        expected: Mean number of rollouts of the sequential test, paired, with correlation 0.
        maximum: Largest number of rollouts that the sequential test needs for this power.
    """

    unpaired: int
    paired: dict[float, int]
    expected: int
    maximum: int

    def to_json(self) -> dict[str, Any]:
        return {"fixed": {"unpaired": self.unpaired, "paired": {f"{c:g}": n for c, n in self.paired.items()}},
                "sequential": {"expected": self.expected, "maximum": self.maximum}}


@dataclass(frozen=True)
class RateTestPlan:
    """The result of `plan_rate`: numbers of rollouts that tell a success rate from a threshold, fixed or sequential.
    """

    fixed_size: int
    expected: int
    maximum: int

    def to_json(self) -> dict[str, Any]:
        return {"fixed": self.fixed_size, "sequential": {"expected": self.expected, "maximum": self.maximum}}


def plan(first: float, second: float, alpha: float = 1 - LEVEL, power: float = 0.8) -> RolloutPlan:
    """Number of rollouts of each of two policies, so that a two-sided test names the better one with probability
    `power`.

    Paired: both McNemar's exact test and Tango's interval, as `compare` requires (`paired_power`). Unpaired: Fisher's
    exact test (`unpaired_power`). Sequential: `sequential.SequentialDifferenceTest`.
    """
    _check_arguments(first, second, alpha, power, ("the first rate", "the second rate"))
    unpaired = _smallest_sufficient(
        lambda n: unpaired_power(first, second, n, alpha), power, _normal_sample_size(first, second, alpha, power)
    )
    paired = {c: _smallest_sufficient(lambda n, c=c: paired_power(first, second, n, c, alpha), power, unpaired)
              for c in ASSUMED_CORRELATIONS if c == 0 or c <= max_correlation(first, second)}
    only, other = _discordant_probabilities(first, second, 0.0)
    wins, goes_on = _sequential_outcome(
        lambda m: (m - (need := SequentialDifferenceTest(1 - alpha).wins_needed(int(m[-1]))), need),
        max(only, other) / (only + other),
        int(3 * unpaired * (only + other)) + 200,
    )
    return RolloutPlan(unpaired, paired, *_sequential_sample_size(wins, goes_on, only + other, power, paired[0.0]))


def plan_rate(rate: float, threshold: float, alpha: float = 1 - LEVEL, power: float = 0.8) -> RateTestPlan:
    """Computes the number of rollouts of one policy after which its interval excludes a threshold.

    The interval is Clopper-Pearson's, or the confidence sequence of `sequential.SequentialRateTest`.

    Args:
        alpha: 1 less the confidence level.
    """
    _check_arguments(rate, threshold, alpha, power, ("the rate", "the bound"))
    fixed = _smallest_sufficient(
        lambda n: rate_power(rate, threshold, n, alpha), power, _normal_sample_size(rate, threshold, alpha, power) // 2
    )
    wins, goes_on = _rate_test_outcome(SequentialRateTest(threshold, 1 - alpha), rate, 3 * fixed + 200)
    return RateTestPlan(fixed, *_sequential_sample_size(wins, goes_on, 1.0, power, fixed))


# -- demonstrations -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PowerLaw:
    """An error that falls as a power of the number of demonstrations: `scale * n**exponent`.

    Attributes:
        log_sizes: Logarithms of the numbers of demonstrations, (points,).
        spread: Standard deviation of the logarithm of the error about the law.
    """

    exponent: Interval
    scale: float
    log_sizes: np.ndarray
    spread: float

    def predict(self, demonstrations: float) -> Interval:
        """Returns the error predicted for a training with this number of demonstrations, and its prediction interval.

        The interval holds if the law goes on beyond the numbers that were tried, which no data inside them show. An
        upper limit of a failure rate may exceed 1.
        """
        x, n = math.log(demonstrations), len(self.log_sizes)
        squares = np.square(self.log_sizes - self.log_sizes.mean()).sum()
        error = self.spread * math.sqrt(1 + 1 / n + (x - self.log_sizes.mean()) ** 2 / squares)
        margin = error * float(scipy.stats.t.isf((1 - self.exponent.level) / 2, n - 2))
        y = math.log(self.scale) + self.exponent.estimate * x
        return Interval(*(math.exp(v) for v in (y, y - margin, y + margin)), self.exponent.level)


def fit_power_law(demonstrations: Sequence[float] | np.ndarray, errors: Sequence[float] | np.ndarray,
                  level: float = LEVEL) -> PowerLaw:
    """Fits a power law to errors at several numbers of demonstrations (or of environments), by least squares of both
    logarithms.

    The points scatter about the law because trainings differ and because rollouts are few. The interval of the exponent
    is Student's t interval of that scatter, so four points give a wide one. A line fits the logarithms of almost
    anything that falls: leave out the largest number, and see whether `PowerLaw.predict` finds it.

    Args:
        demonstrations: Number of demonstrations of each training, (points,), at least three different ones. Trainings
            with other seeds are points of their own.
        errors: Failure rate (1 less success) or another error of each training, above 0, (points,).

    References:
        Lin et al. (2024), Data Scaling Laws in Imitation Learning for Robotic Manipulation, arXiv 2410.18647.
    """
    sizes, values = np.asarray(demonstrations, float), np.asarray(errors, float)
    if sizes.ndim != 1 or sizes.shape != values.shape:
        raise UserError(f"there must be one error for each number of demonstrations, not {values.shape} for "
                        f"{sizes.shape}", where="fit_power_law", hint="such as fit_power_law([25, 50, 100], "
                        "[0.5, 0.4, 0.3])")
    for name, numbers, hint in (
            ("numbers of demonstrations", sizes, "leave that training out"),
            ("errors", values, "a power law never reaches 0: if some training has no failure, give (failures + 0.5) / "
                               "(episodes + 1) of all")):
        for i in np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0))):
            raise UserError(f"{name}[{i}] is {numbers[i]:g}, and must be finite and above 0", where="fit_power_law",
                            hint=hint)
    if (n_sizes := len(np.unique(sizes))) < 3:
        raise UserError(f"a power law needs at least three different numbers of demonstrations, not {n_sizes}",
                        where="fit_power_law",
                        hint="train on fewer episodes, too: understudy view make DATA --sample N")
    x, y = np.log(sizes), np.log(values)
    line = scipy.stats.linregress(x, y)
    margin = line.stderr * float(scipy.stats.t.isf((1 - level) / 2, len(x) - 2))
    exponent = Interval(float(line.slope), float(line.slope - margin), float(line.slope + margin), level)
    residuals = y - line.intercept - line.slope * x
    return PowerLaw(exponent, math.exp(line.intercept), x, math.sqrt(np.square(residuals).sum() / (len(x) - 2)))


# -- power --------------------------------------------------------------------------------------------------------


def paired_power(first: float, second: float, pairs: int, correlation: float = 0.0, alpha: float = 1 - LEVEL) -> float:
    """Computes the exact probability that `compare` names the better of two policies after a number of pairs.

    Of m pairs that differ, the better policy must win as many as both McNemar's exact test and the score test of
    Tango's interval require.

    References:
        Connor (1987), Sample Size for Testing Differences in Proportions for the Paired-Sample Design, for an
        approximation.
    """
    only, other = _discordant_probabilities(first, second, correlation)
    m = _likely_counts(pairs, only + other)
    need = np.maximum(scipy.stats.binom.isf(alpha / 2 * (1 - 1e-9), m, 0.5) + 1,
                      np.floor((m + scipy.stats.norm.isf(alpha / 2) * np.sqrt(m)) / 2 + 1e-9) + 1)
    return float(scipy.stats.binom.pmf(m, pairs, only + other)
                 @ scipy.stats.binom.sf(need - 1, m, max(only, other) / (only + other)))


def unpaired_power(first: float, second: float, each: int, alpha: float = 1 - LEVEL) -> float:
    """Computes the exact probability that Fisher's exact test names the better of two policies."""
    better, worse = max(first, second), min(first, second)
    k, j = _likely_counts(each, better), _likely_counts(each, worse)
    total = np.arange(k[0] + j[0], k[-1] + j[-1] + 1)
    # above half of all successes; the standard deviation is below 0.36 sqrt(each)
    away = np.arange(int(5 * math.sqrt(each)) + 3)
    at = (total[:, None] + 1) // 2 + away

    def ways(n, k):
        return scipy.special.gammaln(n + 1) - scipy.special.gammaln(k + 1) - scipy.special.gammaln(n - k + 1)
    fits = (at <= each) & (at <= total[:, None])
    one, two = np.where(fits, at, 0), np.where(fits, total[:, None] - at, 0)
    chance = np.where(fits, np.exp(ways(each, one) + ways(each, two) - ways(2 * each, total)[:, None]), 0.0)
    tail = np.cumsum(chance[:, ::-1], 1)[:, ::-1]
    need = at[:, 0] + (tail >= alpha / 2 * (1 - 1e-9)).sum(1)
    wins = k[:, None] >= need[k[:, None] + j - total[0]]
    return float(scipy.stats.binom.pmf(k, each, better) @ wins @ scipy.stats.binom.pmf(j, each, worse))


def rate_power(rate: float, threshold: float, trials: int, alpha: float = 1 - LEVEL) -> float:
    """Computes the exact probability that the Clopper-Pearson interval excludes a threshold on the correct side.

    Args:
        alpha: 1 less the confidence level.
    """
    if rate < threshold:
        rate, threshold = 1 - rate, 1 - threshold
    need = scipy.stats.binom.isf(alpha / 2, trials, threshold) + 1
    return float(scipy.stats.binom.sf(need - 1, trials, rate))


def smallest_detectable_effect(
    test: SequentialRateTest | SequentialDifferenceTest, power: float = 0.8
) -> tuple[float, float]:
    """Computes the smallest difference that a sequential test detects within its largest number of rollouts.

    Args:
        test: The test, with `max_rollouts`.

    Returns:
        For a `SequentialRateTest`: the highest detectable rate below the threshold, and the lowest above it. For a
        `SequentialDifferenceTest`: the smallest detectable difference (-d, d) in the best case, in which the worse
        policy never succeeds where the better one fails. NaN if there is none.
    """
    n = test.max_rollouts
    if n is None:
        raise UserError("The test has no largest number of rollouts.", where="smallest_detectable_effect",
                        hint="Give the test max_rollouts.")
    if isinstance(test, SequentialDifferenceTest):
        # numbers of differing pairs that suffice if one policy wins them all
        sure = np.flatnonzero(test.wins_needed(n) <= np.arange(n + 1))
        d = float(scipy.stats.beta.ppf(power, sure[0], n - sure[0] + 1)) if len(sure) else math.nan
        return -d, d

    def excess_power(rate: float) -> float:
        return float(_rate_test_outcome(test, rate, n)[0][n]) - power

    t = test.threshold
    lowest, highest = (float(scipy.optimize.brentq(excess_power, end, t + (end - t) * 1e-9, xtol=1e-6))
                       if excess_power(end) > 0 else math.nan for end in (0.0, 1.0))
    return lowest, highest


def max_correlation(first: float, second: float) -> float:
    """Computes the largest correlation that two 0/1 outcomes with these probabilities can have."""
    low, high = sorted((first, second))
    return math.sqrt(low * (1 - high) / (high * (1 - low)))


def _discordant_probabilities(first: float, second: float, correlation: float) -> tuple[float, float]:
    """Returns the probabilities that only the first policy succeeds, and that only the second does."""
    both = first * second + correlation * math.sqrt(first * (1 - first) * second * (1 - second))
    if not max(first + second - 1, 0) - 1e-9 <= both <= min(first, second) + 1e-9:
        raise ValueError(f"outcomes with the rates {first:g} and {second:g} cannot have a correlation of "
                         f"{correlation:g}: see max_correlation")
    return max(first - both, 0.0), max(second - both, 0.0)


def _likely_counts(n: int, p: float) -> np.ndarray:
    """Returns all counts except the most improbable ones, with total probability 1e-15."""
    low, high = scipy.stats.binom.ppf([5e-16, 1 - 5e-16], n, p)
    return np.arange(int(low), int(high) + 1)


# -- sequential tests -------------------------------------------------------------------------------------------


def _sequential_outcome(bounds: Callable, p: float, max_rollouts: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes the outcome probabilities of a test that ends when the wins leave the bounds after n trials.

    Each trial is won with probability p.

    Returns:
        Probabilities of having ended above by n, and of not having ended, (max_rollouts + 1,) each.
    """
    low, high = bounds(np.arange(max_rollouts + 1))
    wins, goes_on = np.zeros(max_rollouts + 1), np.ones(max_rollouts + 1)
    alive, first = np.ones(1), 0  # probabilities of first, first + 1, ... wins
    for n in range(1, max_rollouts + 1):
        alive = np.append(alive * (1 - p), 0.0) + np.append(0.0, alive * p)
        over, under = max(int(high[n]) - first, 0), max(int(low[n]) + 1 - first, 0)
        wins[n] = wins[n - 1] + alive[over:].sum()
        alive, first = alive[under:over], first + under
        goes_on[n] = alive.sum()
        if goes_on[n] < 1e-9:
            wins[n:], goes_on[n:] = wins[n], 0.0
            break
    return wins, goes_on


def _rate_test_outcome(test: SequentialRateTest, rate: float, max_rollouts: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes the outcome of a sequential test of one rate, as `_sequential_outcome`."""
    up = rate > test.threshold

    def bounds(n):
        low, high = test.decision_bounds(n)
        return (low, high) if up else (n - high, n - low)
    return _sequential_outcome(bounds, rate if up else 1 - rate, max_rollouts)


def _sequential_sample_size(
    wins: np.ndarray, is_undecided: np.ndarray, informative_fraction: float, power: float, guess: int
) -> tuple[int, int]:
    """Returns the (expected, maximum) rollouts of a sequential test if only a fraction of them is informative."""
    def mean(values, n):
        m = _likely_counts(n, informative_fraction)
        return float(scipy.stats.binom.pmf(m, n, informative_fraction) @ values[np.minimum(m, len(values) - 1)])
    maximum = _smallest_sufficient(lambda n: mean(wins, n), power, guess)
    looks = np.unique(np.linspace(0, maximum - 1, 500).astype(int))
    expected = np.interp(np.arange(maximum), looks, [mean(is_undecided, n) for n in looks]).sum()
    return math.ceil(expected - 1e-9), maximum


def _smallest_sufficient(power: Callable[[int], float], required_power: float, guess: int) -> int:
    """Returns the smallest number from which on the power is sufficient, although it does not rise steadily."""
    low, high = 0, max(guess, 1)
    while power(high) < required_power:
        low, high = high, math.ceil(1.2 * high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= required_power else (middle, high)
    reach = 25 if high < 2000 else 0  # later the steps are too small to matter
    return 1 + max([high - 1, *(n for n in range(high + 1, high + reach) if power(n) < required_power)])


def _normal_sample_size(first: float, second: float, alpha: float, power: float) -> int:
    """Computes the sample size for two independent rates by a normal approximation (Fleiss, Levin and Paik 2003)."""
    middle, gap = (first + second) / 2, abs(first - second)
    z = (scipy.stats.norm.isf(alpha / 2) * math.sqrt(2 * middle * (1 - middle))
         + scipy.stats.norm.ppf(power) * math.sqrt(first * (1 - first) + second * (1 - second)))
    n_rollouts = max(int((z / gap) ** 2), 1)
    if n_rollouts > MAX_ROLLOUTS:
        raise UserError(f"{first:g} and {second:g} are too close: telling them apart takes about {n_rollouts:,} "
                        "rollouts", where="plan", hint="ask for a difference that matters")
    return n_rollouts


def _check_arguments(first: float, second: float, alpha: float, power: float, names: tuple[str, str]) -> None:
    for value, name in ((first, names[0]), (second, names[1]), (alpha, "--alpha"), (power, "--power")):
        if not 0 < value < 1:
            usual = {"--alpha": "0.05", "--power": "0.8"}.get(name, "0.7")
            hint = f"{value:g} % is {value / 100:g}" if 1 < value < 100 else f"such as {usual}"
            raise UserError(f"the value must be between 0 and 1, not {value:g}", where=name, hint=hint)
    if first == second:
        raise UserError(f"the two rates are equal ({first:g})", where="plan",
                        hint="no number of rollouts tells equal policies apart")
    if power <= alpha:
        raise UserError(
            f"the power must be larger than alpha ({alpha:g}), not {power:g}", where="--power", hint="such as 0.8"
        )
