"""LeRobot v2.1 as it is written: its layout, file by file, and lerobot's own converter and reader on top of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from fixtures import closed_form
from fixtures.lerobot_files import CAMERA, LEROBOT, closed
from folders import TESTS

from understudy.cli import main
from understudy.core import UserError
from understudy.data import video
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import WRITERS, conversion_losses, open_dataset, write_dataset


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


def written(path, data=None, images="png"):
    write_dataset(closed(images=True) if data is None else data, path, "lerobot-v2.1", images=images)
    return path


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["v2.1/images", "v2.1/video", "v2.0/images"])
def test_what_lerobot_wrote_is_read_and_written_again_as_it_was(name, tmp_path):
    """Metadata, tables and statistics are those of lerobot 0.3.3 for the same values."""
    source = LEROBOT / name
    data = open_dataset(source)
    for e, episode in enumerate(data):
        want = closed_form.episode(e)
        assert np.array_equal(episode.steps["observation.state"], want["state"])
        assert np.array_equal(episode.steps["action"], want["action"])
        assert set(episode.steps["task"]) == {closed_form.task(e)}
    ours = written(tmp_path / "again", data, "video" if name.endswith("video") else "png")
    source_info, own_info = (json.loads((p / "meta/info.json").read_text()) for p in (source, ours))
    if name.startswith("v2.1"):
        assert list(own_info) == list(source_info)
    for f in (*source_info["features"].values(), *own_info["features"].values()):
        f["names"] = [str(n).removesuffix("s") for n in f["names"] or ()]  # channel, channels
        f.pop("info", None)
    assert {**own_info, "features": 0} == {**source_info, "features": 0, "codebase_version": "v2.1"}
    assert own_info["features"] == source_info["features"]
    for file in ("tasks", "episodes"):
        assert rows(ours / f"meta/{file}.jsonl") == rows(source / f"meta/{file}.jsonl")
    if name == "v2.1/images":
        for one, other in zip(*(rows(p / "meta/episodes_stats.jsonl") for p in (ours, source)), strict=True):
            assert list(one["stats"]) == list(other["stats"])
            for feature, stats in other["stats"].items():
                for statistic, value in stats.items():
                    np.testing.assert_allclose(one["stats"][feature][statistic], value, 1e-6, 1e-6)
    for e in range(4):
        file = f"data/chunk-000/episode_{e:06d}.parquet"
        one, other = pq.ParquetFile(ours / file), pq.ParquetFile(source / file)
        assert [f.name for f in one.schema_arrow] == [f.name for f in other.schema_arrow]
        for f in other.schema_arrow:
            if f.name != CAMERA:
                assert one.read()[f.name].to_pylist() == other.read()[f.name].to_pylist()
                assert one.schema_arrow.field(f.name).type == f.type or name.startswith("v2.0")


def test_everything_is_read_again(tmp_path):
    data = closed(images=True)
    again = open_dataset(written(tmp_path / "d"))
    assert again.fingerprint() == data.fingerprint() and again.metadata["version"] == "v2.1"
    assert len(again[0].steps["observation.state"]) == len(again[0]) + 1  # what was seen last
    assert "observation.state: the row after the last action" in map(
        str, conversion_losses(data, "lerobot-v2.1", images="png")
    )


def test_chunks_and_one_video_an_episode(tmp_path, monkeypatch):
    from understudy.data.formats import lerobot_v21

    whole = lerobot_v21._plan
    monkeypatch.setattr(lerobot_v21, "_plan", lambda *a: (p := whole(*a)).info.update(chunks_size=2) or p)
    path = written(tmp_path / "d", images="video")
    info = json.loads((path / "meta/info.json").read_text())
    assert (info["total_chunks"], info["total_videos"], info["total_frames"]) == (2, 4, 22)
    for e, n in enumerate(closed_form.LENGTHS):
        assert (path / f"data/chunk-{e // 2:03d}/episode_{e:06d}.parquet").exists()
        assert len(video.frame_times(path / f"videos/chunk-{e // 2:03d}/{CAMERA}/episode_{e:06d}.mp4")) == n
    again = open_dataset(path)
    for e in range(4):
        frames = again[e].steps[CAMERA][: closed_form.LENGTHS[e]].astype(int)
        assert np.abs(frames - closed(images=True)[e].steps[CAMERA][: len(frames)]).mean() < 4


@pytest.mark.slow
def test_lerobot_itself_reads_them(tmp_path):
    """By way of its converter to v3.0, which reads every file of a v2.1 data set; 0.3.3, which reads v2.1 itself, needs
    another PyTorch than we do."""
    rng = np.random.default_rng(0)
    unusual = Dataset([Episode({"observation.state": rng.normal(size=(n, 4)),
                                "observation.one": rng.normal(size=(n, 1)),
                                "action": rng.integers(0, 4, (n, 2)), "observation.on": rng.random((n, 3)) < 0.5,
                                "task": np.array(["reach", "grasp"])[rng.integers(0, 2, n)]}) for n in (4, 2, 7)],
                      {"fps": 12})  # of 12.5 the converter would make 12
    for name, data, images in (("png", None, "png"), ("video", None, "video"), ("odd", unusual, "png")):
        written(tmp_path / name, data, images)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    process = subprocess.run([sys.executable, str(TESTS / "upstream_lerobot_v21.py"), *(str(tmp_path / n) for n in (
        "png", "video", "odd"))], capture_output=True, text=True, env={**os.environ, **offline}, timeout=500)
    assert process.returncode == 0, f"pip install --no-deps -r benchmarks/peers/lerobot.txt?\n{process.stderr[-3000:]}"
    for name, data in (("png", closed(images=True)), ("video", closed(images=True)), ("odd", unusual)):
        upstream_arrays = dict(np.load(tmp_path / f"{name}.npz"))
        assert upstream_arrays["episodes"] == len(data) and float(upstream_arrays["fps"]) == data.fps
        for column in data.features():
            ours = np.concatenate([np.asarray(e.steps[column])[: len(e)] for e in data])
            values = upstream_arrays[column].reshape(ours.shape)
            if column == CAMERA and name == "video":
                assert np.abs(values.astype(int) - ours).mean() < 4
            else:
                assert np.array_equal(values, ours.astype(np.float32) if ours.dtype == np.float64 else ours), column
        actions = np.concatenate([e.steps["action"] for e in data]).astype(np.float64)
        np.testing.assert_allclose(upstream_arrays["stats:mean:action"], actions.mean(0), 1e-6, 1e-9)


def test_from_the_command_line(tmp_path, capsys):
    path = str(tmp_path / "d")
    assert main(["convert", str(LEROBOT / "v3.0/images"), path, "--to", "lerobot-v2.1"]) == 0
    capsys.readouterr()
    assert main(["inspect", path, "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert (description["version"], description["episodes"], description["steps"],
            description["fps"]) == ("v2.1", 4, 22, 10)
    assert open_dataset(path).fingerprint() == open_dataset(LEROBOT / "v3.0/images").fingerprint()
    assert main(["convert", str(LEROBOT / "v3.0/images"), path, "--to", "lerobot-v2.1"]) == 2
    assert "there is already a file or folder" in capsys.readouterr().err
    assert "lerobot-v2.1" in WRITERS


def test_nothing_is_left_of_a_write_that_fails(tmp_path):
    bad = Dataset([*closed(images=True, numbers=[0]), Episode({"action": np.zeros((3, 2), np.float32)})], {"fps": 10})
    with pytest.raises(UserError, match="episode 1, column"):
        written(tmp_path / "d", bad)
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == []
    with pytest.raises(UserError, match="there are no episodes"):
        written(tmp_path / "d", Dataset([]))


@pytest.mark.parametrize("change", [{"task_index": "?"}, {"task_index": True}, {"task": None}, {"task_index": None},
                                    {"task_index": 2**70}])
def test_tasks_that_are_no_numbered_texts_are_refused(change, tmp_path):
    file = written(tmp_path / "d") / "meta/tasks.jsonl"
    first, *others = rows(file)
    file.write_text("".join(json.dumps(r) + "\n" for r in [{**first, **change}, *others]))
    with pytest.raises(UserError, match=r"tasks.jsonl: a task needs an integer and a text, but has"):
        open_dataset(tmp_path / "d")


@pytest.mark.parametrize("shape", [["", 48, 3], [True, 48, 3], [0, 48, 3], [-32, 48, 3], [1.5, 48, 3]])
def test_a_picture_of_an_impossible_size_is_refused(shape, tmp_path):
    file = written(tmp_path / "d") / "meta/info.json"
    info = json.loads(file.read_text())
    name = next(n for n, f in info["features"].items() if f["dtype"] in ("image", "video"))
    info["features"][name] |= {"shape": shape, "names": ["height", "width", "channels"]}
    file.write_text(json.dumps(info))
    with pytest.raises(UserError, match=rf"{name}: .* is not the shape \(height, width, channels\) of an image"):
        open_dataset(tmp_path / "d")
