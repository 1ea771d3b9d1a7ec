"""benchmarks/vision.py: its tables, and that it runs."""

from __future__ import annotations

import sys

import pytest
from folders import BENCHMARKS

from understudy.files import write_json


@pytest.fixture
def vision(monkeypatch, tmp_path):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # else it starts this process again
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import vision

    monkeypatch.setattr(vision.measure, "RESULTS", tmp_path)
    yield vision
    vision.environment.cache_clear()
    vision.demonstrations.cache_clear()
    sys.modules.pop("vision")


def write_cells(vision, task, seed, won):
    for name in vision.NAMES:
        write_json(vision.cell_path(vision.FULL, task, seed, name), {
            "success": won[name], "updates": 7, "demonstrations": 5, "seconds": {"training": 2.0}})


def test_the_gain_is_over_the_policy_that_sees_no_image(vision):
    won = {name: [1, 0, 0, 0] for name in vision.NAMES} | {"conv": [1, 1, 1, 0]}
    write_cells(vision, "push", 0, won)
    assert vision.page_text(vision.FULL) == ""  # one seed has no interval
    write_cells(vision, "push", 1, won)
    text = vision.page_text(vision.FULL)
    assert "5 demonstrations, 2 training seeds, 4 starts" in text and "button" not in text
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.splitlines() if line.startswith("| ")}
    assert rows["conv"][1].startswith("75 [") and rows["conv"][2].startswith("+50 [")
    assert rows["state"][2].startswith("+0 [") and rows["no-image"][2].strip() == ""
    assert list(rows)[1] == "conv"  # the best comes first


def test_all_policies_read_the_same_but_for_the_image(vision):
    task = vision.TASKS["push"]
    inputs = {name: m.policy.inputs for name, m in vision.methods(task, 10).items()}
    assert inputs.pop("state") == (task.whole,) and inputs.pop("no-image") == ("observation.state",)
    assert set(inputs.values()) == {(task.camera, "observation.state")}


@pytest.mark.slow
def test_it_runs_and_keeps_what_it_did(vision):
    vision.run(vision.TINY, ["push"], float("inf"))
    before = {path: path.stat().st_mtime_ns for path in vision.measure.RESULTS.rglob("*.json")}
    assert len(before) == 2 * len(vision.NAMES) and "| conv |" in vision.page_text(vision.TINY)
    vision.run(vision.TINY, ["push"], float("inf"))
    assert before == {path: path.stat().st_mtime_ns for path in vision.measure.RESULTS.rglob("*.json")}
