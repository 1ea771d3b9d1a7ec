"""Statistics of LeRobot data sets are those of all rows, whoever wrote the first episodes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures.foreign_lerobot import FRONT, brightness, check_episode, state, times_of, write_table, write_v3

from understudy.audit import audit, check_usable
from understudy.cli import main
from understudy.core import Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import lerobot, lerobot_stats, open_dataset
from understudy.data.formats.lerobot_stats import QUANTILES, aggregate_statistics, number_statistics
from understudy.data.recording.recorder import Recorder

STATE, LENGTHS = "observation.state", [5, 3, 8]
SCHEMA = {STATE: Feature("float32", (3,), names=("a", "b", "c")), "action": Feature("float32", (3,),
          names=("a", "b", "c")), "task": Feature("string", (), "string")}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


def episodes(numbers, steps=10, image=False) -> Dataset:
    made = []
    for e in numbers:
        images = {FRONT: np.full((steps, 16, 16, 3), 10 + 12 * e, np.uint8)} if image else {}
        made.append(Episode({STATE: state(e, steps), "action": -state(e, steps), **images,
                             "task": np.full(steps, "a")}))
    return Dataset(made, {"fps": 10})


def check_stats(path: Path, names=(STATE, "action")) -> dict:
    """Compares meta/stats.json with the rows. Returns it."""
    data, stats = open_dataset(path), json.loads((path / "meta/stats.json").read_text())
    for name in names:
        values = np.concatenate([np.asarray(e.steps[name][:len(e)], np.float64) for e in data])
        expected = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0),
                    "count": [len(values)], **{q: np.quantile(values, share, axis=0) for q, share in QUANTILES.items()}}
        assert stats[name].keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(stats[name][key], value, rtol=1e-6, atol=1e-9, err_msg=f"{name} {key}")
    return stats


def test_quantiles_are_those_of_all_rows_however_they_are_written(tmp_path):
    """The last component is constant in an episode: the mean of the quantiles of episodes would have no width."""
    lerobot.write(episodes(range(20)), tmp_path / "whole")
    stats = check_stats(tmp_path / "whole")
    assert stats[STATE]["q99"][2] - stats[STATE]["q01"][2] == 19
    for numbers in ([0, 1], [2], range(3, 9)):
        lerobot.append(tmp_path / "parts", episodes(numbers))
        check_stats(tmp_path / "parts")
    assert main(["merge", str(tmp_path / "whole"), str(tmp_path / "parts"), "--out", str(tmp_path / "both")]) == 0
    assert main(["view", "make", str(tmp_path / "both"), "--delete", "3", "7", "--out", str(tmp_path / "v.json")]) == 0
    assert main(["view", "materialize", str(tmp_path / "v.json"), "--out", str(tmp_path / "less")]) == 0
    assert open_dataset(tmp_path / "less").steps == 270
    check_stats(tmp_path / "less")
    assert not [f for f in audit(tmp_path / "less").findings if f.code.startswith("quantiles")]


def test_quantiles_of_cameras_have_the_width_of_all_frames(tmp_path):
    for numbers in (range(8), range(8, 20), [20]):
        lerobot.append(tmp_path / "d", episodes(numbers, 4, image=True), images="png")
    stats = json.loads((tmp_path / "d/meta/stats.json").read_text())[FRONT]
    pixels = np.repeat(10 + 12 * np.arange(21), 4) / 255
    for key, value in {"mean": pixels.mean(), "std": pixels.std(),
                       **{q: np.quantile(pixels, s) for q, s in QUANTILES.items()}}.items():
        np.testing.assert_allclose(np.ravel(stats[key]), value, atol=1e-9, err_msg=key)


def test_quantiles_of_one_episode_stay_as_they_are():
    values = np.random.default_rng(0).normal(size=(1, 3, 1, 1))
    levels = np.sort(np.random.default_rng(1).normal(size=(7, 1, 3, 1, 1)), 0)
    keys = ("min", *QUANTILES, "max")
    part = {FRONT: {**dict(zip(keys, levels, strict=True)), "mean": values, "std": values, "count": np.array([[9]])}}
    pooled = aggregate_statistics([part])[FRONT]
    for key in keys:
        np.testing.assert_allclose(pooled[key], part[FRONT][key][0])


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
def test_numbers_of_several_files_and_axes(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_stats, "_IN_MEMORY", 100)  # larger columns are divided in a file
    rng = np.random.default_rng(0)
    values = (10 * rng.random((2, 50, 2, 3))).astype(dtype)
    for number, part in enumerate(values):
        write_table(tmp_path / f"{number}.parquet", {"action": pa.array(part.tolist())})
    files = [(tmp_path / "0.parquet", None), (tmp_path / "1.parquet", np.arange(10, 40))]
    stats = number_statistics(files, {"action": {"dtype": dtype, "shape": [2, 3]}})["action"]
    rows = np.concatenate([values[0], values[1, 10:40]]).reshape(-1, 3).astype(np.float64)
    assert stats["count"] == 80
    for key, share in QUANTILES.items():
        np.testing.assert_allclose(stats[key], np.quantile(rows, share, axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats["std"], rows.std(0), rtol=1e-9)


@pytest.mark.parametrize("component, shift, is_named", [(2, 0.0, False), (2, 12.0, True), (0, -0.1, True)])
def test_audit_names_quantiles_that_are_not_those_of_the_data(component, shift, is_named, tmp_path):
    lerobot.write(episodes(range(20)), tmp_path / "d")
    file = tmp_path / "d/meta/stats.json"
    stats = json.loads(file.read_text())
    stats[STATE]["q10"][component] += shift
    file.write_text(json.dumps(stats))
    named = [f.where.feature for f in audit(tmp_path / "d").findings if f.code.startswith("quantiles")]
    assert named == [STATE] * is_named


def test_audit_names_the_means_of_the_quantiles_of_episodes(tmp_path):
    lerobot.write(data := episodes(range(20)), tmp_path / "d")
    file = tmp_path / "d/meta/stats.json"
    stats = json.loads(file.read_text())
    for key, share in QUANTILES.items():
        stats[STATE][key] = np.mean([np.quantile(e.steps[STATE], share, axis=0) for e in data], 0).tolist()
    file.write_text(json.dumps(stats))
    assert "quantiles-averaged" in {f.code for f in audit(tmp_path / "d").findings}


# -- data sets of other software ---------------------------------------------------------------------------------------


def record(path: Path, number: int, steps: int = 6, task: str = "another task") -> None:
    with Recorder(SCHEMA, path, fps=10, clock=None) as r:
        for value in state(number, steps):
            r.step({STATE: value}, -value, {"task": task})
        r.end()


def _no_stats(path):
    (path / "meta/stats.json").unlink()


def _damaged_stats(path):
    (path / "meta/stats.json").write_text("{")


def _stats_of_fewer_rows(path):
    stats = json.loads((path / "meta/stats.json").read_text())
    fewer = {name: {**each, "count": [3], "mean": [9.0] * 3} for name, each in stats.items()}
    (path / "meta/stats.json").write_text(json.dumps(fewer))


def _stats_in_the_episode_table(path):
    """Of one column only, and without quantiles."""
    file = path / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    rows = [state(e, n) for e, n in enumerate(LENGTHS)]
    for key, of in (("mean", np.mean), ("std", np.std), ("min", np.min), ("max", np.max)):
        table = table.append_column(f"stats/{STATE}/{key}", [[of(values, 0).tolist() for values in rows]])
    pq.write_table(table, file)
    _no_stats(path)


def _columns_of_their_own(path):
    file = path / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(file).append_column("operator", [["ann", "bob", "cem"]]), file)


def _tasks_with_gaps(path):
    """Two numbers for one text, and the highest is not the number of tasks."""
    write_table(path / "meta/tasks.parquet", {"task_index": [0, 1, 3], "task": ["push", "push", "pull"]})


@pytest.mark.parametrize("change", [lambda path: None, _no_stats, _damaged_stats, _stats_of_fewer_rows,
                                    _stats_in_the_episode_table, _columns_of_their_own, _tasks_with_gaps])
def test_recording_into_a_data_set_of_other_software(change, tmp_path):
    path = write_v3(tmp_path / "d", LENGTHS)
    change(path)
    before = {p: p.read_bytes() for p in path.rglob("*-*.parquet")}
    for number in (3, 4):  # twice: the second time it has files of both
        record(path, number)
        check_stats(path)
    data = open_dataset(path)
    assert [len(e) for e in data] == [*LENGTHS, 6, 6]
    for e, episode in enumerate(data):
        check_episode(episode, e, len(episode))
        assert (np.asarray(episode.steps["task"]) == ("push" if e < 3 else "another task")).all()
    assert all(p.read_bytes() == content for p, content in before.items())
    check_usable(data, path)


def test_statistics_of_the_cameras_of_other_software_are_computed_once(tmp_path):
    path = write_v3(tmp_path / "d", LENGTHS, video_times=times_of(LENGTHS))
    for number in (3, 4):
        new = Episode({STATE: state(number, 6), "action": -state(number, 6), FRONT: np.repeat(
            np.full((1, 32, 48, 3), 200, np.uint8), 6, 0), "task": np.full(6, "b")})
        lerobot.append(path, Dataset([new], {"fps": 10}))
        shown = np.concatenate([*(brightness(e, n) for e, n in enumerate(LENGTHS)), [200] * 6 * (number - 2)]) / 255
        stats = check_stats(path)[FRONT]
        np.testing.assert_allclose(np.ravel(stats["mean"]), shown.mean(), atol=0.01)
        np.testing.assert_allclose(np.ravel(stats["q99"]), 200 / 255, atol=0.01)
        assert stats["count"] == [len(shown)]
