"""Statistics of many policies, of looking all the time, of unpaired rollouts, of returns, and of planning.

Exact enumeration where it is possible, else simulation; `benchmarks/intervals.py` does the same at length.
"""

import json
import math
import re
from itertools import combinations, permutations

import numpy as np
import pytest
from folders import BENCHMARKS, REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize
from scipy import stats as scipy_stats

from understudy.core import UserError
from understudy.evaluate import independent, multiple_comparisons, planning, sequential, stats
from understudy.evaluate.noninferiority import equivalence_p_value, noninferiority_p_value
from understudy.evaluate.planning import max_correlation, paired_power, plan, plan_rate, rate_power, unpaired_power
from understudy.evaluate.returns import aggregate_over_tasks, bootstrap, interquartile_mean, performance_profile
from understudy.evaluate.sequential import SequentialDifferenceTest, SequentialRateTest


def ends(i):
    return i.low, i.high


# -- many ---------------------------------------------------------------------------------------------------------

SOME_P = st.lists(st.floats(0, 1), min_size=1, max_size=6)


@given(SOME_P)
def test_holm_is_the_closed_test_of_bonferroni(p):
    """Marcus, Peritz and Gabriel (1976): a hypothesis falls when all intersections that hold it do."""
    numbers = range(len(p))
    closed = [max(min(1, len(s) * min(p[j] for j in s)) for size in numbers for s in combinations(numbers, size + 1)
                  if i in s) for i in numbers]
    assert multiple_comparisons.holm(p) == pytest.approx(closed)
    assert (
        multiple_comparisons.holm(p) <= multiple_comparisons.bonferroni(p)
    ).all() and multiple_comparisons.bonferroni(p) == pytest.approx([min(1, len(p) * v) for v in p])


def test_adjusted_p_values_as_r_prints_them():
    """p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")"""
    assert multiple_comparisons.holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert multiple_comparisons.holm([0.03, 0.01]) == pytest.approx([0.03, 0.02])
    assert multiple_comparisons.holm([]).size == 0
    for bad in ([1.2], [-0.1], [math.nan], [[0.1]]):
        with pytest.raises(ValueError, match="numbers from 0 to 1"):
            multiple_comparisons.holm(bad)


def table(n, pairs):
    out = np.zeros((n, n), bool)
    for i, j in pairs:
        out[i, j] = out[j, i] = True
    return out


def test_letters_of_known_tables():
    """The first is the example of R's multcompView: A-B and A-C alike, B-C different."""
    assert multiple_comparisons.compact_letter_display(table(3, [(1, 2)])) == ["ab", "a", "b"]
    assert multiple_comparisons.compact_letter_display(table(3, [])) == ["a", "a", "a"]
    assert multiple_comparisons.compact_letter_display(table(3, [(0, 1), (0, 2), (1, 2)]), order=[2, 0, 1]) == [
        "b",
        "c",
        "a",
    ]
    # a chain
    assert multiple_comparisons.compact_letter_display(table(4, [(0, 2), (0, 3), (1, 3)])) == ["a", "ab", "bc", "c"]
    assert (
        multiple_comparisons.compact_letter_display(table(1, [])) == ["a"]
        and multiple_comparisons.compact_letter_display(np.zeros((0, 0))) == []
    )
    everyone = multiple_comparisons.compact_letter_display(~np.eye(54, dtype=bool))
    assert everyone[26] == "A" and everyone[52:] == ["a'", "b'"]
    with pytest.raises(ValueError, match="symmetric"):
        multiple_comparisons.compact_letter_display([[False, True], [False, False]])
    with pytest.raises(ValueError, match="order"):
        multiple_comparisons.compact_letter_display(table(3, []), order=[0, 1])


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 7).flatmap(lambda n: st.tuples(
    st.just(n), st.sets(st.sampled_from(list(combinations(range(n), 2)) or [(0, 0)])), st.permutations(range(n)))))
def test_two_share_a_letter_exactly_where_they_cannot_be_told_apart(case):
    n, pairs, order = case
    different = table(n, [p for p in pairs if p[0] != p[1]])
    found = [set(x) for x in multiple_comparisons.compact_letter_display(different, order)]
    for i, j in combinations(range(n), 2):
        assert bool(found[i] & found[j]) != different[i, j]
    assert all(found) and "a" in found[order[0]]
    for i in range(n):  # nothing can be left out
        for letter in found[i]:
            less = found[i] - {letter}
            assert not less or any(not different[i, j] and not less & found[j] for j in range(n) if j != i)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_a_rank_is_in_all_orders_that_are_not_ruled_out(x):
    """Differences beyond 3 are told apart; every order that respects these is possible."""
    different = np.abs(np.subtract.outer(x, x)) > 3
    possible = [p for p in permutations(range(len(x)))
                if all(p.index(i) < p.index(j) for i in p for j in p if different[i, j] and x[i] > x[j])]
    for i, r in enumerate(multiple_comparisons.rank_intervals(different, x)):
        places = [p.index(i) + 1 for p in possible]
        assert (r.low, r.high) == (min(places), max(places)) and r.low <= r.estimate <= r.high
        assert r.estimate == scipy_stats.rankdata([-v for v in x], "min")[i]


# -- looking all the time -----------------------------------------------------------------------------------------


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


@pytest.fixture
def coverage(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import intervals
    return intervals


@pytest.mark.parametrize("than, p", [(0.5, 0.5), (0.7, 0.7), (0.95, 0.95), (0.05, 0.05), (0.7, 0.4), (0.9, 0.99)])
def test_whoever_looks_always_is_wrong_once_in_twenty_at_most(coverage, than, p):
    """The confidence sequence of a rate of p, made for another bound or its own: ever outside in 600 looks."""
    rate = SequentialRateTest(than)
    wrong = coverage.ever(lambda n: rate._log_e_value(np.arange(n + 1), n, p) >= math.log(20), p, 600)
    assert 0.005 < wrong <= 0.05
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
    wrong = coverage.ever(stops, theta, 800)
    assert wrong <= 0.05 and (theta != 0.5 or wrong > 0.02)


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
    said = []
    for k in range(30, 51):
        left = scipy_stats.betabinom(60, 1 + k, 1 + 60 - k)
        hope = left.sf(high - k - 1) + left.cdf(low - k)
        if abs(hope - sequential.FUTILITY_PROBABILITY) > 0.005:
            done = rate.verdict({"trials": 60, "successes": k}) in ("above", "below")
            said.append(
                (rate.verdict({"trials": 60, "successes": k}) == "futile")
                == (hope < sequential.FUTILITY_PROBABILITY and not done)
            )
    assert all(said) and len(said) > 10


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


# -- unpaired -----------------------------------------------------------------------------------------------------

# Newcombe (1998), Statistics in Medicine 17:873, table II: methods 10 (Wilson's limits) and 6 (Miettinen-Nurminen).
INDEPENDENT = [((56, 70, 48, 80), (0.0524, 0.3339), (0.0528, 0.3382)), ((9, 10, 3, 10), (0.1705, 0.8090),
                                                                        (0.1700, 0.8406)),
               ((6, 7, 2, 7), (0.0582, 0.8062), (0.0342, 0.8534)), ((5, 56, 0, 29), (-0.0381, 0.1926),
                                                                    (-0.0326, 0.1933)),
               ((0, 10, 0, 20), (-0.1611, 0.2775), (-0.1658, 0.2844)), ((10, 10, 0, 20), (0.6791, 1.0), (0.7156, 1.0))]


@pytest.mark.parametrize("counts, wilsons, score", INDEPENDENT)
def test_published_intervals_of_independent_rates(counts, wilsons, score):
    assert ends(independent.newcombe_independent(*counts)) == pytest.approx(wilsons, abs=6e-5)
    assert ends(independent.miettinen_nurminen(*counts)) == pytest.approx(score, abs=6e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.floats(0, 1), st.floats(-0.9, 0.9))
def test_the_score_of_independent_rates_against_numerical_likelihood(n1, n2, share1, share2, d):
    k1, k2 = round(n1 * share1), round(n2 * share2)

    def loss(q):
        return -(scipy_stats.binom.logpmf(k1, n1, q + d) + scipy_stats.binom.logpmf(k2, n2, q))
    low, high = max(0.0, -d) + 1e-9, min(1.0, 1 - d) - 1e-9
    q = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-11}).x
    q = min((q, low, high), key=loss)
    variance = ((q + d) * (1 - q - d) / n1 + q * (1 - q) / n2) * (n1 + n2) / (n1 + n2 - 1)
    z = (k1 / n1 - k2 / n2 - d) / math.sqrt(variance)
    assert independent.score_z(k1, n1, k2, n2, d) == pytest.approx(z, rel=1e-3, abs=1e-3)


def test_the_score_of_equal_rates_is_the_pooled_test():
    k1, n1, k2, n2 = 30, 41, 7, 50
    pooled = scipy_stats.chi2_contingency([[k1, n1 - k1], [k2, n2 - k2]], correction=False).statistic
    assert independent.score_z(k1, n1, k2, n2, 0.0)**2 == pytest.approx(pooled * 90 / 91)


def test_exact_tests_of_two_rates():
    """Fisher's tea (1935), 3 of 4 right: 0.486. Mehta and Senchaudhuri (2003): 7 of 12 against 1 of 17, one of few
    printed p-values of Barnard's test with the pooled statistic."""
    assert independent.fisher_exact(3, 4, 1, 4) == pytest.approx(34 / 70)
    for n in (3, 8):  # by enumeration over the rate that chance likes best
        grid, k = np.linspace(0.001, 0.999, 999), np.arange(n + 1)
        for k1, k2 in ((n, 0), (n - 1, 0), (n - 1, 1)):
            z = np.array([[abs(a - b) / math.sqrt((a + b) * (2 * n - a - b)) if 0 < a + b < 2 * n else 0.0 for b in k]
                          for a in k])
            as_far = z >= z[k1, k2] - 1e-12
            pmf = scipy_stats.binom.pmf(k[:, None], n, grid)
            p = np.einsum("ag,bg,ab->g", pmf, pmf, as_far).max()
            assert independent.barnard_exact(k1, n, k2, n) == pytest.approx(p, abs=2e-4)
            assert independent.barnard_exact(k1, n, k2, n) <= independent.fisher_exact(k1, n, k2, n)
    assert independent.barnard_exact(0, 5, 0, 9) == independent.fisher_exact(0, 5, 0, 9) == 1.0
    for bad in ((1, 0, 1, 2), (3, 2, 1, 2)):
        with pytest.raises(ValueError, match="trial"):
            independent.fisher_exact(*bad)


def binary(k, n):
    return np.arange(n) < k


@pytest.mark.parametrize("n", [8, 25])
def test_intervals_of_independent_rates_cover_about_as_promised(n):
    """Exactly, over all outcomes."""
    k = np.arange(n + 1)
    for interval, least in ((independent.miettinen_nurminen, 0.93), (independent.newcombe_independent, 0.92)):
        found = {(a, b): interval(a, n, b, n) for a in k for b in k}
        rates = []
        for p, q in ((0.5, 0.5), (0.9, 0.9), (0.8, 0.6), (0.95, 0.7), (0.3, 0.1)):
            mass = np.outer(scipy_stats.binom.pmf(k, n, p), scipy_stats.binom.pmf(k, n, q))
            rates.append(sum(mass[at] for at, i in found.items() if i.low <= p - q <= i.high))
        assert min(rates) >= least and np.mean(rates) >= 0.945


# -- margins ------------------------------------------------------------------------------------------------------


def test_margins_go_with_the_intervals_at_90_percent():
    """Schuirmann (1987): equivalent at 5 % exactly where the 90 % interval lies between the margins."""
    rng = np.random.default_rng(0)
    for paired, trials in ((True, 60), (False, 60)):
        agreed = 0
        for _ in range(trials):
            x, p = rng.random(300) < 0.8, rng.uniform(0.7, 0.9)
            y = np.where(rng.random(300) < 0.8, x, rng.random(300) < p)
            i = (stats.tango((x & ~y).sum(), (y & ~x).sum(), 300, 0.9) if paired else
                 independent.miettinen_nurminen(x.sum(), 300, y.sum(), 300, 0.9))
            margin = rng.uniform(0.02, 0.15)
            assert (noninferiority_p_value(x, y, margin, paired=paired) < 0.05) == (i.low > -margin)
            same = -margin < i.low and i.high < margin
            assert (equivalence_p_value(x, y, margin, paired=paired) < 0.05) == same
            agreed += same
        assert 5 < agreed < 55
    x, y = (rng.random((5, 100)) < 0.9), (rng.random((5, 100)) < 0.9)
    i = stats.two_level_difference(x, y, 0.9)[0]
    assert (equivalence_p_value(x, y, 0.2) < 0.05) == (i.low > -0.2 and i.high < 0.2)


def test_published_example_of_a_paired_margin():
    """Tango (1998), section 6.1: 44 pairs, 0 and 1 differ; z = 1.709 at a margin of 0.1, so p = 0.0437."""
    x, y = binary(43, 44), binary(44, 44)
    assert noninferiority_p_value(x, y, 0.1) == pytest.approx(0.0437, abs=1e-4)
    for bad in (0, 1, -0.1, math.nan):
        with pytest.raises(UserError, match="the margin must be between 0 and 1"):
            noninferiority_p_value(x, y, bad)
    with pytest.raises(ValueError, match="as many"):
        noninferiority_p_value(x, y[:9], 0.1)


def test_at_the_margin_five_percent_pass():
    """Exactly, unpaired: policies that differ by the margin are called not inferior about once in twenty."""
    n, margin = 60, 0.1
    k = np.arange(n + 1)
    sure = np.array([[scipy_stats.norm.sf(independent.score_z(a, n, b, n, -margin)) < 0.05 for b in k] for a in k])
    for p in (0.5, 0.8, 0.9):
        mass = np.outer(scipy_stats.binom.pmf(k, n, p - margin), scipy_stats.binom.pmf(k, n, p))
        assert 0.03 < mass[sure].sum() < 0.06


# -- what is believed, exchanged, and saved by pairs --------------------------------------------------------------


def test_a_posterior_is_bayes_rule():
    """Brown, Cai and DasGupta (2001): Jeffreys' interval. The posterior by quadrature, and by simulation for two."""
    rates = np.linspace(0, 1, 200_001)[1:-1]
    weight = scipy_stats.binom.pmf(7, 10, rates) * scipy_stats.beta.pdf(rates, 0.5, 0.5)
    share = np.cumsum(weight) / weight.sum()
    i = stats.beta_posterior(7, 10)
    assert i.estimate == pytest.approx((rates * weight).sum() / weight.sum(), abs=1e-4) == 7.5 / 11
    limits = [rates[np.searchsorted(share, tail)] for tail in (0.025, 0.975)]
    assert ends(i) == pytest.approx(limits, abs=1e-4)
    assert stats.probability_above(7, 10, 0.5) == pytest.approx(1 - share[np.searchsorted(rates, 0.5)], abs=1e-4)
    assert stats.beta_posterior(0, 0, prior=(1, 1)).low == pytest.approx(0.025)
    rng = np.random.default_rng(0)
    drawn = (rng.beta(7.5, 3.5, 400_000) > rng.beta(5.5, 5.5, 400_000)).mean()
    assert stats.probability_better(7, 10, 5, 10) == pytest.approx(drawn, abs=4e-3)
    assert stats.probability_better(7, 10, 7, 10) == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(ValueError, match="prior"):
        stats.beta_posterior(1, 2, prior=(0, 1))


def test_permutation_by_hand():
    x, y = np.array([1.0, 4.0, 9.0, 2.5]), np.array([0.0, 1.0, 3.0, 3.0])  # differences 1, 3, 6, -0.5
    signs = np.array(np.meshgrid(*[[1, -1]] * 4)).reshape(4, -1)
    assert stats.permutation_p_value(x, y) == pytest.approx((np.abs((x - y) @ signs) >= 9.5 - 1e-9).mean())
    assert stats.permutation_p_value(binary(9, 12), ~binary(9, 12) & binary(12, 12)) == stats.mcnemar(9, 3)
    runs = [0.9, 0.8, 0.85, 0.7], [0.5, 0.6, 0.75, 0.4]
    sums = [sum(c) for c in combinations((*runs[0], *runs[1]), 4)]
    p = np.mean([abs(2 * s - 5.5) >= 2 * 3.25 - 5.5 - 1e-9 for s in sums])
    tables = [np.array(r)[:, None] * np.ones(10) for r in runs]
    assert stats.permutation_p_value(*tables) == pytest.approx(p)
    ones = np.ones((5, 10))
    assert stats.permutation_p_value(ones, 0 * ones) == pytest.approx(2 / math.comb(10, 5))  # the smallest there is
    assert stats.permutation_p_value(ones, ones) == 1.0
    for bad in ((x, tables[0]), (x, y[:3]), ([], [])):
        with pytest.raises(ValueError, match="both must have the same shape"):
            stats.permutation_p_value(*bad)


def test_permutation_of_methods_errs_once_in_twenty_at_most():
    """Seeds that differ much and starts that are hard for all: what is no difference of the methods."""
    rng, found = np.random.default_rng(1), 0
    for _ in range(200):
        hard = rng.normal(size=30)
        x, y = ((rng.normal(size=(4, 1)) + hard + rng.normal(size=(4, 30)) > 0).astype(float) for _ in range(2))
        found += stats.permutation_p_value(x, y) <= 0.05
    assert found / 200 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_what_the_pairing_saved():
    """Var(x - y) = Var x + Var y - 2 Cov: of equal variances, the share saved is the correlation."""
    x = np.array([1, 1, 1, 0] * 25, float)
    y = np.roll(x, 1)
    assert stats.pairing_gain(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert stats.pairing_gain(x, x) == 1.0 and stats.pairing_gain(x, 1 - x) == pytest.approx(-1.0)
    assert math.isnan(stats.pairing_gain(np.ones(9), np.ones(9)))
    rng = np.random.default_rng(0)
    hard = rng.normal(size=2000)
    x, y = ((3 * hard + rng.normal(size=(5, 2000)) > 0).astype(float) for _ in range(2))
    assert 0.6 < stats.pairing_gain(x, y) < 1  # methods that fail on the same starts


# -- returns ------------------------------------------------------------------------------------------------------


def test_the_interquartile_mean_leaves_a_quarter_out_at_both_ends():
    assert interquartile_mean([1, 2, 3, 4, 5, 6, 7, 800]) == 4.5
    assert interquartile_mean([[8, 1], [5, 3], [4, 2], [0, 99]]) == np.mean([2, 3, 4, 5])


def test_a_bootstrap_of_many_normal_values_is_near_students():
    x = np.random.default_rng(3).normal(5, 2, 100)
    exact = scipy_stats.ttest_1samp(x, 0).confidence_interval(0.95)
    for method in ("percentile", "BCa"):
        i = bootstrap(x, method=method)
        assert ends(i) == pytest.approx(ends(exact), abs=0.1 * (exact.high - exact.low)) and i.estimate == x.mean()
    middle = bootstrap(x, np.median)
    assert middle.low < np.median(x) == middle.estimate < middle.high
    assert ends(bootstrap([2.5] * 9)) == (2.5, 2.5)
    for values in ([], [1.0], [1.0, 2.0], [1.0, math.inf, 2.0]):
        assert math.isnan(bootstrap(values).low)


# What rliable 1.2 (Agarwal et al. 2021) answers, with 20,000 draws, of these runs (rows) of four tasks.
RUNS = np.array([[0.13, -0.13, 0.64, 0.1], [-0.54, 0.36, 1.3, 0.95], [-0.7, -1.27, -0.62, 0.04],
                 [-2.33, -0.22, -1.25, -0.73], [-0.54, -0.32, 0.41, 1.04]])


def test_over_tasks_as_rliable_has_it():
    i, plain = aggregate_over_tasks(RUNS), aggregate_over_tasks(RUNS, np.mean)
    assert (i.estimate, *ends(i)) == pytest.approx((-0.174, -0.508, 0.165), abs=0.02)
    assert (plain.estimate, *ends(plain)) == pytest.approx((-0.184, -0.517, 0.132), abs=0.02)
    p = performance_profile(RUNS, [-0.5, 0.0, 0.5])
    assert p.fraction == pytest.approx([0.6, 0.45, 0.2])
    assert p.low == pytest.approx([0.4, 0.25, 0.05], abs=0.051)
    assert p.high == pytest.approx([0.8, 0.65, 0.35], abs=0.051)


def test_tasks_are_strata():
    """Tasks of very different difficulty: their spread is no uncertainty, as long as the tasks are these."""
    rng = np.random.default_rng(0)
    level = np.array([0.0, 10.0, 100.0])
    runs = level + rng.normal(size=(50, 3))
    i = aggregate_over_tasks(runs, np.mean)
    half = 1.96 * math.sqrt(runs.var(0, ddof=1).sum()) / 3 / math.sqrt(50)
    assert (i.high - i.low) / 2 == pytest.approx(half, rel=0.1)
    one = aggregate_over_tasks(runs[:1], np.mean)
    assert math.isnan(one.low) and one.estimate == runs[0].mean()
    for bad in ([[1.0], [1.0, 2.0]], [[]], []):
        with pytest.raises(ValueError, match="as many values of every task"):
            aggregate_over_tasks(bad)


def test_a_profile_of_one_task_is_a_share_with_its_interval():
    x = np.random.default_rng(1).random((100, 1))
    p = performance_profile(x, [0.0, 0.5, 1.0])
    k = int((x > 0.5).sum())
    assert p.fraction == pytest.approx([1.0, k / 100, 0.0]) and (p.low[0], p.high[2]) == (1.0, 0.0)
    assert (p.low[1], p.high[1]) == pytest.approx(
        scipy_stats.binom.ppf([0.025, 0.975], 100, k / 100) / 100, abs=0.011)


# -- planning -----------------------------------------------------------------------------------------------------


def named(b, c, n):
    """As `compare` names the better of two checkpoints."""
    i = stats.tango(b, c, n)
    return stats.mcnemar(b, c) < 0.05 and (i.low > 0 or i.high < 0)


@pytest.mark.parametrize("first, second, n, r", [(0.9, 0.5, 25, 0.0), (0.5, 0.8, 22, 0.4), (0.99, 0.05, 9, 0.0)])
def test_the_power_of_pairs_is_that_of_compare(first, second, n, r):
    """Exactly, over all outcomes; naming the worse one does not count."""
    low, high = min(first, second), max(first, second)
    both = low * high + r * math.sqrt(low * (1 - low) * high * (1 - high))
    cells = [high - both, low - both, 1 - high - low + 2 * both]
    found = sum(scipy_stats.multinomial.pmf([b, c, n - b - c], n, cells)
                for b in range(n + 1) for c in range(n + 1 - b) if b > c and named(b, c, n))
    assert paired_power(first, second, n, r) == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize("first, second, n", [(0.9, 0.5, 23), (0.3, 0.1, 40), (0.999, 0.01, 4)])
def test_the_power_of_fishers_test_by_enumeration(first, second, n):
    k, high, low = np.arange(n + 1), max(first, second), min(first, second)
    found = sum(scipy_stats.binom.pmf(a, n, high) * scipy_stats.binom.pmf(b, n, low)
                for a in k for b in k[:a] if independent.fisher_exact(a, n, b, n) < 0.05)
    assert unpaired_power(first, second, n) == pytest.approx(found, abs=1e-9)


def test_the_power_of_one_rate_is_that_of_its_interval():
    for rate, than, n in ((0.9, 0.7, 30), (0.6, 0.7, 80), (0.99, 0.5, 5)):
        found = [stats.clopper_pearson(k, n) for k in range(n + 1)]
        outside = sum(scipy_stats.binom.pmf(k, n, rate) for k, i in enumerate(found)
                      if (i.low > than if rate > than else i.high < than))
        assert rate_power(rate, than, n) == pytest.approx(outside, abs=1e-9)


def test_plans_are_the_smallest_with_the_power():
    p = plan(0.7, 0.8)
    assert 290 <= p.paired[0.0] <= 315 and 290 <= p.unpaired <= 315
    for c, n in p.paired.items():
        assert paired_power(0.7, 0.8, n, c) >= 0.8 > paired_power(0.7, 0.8, n - 1, c)
    assert unpaired_power(0.7, 0.8, p.unpaired) >= 0.8 > unpaired_power(0.7, 0.8, p.unpaired - 1)
    assert list(p.paired) == [0.0, 0.25, 0.5, 0.75]
    assert sorted(p.paired.values(), reverse=True) == list(p.paired.values())
    assert plan(0.8, 0.7) == p == plan(0.3, 0.2)
    assert list(plan(0.1, 0.9).paired) == [0.0]  # such rates cannot be correlated by more than
    assert max_correlation(0.1, 0.9) == pytest.approx(1 / 9) == max_correlation(0.9, 0.1)
    assert p.to_json() == {"fixed": {"unpaired": p.unpaired, "paired": {"0": p.paired[0.0], "0.25": p.paired[0.25],
                                                                        "0.5": p.paired[0.5], "0.75": p.paired[0.75]}},
                           "sequential": {"expected": p.expected, "maximum": p.maximum}}
    strict = plan(0.7, 0.8, alpha=0.01, power=0.95)
    assert strict.unpaired > 1.8 * p.unpaired and strict.maximum > 1.5 * p.maximum


@pytest.mark.slow
def test_what_was_planned_has_the_power_in_simulation():
    rng, n = np.random.default_rng(0), plan(0.7, 0.8).paired[0.0]
    known = {}
    x, y = rng.random((2000, n)) < 0.8, rng.random((2000, n)) < 0.7
    pairs = list(zip((x & ~y).sum(1).tolist(), (y & ~x).sum(1).tolist(), strict=True))
    for b, c in pairs:
        known.setdefault((b, c), named(b, c, n) and b > c)
    found = np.mean([known[p] for p in pairs])
    assert abs(found - 0.8) < 3 * math.sqrt(0.16 / 2000) + 0.005


def test_the_sequential_plan_in_simulation():
    p, rng = plan(0.5, 0.7), np.random.default_rng(1)
    needed, lengths, won = SequentialDifferenceTest().wins_needed(p.maximum), [], 0
    for _ in range(2000):
        x, y = rng.random(p.maximum) < 0.7, rng.random(p.maximum) < 0.5
        b, c = np.cumsum(x & ~y), np.cumsum(y & ~x)
        over = np.flatnonzero((b >= needed[b + c]) | (c >= needed[b + c]))
        lengths.append(over[0] + 1 if len(over) else p.maximum)
        won += len(over) > 0 and b[over[0]] > c[over[0]]
    assert abs(won / 2000 - 0.8) < 3 * math.sqrt(0.16 / 2000) + 0.005
    assert np.mean(lengths) == pytest.approx(p.expected, rel=0.05) and p.expected < p.maximum
    one = plan_rate(0.65, 0.5)
    low, high = SequentialRateTest(0.5).decision_bounds(np.arange(one.maximum + 1))
    k = np.cumsum(rng.random((4000, one.maximum)) < 0.65, 1)
    above, below = k >= high[1:], k <= low[1:]
    first = np.where((above | below).any(1), (above | below).argmax(1), one.maximum - 1)
    assert abs(above[np.arange(4000), first].mean() - 0.8) < 3 * math.sqrt(0.16 / 4000) + 0.005
    assert np.mean(first + 1) == pytest.approx(one.expected, rel=0.05)


@pytest.mark.parametrize("most", [9, 12, 40])
def test_the_least_difference_that_can_be_found(most):
    """All differing pairs are won by one: so many of them settle it, and they come with the binomial's chance."""
    test = SequentialDifferenceTest(max_rollouts=most)
    settles = next(n for n in range(1, most + 1)
                   if SequentialDifferenceTest().verdict({"pairs": n, "first": n, "second": 0}) == "first")
    low, high = planning.smallest_detectable_effect(test)
    assert low == -high and scipy_stats.binom.sf(settles - 1, most, high) == pytest.approx(0.8, abs=1e-6)
    assert np.isnan(planning.smallest_detectable_effect(SequentialDifferenceTest(max_rollouts=settles - 1))).all()


@pytest.mark.parametrize("most, than", [(7, 0.7), (12, 0.5), (25, 0.7)])
def test_the_least_rates_that_can_be_found(most, than):
    """By the tree of all counts, which the test looks at after every rollout."""
    def chance(rate, wanted):
        alive, found, test = {0: 1.0}, 0.0, SequentialRateTest(than)
        for n in range(1, most + 1):
            after = {}
            for k, p in alive.items():
                for won, q in ((1, rate), (0, 1 - rate)):
                    if (said := test.verdict({"trials": n, "successes": k + won})) is None:
                        after[k + won] = after.get(k + won, 0.0) + p * q
                    elif said == wanted:
                        found += p * q
            alive = after
        return found

    for rate, wanted, end in zip(
        planning.smallest_detectable_effect(SequentialRateTest(than, max_rollouts=most)),
        ("below", "above"),
        (0.0, 1.0),
        strict=True,
    ):
        if np.isnan(rate):
            assert chance(end, wanted) < 0.8
        else:
            assert chance(rate, wanted) == pytest.approx(0.8, abs=1e-4)
    # seven of seven are not enough
    assert np.isnan(planning.smallest_detectable_effect(SequentialRateTest(0.7, max_rollouts=7))[1])


@pytest.mark.parametrize("test", [SequentialRateTest(0.7), SequentialDifferenceTest()])
def test_a_test_without_an_end_has_no_smallest_effect(test):
    with pytest.raises(UserError, match="no largest number of rollouts"):
        planning.smallest_detectable_effect(test)


@pytest.mark.parametrize("given, says", [
    ((0.7, 0.7), "the two rates are equal"), ((70, 80), "70 % is 0.7"), ((0.0, 0.5), "between 0 and 1"),
    ((0.7, math.nan), "between 0 and 1"), ((0.7, 0.8, 0.05, 0.05), "larger than alpha"), ((0.7, 0.8, 5), "5 % is 0.05"),
    ((0.7, 0.7001), "too close: telling them apart takes about 3")])
def test_plans_that_make_no_sense(given, says):
    with pytest.raises(UserError, match=says):
        plan(*given)
    with pytest.raises(UserError, match=says):
        plan_rate(*given)


def documented(page: str, command: str) -> set[str]:
    """The keys that a page's table of a command's --json names."""
    text = (REPOSITORY / f"docs/{page}.md").read_text(encoding="utf-8")
    table = text.partition(f"| key of `{command} --json` |")[2].partition("\n\n")[0]
    return {key for line in table.splitlines()[2:] for key in re.findall(r"`(\w+)`", line.split("|")[1])}


def test_the_command_that_plans(capsys):
    from understudy.cli import main

    assert main(["plan", "0.7", "0.8", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == plan(0.7, 0.8).to_json() and all(type(n) is int for n in (
        said["fixed"]["unpaired"], *said["fixed"]["paired"].values(), *said["sequential"].values()))
    assert main(["plan", "0.7", "0.8", "--episodes", "50", "--json"]) == 0  # an under-powered comparison
    assert json.loads(capsys.readouterr().out)["power"]["paired"]["0"] == paired_power(0.7, 0.8, 50) < 0.2
    assert main(["plan", "0.8", "--threshold", "0.7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == plan_rate(0.8, 0.7).to_json()
    for args, keys in (
        (["0.7", "0.8"], {"fixed", "sequential"}),
        (["0.7", "--threshold", "0.8"], {"fixed", "sequential"}),
        (["0.7", "0.8", "--episodes", "9"], documented("statistics", "plan")),
    ):
        assert main(["plan", *args, "--json"]) == 0 and set(json.loads(capsys.readouterr().out)) == keys
    assert main(["plan", "0.5", "0.9"]) == 0
    told = capsys.readouterr().out
    assert f"unrelated{plan(0.5, 0.9).paired[0.0]:>15}" in told and "correlated 0.25" in told


@pytest.mark.parametrize("args, says", [
    (["0.7", "0.7"], "the two rates are equal"), (["70", "80"], "70 % is 0.7"), ([], "missing RATE RATE"),
    (["0.7", "0.8", "--threshold", "0.5"], "one rate with --threshold"), (["0.7", "x"], "x"),
    (["0.7", "0.8", "--episodes", "0"], "1 or more"), (["0.7", "0.8", "--power", "0.01"], "larger than alpha")])
def test_plans_that_a_person_may_ask_for_by_mistake(args, says, capsys):
    from understudy.cli import main

    assert main(["plan", *args]) == 2
    assert says in (said := capsys.readouterr().err) and "\n  -> " in said


# -- the published tables -----------------------------------------------------------------------------------------


def test_every_line_of_the_tables_is_recorded_keeps_its_promise_and_is_on_the_page(coverage):
    found = {f["name"]: f for f in json.loads(coverage.FILE.read_text(encoding="utf-8"))["lines"]}
    assert set(found) == set(coverage.INTERVALS) | set(coverage.TESTS)
    assert [f["name"] for f in found.values() if not coverage.kept(f)] == []
    page = coverage.PAGE.read_text(encoding="utf-8")
    assert all(coverage._row(f) in page for f in found.values())
    assert not coverage.kept({**found["Clopper–Pearson"], "worst": 0.949})  # it can fail
    assert not coverage.kept({**found["`SequentialRateTest`, always looking"], "worst": 0.051})


@pytest.mark.parametrize("name", ["Tango's score", "McNemar, exact", "`SequentialDifferenceTest`, always looking"])
def test_exact_lines_come_out_again(coverage, name):
    recorded = {f["name"]: f for f in json.loads(coverage.FILE.read_text(encoding="utf-8"))["lines"]}[name]
    assert coverage.line(name, *coverage.TESTS[name]) == pytest.approx(recorded)
