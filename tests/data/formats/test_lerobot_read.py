"""LeRobot: files of every version, and values that are read when they are needed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures import closed_form
from fixtures.lerobot_files import CAMERA, FOLDERS, LEROBOT

from understudy.core import Feature, UserError
from understudy.data.formats import open_dataset
from understudy.data.video import encode_png


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


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


@pytest.mark.parametrize("name, dtype, number", [
    ("observation.state", "int64", "0.25"), ("next.reward", "bool", "2.0"), ("next.reward", "uint8", "-1.0")])
def test_numbers_that_do_not_fit_the_type_in_the_metadata_are_refused_and_not_cut(name, dtype, number, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(LEROBOT / "v3.0/images", folder)
    info, file = json.loads((folder / "meta/info.json").read_text()), next(folder.glob("data/*/*.parquet"))
    info["features"][name]["dtype"] = dtype
    (folder / "meta/info.json").write_text(json.dumps(info))
    table = pq.read_table(file)
    if name == "next.reward":
        rewards = pa.array([float(number)] * len(table), table[name].type)
        pq.write_table(table.set_column(table.column_names.index(name), table.field(name), rewards), file)
    with pytest.raises(UserError, match=f"{name}: meta/info.json says {dtype}, which does not hold {number}"):
        open_dataset(folder)[1].steps[name]


def test_depth_images_are_not_read_as_pixels_of_8_bits(tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(LEROBOT / "v3.0/images", folder)
    file = next(folder.glob("data/*/*.parquet"))
    table, depth = pq.read_table(file), encode_png(np.full((8, 8, 1), 1500, np.uint16))
    images = pa.array([{"bytes": depth, "path": None}] * len(table), table[CAMERA].type)
    pq.write_table(table.set_column(table.column_names.index(CAMERA), table.field(CAMERA), images), file)
    with pytest.raises(UserError, match="frame 0, .*top: the image is gray of 16 bits, such as depth, but uint8"):
        open_dataset(folder)[1].steps[CAMERA]


def annotate(folder, **columns):
    """Adds columns to the table of episodes, as the annotation for SARM does."""
    file = next(folder.glob("meta/episodes/*/*.parquet"))
    table = pq.read_table(file)
    for name, values in columns.items():
        table = table.append_column(name, [values])
    pq.write_table(table, file)


@pytest.mark.parametrize("kind", ["", "sparse_", "dense_"])
def test_subtasks_are_the_segments_of_an_episode(kind, tmp_path):
    """Frames of the end are those after it. Episodes without subtasks, and subtasks without a frame, have none."""
    shutil.copytree(LEROBOT / "v3.0/images", tmp_path / "data")
    lengths = closed_form.LENGTHS
    columns = {"names": [["reach", "lift", "hold"], None, [], ["lift"]], "start_frames": [[0, 2, 900], None, [], [1]],
               "end_frames": [[2, 900, 901], None, [], [3]]}
    if kind == "dense_":
        annotate(tmp_path / "data", sparse_subtask_names=[["task"]] * 4)
    annotate(tmp_path / "data", **{f"{kind}subtask_{name}": values for name, values in columns.items()})
    metadata = [episode.metadata.get("segments") for episode in open_dataset(tmp_path / "data")]
    assert metadata == [[[0, 2, "reach"], [2, lengths[0], "lift"]], None, None, [[1, 3, "lift"]]]


def test_subtasks_with_fewer_frames_than_names_are_refused(tmp_path):
    shutil.copytree(LEROBOT / "v3.0/images", tmp_path / "data")
    columns = {"names": ["reach", "lift"], "start_frames": [0, 2], "end_frames": [2]}
    annotate(tmp_path / "data", **{f"subtask_{name}": [values] * 4 for name, values in columns.items()})
    with pytest.raises(UserError, match="episode 0 has 2 subtask_start_frames, 1 subtask_end_frames, 2 subtask_names"):
        open_dataset(tmp_path / "data")[0].metadata.get("segments")


def test_subtasks_without_their_frames_are_refused(tmp_path):
    shutil.copytree(LEROBOT / "v3.0/images", tmp_path / "data")
    annotate(tmp_path / "data", subtask_names=[["reach"]] * 4)
    with pytest.raises(UserError, match="there is no column 'subtask_start_frames'"):
        open_dataset(tmp_path / "data")[0].metadata.get("segments")
