"""Merges, and disagreements between data sets."""

from __future__ import annotations

import numpy as np
import pytest
from fixtures.views import changed, demonstrations, document, run

from understudy.audit.compatibility import action_convention, find_disagreements
from understudy.core import Feature
from understudy.data import views
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.operations import (
    Drop,
    Merge,
    Rename,
)

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
    assert set(document(capsys)["left_out"]) == {STATE, "next.success", "flag", "task"}
    assert STATE not in open_dataset(tmp_path / "v.json").features()


def test_numbers_of_two_widths_are_read_as_the_wider():
    wide = Merge().apply(arm(0, dtype=np.float32), arm(1))
    assert {e.steps[STATE].dtype for e in wide} == {np.dtype("float64")} and wide.features()[STATE].dtype == "float64"
