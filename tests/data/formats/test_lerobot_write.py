"""LeRobot: what is written and appended comes back, whatever happens in between."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from fixtures import closed_form
from fixtures.lerobot_files import CAMERA, FOLDERS, LEROBOT, closed
from folders import TESTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.core import Feature, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import lerobot, lerobot_write, open_dataset


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


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


def test_a_task_in_the_metadata_is_one_of_lerobots_tasks(tmp_path):
    data = Dataset([e.replace({"task": None}) for e in closed()], {"fps": 10})
    data = Dataset([replace(e, metadata={"task": text}) for e, text in zip(data, "abba", strict=True)], data.metadata)
    lerobot.write(data, tmp_path / "out")
    assert pq.read_table(tmp_path / "out/meta/tasks.parquet")["task"].to_pylist() == ["a", "b"]
    assert open_dataset(tmp_path / "out").fingerprint() == data.fingerprint()  # it has no new column
    shutil.rmtree(tmp_path / "out" / "meta" / "understudy")
    assert [e.steps["task"][0] for e in open_dataset(tmp_path / "out")] == [*"abba"]


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
    folder = tmp_path_factory.mktemp("any")
    lerobot.write(data, folder / "whole")
    again = open_dataset(folder / "whole")
    assert again.fingerprint() == data.fingerprint() and again.fps == 12.5
    parts = [p for p in (data[:split], data[split:]) if len(p)]
    for part in parts:
        lerobot.append(folder / "parts", part)
    assert open_dataset(folder / "parts").fingerprint() == data.fingerprint()


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
    statistics = stats["observation.state"]
    np.testing.assert_allclose(statistics["mean"], state.mean(0), 1e-12)
    np.testing.assert_allclose(statistics["std"], state.std(0), 1e-12)
    np.testing.assert_array_equal(statistics["min"], state.min(0))
    np.testing.assert_array_equal(statistics["max"], state.max(0))
    assert statistics["count"] == [22] and stats["next.terminated"]["max"] == [True]
    np.testing.assert_allclose(statistics["q90"], np.quantile(state, 0.9, axis=0), 1e-12)


def test_statistics_of_images_are_those_of_their_pixels(tmp_path):
    image = np.random.default_rng(1).integers(3, 250, (7, 20, 30, 3), np.uint8)
    lerobot.write(Dataset([Episode({CAMERA: image, "action": np.zeros((7, 1))})], {"fps": 10}), tmp_path / "out")
    statistics = json.loads((tmp_path / "out/meta/stats.json").read_text())[CAMERA]
    pixels = image.reshape(-1, 3) / 255
    for name, value in (("min", pixels.min(0)), ("max", pixels.max(0)), ("mean", pixels.mean(0)),
                        ("std", pixels.std(0)), ("q01", np.quantile(pixels, 0.01, axis=0)),
                        ("q90", np.quantile(pixels, 0.9, axis=0))):
        np.testing.assert_allclose(np.array(statistics[name]), value.reshape(3, 1, 1), 1e-9)
    assert statistics["count"] == [7]


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
sys.path.insert(0, {tests!r})
import understudy.data.formats.lerobot_write as w
import understudy.files as f
from fixtures.lerobot_files import closed
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
        os.replace, w.sync_file = step(os.replace), step(w.sync_file)
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
    code = _KILLED.format(tests=str(TESTS), moments=moments, root=str(tmp_path))
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    statuses = [int(s) for s in process.stdout.split()]
    assert len(statuses) == moments, process.stderr
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
    broken = Dataset([*data[:3], data[3].replace({"action": np.zeros((12, 5), np.float32)})], data.metadata)
    with pytest.raises(UserError, match=r"episode 3, column 'action': a step is .*\(5,\) instead of float32 \(2,\)"):
        lerobot.write(broken, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    lerobot.write(data[:2], tmp_path / "out")
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="column 'action'"):
        lerobot.append(tmp_path / "out", broken[3:])
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
