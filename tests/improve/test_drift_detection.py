"""The drift detector: alarms at a step, computed by hand, and the rate of false alarms."""

import numpy as np
import pytest

from understudy.improve.drift_detection import DriftDetector


@pytest.mark.parametrize(("interval", "delay"), [(10, 1), (100, 2), (1000, 4)])
def test_a_step_is_detected_after_as_many_values_as_the_sum_needs(interval, delay):
    """Mean 0 and deviation 1, then 3: the sums are 2.50, 4.73, 6.76 and 8.62, as the average follows the step."""
    detector = DriftDetector(interval=interval)
    alarms = [n for n, value in enumerate([1.0, -1.0] * 25 + [3.0] * 30, 1) if detector.update(value)]
    assert alarms == [50 + delay]  # and it begins again, so the new level raises no second one


def test_a_loss_that_falls_or_stays_raises_no_alarm():
    for losses in (0.98 ** np.arange(600.0), np.full(600, 0.3)):
        detector = DriftDetector()
        assert not any(detector.update(loss) for loss in losses)


@pytest.mark.parametrize("interval", [100, 1000])
def test_false_alarms_are_no_more_frequent_than_stated(interval):
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(100):
        detector = DriftDetector(interval=interval)
        alarms += sum(detector.update(value) for value in rng.normal(5, 2, 1000))
    assert 0 < alarms < 100 * 1000 / interval
