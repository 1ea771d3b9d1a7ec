"""The benchmark of the studio in short: nothing is lost, and every figure is measured."""

import sys

import pytest
from folders import BENCHMARKS

pytest.importorskip("nicegui", reason="extra studio not installed")
pytest.importorskip("scservo_sdk", reason="extra feetech not installed")

sys.path.insert(0, str(BENCHMARKS))
import studio  # noqa: E402

pytestmark = pytest.mark.slow


def test_a_recording_on_a_robot_is_measured():
    """On a shared machine no figure is required, but pictures come while it is recorded."""
    lost, frames, mean, longest, growth, memory = studio.robot(4)
    assert lost.ours.value >= 0 and frames.met is not None and growth.met is not None
    assert 0 < mean.ours.value <= longest.ours.value < 4000
    assert memory.ours.value > 100


def test_the_age_of_the_input_is_measured():
    p95, p50, p99, tick, _ = (line.ours.value for line in studio.toy(5))
    assert 0 < p50 <= p95 <= p99 < 500 and 90 < tick < 200  # ten steps a second
