"""Merges, and disagreements between data sets."""

from __future__ import annotations

import numpy as np
import pytest
from fixtures.views import changed, demonstrations, document, run

from understudy.audit.compatibility import action_convention, find_disagreements
from understudy.core import DataError, Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.mixture import mix
from understudy.data.opening import views
from understudy.data.operations import (
    Drop,
    Merge,
    Rename,
    episode_values,
)
from understudy.data.packed_columns import PackedColumns
from understudy.data.replay_buffer import ReplayBuffer

STATE, ACTION = "observation.state", "action"


def arm(seed=0, absolute=False, turn=0.0, gain=1.0, scale=1.0, names=None, unit=None, fps=10.0, dtype=np.float64):
    """Two joints that a person moves along smooth curves; actions are where to be, or by how much to move."""
    rng, episodes = np.random.default_rng(seed), []
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    for _ in range(20):
        t, phase, speed = np.arange(61)[:, None] / 10, rng.uniform(0, 6, 2), rng.uniform(0.5, 1.5, 2)
        state = np.sin(t * speed + phase) + rng.normal(size=2) * 0.3
        action = state[1:] if absolute else np.diff(state, axis=0) @ rotation * gain
        columns = {STATE: (state * scale).astype(dtype), ACTION: action}
        schema = {STATE: Feature(np.dtype(dtype).name, (2,), names=names, unit=unit), ACTION: Feature("float64", (2,))}
        episodes.append(Episode(columns, {}, 60, schema))
    return Dataset(episodes, {"fps": fps})


def test_the_convention_of_actions_is_told_from_the_data():
    assert action_convention(arm()) == "delta" and action_convention(arm(absolute=True)) == "absolute"
    assert action_convention(demonstrations((60,) * 4)) == ""  # noise follows neither


@pytest.mark.parametrize("other, code, severity", [
    (arm(1, absolute=True), "action-convention-differs", "error"),
    (arm(1, turn=np.pi / 2), "action-effect-differs", "error"),
    (arm(1, gain=-1), "action-effect-differs", "error"), (arm(1, scale=57.3), "scale-differs", "error"),
    (arm(1, names=("y", "x")), "names-differ", "error"),
    (arm(1, names=("x", "y"), unit="deg"), "unit-differs", "error"),
    (arm(1, fps=30.0), "fps-differs", "error"), (arm(1, fps=None), "fps-unknown", "warning"),
    (arm(1, dtype=np.float32), "dtype-differs", "warning"), (Drop((STATE,)).apply(arm(1)), "columns-differ", "error"),
    (changed(arm(1), lambda v: np.concatenate([v, v], 1)), "shape-differs", "error"),
    (changed(arm(1), lambda v: np.round(v).astype(int)), "kind-differs", "error"),
    (changed(arm(1), lambda v: 2 * (v - v.min(0)) / np.ptp(v, 0) - 1), "normalization-differs", "error")])
def test_each_disagreement_is_named(other, code, severity):
    first = arm(names=("x", "y"), unit="rad") if code in ("names-differ", "unit-differs") else arm()
    if code == "normalization-differs":
        low, high = (f(np.concatenate([e.steps[STATE] for e in arm(1)]), axis=0) for f in (np.min, np.max))
        other = Dataset([Episode({STATE: 2 * (e.steps[STATE] - low) / (high - low) - 1, ACTION: e.steps[ACTION]}, {})
                         for e in arm(1)], {"fps": 10.0})
        first = arm(scale=3.0)
    findings = {f.code: f for f in find_disagreements({"a": first, "b": other})}
    assert code in findings and findings[code].severity == severity, findings
    assert "in a" in findings[code].message and "in b" in findings[code].message


def test_what_agrees_is_not_complained_of():
    for absolute in (False, True):
        assert find_disagreements({"a": arm(0, absolute), "b": arm(1, absolute), "c": arm(2, absolute)}) == []


def test_merge_refuses_errors_unless_told_otherwise(tmp_path, capsys):
    write_dataset(arm(), tmp_path / "a")
    write_dataset(arm(1, fps=30.0), tmp_path / "b")
    assert run("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "v.json") == 2
    captured = capsys.readouterr()
    assert "fps-differs" in captured.out and "--ignore fps-differs" in captured.err
    assert not (tmp_path / "v.json").exists()
    despite = ["--ignore", "fps-differs", "--ignore", "action-effect-differs"]
    assert run("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "v.json", *despite) == 0
    data = open_dataset(tmp_path / "v.json")
    assert len(data) == 40 and data.fps is None
    assert any("fps-differs" in f for f in views.read_view(tmp_path / "v.json").created_with["findings"])
    assert run("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "v.json", *despite) == 2  # it is there
    assert run("merge", tmp_path / "a", "--out", tmp_path / "w.json") == 2


def test_columns_that_cannot_be_merged_are_left_out_and_named(tmp_path, capsys):
    write_dataset(demonstrations(), tmp_path / "a", images="png")
    other = Drop((STATE, "task")).apply(Rename("next.success", "flag").apply(demonstrations(seed=1)))
    write_dataset(other, tmp_path / "b", images="png")
    assert run("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "v.json", "--json") == 2
    capsys.readouterr()
    assert run("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "v.json", "--ignore", "columns-differ",
               "--json") == 0
    assert set(document(capsys)["left_out"]) == {STATE, "next.success", "flag"}
    assert STATE not in open_dataset(tmp_path / "v.json").features()


@pytest.mark.parametrize("first", [0, 1])
def test_tasks_and_outcomes_stay_where_columns_and_metadata_meet(first, tmp_path):
    columns = demonstrations((5, 4))
    columns = Dataset([Episode(dict(e.steps), {}, len(e), e.schema) for e in columns], columns.metadata)
    metadata = Drop(("task", "next.success")).apply(demonstrations((5, 4), seed=1))
    metadata = Dataset([Episode(dict(e.steps), {"task": task, "success": i > 0}, len(e), e.schema)
                        for i, (e, task) in enumerate(zip(metadata, ("push", "pull"), strict=True))], columns.metadata)
    sets = [columns, metadata][::1 - 2 * first]
    for i, data in enumerate(sets):
        write_dataset(data, tmp_path / f"{i}", images="png")
    assert run("merge", tmp_path / "0", tmp_path / "1", "--out", tmp_path / "v.json", "--ignore", "columns-differ") == 0
    merged = open_dataset(tmp_path / "v.json")
    for field in ("task", "success"):
        expected = [v for data in sets for v in episode_values(data, field)]
        assert episode_values(merged, field) == expected and None not in expected


def test_numbers_of_two_widths_are_read_as_the_wider():
    wide = Merge().apply(arm(0, dtype=np.float32), arm(1))
    assert {e.steps[STATE].dtype for e in wide} == {np.dtype("float64")} and wide.features()[STATE].dtype == "float64"


BIG = 2**60 + np.arange(30)  # float64 rounds them to one number


def with_ids(ids) -> Dataset:
    columns = {"id": np.asarray(ids), STATE: np.zeros((len(ids), 1)), ACTION: np.zeros((len(ids), 1), np.float32)}
    features = {name: Feature.from_array(column) for name, column in columns.items()}
    return Dataset([Episode(columns, {}, len(ids), features)], {"fps": 10.0})


def joined(one, other) -> dict[str, Dataset]:
    return {"merge": Merge().apply(one, other), "sum": one + other, "mix": mix((one, 0.5), (other, 0.5))[0],
            "buffer": ReplayBuffer(one).extend(other)}


@pytest.mark.parametrize("way", ["merge", "sum", "mix", "buffer"])
@pytest.mark.parametrize("dtypes", [("int64", "uint64"), ("uint64", "int64")])
def test_integers_of_two_kinds_stay_what_they_are(dtypes, way):
    """NumPy makes them float64, in which 30 numbers near 2**60 are one."""
    data = joined(*(with_ids(BIG.astype(dtype)) for dtype in dtypes))[way]
    packed = PackedColumns.from_episodes(data, ["id"]).columns["id"].array[:60]
    assert packed.dtype == np.int64 and packed.tolist() == 2 * BIG.tolist()
    if way == "merge":
        assert data.features()["id"] == Feature("int64", (), "discrete")
        assert data[1].steps["id"].tolist() == BIG.tolist()


@pytest.mark.parametrize("way", ["merge", "sum", "mix", "buffer"])
@pytest.mark.parametrize("ids, others, says", [
    (BIG, np.full(30, 0.5), "float64 does not hold 1152921504606846977"),
    (BIG.astype(np.uint64), np.full(30, 0.5, np.float32), "float64 does not hold 1152921504606846977"),
    (-BIG, np.full(30, 0.5), "float64 does not hold -1152921504606846977"),
    (np.array([1, 2**64 - 1], np.uint64), np.array([-1, 1]), "int64 does not hold 18446744073709551615")])
def test_numbers_that_no_common_type_holds_are_refused(ids, others, says, way):
    for pair in ((with_ids(ids), with_ids(others)), (with_ids(others), with_ids(ids))):
        with pytest.raises(DataError, match=f"'id', row 1: {says}"):
            PackedColumns.from_episodes(joined(*pair)[way], ["id"])


def test_integers_that_a_float_holds_are_read_as_quantities():
    for dtype, value in ((np.int32, 2**31 - 1), (np.int64, -(2**53)), (np.uint64, 2**63)):
        whole, fractions = with_ids(np.full(3, value, dtype)), with_ids(np.full(3, 0.5, np.float32))
        for pair in ((whole, fractions), (fractions, whole)):
            data = Merge().apply(*pair)
            assert data.features()["id"] == Feature("float64", (), "vector")
            assert {float(v) for e in data for v in e.steps["id"]} == {0.5, float(value)}


def test_fractions_are_not_read_as_classes_because_the_first_episode_has_whole_numbers():
    whole, fractions = (Dataset([Episode({ACTION: np.full((3, 1), v)}, {})]) for v in (1, 0.5))
    with pytest.raises(DataError, match="episode 1, column 'action': the numbers are float64, but int64 in episode 0"):
        PackedColumns.from_episodes(whole + fractions, [ACTION])
    packed = PackedColumns.from_episodes(fractions + whole, [ACTION]).columns[ACTION].array
    assert packed.tolist() == [[0.5]] * 3 + [[1.0]] * 3
    assert Merge().apply(whole, fractions).features()[ACTION].kind == "vector"


def test_a_merge_says_as_what_it_reads_a_column_and_names_the_number_that_would_change(tmp_path, capsys):
    for name, ids in (("a", BIG), ("b", BIG.astype(np.uint64)), ("c", np.arange(30) / 7)):
        write_dataset(with_ids(ids), tmp_path / f"{name}.npz")
    a, b, c = (tmp_path / f"{name}.npz" for name in "abc")
    assert run("merge", a, b, "--out", tmp_path / "v.json", "--ignore", "kind-differs") == 0
    assert "otherwise it is read as int64\n" in capsys.readouterr().out
    assert [e.steps["id"].tolist() for e in open_dataset(tmp_path / "v.json")] == 2 * [BIG.tolist()]
    assert run("merge", c, a, "--out", tmp_path / "w.json", "--ignore", "kind-differs") == 2
    captured = capsys.readouterr()
    assert "otherwise it is read as float64 (vector)\n" in captured.out
    assert f"{a}, episode 0, column 'id', row 1: float64 does not hold" in captured.err
    assert not (tmp_path / "w.json").exists()


def test_a_column_of_text_and_numbers_is_said_to_be_left_out():
    text = {f.code: f for f in find_disagreements({"a": with_ids(BIG), "b": with_ids(np.array(["x"] * 30))})}
    assert text["kind-differs"].remedy == "store it as one kind; otherwise it is left out"


@pytest.mark.parametrize("suffix", ["npz", "zarr", "hdf5"])
def test_a_number_that_the_type_of_the_first_episode_does_not_hold_is_not_written(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    for first, then, says in ((np.arange(30), np.full(30, 0.5), "int64 does not hold 0.5"),
                              (np.arange(30), np.full(30, np.nan), "int64 does not hold nan"),
                              (np.zeros(30), BIG, "float64 does not hold 1152921504606846977"),
                              (BIG, BIG.astype(np.uint64) + 2**63, "int64 does not hold"),
                              (np.zeros(30, np.uint8), np.full(30, 300), "uint8 does not hold 300")):
        with pytest.raises(DataError, match=f"episode 1, column 'id', row [01]: {says}"):
            write_dataset(with_ids(first) + with_ids(then), path)
        assert not path.exists()
    write_dataset(with_ids(BIG) + with_ids(BIG.astype(np.uint64)), path)
    assert [e.steps["id"].tolist() for e in open_dataset(path)] == 2 * [BIG.tolist()]
