"""Metrics of lifelong learning, compared with examples by hand."""

import math

import pytest

from understudy.evaluate.lifelong import lifelong_metrics


def test_three_tasks_by_hand():
    metrics = lifelong_metrics([[0.0, 0.1, 0.0],
                                [0.9, 0.3, 0.0],
                                [0.5, 0.8, 0.2],
                                [0.3, 0.7, 1.0]])
    assert metrics.final == pytest.approx(2 / 3)
    assert metrics.maintenance == pytest.approx(((-0.4 - 0.6) / 2 - 0.1) / 2)
    assert metrics.forward == pytest.approx((0.2 + 0.0 + 0.2) / 3)  # task 1 on 2, 1 on 3, 2 on 3
    assert metrics.forward_contrast == pytest.approx((0.2 / 0.4 + 0.2 / 0.2) / 2) and metrics.n_undefined == 1


def test_a_policy_that_learns_nothing_maintains_all():
    metrics = lifelong_metrics([[0, 0]] * 3)
    assert (metrics.final, metrics.maintenance, metrics.forward, metrics.n_undefined) == (0, 0, 0, 1)
    assert math.isnan(metrics.forward_contrast)
    with pytest.raises(ValueError, match="tasks \\+ 1"):
        lifelong_metrics([[0, 0]] * 2)
