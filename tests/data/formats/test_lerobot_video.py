"""Videos of LeRobot data sets: frames, windows, and several episodes in one file."""

from __future__ import annotations

import itertools
import json

import av
import numpy as np
import pytest
from fixtures.lerobot_files import CAMERA, closed

from understudy.core import UserError
from understudy.data import video
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import lerobot, open_dataset


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["av1", "h264"])
def test_video_is_near_and_the_last_frame_exact(name, tmp_path):
    data = closed(images=True)
    lerobot.write(data, tmp_path / "out", images=name)
    again = open_dataset(tmp_path / "out")
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert info["features"][CAMERA]["dtype"] == "video" and info["features"][CAMERA]["info"]["video.codec"] == name
    for a, b in zip(data, again, strict=True):
        off = np.abs(a.steps[CAMERA].astype(int) - b.steps[CAMERA])
        assert off.mean(axis=(1, 2, 3)).max() < 2.4 and off[-1].max() == 0
        np.testing.assert_array_equal(a.steps["observation.state"], b.steps["observation.state"])


def test_times_that_are_nearly_regular_have_their_frames(tmp_path):
    """Recorded times that differ from the regular ones by about the tolerance were read as regular, without a frame."""
    times = np.arange(40) / 10
    times[1:] += np.linspace(9e-5, 1.1e-4, 39)
    images = np.repeat(lit((32, 48, 3)), 2, 0)[:40]
    steps = {CAMERA: images, "action": np.zeros((40, 1), np.float32), "timestamp": times}
    lerobot.write(Dataset([Episode(steps), Episode(steps)], {"fps": 10}), tmp_path / "out", images="h264")
    for episode in open_dataset(tmp_path / "out"):
        assert np.abs(episode.steps[CAMERA].astype(int) - images).mean(axis=(1, 2, 3)).max() < 3


@pytest.mark.parametrize("kept", [0, video.MAX_CACHED_BYTES])
@pytest.mark.parametrize("codec", ["libsvtav1", "libx264"])
def test_windows_of_a_video_are_those_of_all_its_frames(codec, kept, tmp_path):
    """In any order and from one open file: what was decoded before says nothing of what comes next."""
    shape, times = (32, 48, 3), np.arange(30) / 10
    writer = video.VideoWriter(tmp_path / "film.mp4", codec, shape, 10)
    writer.add(lit(shape), times)
    writer.close()
    with video.VideoReader(tmp_path / "film.mp4", "here", kept) as reader:
        whole = filmed(reader, times, shape)
        assert np.abs(whole.astype(int) - lit(shape)).mean(axis=(1, 2, 3)).max() < 3
        assert len({frame.tobytes() for frame in whole}) == 30
        for first in np.random.default_rng(0).permutation(28):
            rows = [first + 2, first, first, first + 1]  # one asked for twice, and not in order
            np.testing.assert_array_equal(filmed(reader, times[rows], shape), whole[rows])
        with pytest.raises(UserError, match="there is no frame at 3.0000 s"):
            list(reader.frames(np.array([2.9, 3.0]), shape, "here"))
        np.testing.assert_array_equal(filmed(reader, times[:1], shape), whole[:1])  # though it came to the end


@pytest.mark.parametrize("kept", [0, video.MAX_CACHED_BYTES])
@pytest.mark.parametrize("options", [{"g": "9", "bf": "3"}, {"g": "9", "bf": "3", "x264-params": "open-gop=1"}])
def test_windows_of_a_video_that_refers_forward(options, kept, tmp_path):
    """Frames decoded before they are shown, key frames far apart, and with an open group of pictures some frames that
    are shown before their key frame need the group before it, too."""
    shape, times = (32, 48, 3), np.arange(30) / 10
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.options = 48, 32, "yuv420p", options
        for image in lit(shape):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(tmp_path / "film.mp4")) as container:
        shown_times = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert shown_times != sorted(shown_times)  # or this would say nothing
    with video.VideoReader(tmp_path / "film.mp4", "here", kept) as reader:
        whole = filmed(reader, times, shape)
        assert len({frame.tobytes() for frame in whole}) == 30
        for first in np.random.default_rng(0).permutation(29):
            np.testing.assert_array_equal(filmed(reader, times[first:first + 2], shape), whole[first:first + 2])


def test_what_a_video_is_called_need_not_be_text(tmp_path):
    shape, times = (32, 48, 3), np.arange(5) / 10
    writer = video.VideoWriter(tmp_path / "film.mp4", "libx264", shape, 10)
    writer.add(lit(shape)[:5], times)
    writer.close()
    data = (tmp_path / "film.mp4").read_bytes()
    assert data.count(b"Lavf") == 1  # among its tags
    (tmp_path / "odd.mp4").write_bytes(data.replace(b"Lavf", b"\xd0\xff\xfe\xfd"))
    with video.VideoReader(tmp_path / "film.mp4", "here") as reader:
        whole = filmed(reader, times, shape)
        assert not list(reader.frames(np.empty(0), shape, "here"))
    with video.VideoReader(tmp_path / "odd.mp4", "here") as reader:
        np.testing.assert_array_equal(filmed(reader, times, shape), whole)
    assert len(video.frame_times(tmp_path / "odd.mp4")) == 5


def test_a_small_video_is_read_once(tmp_path):
    """Its packets stay in memory: the file may go. Those of a larger one do not."""
    shape, times = (96, 96, 3), np.arange(30) / 10
    for name in ("small", "large"):
        writer = video.VideoWriter(tmp_path / name, "libx264", shape, 10)
        writer.add(np.random.default_rng(0).integers(0, 256, (30, *shape), np.uint8), times)
        writer.close()
    size = (tmp_path / "small").stat().st_size
    assert size > 2**16  # more than the demuxer has read ahead
    for name, kept in (("small", size), ("large", size - 1)):
        with video.VideoReader(tmp_path / name, "here", kept) as reader:
            whole = filmed(reader, times, shape)
            (tmp_path / name).write_bytes(b"")
            if name == "small":
                np.testing.assert_array_equal(filmed(reader, times[7:9], shape), whole[7:9])
            else:
                with pytest.raises(UserError):
                    filmed(reader, times[7:9], shape)


def lit(shape) -> np.ndarray:
    """30 frames, each another."""
    out = np.zeros((30, *shape), np.uint8)
    for t in range(30):
        out[t, :, t:t + 8] = 40 + 6 * t
    return out


def filmed(reader, times, shape) -> np.ndarray:
    out = np.zeros((len(times), *shape), np.uint8)
    for rows, image in reader.frames(times, shape, "here"):
        out[rows] = image
    return out


def test_two_episodes_of_one_video_may_be_read_side_by_side(tmp_path):
    lerobot.write(closed(images=True), tmp_path / "out")
    data = open_dataset(tmp_path / "out")
    source = data.source
    expected_frames = [e.steps[CAMERA] for e in data]
    beside = [np.zeros_like(w) for w in expected_frames[:2]]
    for parts in itertools.zip_longest(source.frames(CAMERA, 0), source.frames(CAMERA, 1)):
        for out, part in zip(beside, parts, strict=True):
            if part is not None:
                out[part[0]] = part[1]
    for a, b in zip(beside, expected_frames, strict=False):
        np.testing.assert_array_equal(a, b)


def test_frames_that_video_cannot_hold_are_stored_as_images(tmp_path):
    rng = np.random.default_rng(0)
    for shape in ((33, 47, 3), (32, 32, 1), (16, 16, 9), (2, 2, 3)):
        data = Dataset([Episode({"observation.images.a": rng.integers(0, 256, (3, *shape), np.uint8),
                                 "action": np.zeros((2, 1))})], {"fps": 10})
        lerobot.write(data, tmp_path / str(shape))
        assert open_dataset(tmp_path / str(shape)).fingerprint() == data.fingerprint()
    with pytest.raises(UserError, match=r"frames of the shape \(33, 47, 3\) cannot be written as h264 here"):
        lerobot.write(Dataset([Episode({"observation.images.a": np.zeros((3, 33, 47, 3), np.uint8)})]),
                      tmp_path / "asked", images="h264")
