"""Agreement of two learners: cases with known answers, and the rate at which intervals contain the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from understudy.evaluate.learner_agreement import rank_agreement, seed_variance_ratio

RNG = np.random.default_rng(3)
SCORES = np.arange(6.0)[:, None, None] + 0.1 * RNG.random((6, 3, 4))


def test_equal_orders_have_1_and_reversed_ones_minus_1_without_doubt():
    for other, tau in ((np.exp(SCORES), 1), (-SCORES, -1)):
        found = rank_agreement(SCORES, other)
        assert found.low == found.high == tau and found.estimate == pytest.approx(tau)


def test_components_are_ordered_by_their_mean_over_tasks_and_seeds():
    first, second = RNG.random((2, 7, 2, 5))
    found = rank_agreement(first, second[..., :3])  # the second has fewer seeds
    assert found.estimate == stats.kendalltau(first.mean((1, 2)), second[..., :3].mean((1, 2))).statistic
    assert -1 <= found.low < found.estimate < found.high <= 1
    narrower = rank_agreement(first, second[..., :3], 0.5)
    assert found.low < narrower.low and narrower.high < found.high


def test_draws_are_of_components_and_of_tasks():
    """Where the orders agree in one task and are reversed in the other, tasks decide; they alone are drawn of equals.
    """
    disagreeing = np.stack([SCORES[:, 0], -1.1 * SCORES[:, 0]], 1)
    found = rank_agreement(SCORES[:, :2], disagreeing)
    assert (found.low, found.estimate, found.high) == pytest.approx((-1, -1, 1))


def test_ties_are_those_of_tau_b():
    first, second = np.array([0.0, 0, 1, 2, 3]), np.array([0.0, 1, 1, 3, 2])
    found = rank_agreement(first[:, None, None], second[:, None, None])
    assert found.estimate == pytest.approx(stats.kendalltau(first, second).statistic)
    everything_equal = rank_agreement(np.ones((5, 1, 1)), second[:, None, None])
    assert math.isnan(everything_equal.estimate) and math.isnan(everything_equal.low)


def test_of_unrelated_learners_the_interval_contains_0_about_as_often_as_promised():
    intervals = [rank_agreement(*RNG.normal(size=(2, 8, 1, 1)), 0.9) for _ in range(80)]
    rate = np.mean([i.low <= 0 <= i.high for i in intervals])
    assert 0.8 <= rate < 1  # 0.9, but for three standard deviations
    assert np.mean([i.estimate for i in intervals]) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("ratio", [1.0, 9.0])
def test_a_known_ratio_of_variances_is_found(ratio):
    draws = RNG.normal(size=(200, 2, 6, 3, 5))
    found = [seed_variance_ratio(5 + ratio**0.5 * first, second) for first, second in draws]
    assert np.mean([i.estimate for i in found]) == pytest.approx(math.log(ratio), abs=0.06)
    assert np.mean([i.low <= math.log(ratio) <= i.high for i in found]) >= 0.93
    assert np.mean([i.high - i.low for i in found]) < 2  # 18 cells are not without information


def test_equal_scores_have_the_variance_of_rounding():
    varying = np.broadcast_to([0.0, 0.2], (3, 2, 2))  # variance 0.02
    with pytest.raises(ValueError, match="rounding=0.01"):
        seed_variance_ratio(varying, np.ones((3, 2, 2)))
    assert seed_variance_ratio(varying, np.ones((3, 2, 2)), rounding=0.1).estimate == pytest.approx(math.log(24))


def test_tables_must_fit():
    with pytest.raises(ValueError, match=r"\(6, 3\) and \(6, 2\)"):
        rank_agreement(SCORES, SCORES[:, :2])
    with pytest.raises(ValueError, match="at least two components"):
        rank_agreement(SCORES[:1], SCORES[:1])
