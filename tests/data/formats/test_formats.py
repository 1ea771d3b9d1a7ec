"""Data on disk: what is read is what was written, byte for byte, lazily, and whatever happens in between."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fixtures import closed_form
from folders import PATHS, TESTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.audit import find_problems
from understudy.core import Feature, UserError
from understudy.data import cache, video
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import describe, frame_cost, lerobot, lerobot_write, open_dataset
from understudy.data.packed_columns import PackedColumns
from understudy.data.window import Window

LEROBOT = TESTS / "fixtures" / "lerobot"
FOLDERS = sorted(str(p.parent.parent.relative_to(LEROBOT)) for p in LEROBOT.glob("*/*/meta/info.json"))
CAMERA = "observation.images.top"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


def closed(images=False, extra=1, numbers=range(4)) -> Dataset:
    """The closed form in memory, with last observations."""
    episodes = []
    for e in numbers:
        c = closed_form.episode(e, extra)
        steps = {"observation.state": c["state"], "action": c["action"], "next.reward": c["reward"],
                 "next.terminated": c["terminated"], "next.truncated": c["truncated"],
                 "task": np.broadcast_to(np.array([c["task"]]), (len(c["action"]),))}
        if images:
            steps[CAMERA] = c["image"]
        episodes.append(Episode(steps, {"number": e, "seed": 7}))
    return Dataset(episodes, {"fps": 10, "robot_type": "closed_form"})


# -- LeRobot: reading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_of_every_version_hold_the_closed_form(folder):
    data = open_dataset(LEROBOT / folder)
    numbers = [0, 2, 3] if folder.endswith(("grid", "video_h264")) else [0, 1, 2, 3]
    assert data.metadata["format"] == "lerobot" and data.metadata["version"] == folder[:4]
    assert data.fps == 10 and data.metadata["robot_type"] == "closed_form" and data.metadata["warnings"] == []
    assert [len(e) for e in data] == [closed_form.LENGTHS[n] for n in numbers]
    assert data.features()["observation.state"] == Feature("float32", (3,), "vector", ("x", "y", "z"))
    for n, episode in zip(numbers, data, strict=True):
        expected, steps = closed_form.episode(n), episode.steps
        np.testing.assert_array_equal(steps["observation.state"], expected["state"])
        np.testing.assert_array_equal(steps["action"], expected["action"])
        np.testing.assert_array_equal(steps["next.reward"], expected["reward"])
        np.testing.assert_array_equal(steps["next.done"], expected["terminated"])
        np.testing.assert_array_equal(steps["timestamp"], np.arange(len(episode), dtype=np.float32) / np.float32(10))
        assert steps["task"].tolist() == [closed_form.task(n)] * len(episode) and steps["task"].strides == (0,)
        if CAMERA in steps:
            off = np.abs(steps[CAMERA].astype(int) - expected["image"])
            assert off.max() == 0 if "video" not in folder else off.mean(axis=(1, 2, 3)).max() <= 2.4
        if "observation.grid" in steps:
            state = expected["state"]
            np.testing.assert_array_equal(steps["observation.grid"], np.stack([state, -state], 1))
            assert steps["observation.note"].tolist() == [f"episode {n} step {t}" for t in range(len(episode))]


def test_all_versions_of_the_same_values_have_the_same_fingerprint():
    images = [f for f in FOLDERS if f.endswith("/images")]
    assert len(images) == 4  # v2.0, v2.1, v3.0, v3.0_converted
    assert len({open_dataset(LEROBOT / f).fingerprint() for f in images}) == 1


@pytest.mark.parametrize("rows, together", [(1, 5), (1, 2**16), (3, 7), (7, 7), (100, 1)])
def test_row_groups_need_not_be_episodes(rows, together, tmp_path, monkeypatch):
    monkeypatch.setattr("understudy.data.formats.lerobot_read._ROWS", together)
    shutil.copytree(LEROBOT / "v3.0/images", tmp_path / "data")
    file = next(tmp_path.glob("data/data/*/*.parquet"))
    pq.write_table(pq.read_table(file), file, row_group_size=rows)
    assert open_dataset(tmp_path / "data").fingerprint() == open_dataset(LEROBOT / "v3.0/images").fingerprint()


def test_opening_reads_no_data(tmp_path):
    path = tmp_path / "data"
    shutil.copytree(LEROBOT / "v3.0/images", path)
    next(path.glob("data/*/*.parquet")).write_bytes(b"no parquet")
    data = open_dataset(path)  # not yet
    assert (len(data), data.steps, list(data[0].steps)[:2]) == (4, 22, ["observation.state", "action"])
    assert not (tmp_path / "cache").exists()
    with pytest.raises(UserError, match="the Parquet file cannot be read"):
        data[0].steps["action"]


# -- LeRobot: writing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS)
def test_reading_what_was_written_gives_the_same_fingerprint(folder, tmp_path):
    data = open_dataset(LEROBOT / folder)
    lerobot.write(data, tmp_path / "out", images="png")
    again = open_dataset(tmp_path / "out")
    assert again.fingerprint() == data.fingerprint()
    assert again.features() == data.features() and again.metadata["robot_type"] == "closed_form" and again.fps == 10


def test_last_observations_facts_and_units_come_back(tmp_path):
    data = closed(images=True)
    schema = {"observation.state": Feature("float32", (3,), "vector", ("x", "y", "z"), unit="m")}
    data = Dataset([Episode(e.steps, e.metadata, schema=schema) for e in data], data.metadata)
    lerobot.write(data, tmp_path / "out", images="png")
    again = open_dataset(tmp_path / "out")
    assert again.fingerprint() == data.fingerprint()
    assert [len(e.steps["observation.state"]) - len(e) for e in again] == [1, 1, 1, 1]
    assert [len(e.steps[CAMERA]) - len(e) for e in again] == [1, 1, 1, 1]
    assert again.features()["observation.state"].unit == "m" and again[2].metadata == {"number": 2, "seed": 7}
    assert "timestamp" not in again[0].steps  # the data had none: it was made for the format alone


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
        shown = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert shown != sorted(shown)  # or this would say nothing
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
    with video.VideoReader(tmp_path / "odd.mp4", "here") as reader:
        np.testing.assert_array_equal(filmed(reader, times, shape), whole)
    assert video.count_frames(tmp_path / "odd.mp4") == 5


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
    wanted = [e.steps[CAMERA] for e in data]
    beside = [np.zeros_like(w) for w in wanted[:2]]
    for parts in itertools.zip_longest(source.frames(CAMERA, 0), source.frames(CAMERA, 1)):
        for out, part in zip(beside, parts, strict=True):
            if part is not None:
                out[part[0]] = part[1]
    for a, b in zip(beside, wanted, strict=False):
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


_DTYPES = ["float32", "float64", "float16", "int64", "int32", "uint8", "int8", "bool"]


@st.composite
def _datasets(draw):
    columns = draw(st.dictionaries(
        st.sampled_from(["observation.state", "action", "next.reward", "next.success", "observation.grid", "weight"]),
        st.tuples(st.sampled_from(_DTYPES), st.lists(st.integers(1, 3), max_size=4).map(tuple), st.booleans()),
        min_size=1))
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    seed, words, notes = draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 2)), draw(st.booleans())
    rng, episodes = np.random.default_rng(seed), []
    for number, n in enumerate(lengths):
        steps = {}
        for name, (dtype, shape, last) in columns.items():
            more = last and rng.random() < 0.7  # some episodes only
            steps[name] = rng.integers(0, 2 if dtype == "bool" else 100, (n + more, *shape)).astype(dtype)
        steps["weight"] = np.zeros(n)  # so that each episode has exactly n steps
        if words == 1:
            steps["task"] = np.broadcast_to(np.array(["öffne 'die' Tür"]), (n,))
        elif words == 2:
            steps["task"] = np.array(["", "a", "bb"])[rng.integers(0, 3, n)].astype("U")
        if notes:
            steps["observation.note"] = np.array([f"n {i} ü" for i in range(n)])
        facts = {"number": number, "nested": {"a": [1.5, None, "x"]}} if rng.random() < 0.8 else {}
        episodes.append(Episode(steps, facts))
    return Dataset(episodes, {"fps": 12.5})


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=_datasets(), split=st.integers(0, 4))
def test_any_data_set_survives_writing_and_appending(data, split, tmp_path_factory):
    where = tmp_path_factory.mktemp("any")
    lerobot.write(data, where / "whole")
    again = open_dataset(where / "whole")
    assert again.fingerprint() == data.fingerprint() and again.fps == 12.5
    parts = [p for p in (data[:split], data[split:]) if len(p)]
    for part in parts:
        lerobot.append(where / "parts", part)
    assert open_dataset(where / "parts").fingerprint() == data.fingerprint()


def test_appending_leaves_finished_files_alone_and_is_the_same_as_writing(tmp_path):
    data = closed(images=True)
    lerobot.write(data, tmp_path / "whole", images="png")
    before = {}
    for n in range(4):
        lerobot.append(tmp_path / "grown", data[n:n + 1], images="png")
        now = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "grown/data").rglob("*.parquet")}
        assert len(now) == n + 1 and all(now[p] == was for p, was in before.items())
        before = now
    assert open_dataset(tmp_path / "grown").fingerprint() == open_dataset(tmp_path / "whole").fingerprint()
    a, b = (json.loads((tmp_path / d / "meta/info.json").read_text()) for d in ("whole", "grown"))
    assert a == b and a["total_frames"] == 22 and a["splits"] == {"train": "0:4"} and a["total_tasks"] == 2
    a, b = (json.loads((tmp_path / d / "meta/stats.json").read_text()) for d in ("whole", "grown"))
    assert a.keys() == b.keys()
    for name in a:
        for statistic in a[name]:
            np.testing.assert_allclose(np.array(a[name][statistic], float), np.array(b[name][statistic], float), 1e-9)


def test_statistics_are_those_of_all_steps(tmp_path):
    data = closed()
    lerobot.write(data, tmp_path / "out")
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    state = np.concatenate([e.steps["observation.state"][: len(e)] for e in data]).astype(float)
    found = stats["observation.state"]
    np.testing.assert_allclose(found["mean"], state.mean(0), 1e-12)
    np.testing.assert_allclose(found["std"], state.std(0), 1e-12)
    np.testing.assert_array_equal(found["min"], state.min(0))
    np.testing.assert_array_equal(found["max"], state.max(0))
    assert found["count"] == [22] and stats["next.terminated"]["max"] == [True]
    quantile = [np.quantile(e.steps["observation.state"][: len(e)].astype(float), 0.9, axis=0) for e in data]
    np.testing.assert_allclose(found["q90"], np.average(quantile, axis=0, weights=[len(e) for e in data]), 1e-12)


def test_statistics_of_images_are_those_of_their_pixels(tmp_path):
    image = np.random.default_rng(1).integers(3, 250, (7, 20, 30, 3), np.uint8)
    lerobot.write(Dataset([Episode({CAMERA: image, "action": np.zeros((7, 1))})], {"fps": 10}), tmp_path / "out")
    found = json.loads((tmp_path / "out/meta/stats.json").read_text())[CAMERA]
    pixels = image.reshape(-1, 3) / 255
    for name, value in (("min", pixels.min(0)), ("max", pixels.max(0)), ("mean", pixels.mean(0)),
                        ("std", pixels.std(0)), ("q01", np.quantile(pixels, 0.01, axis=0)),
                        ("q90", np.quantile(pixels, 0.9, axis=0))):
        np.testing.assert_allclose(np.array(found[name]), value.reshape(3, 1, 1), 1e-9)
    assert found["count"] == [7]


def test_an_upstream_data_set_is_added_to(tmp_path):
    for folder in ("v3.0/images", "v3.0/many_files", "v3.0/video_many_files"):
        path = tmp_path / folder
        shutil.copytree(LEROBOT / folder, path)
        old = open_dataset(path)
        files = {p: p.read_bytes() for p in path.rglob("*")
                 if p.suffix in (".parquet", ".mp4") and "tasks" not in p.name}
        lerobot.append(path, old[2:])
        new = open_dataset(path)
        assert len(new) == 6 and new.features().keys() == old.features().keys()
        assert all(p.read_bytes() == b for p, b in files.items())
        for e, like in ((4, 2), (5, 3)):
            np.testing.assert_array_equal(new[e].steps["observation.state"], old[like].steps["observation.state"])
            np.testing.assert_array_equal(new[e].steps["task"], old[like].steps["task"])
        assert new[:4].fingerprint() == old.fingerprint()
    with pytest.raises(UserError, match="episodes can be added to LeRobot v3.0, not to v2.1"):
        shutil.copytree(LEROBOT / "v2.1/images", tmp_path / "old")
        lerobot.append(tmp_path / "old", old)


_KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
import understudy.data.formats.lerobot_write as w
import understudy.files as f
from tests.data.formats.test_formats import closed
data = closed(images=True, numbers=[2, 3])
for k in range({moments}):
    if os.fork() == 0:  # nothing of Arrow has run yet: no threads are lost
        left = k
        def step(do):
            def at(*a, **b):
                global left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return do(*a, **b)
            return at
        os.replace, w._sync = step(os.replace), step(w._sync)
        w.append(os.path.join({root!r}, str(k)), data)
        os._exit(0)
    print(os.wait()[1])
"""


@pytest.mark.slow
def test_an_append_that_is_killed_at_any_moment_loses_nothing(tmp_path):
    """After each kill the old state is read unchanged, or the new one whole; the next append succeeds."""
    old, whole, moments = closed(images=True, numbers=[0, 1]), closed(images=True), 16
    for k in range(moments):
        lerobot.append(tmp_path / str(k), old)
    old = open_dataset(tmp_path / "0").fingerprint()  # with frames as video has them
    code = _KILLED.format(paths=PATHS, moments=moments, root=str(tmp_path))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    statuses = [int(s) for s in ran.stdout.split()]
    assert len(statuses) == moments, ran.stderr
    killed = [k for k, s in enumerate(statuses) if s == signal.SIGKILL]
    assert len(killed) >= 10 and statuses[-1] == 0  # all moments were met
    for k in killed:
        path = tmp_path / str(k)
        after = open_dataset(path)
        if len(after) == 2:
            assert after.fingerprint() == old
            lerobot.append(path, closed(images=True, numbers=[2, 3]))
            after = open_dataset(path)
        else:
            lerobot.append(path, whole[:0])  # cleans up, adds nothing
        assert len(after) == 4 and not list(path.rglob("*.part")) and not list(path.rglob("pending.json"))
        for a, b in zip(whole, after, strict=True):
            np.testing.assert_array_equal(a.steps["observation.state"], b.steps["observation.state"])
            assert np.abs(a.steps[CAMERA].astype(int) - b.steps[CAMERA]).mean() < 2.4
        assert len(list((path / "data").rglob("*.*"))) == len(list((path / "videos").rglob("*.mp4"))) == 2
        assert json.loads((path / "meta/stats.json").read_text())["index"]["count"] == [22]
        assert pq.read_table(path / "meta/understudy/last.parquet")["episode_index"].to_pylist() == [0, 1, 2, 3]
        facts = (path / "meta/understudy/episodes.jsonl").read_text().splitlines()
        assert [json.loads(line)["episode_index"] for line in facts] == [0, 1, 2, 3]


def test_a_write_that_fails_leaves_nothing(tmp_path):
    data = closed()
    wrong = Dataset([*data[:3], data[3].replace({"action": np.zeros((12, 5), np.float32)})], data.metadata)
    with pytest.raises(UserError, match=r"episode 3, column 'action': a step is .*\(5,\) instead of float32 \(2,\)"):
        lerobot.write(wrong, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    lerobot.write(data[:2], tmp_path / "out")
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="column 'action'"):
        lerobot.append(tmp_path / "out", wrong[3:])
    after = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file() and p.name != ".lock"}
    assert before == after
    with pytest.raises(UserError, match="there is already a file or folder"):
        lerobot.write(data, tmp_path / "out")


def test_files_that_are_full_are_followed_by_new_ones(tmp_path):
    def long(e, n=100):
        frames = np.stack([closed_form.image(e, t) for t in range(n)])
        return Episode({CAMERA: frames, "action": np.full((n, 1), float(e))})

    lerobot.write(Dataset([long(0)], {"fps": 10}), tmp_path / "out")
    file = tmp_path / "out/meta/info.json"
    info = json.loads(file.read_text())
    info.update(data_files_size_in_mb=0.0001, video_files_size_in_mb=0.0001, chunks_size=2)  # 105 bytes
    file.write_text(json.dumps(info))
    lerobot.append(tmp_path / "out", Dataset([long(1), long(2), long(3)]))
    names = [str(p.relative_to(tmp_path / "out/data")) for p in sorted((tmp_path / "out/data").rglob("*.parquet"))]
    assert names == [f"chunk-00{c}/file-00{f}.parquet" for c in (0, 1) for f in (0, 1)]
    assert len(list((tmp_path / "out/videos").rglob("*.mp4"))) >= 3  # the encoder holds some frames back
    for e, episode in enumerate(open_dataset(tmp_path / "out")):
        assert (episode.steps["action"] == e).all()
        assert np.abs(episode.steps[CAMERA].astype(int) - long(e).steps[CAMERA]).mean(axis=(1, 2, 3)).max() < 4


def test_irregular_times_find_their_frames(tmp_path):
    """A camera that paused: the pause is in the video as well."""
    c = closed_form.episode(3)
    times = np.array([0, 0.1, 0.2, 0.31, 0.4, 0.9, 1.0, 1.1, 1.2, 1.33, 1.4, 1.5], np.float32)
    e = Episode({CAMERA: c["image"], "action": c["action"], "timestamp": times})
    lerobot.write(Dataset([e, e], {"fps": 10}), tmp_path / "out")
    for again in open_dataset(tmp_path / "out"):
        np.testing.assert_array_equal(again.steps["timestamp"], times)
        assert np.abs(again.steps[CAMERA].astype(int) - c["image"]).mean(axis=(1, 2, 3)).max() < 2.4


def test_the_time_to_split_timestamps_grows_with_the_episodes_not_with_their_square(monkeypatch):
    counted = []
    whole = lerobot_write._timestamps_start_at_zero
    monkeypatch.setattr(lerobot_write, "_timestamps_start_at_zero", lambda data: counted.append(1) or whole(data))
    steps = {"action": np.zeros((3, 1), np.float32), "timestamp": np.arange(3) / 10}
    lerobot_write.split_for_lerobot(Dataset([Episode(steps)] * 20, {"fps": 10}))
    assert len(counted) == 1


def test_a_rate_that_is_not_known_stays_unknown(tmp_path):
    lerobot.write(Dataset(list(closed())), tmp_path / "out")
    assert open_dataset(tmp_path / "out").fps is None
    assert json.loads((tmp_path / "out/meta/info.json").read_text())["fps"] == 10  # lerobot needs a number


# -- npz ------------------------------------------------------------------------------------------------------------


def _npz(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def _flat(extra=0):
    parts = [closed_form.episode(e, extra, images=False) for e in range(4)]
    return {k: np.concatenate([p[k] for p in parts]) for k in ("state", "action", "reward", "terminated", "truncated")}


ENDS = np.cumsum(closed_form.LENGTHS)


def test_npz_arrays_become_columns_by_name_and_facts_by_length(tmp_path):
    flat = _flat()
    path = _npz(tmp_path / "d.npz", observations=flat["state"], actions=flat["action"], rewards=flat["reward"][:, None],
                terminals=flat["terminated"].astype(np.float32), timeouts=flat["truncated"], episode_ends=ENDS,
                seed=np.arange(4), **{"next.success": flat["terminated"], "observation.force": flat["reward"]})
    data = open_dataset(path)
    assert data.metadata["format"] == "npz" and data.fps is None
    assert list(data.features()) == ["observation.state", "action", "next.reward", "next.terminated", "next.truncated",
                                     "next.success", "observation.force"]
    for e, episode in enumerate(data):
        c = closed_form.episode(e, images=False)
        for name, key in (("observation.state", "state"), ("action", "action"), ("next.reward", "reward"),
                          ("next.terminated", "terminated"), ("next.truncated", "truncated")):
            np.testing.assert_array_equal(episode.steps[name], c[key])
        assert episode.steps["next.terminated"].dtype == bool and episode.metadata == {"seed": e}
        json.dumps(episode.metadata)


@pytest.mark.parametrize("how", ["next_observations", "one row more", "both"])
def test_npz_last_observations(how, tmp_path):
    flat, longer = _flat(), _flat(extra=1)["state"]
    following = np.concatenate([closed_form.episode(e, 1, images=False)["state"][1:] for e in range(4)])
    given = {} if how == "one row more" else {"next_observations": following}
    path = _npz(tmp_path / "d.npz", observations=flat["state"] if how == "next_observations" else longer,
                actions=flat["action"], episode_ends=ENDS, **given)
    for e, episode in enumerate(open_dataset(path)):
        expected = closed_form.episode(e, 1, images=False)["state"]
        np.testing.assert_array_equal(episode.steps["observation.state"], expected)
        assert len(episode) == closed_form.LENGTHS[e]


@pytest.mark.parametrize("fps", [10, 29.97, np.float32(15)])
def test_npz_says_its_rate(fps, tmp_path):
    flat = _flat()
    data = open_dataset(_npz(tmp_path / "d.npz", observations=flat["state"], actions=flat["action"], episode_ends=ENDS,
                             fps=fps))
    assert data.fps == fps and "fps" not in data.features() and "fps" not in data[0].metadata


def test_npz_files_of_one_name_size_and_time_are_not_confused(tmp_path):
    """As a script makes them that writes one small file a seed."""
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        np.savez(tmp_path / str(seed) / "data.npz", observations=np.full((4, 2), float(seed)), actions=np.zeros((4, 1)),
                 episode_ends=np.array([4]))
        os.utime(tmp_path / str(seed) / "data.npz", ns=(10**18, 10**18))
    assert (tmp_path / "1/data.npz").stat().st_size == (tmp_path / "2/data.npz").stat().st_size
    for seed in (1, 2):
        assert (open_dataset(tmp_path / str(seed) / "data.npz")[0].steps["observation.state"] == seed).all()


def test_npz_stored_column_by_column_or_plainly_reads_the_same(tmp_path):
    flat = _flat()
    prints = set()
    for name, save, order in (("a", np.savez, "C"), ("b", np.savez_compressed, "F"), ("c", np.savez, "F")):
        save(tmp_path / f"{name}.npz", observations=np.asarray(flat["state"], order=order), actions=flat["action"],
             episode_ends=ENDS)
        prints.add(open_dataset(tmp_path / f"{name}.npz").fingerprint())
    assert len(prints) == 1


@pytest.mark.parametrize("name, episodes, steps, last", [
    ("hand_dapg/adroit_door_human", 25, 6729, 0), ("cs285/hopper_expert", 2, 2000, 1), ("cs285/ant_expert", 2, 2000, 1),
    ("cs285/walker2d_expert", 2, 2000, 1), ("cs285/halfcheetah_expert", 2, 2000, 1),
    ("stable_baselines/cartpole_expert", 100, 49527, 0), ("stable_baselines/pendulum_expert", 100, 20000, 0),
    ("imitation/cartpole_expert", 57, 26964, 1), ("imitation/pendulum_expert", 56, 11200, 1)])
def test_recorded_npz_files_open(name, episodes, steps, last, shared, tmp_path):
    path = shared / "data" / f"{name}.npz"
    data = open_dataset(path)
    assert (len(data), data.steps) == (episodes, steps)
    with np.load(path) as raw:
        ends, observations = raw["episode_ends"], raw["observations"]
        for e in (0, episodes - 1):
            begin = (ends[e - 1] if e else 0) + (e if len(observations) > steps else 0)
            n = len(data[e]) + (last if len(observations) > steps else 0)
            seen = data[e].steps["observation.state"]
            np.testing.assert_array_equal(seen[:n], observations[begin:begin + n])
            assert len(seen) == len(data[e]) + last
    lerobot.write(data, tmp_path / "out")
    assert open_dataset(tmp_path / "out").fingerprint() == data.fingerprint()


# -- memory, the cache ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def million(tmp_path_factory):
    """A file of 1,000,000 steps in 1,000 episodes: 120 MB of numbers, of which float32 `observations` count upward."""
    path = tmp_path_factory.mktemp("million") / "data.npz"
    count = np.arange(1_000_000, dtype=np.float64)
    np.savez(path, observations=np.repeat(count.astype(np.float32)[:, None], 20, 1),
             actions=np.repeat(count.astype(np.float32)[:, None], 10, 1), episode_ends=np.arange(1000, 1_000_001, 1000))
    return path


def test_a_million_steps_stay_on_disk_and_are_gathered_where_they_lie(million):
    tracemalloc.start()
    data = open_dataset(million)
    pack = PackedColumns.from_episodes(data, ["observation.state", "action"])
    windows = Window(n_obs_steps=2, horizon=8).windows(data, ("observation.state",), "action")
    batch = windows.batch(4096, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6 < 120e6  # of 120 MB; mapped pages are not counted, copies would be
    for name, column in pack.columns.items():
        assert np.shares_memory(column.array, data[0].steps[name]) and len(column.array) == 1_000_000
        assert np.shares_memory(column.array, data[999].steps[name])
    at = batch.extra["index"][:, 0].numpy()
    expected = at[:, None] + np.arange(8)
    inside = batch.mask.numpy()
    np.testing.assert_array_equal(batch.action[..., 0].numpy()[inside], expected.astype(np.float32)[inside])
    np.testing.assert_array_equal(batch.obs["observation.state"][:, 1, 0].numpy(), at.astype(np.float32))


def test_no_python_runs_per_sample(million):
    windows = Window(n_obs_steps=2, horizon=8).windows(open_dataset(million), ("observation.state",), "action")

    def calls(size):
        count = 0

        def see(frame, event, argument):
            nonlocal count
            count += event == "call"
        sys.setprofile(see)
        windows.batch(size, 0)
        sys.setprofile(None)
        return count
    calls(8)
    assert calls(8192) == calls(8)


def test_last_rows_are_gathered_where_they_lie_too(tmp_path):
    lerobot.write(closed(), tmp_path / "out")
    data = open_dataset(tmp_path / "out")
    pack = PackedColumns.from_episodes(data, ["observation.state", "action"])
    assert len(pack.columns["observation.state"].array) == 22 + 4 and len(pack.columns["action"].array) == 22
    assert all(np.shares_memory(c.array, data[0].steps[n]) for n, c in pack.columns.items())
    assert not pack.columns["action"].array.flags.writeable


@pytest.mark.parametrize("numbers", [range(4), [2, 0], [3, 3, 1]])
@pytest.mark.parametrize("size", [None, 16])
def test_windows_of_stored_episodes_are_those_of_copies(numbers, size, tmp_path):
    """Gathered where they lie, from all of the data set or from some of it, in another order."""
    lerobot.write(closed(images=True), tmp_path / "out", images="png")
    stored = open_dataset(tmp_path / "out", image_size=size).select(numbers)
    copies = Dataset([Episode({k: np.array(v) for k, v in e.steps.items()}, e.metadata) for e in stored])
    assert stored.fingerprint() == copies.fingerprint() and stored.steps == copies.steps
    window = Window(n_obs_steps=2, horizon=3, action_offset=-1)
    for name in ("observation.state", CAMERA):
        a, b = (next(window.windows(d, (name,), "action").scan()) for d in (stored, copies))
        assert torch.equal(a.obs[name], b.obs[name]) and torch.equal(a.action, b.action) and torch.equal(a.mask, b.mask)
    if size is not None:  # of the episodes that were picked, too, nothing is copied
        pack = PackedColumns.from_episodes(stored, ["action", CAMERA])
        assert all(np.shares_memory(c.array, stored[0].steps[n]) for n, c in pack.columns.items())


def test_a_changed_file_is_read_anew(tmp_path):
    path = tmp_path / "data"
    lerobot.write(closed(), path)
    first = open_dataset(path).fingerprint()
    lerobot.append(path, closed(numbers=[3]))
    assert len(open_dataset(path)) == 5 and open_dataset(path).fingerprint() != first
    flat = _flat()
    npz = _npz(tmp_path / "d.npz", observations=flat["state"], actions=flat["action"], episode_ends=ENDS)
    old = open_dataset(npz)[0].steps["action"].copy()
    _npz(npz, observations=flat["state"], actions=flat["action"] + 1, episode_ends=ENDS)
    np.testing.assert_array_equal(open_dataset(npz)[0].steps["action"], old + 1)


def _entry(key, n, value=0):
    def build(part):
        cache.create_array(part, "a/b", (n,), np.uint8)[:] = value
    return cache.memmap_arrays(key, n, build, "test")["a/b"]


def test_the_cache_is_bounded_and_forgets_what_was_used_longest_ago(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE_GB", "0.001")
    monkeypatch.setattr(cache, "_held", set())
    for i, key in enumerate("abc"):
        _entry(key * 32, 300_000, i)
        os.utime(tmp_path / "cache" / (key * 32), (1000 + i, 1000 + i))
    assert _entry("a" * 32, 300_000)[0] == 0  # used again: now the youngest
    cache._held.clear()
    _entry("d" * 32, 300_000)
    left = {p.name[0] for p in (tmp_path / "cache").iterdir() if not p.name.startswith(".")}
    assert left == {"a", "c", "d"}
    with pytest.raises(UserError, match="needs 0.00 GB of cache, which may hold 0.00 GB|UNDERSTUDY_CACHE_GB"):
        _entry("e" * 32, 2_000_000)
    monkeypatch.setenv("UNDERSTUDY_CACHE_GB", "lots")
    with pytest.raises(UserError, match="must be a positive number of gigabytes, not 'lots'"):
        _entry("f" * 32, 10)


def test_what_this_process_reads_is_not_removed(monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE_GB", "0.0005")
    a = _entry("1" * 32, 400_000, 5)
    _entry("2" * 32, 400_000, 6)
    assert cache.contains("1" * 32) and a[0] == 5


def test_a_damaged_or_half_built_entry_is_made_again(tmp_path):
    flat = _flat()
    path = _npz(tmp_path / "d.npz", observations=flat["state"], actions=flat["action"], episode_ends=ENDS)
    whole = open_dataset(path).fingerprint()
    file = next((tmp_path / "cache").glob("*/action.npy"))
    file.write_bytes(file.read_bytes()[:150])
    assert open_dataset(path).fingerprint() == whole
    entry = file.parent
    entry.rename(entry.with_name(f".{entry.name}.killed.part"))  # as a killed builder leaves it
    assert open_dataset(path).fingerprint() == whole
    assert not list((tmp_path / "cache").glob(".*.part"))


_TOGETHER = """
import sys, time
import numpy as np
from understudy.data import cache
from understudy.data.formats import open_dataset
def build(part):
    print("built")
    time.sleep(0.5)
    cache.create_array(part, "x", (1000,), np.uint8)[:] = 7
print("ready", flush=True)
sys.stdin.readline()
assert (cache.memmap_arrays("0" * 32, 1000, build, "test")["x"] == 7).all()
print(open_dataset(sys.argv[1], image_size=16).fingerprint())
"""


@pytest.mark.slow
def test_processes_that_want_the_same_at_once_make_it_once(tmp_path):
    lerobot.write(closed(images=True), tmp_path / "out", images="png")
    runs = [subprocess.Popen([sys.executable, "-c", _TOGETHER, str(tmp_path / "out")], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [r.stdout.readline() for r in runs] == ["ready\n"] * 3
    for r in runs:
        r.stdin.write("go\n")
        r.stdin.flush()
    said = [line for r in runs for line in r.communicate(timeout=120)[0].split()]
    assert sorted(said) == sorted(["built", *3 * [open_dataset(tmp_path / "out", image_size=16).fingerprint()]])
    assert len([p for p in (tmp_path / "cache").iterdir() if not p.name.startswith(".")]) == 3


# -- frames ---------------------------------------------------------------------------------------------------------


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
    data, seen = open_dataset(LEROBOT / folder), []
    cost = frame_cost(data, (16, 32))
    assert (cost.frames, cost.bytes) == (22, 22 * 16 * 32 * 3) and cost.seconds > 0
    framed = open_dataset(LEROBOT / folder, image_size=(16, 32), progress=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (22, 22)
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


# -- what it says of itself -----------------------------------------------------------------------------------------


def test_describe(tmp_path):
    lerobot.write(closed(images=True), tmp_path / "out")
    said = describe(open_dataset(tmp_path / "out"))
    assert json.loads(json.dumps(said)) == said
    assert (said["format"], said["version"], said["episodes"], said["steps"], said["fps"]) == (
        "lerobot", "v3.0", 4, 22, 10)
    assert said["features"]["observation.state"] == {"dtype": "float32", "shape": [3], "names": None}
    assert said["features"][CAMERA] == {"dtype": "uint8", "shape": [64, 64, 3], "names": None}
    assert said["tasks"] == closed_form.TASKS and said["warnings"] == []


def test_findings_of_data_in_memory():
    n = 6
    steps = {"observation.state": np.stack([np.arange(n), np.full(n, 3)], 1).astype(np.float32),
             "action": np.array([[1.0], [np.nan], [2], [np.inf], [3], [4]]), "timestamp": np.arange(n) / 25}
    found = find_problems(Dataset([Episode(steps)], {"fps": 10, "warnings": ["said before"]}))
    assert [f.message for f in found] == [
        "action: 2 values not finite, the first is action[0] of episode 0, step 1",
        "timestamps are 0.04 s apart (25 a second), fps says 10",
        "said before",
        "no observation after the last action: methods that need the next observation skip the last step of each "
        "episode",
        "observation.state: 1 component of 2 never changes: 1"]
