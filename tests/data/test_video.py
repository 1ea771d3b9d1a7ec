"""Frames: sizes, bounds and memory."""

from __future__ import annotations

import numpy as np
import pytest
from fixtures import closed_form
from fixtures.lerobot_files import CAMERA, LEROBOT, closed
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.core import UserError
from understudy.data import video
from understudy.data.formats import frame_cost, lerobot, open_dataset
from understudy.data.packed_columns import PackedColumns


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


def test_resizing_is_the_mean_over_the_area():
    a = np.arange(24, dtype=np.uint8).reshape(4, 6, 1) * 10
    two = video.resize(a, (2, 3))[..., 0]
    np.testing.assert_array_equal(two, np.floor(a.reshape(2, 2, 3, 2).mean((1, 3)) + 0.5))
    row = np.array([0, 90, 240], np.uint8).reshape(1, 3, 1)
    # each new pixel covers 1.5 old ones: (0 + 90/2) / 1.5 = 30 and (90/2 + 240) / 1.5 = 190
    np.testing.assert_array_equal(video.resize(row, (1, 2)).reshape(-1), [30, 190])
    # twice as large, bilinear: new centres lie at -0.25, 0.25, 0.75, 1.25 of the old
    pair = np.array([0, 100], np.uint8).reshape(1, 2, 1)
    np.testing.assert_array_equal(video.resize(pair, (1, 4)).reshape(-1), [0, 25, 75, 100])
    assert video.resize(a, (4, 6)) is a


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 255),
       st.integers(0, 2**31))
def test_resizing_keeps_bounds_and_constants(h, w, nh, nw, value, seed):
    assert (video.resize(np.full((2, h, w, 3), value, np.uint8), (nh, nw)) == value).all()
    image = np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)
    small = video.resize(image, (nh, nw))
    assert small.shape == (nh, nw, 3) and small.min() >= image.min() and small.max() <= image.max()
    if nh <= h and nw <= w:
        assert abs(small.mean() - image.mean()) <= 0.51


@pytest.mark.parametrize("folder", ["v3.0/images", "v3.0/video_av1", "v2.1/video", "v3.0_converted/video"])
def test_frames_are_decoded_once_to_a_size_told_beforehand(folder, tmp_path):
    data, progress = open_dataset(LEROBOT / folder), []
    cost = frame_cost(data, (16, 32))
    assert (cost.frames, cost.bytes) == (22, 22 * 16 * 32 * 3) and cost.seconds > 0
    framed = open_dataset(LEROBOT / folder, image_size=(16, 32), progress=lambda done, of: progress.append((done, of)))
    assert progress[-1] == (22, 22)
    file = next((tmp_path / "cache").glob(f"*/{CAMERA}.npy"))
    assert file.stat().st_size - cost.bytes == 128  # NumPy's header
    for a, b in zip(data, framed, strict=True):
        np.testing.assert_array_equal(video.resize(a.steps[CAMERA], (16, 32)), b.steps[CAMERA])
    assert framed.features()[CAMERA].shape == (16, 32, 3) and frame_cost(data, (16, 32)).seconds == 0
    assert np.shares_memory(
        PackedColumns.from_episodes(framed, [CAMERA]).columns[CAMERA].array, framed[0].steps[CAMERA]
    )


def test_frames_include_the_last_one_and_need_room(tmp_path, monkeypatch):
    lerobot.write(closed(images=True), tmp_path / "out", images="png")
    framed = open_dataset(tmp_path / "out", image_size=32)
    assert [len(e.steps[CAMERA]) for e in framed] == [n + 1 for n in closed_form.LENGTHS]
    np.testing.assert_array_equal(framed[3].steps[CAMERA][12], video.resize(closed_form.image(3, 12), (32, 32)))
    monkeypatch.setenv("UNDERSTUDY_CACHE_GB", "0.0001")
    with pytest.raises(UserError, match="choose a smaller image size"):
        open_dataset(tmp_path / "out", image_size=64)
