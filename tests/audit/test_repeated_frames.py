"""Cameras that fall below the rate of the rows."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.audit import find_problems
from understudy.data.episode import Dataset, Episode


def recording(seed, repeats=None, rows=150, speed=None):
    """An arm at 30 rows per second that moves faster and slower, and a camera with noise whose frame of each row is
    given by `repeats`, the row whose frame is there instead."""
    rng = np.random.default_rng(seed)
    t = np.arange(rows)[:, None] / 30
    state = (np.sin(2 * t + rng.uniform(0, 1, 3)) if speed is None else speed * t * np.ones(3)).astype(np.float32)
    frames = rng.integers(0, 255, (rows, 8, 8, 3), dtype=np.uint8)
    if repeats is not None:
        frames = frames[repeats(np.arange(rows))]
    return Episode({"observation.state": state, "observation.images.front": frames,
                    "action": np.diff(state, axis=0, append=state[-1:])}, rows=rows)


def found(*episodes):
    return [f for f in find_problems(Dataset(episodes, {"fps": 30}), frames=True) if f.code == "repeated-frames"]


@pytest.mark.parametrize(("repeats", "rate"), [
    (lambda row: row - row % 6, "5 per second"),  # 5 frames per second from the beginning
    (lambda row: np.where(row < 60, row, row - row % 6), "5 per second"),  # after two seconds
    (lambda row: row // 4.5 * 4.5 // 1, "6.64 per second"),  # frames of 4 and 5 rows in turn
    (lambda row: row - row % 2, "15 per second"),
])
def test_a_camera_that_falls_behind_is_named_with_its_rate(repeats, rate):
    slow = [recording(i, lambda row: repeats(row).astype(int)) for i in range(3)]
    finding, = found(*slow, *(recording(i) for i in range(3, 8)))
    assert finding.severity == "warning" and finding.episodes == (0, 1, 2)
    assert finding.where.feature == "observation.images.front" and finding.where.episode == 0
    assert f"in 3 episodes of 8, which is {rate} at 30 rows per second" in finding.message


def test_what_is_no_slow_camera_is_not_named():
    """Frames that change in every row, a few dropped frames, a camera that hangs once, and a state that rests."""
    rng = np.random.default_rng(0)
    dropped = np.arange(150) - (rng.random(150) < 0.03)
    hangs = np.r_[np.arange(50), np.full(40, 49), np.arange(90, 150)]
    resting = recording(3, lambda row: row - row % 6).replace({"observation.state": np.zeros((150, 3), np.float32)})
    assert not found(recording(0), recording(1, lambda row: dropped.clip(0)), recording(2, lambda row: hangs), resting)


def test_slow_motion_in_a_small_image_is_no_slow_camera():
    """One pixel after equal distances, however fast: 8 pixels for the way of the arm."""
    def episode(phase):
        t = np.arange(300) / 30
        x = 0.5 + 0.5 * np.sin(0.4 * t + phase)
        frames = np.zeros((300, 8, 8, 3), np.uint8)
        frames[np.arange(300), :, np.floor(x * 7.99).astype(int)] = 200
        state = np.stack([x, x, x], 1).astype(np.float32)
        return Episode({"observation.state": state, "observation.images.front": frames,
                        "action": np.diff(state, axis=0, append=state[-1:])}, rows=300)
    assert not found(*(episode(i) for i in range(6)), recording(0, speed=1.0))
