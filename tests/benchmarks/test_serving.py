"""The benchmark of the server in short: memory, malformed frames and kills must come out well on any machine."""

import sys

import pytest
from folders import BENCHMARKS

pytest.importorskip("websockets", reason="extra serve not installed")

sys.path.insert(0, str(BENCHMARKS))
import serving  # noqa: E402

pytestmark = pytest.mark.slow


def test_malformed_frames_harm_no_other_client():
    line = serving.malformed(1000)[0]
    assert line.met and line.ours.value == 0 and "replies checked" in line.note


def test_killed_clients_and_servers_give_no_wrong_reply():
    line = serving.kills(20)[0]
    assert line.met and line.ours.value == 0


def test_memory_does_not_grow():
    assert serving.soak(25)[0].ours.value < 8  # MB; the benchmark is longer, and stricter


def test_latency_is_measured():
    """On a shared machine no figure is required, but the server's own time is less than a request takes."""
    own, _, network, trip, _ = (line.ours.value for line in serving.one_client(5))
    assert 0 < own < trip and network < trip
    missed, _, median, *_ = serving.many_clients(5, n=16)
    assert median.ours.value < 1000 and "of " in missed.note
