"""Returns: the interquartile mean, bootstraps and profiles."""

import math

import numpy as np
import pytest
from fixtures.statistics import ends
from scipy import stats as scipy_stats

from understudy.evaluate.returns import aggregate_over_tasks, bootstrap, interquartile_mean, performance_profile


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
        with pytest.raises(ValueError, match="a value of every task"):
            aggregate_over_tasks(bad)


def test_a_profile_of_one_task_is_a_share_with_its_interval():
    x = np.random.default_rng(1).random((100, 1))
    p = performance_profile(x, [0.0, 0.5, 1.0])
    k = int((x > 0.5).sum())
    assert p.fraction == pytest.approx([1.0, k / 100, 0.0]) and (p.low[0], p.high[2]) == (1.0, 0.0)
    assert (p.low[1], p.high[1]) == pytest.approx(
        scipy_stats.binom.ppf([0.025, 0.975], 100, k / 100) / 100, abs=0.011)


def test_a_value_that_is_missing_is_no_low_one():
    profile = performance_profile([[1.0, 2.0], [3.0, math.nan], [3.0, -math.inf]], [1.5, 2.5])
    assert np.isnan([profile.fraction, profile.low, profile.high]).all()
    assert performance_profile([[1.0], [-math.inf]], [0.5]).fraction == 0.5
