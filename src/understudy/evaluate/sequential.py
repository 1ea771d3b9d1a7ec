"""Anytime-valid tests (e-processes), which may be evaluated after every rollout.

If a hypothesis is true, no way of betting against it makes money. The capital E starts at 1 and exceeds 20 at most once
in twenty repetitions, *ever* (Ville 1939; Shafer 2021; Ramdas, Gruenwald, Vovk and Shafer 2023).

Stopping as soon as it exceeds 20 is therefore wrong at most 5 % of the time, in both directions together. All values of
the rate or the difference with a capital below 20 form a confidence sequence. It contains the truth at all times
together, in 19 of 20 repetitions (Robbins 1970; Waudby-Smith and Ramdas 2024).

The bets are not tuned to one alternative. The capital is the average over all constant bets, weighted by a Beta
distribution worth `PRIOR_WEIGHT` outcomes. It depends only on counts. A state is a small dict of integers, which can be
written as JSON, and resuming means counting on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import scipy
from numpy.polynomial.legendre import leggauss

from ..core import UserError
from .stats import LEVEL, Interval

PRIOR_WEIGHT = 4.0  # weight of the prior in outcomes; close to optimal for effects that need 20 to 500 rollouts
# stop for futility below this probability of a verdict: halves a hopeless test, and costs 1 % of power
FUTILITY_PROBABILITY = 0.01

TestState = dict[str, int]


@dataclass(frozen=True)
class SequentialRateTest:
    """Sequential test of whether a success rate is above or below `threshold`.

    State: {"trials", "successes"}. The weights of the bets are a Beta distribution with mean `threshold`, so the
    capital is the beta-binomial likelihood divided by the likelihood of `threshold` (Robbins 1970).

    Args:
        max_rollouts: Largest number of rollouts, for the futility rule.
    """

    threshold: float
    level: float = LEVEL
    max_rollouts: int | None = None

    def __post_init__(self):
        if not 0 < self.threshold < 1:
            raise UserError(f"the threshold must be between 0 and 1, not {self.threshold}", where="threshold",
                            hint="such as 0.7")
        _check_arguments(self.level, self.max_rollouts)

    def start(self) -> TestState:
        return {"trials": 0, "successes": 0}

    def update(self, state: TestState, success: bool) -> TestState:
        return {"trials": state["trials"] + 1, "successes": state["successes"] + bool(success)}

    def e_value(self, state: TestState) -> float:
        """The evidence (e-value) against a rate of exactly `threshold`. 1 / e_value is a p-value at any time."""
        n, k = _check_state(state, "trials", "successes")
        return _bounded_exp(self._log_e_value(k, n, self.threshold))

    def interval(self, state: TestState) -> Interval:
        """The current confidence sequence. It excludes `threshold` exactly if there is a verdict."""
        n, k = _check_state(state, "trials", "successes")
        if n == 0:
            return Interval(math.nan, 0.0, 1.0, self.level)
        return _confidence_sequence(lambda p: self._log_e_value(k, n, p), k / n, 0.0, 1.0, self.level)

    def verdict(self, state: TestState) -> Literal["above", "below", "futile"] | None:
        """The verdict of the test. None means that it continues.

        "futile" means that the test would reach a verdict within `max_rollouts` with a probability below a small limit,
        if the rate is as the rollouts so far and a flat prior say (predictive probability: Herson 1979). Stopping there
        cannot increase the rate of wrong verdicts.
        """
        n, k = _check_state(state, "trials", "successes")
        if n and self._log_e_value(k, n, self.threshold) >= _log_threshold(self.level):
            return "above" if k / n > self.threshold else "below"
        if self.max_rollouts is None:
            return None
        end = max(self.max_rollouts, n)
        low, high = self.decision_bounds(end)
        rates, n_remaining = _beta_quantiles(1 + k, 1 + n - k), end - n
        hope = (scipy.stats.binom.sf(high - k - 1, n_remaining, rates)
                + scipy.stats.binom.cdf(low - k, n_remaining, rates))
        return "futile" if hope.mean() < FUTILITY_PROBABILITY else None

    def decision_bounds(self, trials):
        """(low, high): after this many trials (an integer or an array), the verdict is "below" at `low` successes or
        fewer, and "above" from `high` on. -1 and trials + 1 if no verdict is possible."""
        n = np.asarray(trials)

        def enough(k):
            return self._log_e_value(k, n, self.threshold) >= _log_threshold(self.level)
        middle = np.floor(n * self.threshold).astype(int)  # no verdict there
        return -1 - _smallest_sufficient(lambda k: enough(-1 - k), -middle - 1, 0 * n), _smallest_sufficient(
            enough, middle, n + 1)

    def _log_e_value(self, k, n, p):
        """Computes the logarithm of the capital of bets against a rate of p."""
        a, b = PRIOR_WEIGHT * self.threshold, PRIOR_WEIGHT * (1 - self.threshold)
        mixed = scipy.special.betaln(a + k, b + n - k) - scipy.special.betaln(a, b)
        return mixed - scipy.special.xlogy(k, p) - scipy.special.xlog1py(n - k, -p)


@dataclass(frozen=True)
class SequentialDifferenceTest:
    """Which of two policies succeeds more often, on the same starts or with independent trials that are paired as they
    come?

    State: {"pairs", "first", "second"}: the number of all pairs, of pairs that only the first policy solved, and of
    pairs that only the second policy solved. If the policies are equally good, the winner of a pair that differs is a
    fair coin (McNemar 1947), and the bets are on that coin. Other pairs cost nothing. Against another difference d, the
    same bets are on first minus second minus d.

    Args:
        max_rollouts: Largest number of pairs, for the futility rule.
    """

    level: float = LEVEL
    max_rollouts: int | None = None

    def __post_init__(self):
        _check_arguments(self.level, self.max_rollouts)

    def start(self) -> TestState:
        return {"pairs": 0, "first": 0, "second": 0}

    def update(self, state: TestState, first: bool, second: bool) -> TestState:
        """Adds the results of one start."""
        return {"pairs": state["pairs"] + 1, "first": state["first"] + (bool(first) and not second),
                "second": state["second"] + (bool(second) and not first)}

    def e_value(self, state: TestState) -> float:
        """The evidence (e-value) against no difference. 1 / e_value is a p-value at any time."""
        _, b, c = _check_state(state, "pairs", "first", "second")
        return _bounded_exp(_log_e_value_coin(b, c))

    def interval(self, state: TestState) -> Interval:
        """The current confidence sequence of first minus second. It excludes 0 exactly if there is a verdict."""
        n, b, c = _check_state(state, "pairs", "first", "second")
        if n == 0:
            return Interval(math.nan, -1.0, 1.0, self.level)
        return _confidence_sequence(
            lambda d: _log_e_value_paired(b, c, n - b - c, d), (b - c) / n, -1.0, 1.0, self.level)

    def verdict(self, state: TestState) -> Literal["first", "second", "futile"] | None:
        """The verdict of the test. None means that it continues. "futile" is as in `SequentialRateTest`."""
        n, b, c = _check_state(state, "pairs", "first", "second")
        if _log_e_value_coin(b, c) >= _log_threshold(self.level):
            return "first" if b > c else "second"
        if self.max_rollouts is None:
            return None
        n_remaining, m = max(self.max_rollouts - n, 0), b + c
        # pairs that may still differ
        more = np.rint(n_remaining * _beta_quantiles(1 + m, 1 + n - m)).astype(int)[:, None]
        need, wins = self.wins_needed(max(self.max_rollouts, n))[m + more], _beta_quantiles(1 + b, 1 + c)
        hope = scipy.stats.binom.sf(need - b - 1, more, wins) + scipy.stats.binom.sf(need - c - 1, more, 1 - wins)
        return "futile" if hope.mean() < FUTILITY_PROBABILITY else None

    def wins_needed(self, max_rollouts: int) -> np.ndarray:
        """For 0, 1, ... differing pairs, the number that one policy must win for a verdict, (max_rollouts + 1,). It is
        one more than the number of pairs if even all pairs are not enough."""
        return _wins_needed(self.level, max_rollouts)


# -- capital ------------------------------------------------------------------------------------------------------


def _log_e_value_coin(b, c):
    """Computes the log capital after b wins and c losses of bets on a coin that may be fair."""
    a = PRIOR_WEIGHT / 2
    return scipy.special.betaln(a + b, a + c) - scipy.special.betaln(a, a) + (b + c) * math.log(2)


_NODES, _WEIGHTS = leggauss(128)


def _log_e_value_paired(b: int, c: int, ties: int, d: float) -> float:
    """Logarithm of the capital of bets on pairs worth +1, -1 and 0 against a mean of d. At d = 0 it is
    `_log_e_value_coin`.

    A bet u from 0 (all on the second) to 1 (all on the first) multiplies the capital by 2u / (1 + d), 2 (1 - u) / (1 -
    d) or (1 + d - 2ud) / (1 - d^2). The integral over u has one mode and is computed around it.
    """
    # above 0: the integrand is log-concave and 0 at both ends
    up, down = PRIOR_WEIGHT / 2 - 1 + b, PRIOR_WEIGHT / 2 - 1 + c

    def slope(u):
        return up / u - down / (1 - u) - ties * 2 * d / (1 + d - 2 * u * d)
    mode = scipy.optimize.brentq(slope, 1e-15, 1 - 1e-15)
    bend = up / mode**2 + down / (1 - mode)**2 + ties * (2 * d / (1 + d - 2 * mode * d))**2
    low, high = max(mode - 20 / math.sqrt(bend), 0.0), min(mode + 20 / math.sqrt(bend), 1.0)
    u = low + (high - low) * (1 + _NODES) / 2
    logs = (up * np.log(u) + down * np.log1p(-u) + ties * np.log((1 + d - 2 * u * d) / (1 - d * d))
            + b * math.log(2 / (1 + d)) + c * math.log(2 / (1 - d)))
    return float(
        scipy.special.logsumexp(logs, b=_WEIGHTS * (high - low) / 2)
        - scipy.special.betaln(PRIOR_WEIGHT / 2, PRIOR_WEIGHT / 2))


def _confidence_sequence(log_e_value, estimate: float, least: float, most: float, level: float) -> Interval:
    """Returns the interval of all values that the e-value does not exclude, which contains the estimate."""
    def gap(value):
        return log_e_value(value) - _log_threshold(level)
    first, last = least + 1e-12, most - 1e-12
    middle = min(max(estimate, first), last)
    low = least if gap(first) < 0 else scipy.optimize.brentq(gap, first, middle)
    high = most if gap(last) < 0 else scipy.optimize.brentq(gap, middle, last)
    return Interval(estimate, float(low), float(high), level)


@lru_cache(maxsize=16)
def _wins_needed(level: float, most: int) -> np.ndarray:
    m = np.arange(most + 1)
    wins = _smallest_sufficient(lambda b: _log_e_value_coin(b, m - b) >= _log_threshold(level), m // 2, m + 1)
    wins.flags.writeable = False
    return wins


def _smallest_sufficient(enough, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Finds the smallest sufficient number for each element by bisection. `high` stands for none."""
    while (high - low > 1).any():
        middle = (low + high) // 2
        yes = enough(middle)
        low, high = np.where(yes, low, middle), np.where(yes, middle, high)
    return high


# -- shared functions ----------------------------------------------------------------------------------------------


def _beta_quantiles(a: float, b: float) -> np.ndarray:
    """Returns 64 equally likely quantiles of a Beta distribution."""
    return scipy.special.betaincinv(a, b, (np.arange(64) + 0.5) / 64)


def _log_threshold(level: float) -> float:
    return -math.log(1 - level)


def _bounded_exp(log: float) -> float:
    return math.exp(min(float(log), 700.0))


def _check_state(state: TestState, whole: str, *parts: str) -> tuple[int, ...]:
    counts = [state[k] for k in (whole, *parts)]
    if min(counts) < 0 or sum(counts[1:]) > counts[0]:
        raise ValueError(f"the counts are inconsistent: {' and '.join(parts)} must be at most {whole} together in "
                         f"{state}")
    return tuple(counts)


def _check_arguments(level: float, most: int | None) -> None:
    if not 0 < level < 1:
        raise UserError(f"the level must be between 0 and 1, not {level}", where="level", hint="such as 0.95")
    if most is not None and most < 1:
        raise UserError(f"at least one rollout is needed, not {most}", where="most", hint="such as 1000, or None")
