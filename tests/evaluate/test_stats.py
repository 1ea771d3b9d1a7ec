"""Intervals against published numbers, other implementations, exact coverage and simulated coverage."""

import importlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
from folders import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as scipy_stats

from benchmarks import other_statistics
from understudy.evaluate.stats import (
    Interval,
    bootstrap_mean,
    clopper_pearson,
    crossed_margin,
    difference_p,
    mcnemar,
    mean_squares,
    seeds_caveat,
    seeds_not_excluded,
    tango,
    tango_z,
    two_level_difference,
    two_level_mean,
    two_level_rate,
    wilson,
)

# Newcombe (1998), Statistics in Medicine 17:857, table I: methods 3 (score) and 5 (Clopper-Pearson).
PUBLISHED = [(81, 263, (0.2553, 0.3662), (0.2527, 0.3676)), (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
             (0, 20, (0.0, 0.1611), (0.0, 0.1684)), (1, 29, (0.0061, 0.1718), (0.0009, 0.1776))]


def ends(i: Interval) -> tuple[float, float]:
    return i.low, i.high


def near(limits, digits=3):
    """Equal when rounded to so many digits."""
    return pytest.approx(limits, abs=0.51 * 10**-digits)


@pytest.mark.parametrize("k, n, score, exact", PUBLISHED)
def test_published_intervals_of_one_proportion(k, n, score, exact):
    assert ends(wilson(k, n)) == near(score, 4) and ends(clopper_pearson(k, n)) == near(exact, 4)
    assert wilson(k, n).estimate == clopper_pearson(k, n).estimate == k / n


@pytest.mark.parametrize("n", [1, 7, 50])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_one_proportion_agrees_with_scipy(n, level):
    for k in range(n + 1):
        for own_interval, method in ((clopper_pearson, "exact"), (wilson, "wilson")):
            scipy_result = scipy_stats.binomtest(k, n).proportion_ci(level, method)
            assert ends(own_interval(k, n, level)) == pytest.approx(ends(scipy_result), abs=1e-9)


def covered(interval, n, grid):
    """Exactly, for each p of the grid: the probability that the interval of n trials holds p."""
    low, high = np.transpose([ends(interval(k, n)) for k in range(n + 1)])[:, :, None]
    inside = (low <= grid) & (grid <= high)  # (successes, p)
    return (scipy_stats.binom.pmf(np.arange(n + 1)[:, None], n, grid) * inside).sum(0)


@pytest.mark.parametrize("n", [10, 25, 100])
def test_clopper_pearson_covers_always_and_wilson_on_average(n):
    grid = np.linspace(0.001, 0.999, 199)
    assert covered(clopper_pearson, n, grid).min() >= 0.95
    rates = covered(wilson, n, grid)
    assert np.mean(rates) >= 0.945 and min(rates) < 0.95  # the reason why it is not what coverage is promised with


def test_no_trials_say_nothing():
    for i in (clopper_pearson(0, 0), wilson(0, 0)):
        assert math.isnan(i.estimate) and (i.low, i.high) == (0.0, 1.0)
    assert (tango(0, 0, 0).low, tango(0, 0, 0).high) == (-1.0, 1.0)
    with pytest.raises(ValueError, match="5 of 4"):
        clopper_pearson(5, 4)


# -- paired differences ------------------------------------------------------------------------------------------


def test_published_examples_of_tango():
    """Tango (1998), Statistics in Medicine 17:891, sections 6.1 (44 pairs, 0 and 1 differ) and 6.2 (32 pairs, 9 and 3
    differ); Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33:2850: airway reactivity, (1, 1; 7, 12)."""
    assert tango_z(0, 1, 44, -0.1) == pytest.approx(1.709, abs=5e-4)
    assert tango(0, 1, 44, 0.90).low == pytest.approx(-0.096, abs=5e-4)
    assert ends(tango(9, 3, 32)) == near((-0.027, 0.390))
    assert ends(tango(1, 7, 21)) == near((-0.517, -0.026))
    assert ends(other_statistics.newcombe_paired(1, 1, 7, 12)) == near((-0.507, -0.026))
    assert mcnemar(1, 7) == pytest.approx(0.0703, abs=5e-5)


def by_likelihood(b, c, n, difference):
    """The score statistic, its nuisance maximised numerically instead of in closed form."""
    def loss(q):  # q: P(second only); the two cells where both agree count as one
        cells = np.array([q + difference, q, 1 - 2 * q - difference])
        counts = np.array([b, c, n - b - c])
        if (cells < 0).any() or ((cells <= 0) & (counts > 0)).any():
            return np.inf
        return -float(counts[counts > 0] @ np.log(cells[counts > 0]))
    low, high = max(0.0, -difference), (1 - difference) / 2
    q = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    q = min((q, low, high), key=loss)
    return (b - c - n * difference) / math.sqrt(n * (2 * q + difference * (1 - difference)))


@pytest.mark.parametrize("b, c, n", [(9, 3, 32), (1, 7, 21), (0, 5, 20), (40, 2, 100), (0, 1, 44), (5, 5, 10)])
def test_tango_against_numerical_likelihood(b, c, n):
    for d in (-0.7, -0.3, -0.05, 0.02, 0.2, 0.6):
        assert tango_z(b, c, n, d) == pytest.approx(by_likelihood(b, c, n, d), rel=1e-4, abs=1e-4)
    z = scipy_stats.norm.isf(0.025)
    i = tango(b, c, n)
    assert by_likelihood(b, c, n, i.low) == pytest.approx(z, abs=1e-3)
    assert by_likelihood(b, c, n, i.high) == pytest.approx(-z, abs=1e-3)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=3, max_size=3).filter(any), st.sampled_from([0.8, 0.95, 0.99]))
def test_tango_is_an_interval_around_its_estimate_and_mirrors(counts, level):
    b, c, n = counts[0], counts[1], sum(counts)
    i, mirrored = tango(b, c, n, level), tango(c, b, n, level)
    assert -1 <= i.low <= i.estimate == (b - c) / n <= i.high <= 1 and i.low < i.high
    assert ends(i) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-9)
    wider = tango(b, c, n, (1 + level) / 2)
    assert wider.low <= i.low and i.high <= wider.high


def test_a_perfect_tie_of_twenty_is_not_certainty():
    i = tango(0, 0, 20)  # closed form: z^2 / (n + z^2)
    z2 = scipy_stats.norm.isf(0.025) ** 2
    assert ends(i) == pytest.approx((-z2 / (20 + z2), z2 / (20 + z2)), abs=1e-9)
    assert tango(20, 0, 20).low == pytest.approx(1 - 2 * z2 / (20 + z2), abs=1e-6) and tango(20, 0, 20).high == 1


def test_tango_covers_about_as_promised():
    """Exactly, over all outcomes of 20 pairs. Tango's own tables show values down to about 0.93."""
    n = 20
    table = {(b, c): tango(b, c, n) for b in range(n + 1) for c in range(n + 1 - b)}
    rates = []
    for p, q in ((0.05, 0.05), (0.2, 0.2), (0.3, 0.1), (0.45, 0.05), (0.02, 0.1), (0.6, 0.3)):
        odds = scipy_stats.multinomial(n, [p, q, 1 - p - q])
        rates.append(sum(odds.pmf([b, c, n - b - c]) for (b, c), i in table.items() if i.low <= p - q <= i.high))
    assert min(rates) >= 0.92 and np.mean(rates) >= 0.945


def test_mcnemar_is_the_binomial_of_the_pairs_that_differ():
    for b, c in ((0, 0), (3, 3), (0, 6), (9, 3), (1, 20)):
        tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
        assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail))


def test_a_bounded_measure_whose_seeds_and_starts_have_equal_means_has_an_interval():
    """The variance of its mean is 0, by which the effective number of episodes was divided."""
    interval = two_level_rate([[0.2, 0.8], [0.8, 0.2]], kind="bounded")
    assert 0 <= interval.low < interval.estimate == 0.5 < interval.high <= 1


def test_there_is_no_negative_zero():
    assert math.copysign(1, (-Interval(-0.3, -0.5, 0.0)).low) == 1


def test_counts_of_pairs_are_not_negative():
    with pytest.raises(ValueError, match="the count must be between 0"):
        tango(-3, 5, 20)


# -- means -------------------------------------------------------------------------------------------------------


def test_a_mean_of_normal_values_is_near_students():
    x = np.random.default_rng(3).normal(5, 2, 60)
    i, exact = bootstrap_mean(x), scipy_stats.ttest_1samp(x, 0).confidence_interval(0.95)
    half = (exact.high - exact.low) / 2
    assert ends(i) == pytest.approx(ends(exact), abs=0.1 * half)
    assert i == bootstrap_mean(x) and i.estimate == pytest.approx(x.mean())


@pytest.mark.slow
def test_a_mean_covers_about_as_promised():
    rng = np.random.default_rng(0)
    for draw, truth, n in ((lambda: rng.normal(size=20), 0.0, 20), (lambda: rng.exponential(size=50), 1.0, 50)):
        hits = sum(i.low <= truth <= i.high for i in (bootstrap_mean(draw()) for _ in range(300)))
        assert hits / 300 >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 300), n


def test_a_mean_that_cannot_be_known_says_so():
    for values in ([], [1.0], [1.0, math.inf], [1.0, math.nan, 2.0]):
        assert math.isnan(bootstrap_mean(values).low) and math.isnan(bootstrap_mean(values).high)
    assert bootstrap_mean([2.5] * 9) == Interval(2.5, 2.5, 2.5)


def test_a_mean_of_so_few_values_that_all_are_often_too_large_has_no_interval():
    """Limits within the values of five miss the median in 2 of 32 cases, which is more than 5 %."""
    values = np.random.default_rng(0).normal(size=6)
    assert math.isnan(bootstrap_mean(values[:5]).low) and math.isfinite(bootstrap_mean(values).low)
    assert math.isfinite(bootstrap_mean(values[:5], level=0.9).low)
    assert math.isnan(bootstrap_mean([2.5] * 5).low)  # nor if they are all equal


def test_a_weighted_mean_is_that_of_what_the_weights_stand_for():
    rng = np.random.default_rng(5)
    size = rng.integers(1, 9, 40)
    x = rng.normal(size=40) + size / 5  # episodes of other lengths do otherwise
    i = bootstrap_mean(x, weights=size)
    assert i.estimate == pytest.approx(np.repeat(x, size).mean())
    residual = size * (x - i.estimate)  # the ratio estimator's linearisation (Cochran 1977)
    half = scipy_stats.t.isf(0.025, 39) * math.sqrt(40 * residual.var(ddof=1)) / size.sum()
    assert ends(i) == pytest.approx((i.estimate - half, i.estimate + half), abs=0.15 * half)
    assert ends(bootstrap_mean(x, weights=np.full(40, 3.0))) == pytest.approx(ends(bootstrap_mean(x)))


# -- methods -----------------------------------------------------------------------------------------------------

SEEDS, EPISODES, DRAWS = 5, 100, 500
FLOOR = 0.95 - 3 * math.sqrt(0.95 * 0.05 / DRAWS)  # 0.921


def outcomes(rng, p, seeds, starts, shared=None):
    """0s and 1s (SEEDS, EPISODES) of mean p: a latent normal with spreads over training seeds and over starts."""
    total = math.sqrt(1 + seeds**2 + starts**2)
    start = rng.normal(size=(1, EPISODES)) if shared is None else shared
    z = seeds * rng.normal(size=(SEEDS, 1)) + starts * start + rng.normal(size=(SEEDS, EPISODES))
    return (z + scipy_stats.norm.ppf(p) * total > 0).astype(float)


@pytest.mark.parametrize("p, seeds, starts", [(0.5, 0, 0), (0.5, 1, 0), (0.8, 0.3, 1), (0.8, 0, 3), (0.95, 0.3, 0),
                                              (0.99, 0.3, 0), (1.0, 0, 0)])
def test_the_interval_of_a_method_covers(p, seeds, starts):
    rng = np.random.default_rng(1)
    intervals = [two_level_rate(outcomes(rng, p, seeds, starts)) for _ in range(DRAWS)]
    assert np.mean([i.low <= p <= i.high for i in intervals]) >= FLOOR
    assert all(0 <= i.low < i.high <= 1 for i in intervals)


def test_what_simpler_intervals_miss():
    """Why two levels: pooling the episodes forgets the seeds, Student's t over seeds forgets that they all met the
    same starts."""
    rng = np.random.default_rng(1)
    pooled = student = 0
    for _ in range(200):
        x = outcomes(rng, 0.5, 1, 0)
        i = clopper_pearson(int(x.sum()), x.size)
        pooled += i.low <= 0.5 <= i.high
        i = scipy_stats.ttest_1samp(outcomes(rng, 0.5, 0, 3).mean(1), 0).confidence_interval(0.95)
        student += i.low <= 0.5 <= i.high
    assert pooled / 200 < 0.6 and student / 200 < 0.8


def differ(rng, p, q, seeds, starts, shape=(SEEDS, EPISODES)):
    """Outcomes of two methods on the same starts, half of whose difficulty is common to both."""
    def one(rate, start):
        z = seeds * rng.normal(size=(shape[0], 1)) + starts * start + rng.normal(size=shape)
        return (z + scipy_stats.norm.ppf(rate) * math.sqrt(1 + seeds**2 + starts**2) > 0).astype(float)
    shared, own, other = rng.normal(size=(3, 1, shape[1]))
    return one(p, (shared + own) / math.sqrt(2)), one(q, (shared + other) / math.sqrt(2))


# docs/statistics.md has the table.
@pytest.mark.parametrize("p, q, seeds, starts, shape, least", [
    (0.5, 0.5, 0, 0, (5, 100), 0.95), (0.5, 0.5, 1, 1, (5, 100), 0.95), (0.8, 0.6, 0.3, 0, (5, 100), 0.95),
    (0.95, 0.95, 0.3, 3, (5, 100), 0.95), (0.99, 0.99, 0, 0, (5, 100), 0.95), (0.8, 0.7, 0.3, 1, (3, 100), 0.95),
    (0.8, 0.7, 1, 1, (10, 20), 0.94), (0.8, 0.8, 0, 3, (10, 20), 0.94), (0.9, 0.6, 1, 1, (5, 20), 0.93)])
def test_the_interval_of_a_difference_of_methods_covers_and_agrees_with_its_test(p, q, seeds, starts, shape, least):
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(DRAWS):
        x, y = differ(rng, p, q, seeds, starts, shape)
        i, chance = two_level_difference(x, y)
        hits += i.low <= p - q <= i.high
        assert (chance < 0.05) == (i.low > 0 or i.high < 0)
    assert hits / DRAWS >= least - 3 * math.sqrt(least * (1 - least) / DRAWS)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10, 20])
def test_the_interval_of_a_difference_covers_over_a_grid(seeds):
    """Spreads up to 1 on the probit scale, away from the ceiling: at least 93 % in each cell, and at most 6 % false
    positives."""
    rng, draws = np.random.default_rng(3), 4000
    slack = 3 * math.sqrt(0.05 * 0.95 / draws)
    for episodes in (20, 100):
        for spread in (0.0, 0.3, 1.0):
            for p, q in ((0.5, 0.5), (0.8, 0.8), (0.8, 0.7), (0.9, 0.6)):
                d = np.stack([np.subtract(*differ(rng, p, q, spread, 1, (seeds, episodes))) for _ in range(draws)])
                half, gap = crossed_margin(d, 0.025), d.mean((1, 2))
                assert (np.abs(gap - (p - q)) <= half).mean() >= 0.93 - slack, (episodes, spread, p, q)
                if p == q:
                    assert (np.abs(gap) > half).mean() <= 0.06 + slack, (episodes, spread, p)


def test_equal_means_of_seeds_do_not_make_the_interval_of_a_rate_narrower_than_rounding():
    """Each seed lost one other start of 100, so that the means agree by chance. The interval has a width."""
    first, second = np.ones((2, 100)), np.ones((2, 100))
    first[0, 14] = first[1, 55] = 0
    difference, p = two_level_difference(first, second)
    margin = 12.7062 * math.sqrt(1 / (12 * 100) / 200)  # Student's t with one degree of freedom
    assert (difference.low, difference.high) == pytest.approx((-0.01 - margin, -0.01 + margin), rel=1e-5) and p > 0.05
    real, _ = two_level_difference(first, second, kind="real")
    assert real.high - real.low < 1e-12, "the means of a real measure are not rounded"


def test_the_difference_is_told_where_the_residual_counted_twice_hid_it():
    """The effective number of pairs from Var(seeds) + Var(starts) found .9 against .6 in 29 % and .8 against .7 in 3 %
    of such experiments."""
    rng = np.random.default_rng(4)
    for p, q, spread, seeds, power in ((0.9, 0.6, 0.8, 5, 0.4), (0.8, 0.7, 0.1, 3, 0.25)):
        n_significant = sum(two_level_difference(*differ(rng, p, q, spread, 0, (seeds, 100)))[1] < 0.05
                            for _ in range(DRAWS))
        assert n_significant / DRAWS > power


def test_mean_squares_are_those_of_the_analysis_of_variance():
    """By least squares on the indicators of seeds and starts."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 6)) + rng.normal(size=(4, 1)) + rng.normal(size=(1, 6))
    seed, start = (np.eye(n)[at.ravel()] for n, at in zip(x.shape, np.indices(x.shape), strict=True))

    def left(*columns):
        design = np.concatenate([np.ones((24, 1)), *columns], 1)
        return ((x.ravel() - design @ np.linalg.lstsq(design, x.ravel())[0]) ** 2).sum()
    both = left(seed, start)
    by_seed, by_start, residual = mean_squares(x)
    assert by_seed * 3 == pytest.approx(left(start) - both) and by_start * 5 == pytest.approx(left(seed) - both)
    assert residual * 15 == pytest.approx(both)
    seeds, starts = scipy_stats.t.isf(0.1, 3) ** 2 * by_seed, scipy_stats.t.isf(0.1, 5) ** 2 * (by_start - residual)
    assert crossed_margin(x, 0.1) == pytest.approx(math.sqrt((seeds + starts) / 24)) and by_start > residual
    assert crossed_margin(np.stack([x, 2 * x]), 0.1) == pytest.approx(crossed_margin(x, 0.1) * np.array([1, 2]))


def test_the_margins_of_a_crossed_design_cover():
    """Normal effects with standard deviations 0 to 1 of seeds and of starts: 95 % within the simulation's error, and
    one variance alone counted twice where there are no effects."""
    rng, draws = np.random.default_rng(0), 10_000
    for seeds, starts in ((0, 0), (0, 1), (1, 0), (0.3, 0.3), (1, 1)):
        for shape in ((3, 30), (6, 10)):
            x = (seeds * rng.normal(size=(draws, shape[0], 1)) + starts * rng.normal(size=(draws, 1, shape[1]))
                 + rng.normal(size=(draws, *shape)))
            coverage = (np.abs(x.mean((1, 2))) <= crossed_margin(x, 0.025)).mean()
            assert 0.944 < coverage < (0.985 if seeds * starts != 1 else 0.97), (seeds, starts, shape)


def test_one_value_for_each_seed_gives_the_paired_t_test():
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 1, size=(6, 1)), rng.normal(size=(6, 1))
    i, p = two_level_difference(x, y, kind="real")
    t_test = scipy_stats.ttest_rel(x[:, 0], y[:, 0])
    assert p == pytest.approx(t_test.pvalue) and ends(i) == pytest.approx(tuple(t_test.confidence_interval()))
    assert difference_p(x - y, 0.5, "real") == pytest.approx(
        scipy_stats.ttest_1samp((x - y)[:, 0], 0.5, alternative="greater").pvalue)
    assert two_level_difference(x, x, kind="real") == (Interval(0.0, 0.0, 0.0), 1.0)
    same, p = two_level_difference(x + 1, x, kind="real")
    assert same.low == pytest.approx(1) == same.high and p < 1e-9
    for first, second in ((x + 1e6, y), (y, x + 1e6)):  # p far below the rounding of 1 - p
        assert two_level_difference(first, second, kind="real")[1] == pytest.approx(
            scipy_stats.ttest_rel(first[:, 0], second[:, 0]).pvalue, rel=1e-6, abs=0) != 0
    repeated = np.repeat(x - y, 4, axis=1)  # four starts of the same value
    assert difference_p(repeated, 0.0, "real") == pytest.approx(
        scipy_stats.ttest_1samp(repeated[:, 0], 0.0, alternative="greater").pvalue)
    for gap in (0.1, 0.7, -0.4):  # p and interval agree at every level
        d = rng.normal(gap, 1, size=(4, 9))
        p = two_level_difference(d, 0 * d, kind="real")[1]
        i = two_level_difference(d, 0 * d, 1 - p, kind="real")[0]
        assert min(abs(i.low), abs(i.high)) == pytest.approx(0, abs=1e-9) and difference_p(d, 0.0, "real") in (
            pytest.approx(p / 2), pytest.approx(1 - p / 2))


def test_limits_of_a_difference_stay_within_one():
    x = np.array([[1.0] * 10, [1.0] * 10, [1.0] * 9 + [0.0]])
    assert two_level_difference(x, 1 - x)[0].high == 1 and two_level_difference(1 - x, x)[0].low == -1
    assert two_level_difference(x, 1 - x, kind="bounded")[0].high == 1
    assert two_level_difference(x, 1 - x, kind="real")[0].high > 1


def test_methods_that_never_fail_are_not_certain():
    ones = np.ones((5, 100))
    alone, (tie, p) = two_level_rate(ones), two_level_difference(ones, ones)
    assert alone.high == 1 and 0.9 < alone.low < clopper_pearson(500, 500).low
    assert tie.low == pytest.approx(-tie.high) and tie.low < -0.03 and p == 1
    apart, p = two_level_difference(ones, 0 * ones)
    assert apart.high == 1 and apart.low < 1 and p < 0.01


def test_the_variance_is_that_of_seeds_and_of_starts():
    x = np.array([[1.0, 3.0, 5.0], [2.0, 2.0, 8.0]])
    variance = np.var([3, 4], ddof=1) / 2 + np.var([1.5, 2.5, 6.5], ddof=1) / 3
    half = scipy_stats.t.isf(0.025, 1) * math.sqrt(variance)
    assert two_level_mean(x) == Interval(3.5, pytest.approx(3.5 - half), pytest.approx(3.5 + half))


def test_a_bounded_measure_has_the_effective_number_of_its_own_variance():
    """As Clopper-Pearson, with n = mean (1 - mean) / variance, shrunk by (z / t)^2; better than Student's t, which
    leaves [0, 1] and covers less (benchmarks/coverage.py)."""
    x = np.array([[0.9], [0.95], [0.99], [1.0]])
    n = 0.96 * 0.04 / (x.var(ddof=1) / 4) * (scipy_stats.norm.isf(0.025) / scipy_stats.t.isf(0.025, 3)) ** 2
    i = two_level_rate(x, kind="bounded")
    assert ends(i) == pytest.approx(ends(clopper_pearson(0.96 * n, n))) and i.high <= 1
    assert two_level_rate(x, kind="real").high > 1
    assert two_level_rate(np.ones((4, 1)), kind="bounded") == Interval(1.0, 1.0, 1.0)
    rng, hits = np.random.default_rng(0), 0
    for _ in range(DRAWS):
        i = two_level_rate(rng.beta(18, 2, size=(5, 1)), kind="bounded")
        hits += i.low <= 0.9 <= i.high
    assert hits / DRAWS >= FLOOR


def test_a_kind_refuses_what_it_cannot_hold():
    x = np.array([[0.0, 1.0], [1.0, 0.5]])
    with pytest.raises(ValueError, match="rate measure is 0 or 1, but seed 1, episode 1 has 0.5"):
        two_level_rate(x)
    with pytest.raises(ValueError, match="rate measure is 0 or 1"):
        two_level_difference(x, x)
    two_level_rate(x, kind="bounded")
    with pytest.raises(ValueError, match="bounded measure is between 0 and 1, but seed 0, episode 1 has 2"):
        two_level_rate(2 * x, kind="bounded")
    two_level_rate(2 * x, kind="real")


def test_what_few_seeds_do_not_exclude():
    """The exact binomial bound: n good seeds of n have probability 0.05 if so large a fraction is bad."""
    for n in (1, 3, 5, 10, 20):
        assert (1 - seeds_not_excluded(n)) ** n == pytest.approx(0.05)
        upper_bound = scipy_stats.binomtest(0, n, alternative="less").proportion_ci(0.95, "exact").high
        assert seeds_not_excluded(n) == pytest.approx(upper_bound)
    assert seeds_caveat(5) == "Even if 5 of 5 training seeds succeed, up to 45% of all seeds may fail (95% confidence)."
    with pytest.raises(ValueError, match="at least 1"):
        seeds_not_excluded(0)


def test_more_seeds_narrow_it_and_one_is_refused():
    rng = np.random.default_rng(0)
    x = (rng.random((20, 100)) < rng.beta(8, 2, size=(20, 1))).astype(float)
    few, many = two_level_rate(x[:5]), two_level_rate(x)
    assert many.high - many.low < few.high - few.low
    for bad in (x[:1], [[1, 0], [1]]):
        with pytest.raises(ValueError, match="at least two training seeds with equally many"):
            two_level_rate(bad)
    with pytest.raises(ValueError, match="as many seeds and episodes"):
        two_level_difference(x, x[:5])


def test_every_name_in_the_table_of_the_page_exists():
    """And so does every name with a module of understudy.evaluate in the rest of the page."""
    page = (REPOSITORY / "docs" / "statistics.md").read_text(encoding="utf-8")
    table = [line for line in page.split("\n## ")[0].splitlines() if line.startswith("| ")][1:]
    names = re.findall(r"`([a-z_.A-Z]+)`", "\n".join(line.split("|")[2] for line in table))
    assert len(names) >= len(table) >= 10
    folder = Path(str(importlib.import_module("understudy.evaluate").__file__)).parent
    modules = "|".join(p.stem for p in folder.glob("*.py"))
    for name in {*names, *re.findall(rf"`((?:{modules})\.[A-Za-z_]+)`", page)}:
        module, _, attribute = name.partition(".")
        evaluate_module = importlib.import_module(f"understudy.evaluate.{module}")
        assert not attribute or hasattr(evaluate_module, attribute), name
