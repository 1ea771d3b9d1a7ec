"""Looking all the time: bets, intervals and futility."""

import json
import math

import numpy as np
import pytest
from fixtures.statistics import ends
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from scipy import stats as scipy_stats

from understudy.core import UserError
from understudy.evaluate import sequential
from understudy.evaluate.sequential import SequentialDifferenceTest, SequentialRateTest


def capital(rate, k, n, p):
    return math.exp(rate._log_e_value(k, n, p))


@given(st.integers(0, 60), st.integers(0, 60), st.floats(0.02, 0.98), st.floats(0.02, 0.98))
def test_bets_on_a_rate_are_fair(k, failures, than, p):
    """The capital's expectation after one more rollout is the capital: Ville's inequality needs no more."""
    rate, n = SequentialRateTest(than), k + failures
    after = p * capital(rate, k + 1, n + 1, p) + (1 - p) * capital(rate, k, n + 1, p)
    assert after == pytest.approx(capital(rate, k, n, p), rel=1e-9) and capital(rate, 0, 0, p) == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 200), st.floats(-0.95, 0.95), st.floats(0, 1))
def test_bets_on_a_difference_are_fair_whatever_the_pairing(b, c, ties, d, share):
    """For every joint law of two policies whose rates differ by d."""
    only = share * (1 - abs(d)) / 2
    first, second = only + max(d, 0), only + max(-d, 0)

    def e(*more):
        return math.exp(sequential._log_e_value_paired(b + more[0], c + more[1], ties + more[2], d)
                        - sequential._log_e_value_paired(b, c, ties, d))
    assert first * e(1, 0, 0) + second * e(0, 1, 0) + (1 - first - second) * e(0, 0, 1) == pytest.approx(1, rel=1e-7)
    assert math.exp(sequential._log_e_value_paired(0, 0, 0, d)) == pytest.approx(1)


def test_capital_against_bets_spelt_out():
    """The average over bets x in their range of the product of 1 + x (outcome - d), by another quadrature."""
    for b, c, ties, d in ((3, 1, 5, 0.2), (0, 0, 4, 0.5), (10, 2, 30, -0.3), (0, 8, 0, -0.9), (30, 12, 60, 0.0)):
        def product(u, b=b, c=c, ties=ties, d=d):
            x = -1 / (1 - d) + u * (1 / (1 + d) + 1 / (1 - d))
            return (scipy_stats.beta.pdf(u, 2, 2) * (1 + x * (1 - d))**b * (1 - x * (1 + d))**c * (1 - x * d)**ties)
        mean = integrate.quad(product, 0, 1, limit=500, epsabs=0, points=np.linspace(0.05, 0.95, 9))[0]
        assert sequential._log_e_value_paired(b, c, ties, d) == pytest.approx(math.log(mean), abs=1e-8)
    assert SequentialDifferenceTest().e_value({"pairs": 99, "first": 30, "second": 12}) == pytest.approx(math.exp(
        sequential._log_e_value_paired(30, 12, 0, 0.0)))


@pytest.mark.parametrize("than, p", [(0.5, 0.5), (0.7, 0.7), (0.95, 0.95), (0.05, 0.05), (0.7, 0.4), (0.9, 0.99)])
def test_whoever_looks_always_is_wrong_once_in_twenty_at_most(coverage, than, p):
    """The confidence sequence of a rate of p, made for another bound or its own: ever outside in 600 looks."""
    rate = SequentialRateTest(than)
    error_rate = coverage.ever(lambda n: rate._log_e_value(np.arange(n + 1), n, p) >= math.log(20), p, 600)
    assert 0.005 < error_rate <= 0.05
    naive = coverage.ever(lambda n: np.minimum(scipy_stats.binom.cdf(np.arange(n + 1), n, p),
                                               scipy_stats.binom.sf(np.arange(n + 1) - 1, n, p)) < 0.025, p, 200)
    assert naive > 0.07  # the usual test, looked at as often


@pytest.mark.parametrize("theta", [0.5, 0.35])
def test_whoever_looks_always_at_two_is_wrong_once_in_twenty_at_most(coverage, theta):
    """Verdict `first` when the second is as good or better; by pairs that differ, the others change nothing."""
    needed = SequentialDifferenceTest().wins_needed(800)

    def stops(n):
        first = np.arange(n + 1)
        return (first >= needed[n]) | ((n - first >= needed[n]) & (theta == 0.5))
    error_rate = coverage.ever(stops, theta, 800)
    assert error_rate <= 0.05 and (theta != 0.5 or error_rate > 0.02)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 80), st.integers(0, 80), st.integers(0, 80))
def test_the_verdict_is_what_the_interval_leaves_out(b, c, ties):
    pair, rate = SequentialDifferenceTest(), SequentialRateTest(0.6)
    state = {"pairs": b + c + ties, "first": b, "second": c}
    i = pair.interval(state)
    assert pair.verdict(state) == ("first" if i.low > 1e-9 else "second" if i.high < -1e-9 else None)
    mirrored = pair.interval({"pairs": b + c + ties, "first": c, "second": b})
    assert ends(i) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-7) and -1 <= i.low < i.high <= 1
    state = {"trials": b + c, "successes": b}
    i = rate.interval(state)
    assert rate.verdict(state) == ("above" if i.low > 0.6 else "below" if i.high < 0.6 else None)
    low, high = rate.decision_bounds(b + c)
    assert rate.verdict(state) == ("above" if b >= high else "below" if b <= low else None)
    assert 0 <= i.low < i.high <= 1 and (b + c == 0 or i.low <= i.estimate <= i.high)
    assert (rate.e_value(state) >= 20) == (rate.verdict(state) is not None)


def test_states_are_values_that_survive_json():
    pair, rate, rng = SequentialDifferenceTest(), SequentialRateTest(0.5), np.random.default_rng(0)
    x, y = rng.random(300) < 0.8, rng.random(300) < 0.6
    state, other = pair.start(), rate.start()
    for a, b in zip(x, y, strict=True):
        before = dict(state)
        after = pair.update(json.loads(json.dumps(state)), a, b)
        assert state == before
        state, other = after, rate.update(other, a)
    assert state == {"pairs": 300, "first": int((x & ~y).sum()), "second": int((y & ~x).sum())}
    assert json.loads(json.dumps(other)) == {"trials": 300, "successes": int(x.sum())}
    assert pair.verdict(state) == "first" and rate.verdict(other) == "above"


def test_futile_is_said_when_nothing_can_come_of_it_any_more():
    # three rollouts settle nothing
    assert SequentialRateTest(0.5, max_rollouts=3).verdict(SequentialRateTest(0.5).start()) == "futile"
    assert SequentialRateTest(0.5, max_rollouts=100).verdict(SequentialRateTest(0.5).start()) is None
    assert SequentialRateTest(0.5, max_rollouts=100).verdict({"trials": 60, "successes": 30}) == "futile"
    assert SequentialRateTest(0.5).verdict({"trials": 60, "successes": 30}) is None  # no largest number, no futility
    assert SequentialDifferenceTest(max_rollouts=4).verdict(SequentialDifferenceTest().start()) == "futile"
    assert SequentialDifferenceTest(max_rollouts=200).verdict({"pairs": 100, "first": 9, "second": 9}) == "futile"
    for first, second in ((14, 5), (5, 14)):
        assert (
            SequentialDifferenceTest(max_rollouts=200).verdict({"pairs": 100, "first": first, "second": second}) is None
        )
    for n in (80, 90):  # the last rollout ends it in any case, and so do more than were planned
        assert SequentialDifferenceTest(max_rollouts=80).verdict({"pairs": n, "first": 9, "second": 5}) == "futile"
        assert SequentialRateTest(0.5, max_rollouts=80).verdict({"trials": n, "successes": n // 2}) == "futile"


def test_the_chance_of_a_verdict_is_that_of_a_flat_prior():
    """Against the exact beta-binomial: just above and below the threshold of the rule."""
    rate = SequentialRateTest(0.5, max_rollouts=120)
    low, high = rate.decision_bounds(120)
    agreements = []
    for k in range(30, 51):
        remaining_successes = scipy_stats.betabinom(60, 1 + k, 1 + 60 - k)
        hope = remaining_successes.sf(high - k - 1) + remaining_successes.cdf(low - k)
        if abs(hope - sequential.FUTILITY_PROBABILITY) > 0.005:
            done = rate.verdict({"trials": 60, "successes": k}) in ("above", "below")
            agreements.append(
                (rate.verdict({"trials": 60, "successes": k}) == "futile")
                == (hope < sequential.FUTILITY_PROBABILITY and not done)
            )
    assert all(agreements) and len(agreements) > 10


def test_futility_costs_little_power():
    """Exactly: a rate of 0.65 against 0.5, at most 200 rollouts, with and without the rule."""
    rate, most = SequentialRateTest(0.5, max_rollouts=200), 200

    def above(futile):
        alive, won, length = np.array([1.0]), 0.0, 0.0
        for n in range(1, most + 1):
            length += alive.sum()
            alive = np.append(alive * 0.35, 0) + np.append(0, alive * 0.65)
            low, high = rate.decision_bounds(n)
            won += alive[high:].sum()
            alive[high:] = alive[:low + 1] = 0
            if futile and n % 10 == 0:
                for k in np.flatnonzero(alive > 1e-6):
                    if rate.verdict({"trials": n, "successes": int(k)}) == "futile":
                        alive[k] = 0
        return won, length
    (with_it, short), (without, full) = above(True), above(False)
    assert without - 0.02 < with_it <= without and short < full and without > 0.8


def test_what_makes_no_sense_is_refused():
    for bad in (0, 1, 1.5, math.nan):
        with pytest.raises(UserError, match="the threshold must be between 0 and 1"):
            SequentialRateTest(bad)
    with pytest.raises(UserError, match="the level must be between 0 and 1"):
        SequentialDifferenceTest(level=95)
    with pytest.raises(UserError, match="at least one rollout"):
        SequentialDifferenceTest(max_rollouts=0)
    with pytest.raises(ValueError, match="at most pairs together"):
        SequentialDifferenceTest().verdict({"pairs": 3, "first": 2, "second": 2})
