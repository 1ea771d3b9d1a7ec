"""benchmarks/equal_steps.py: the table on cells that are made up, and equal steps of the supervisor for a method."""

from __future__ import annotations

import sys

import pytest
from folders import BENCHMARKS

from understudy.envs import make
from understudy.files import read_json, write_json


@pytest.fixture
def equal_steps(monkeypatch, tmp_path):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # else it starts this process again
    monkeypatch.chdir(BENCHMARKS.parent)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import equal_steps

    monkeypatch.setattr(equal_steps.measure, "RESULTS", tmp_path)
    (tmp_path / equal_steps.TINY.folder).mkdir()
    yield equal_steps
    sys.modules.pop("equal_steps")


def test_methods_are_compared_with_more_demonstrations_of_the_same_seeds(equal_steps):
    """Of 100 starts the rival has 40 and 60, `iwr` 71 and 89: 31 and 29 more. `sirius` has the second seed alone."""
    size = equal_steps.TINY
    for name, *both in (("cloning", 20, 20), ("more demonstrations", 40, 60), ("iwr", 71, 89), ("sirius", 80, 80)):
        for seed, wins in list(zip(size.seeds, both, strict=True))[name == "sirius":]:
            rounds = [] if name == "cloning" else [{"acted": 100 + seed, "labeled": 0, "watched": 7, "episodes": 3}] * 2
            write_json(equal_steps.cell(size, "push", name, seed), {
                "seed": seed, "successes": [1] * wins + [0] * (100 - wins), "rounds": rounds, "seconds": 90.0})
    text = equal_steps.page_text(size)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines] == ["|", "| more demonstrations: success, %", "| cloning", "| iwr"]
    assert lines[0] == "| | push |"
    # Student's t with one degree of freedom is 12.706, and the standard error of the gains is 1 point
    assert lines[2:] == ["| cloning | −30 [−157, +97] |", "| iwr | +30 [+17, +43] |"]


def test_a_cell_has_the_steps_that_the_supervisor_acted(equal_steps, monkeypatch):
    fork = equal_steps.Task(*[lambda rows: make("fork", rows=rows)] * 2, 4)
    monkeypatch.setitem(equal_steps.TASKS, "push", fork)
    size = equal_steps.Size("equal-steps-tiny", (0,), 4, 2, 20, 3)
    equal_steps.run_seed("push", 0, size, ("more demonstrations", "safe"), float("inf"))
    more, safe = (read_json(equal_steps.cell(size, "push", n, 0)) for n in ("more demonstrations", "safe"))
    assert len(more["rounds"]) == 1 and more["rounds"][0]["acted"] >= 20 and len(more["successes"]) == 3
    assert [r["acted"] >= 10 or r["episodes"] == 40 for r in safe["rounds"]] == [True, True]
    assert not any(r["labeled"] for r in safe["rounds"])
