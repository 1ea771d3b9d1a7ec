"""The benchmark of the studio in short: the age of the input is measured."""

import sys

import pytest
from folders import BENCHMARKS

pytest.importorskip("nicegui", reason="extra studio not installed")

sys.path.insert(0, str(BENCHMARKS))
import studio  # noqa: E402

pytestmark = pytest.mark.slow


def test_the_age_of_the_input_is_measured():
    p95, p50, p99, tick, _ = (line.ours.value for line in studio.toy(5))
    assert 0 < p50 <= p95 <= p99 < 500 and 90 < tick < 200  # ten steps a second
