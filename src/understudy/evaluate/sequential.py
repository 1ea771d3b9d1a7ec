"""Tests that may be looked at after every rollout: bets against chance, whose capital is the evidence.

If a hypothesis is true, no way of betting against it makes money: the capital E, from 1 at the start, passes 20 once in
twenty repetitions at most, *ever* (Ville 1939; Shafer 2021; Ramdas, Gruenwald, Vovk and Shafer 2023). So whoever stops
when it does, after whichever rollout, is wrong 5 % of the time at most, in both directions together. All values of the
rate or the difference whose capital is below 20 are a confidence sequence: it holds the truth at all times at once, in
19 of 20 repetitions (Robbins 1970; Waudby-Smith and Ramdas 2024).

How much to bet is not tuned to one alternative: the capital is the average over all constant bets, weighted by a Beta
distribution worth `WEIGHT` outcomes. It depends on counts alone, so a state is a small dict of integers that can be
written as JSON, in any order of the outcomes, and going on after an interruption is counting on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.polynomial.legendre import leggauss
from scipy import optimize, special, stats

from ..core import UserError
from .stats import LEVEL, Interval

PRIOR_WEIGHT = 4.0  # of the bets' distribution, in outcomes; near the best for effects that take 20 to 500 rollouts
# a chance of a verdict below this is none: halves a hopeless test, and costs a point of power
FUTILITY_PROBABILITY = 0.01

TestState = dict[str, int]


@dataclass(frozen=True)
class SequentialRateTest:
    """Is one success rate above or below `than`? `most`: the largest number of rollouts, for the futility rule.

    State: {"trials", "successes"}. The bets' distribution is a Beta of mean `than`, so the capital is the beta-binomial
    likelihood over that of `than` (Robbins 1970).
    """

    threshold: float
    level: float = LEVEL
    max_rollouts: int | None = None

    def __post_init__(self):
        if not 0 < self.threshold < 1:
            raise UserError(f"expected a rate between 0 and 1, found {self.threshold}", where="threshold",
                            hint="such as 0.7")
        _check_arguments(self.level, self.max_rollouts)

    def start(self) -> TestState:
        return {"trials": 0, "successes": 0}

    def update(self, state: TestState, success: bool) -> TestState:
        return {"trials": state["trials"] + 1, "successes": state["successes"] + bool(success)}

    def e_value(self, state: TestState) -> float:
        """The capital against a rate of exactly `than`; 1 / evidence is a p-value at any time."""
        n, k = _check_state(state, "trials", "successes")
        return _bounded_exp(self._log_e_value(k, n, self.threshold))

    def interval(self, state: TestState) -> Interval:
        """The confidence sequence, as it is now: `than` is outside exactly when there is a verdict."""
        n, k = _check_state(state, "trials", "successes")
        if n == 0:
            return Interval(math.nan, 0.0, 1.0, self.level)
        return _confidence_sequence(lambda p: self._log_e_value(k, n, p), k / n, 0.0, 1.0, self.level)

    def verdict(self, state: TestState) -> Literal["above", "below", "futile"] | None:
        """None: go on. Futile: with `most` rollouts, it would come out below `HOPE` of the time if the rate is as the
        rollouts so far and a flat prior say (predictive probability: Herson 1979). Stopping there cannot raise the
        rate of wrong verdicts."""
        n, k = _check_state(state, "trials", "successes")
        if n and self._log_e_value(k, n, self.threshold) >= _log_threshold(self.level):
            return "above" if k / n > self.threshold else "below"
        if self.max_rollouts is None:
            return None
        end = max(self.max_rollouts, n)
        low, high = self.decision_bounds(end)
        rates, left = _beta_quantiles(1 + k, 1 + n - k), end - n
        hope = stats.binom.sf(high - k - 1, left, rates) + stats.binom.cdf(low - k, left, rates)
        return "futile" if hope.mean() < FUTILITY_PROBABILITY else None

    def decision_bounds(self, trials):
        """(low, high): after so many trials (an integer or an array) the verdict is below at `low` successes or fewer,
        above from `high` on; -1 and trials + 1 where none is possible."""
        n = np.asarray(trials)

        def enough(k):
            return self._log_e_value(k, n, self.threshold) >= _log_threshold(self.level)
        middle = np.floor(n * self.threshold).astype(int)  # no verdict there
        return -1 - _smallest_sufficient(lambda k: enough(-1 - k), -middle - 1, 0 * n), _smallest_sufficient(
            enough, middle, n + 1
        )

    def _log_e_value(self, k, n, p):
        """Its logarithm, of bets against a rate of p."""
        a, b = PRIOR_WEIGHT * self.threshold, PRIOR_WEIGHT * (1 - self.threshold)
        mixed = special.betaln(a + k, b + n - k) - special.betaln(a, b)
        return mixed - special.xlogy(k, p) - special.xlog1py(n - k, -p)


@dataclass(frozen=True)
class SequentialDifferenceTest:
    """Which of two policies succeeds more often? On the same starts, or with independent trials put in pairs as they
    come. `most`: the largest number of pairs, for the futility rule.

    State: {"pairs", "first", "second"}: pairs so far, and those that only the first or only the second solved.
    Equally good policies win the pairs that differ like a fair coin (McNemar 1947), and the bets are on that coin:
    other pairs cost nothing. Against another difference d the same bets are on first minus second minus d.
    """

    level: float = LEVEL
    max_rollouts: int | None = None

    def __post_init__(self):
        _check_arguments(self.level, self.max_rollouts)

    def start(self) -> TestState:
        return {"pairs": 0, "first": 0, "second": 0}

    def update(self, state: TestState, first: bool, second: bool) -> TestState:
        """One more start, and whether each of the two succeeded there."""
        return {"pairs": state["pairs"] + 1, "first": state["first"] + (bool(first) and not second),
                "second": state["second"] + (bool(second) and not first)}

    def e_value(self, state: TestState) -> float:
        """The capital against no difference; 1 / evidence is a p-value at any time."""
        _, b, c = _check_state(state, "pairs", "first", "second")
        return _bounded_exp(_log_e_value_coin(b, c))

    def interval(self, state: TestState) -> Interval:
        """The confidence sequence of first minus second, as it is now: 0 is outside exactly when there is a verdict."""
        n, b, c = _check_state(state, "pairs", "first", "second")
        if n == 0:
            return Interval(math.nan, -1.0, 1.0, self.level)
        return _confidence_sequence(
            lambda d: _log_e_value_paired(b, c, n - b - c, d), (b - c) / n, -1.0, 1.0, self.level
        )

    def verdict(self, state: TestState) -> Literal["first", "second", "futile"] | None:
        """None: go on. Futile as in `Rate`."""
        n, b, c = _check_state(state, "pairs", "first", "second")
        if _log_e_value_coin(b, c) >= _log_threshold(self.level):
            return "first" if b > c else "second"
        if self.max_rollouts is None:
            return None
        left, m = max(self.max_rollouts - n, 0), b + c
        more = np.rint(left * _beta_quantiles(1 + m, 1 + n - m)).astype(int)[:, None]  # pairs that may yet differ
        need, wins = self.wins_needed(max(self.max_rollouts, n))[m + more], _beta_quantiles(1 + b, 1 + c)
        hope = stats.binom.sf(need - b - 1, more, wins) + stats.binom.sf(need - c - 1, more, 1 - wins)
        return "futile" if hope.mean() < FUTILITY_PROBABILITY else None

    def wins_needed(self, max_rollouts: int) -> np.ndarray:
        """(most + 1,) how many of 0, 1, ... pairs that differ one policy must win for the verdict; one more than there
        are where no number is enough."""
        return _wins_needed(self.level, max_rollouts)


# -- capital ------------------------------------------------------------------------------------------------------


def _log_e_value_coin(b, c):
    """Logarithm of the capital after b wins and c losses of bets on a coin that may be fair."""
    a = PRIOR_WEIGHT / 2
    return special.betaln(a + b, a + c) - special.betaln(a, a) + (b + c) * math.log(2)


_NODES, _WEIGHTS = leggauss(128)


def _log_e_value_paired(b: int, c: int, ties: int, d: float) -> float:
    """Logarithm of the capital of bets on pairs worth +1, -1 and 0 against a mean of d; at d = 0 it is `_coin`.

    A bet u of 0 to 1, from all on the second to all on the first, multiplies the capital by 2u / (1 + d),
    2 (1 - u) / (1 - d) or (1 + d - 2ud) / (1 - d^2). The integral over u has one mode, and is taken round that.
    """
    # above 0: the integrand is log-concave and 0 at both ends
    up, down = PRIOR_WEIGHT / 2 - 1 + b, PRIOR_WEIGHT / 2 - 1 + c

    def slope(u):
        return up / u - down / (1 - u) - ties * 2 * d / (1 + d - 2 * u * d)
    mode = optimize.brentq(slope, 1e-15, 1 - 1e-15)
    bend = up / mode**2 + down / (1 - mode)**2 + ties * (2 * d / (1 + d - 2 * mode * d))**2
    low, high = max(mode - 20 / math.sqrt(bend), 0.0), min(mode + 20 / math.sqrt(bend), 1.0)
    u = low + (high - low) * (1 + _NODES) / 2
    logs = (up * np.log(u) + down * np.log1p(-u) + ties * np.log((1 + d - 2 * u * d) / (1 - d * d))
            + b * math.log(2 / (1 + d)) + c * math.log(2 / (1 - d)))
    return float(
        special.logsumexp(logs, b=_WEIGHTS * (high - low) / 2) - special.betaln(PRIOR_WEIGHT / 2, PRIOR_WEIGHT / 2)
    )


def _confidence_sequence(log_e_value, estimate: float, least: float, most: float, level: float) -> Interval:
    """All values that the capital does not speak against. It is at most 1 at the estimate and rises on both sides."""
    def gap(value):
        return log_e_value(value) - _log_threshold(level)
    first, last = least + 1e-12, most - 1e-12
    middle = min(max(estimate, first), last)
    low = least if gap(first) < 0 else optimize.brentq(gap, first, middle)
    high = most if gap(last) < 0 else optimize.brentq(gap, middle, last)
    return Interval(estimate, float(low), float(high), level)


@lru_cache(maxsize=16)
def _wins_needed(level: float, most: int) -> np.ndarray:
    m = np.arange(most + 1)
    found = _smallest_sufficient(lambda b: _log_e_value_coin(b, m - b) >= _log_threshold(level), m // 2, m + 1)
    found.flags.writeable = False
    return found


def _smallest_sufficient(enough, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """By bisection, for each: the least number that is enough, if `low` never is, and `high` stands for none."""
    while (high - low > 1).any():
        middle = (low + high) // 2
        yes = enough(middle)
        low, high = np.where(yes, low, middle), np.where(yes, middle, high)
    return high


# -- what they share ----------------------------------------------------------------------------------------------


def _beta_quantiles(a: float, b: float, number: int = 64) -> np.ndarray:
    """Of a Beta distribution, equally likely."""
    return special.betaincinv(a, b, (np.arange(number) + 0.5) / number)


def _log_threshold(level: float) -> float:
    return -math.log(1 - level)


def _bounded_exp(log: float) -> float:
    return math.exp(min(float(log), 700.0))


def _check_state(state: TestState, whole: str, *parts: str) -> tuple[int, ...]:
    found = [state[k] for k in (whole, *parts)]
    if min(found) < 0 or sum(found[1:]) > found[0]:
        raise ValueError(f"expected counts, of which {' and '.join(parts)} are at most {whole} together, found {state}")
    return tuple(found)


def _check_arguments(level: float, most: int | None) -> None:
    if not 0 < level < 1:
        raise UserError(f"expected a level between 0 and 1, found {level}", where="level", hint="such as 0.95")
    if most is not None and most < 1:
        raise UserError(f"expected at least one rollout, found {most}", where="most", hint="such as 1000, or None")
