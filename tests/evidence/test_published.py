"""Published numbers: the status of a cell, by numbers worked out by hand, and figures that are refused."""

from __future__ import annotations

import math

import pytest

from evidence.published import CELLS, Cell, cells, interval, load, page, status
from evidence.published import running as runs
from understudy.core import UserError
from understudy.files import write_json

COMMIT = "0123456789" * 4


def figures(*values, updates=100):
    return [{"seed": seed, "value": value, "updates": updates, "seconds": 1.0, "versions": {"torch": "2"},
             "commit": COMMIT} for seed, value in enumerate(values)]


def cell(published, unit="return", **others):
    return Cell("a task", published, "OGBench", 100, 100, unit, **others)


def test_the_interval_is_students():
    """Values 1, 2, 3: mean 2, standard deviation 1, and t(2) at 97.5 % is 4.3027."""
    mean = interval([1, 2, 3])
    assert mean.estimate == 2
    assert mean.high - 2 == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4) == pytest.approx(2 - mean.low, abs=1e-4)


@pytest.mark.parametrize("published, values, expected", [
    (101, (99, 100, 101), "reproduced"),  # 100 +- 2.484
    (102.6, (99, 100, 101), "below"),
    (97.4, (99, 100, 101), "above"),
    (-150, (-145, -150, -155), "reproduced"),  # +- 12.42, and 10 % of the score is 15
    (-120, (-145, -150, -155), "approached (100 % of the updates)"),  # which is more than 12
])
def test_a_score_may_be_ten_percent_off(published, values, expected):
    assert status(cell(published), figures(*values)) == expected


def test_a_rate_may_be_ten_points_off():
    wide, narrow = figures(46, 50, 54.1), figures(46, 50, 54)  # +- 10.06 and +- 9.94
    assert status(cell(50, "%"), wide) == "approached (100 % of the updates)"
    assert status(cell(50, "%"), narrow) == "reproduced"


@pytest.mark.parametrize("updates, expected", [(50, "reproduced"), (49, "approached (49 % of the updates)"),
                                               (4, "approached (4 % of the updates)")])
def test_half_of_the_updates_are_needed(updates, expected):
    assert status(cell(100), figures(99, 100, 101, updates=updates)) == expected


def test_three_seeds_and_the_published_sizes_are_needed():
    assert status(cell(100), figures(100, 100)) == "approached (100 % of the updates)"
    assert status(cell(100), figures(100)) == "approached (100 % of the updates)"
    assert status(cell(100, same_sizes=False), figures(99, 100, 101)) == "approached (100 % of the updates)"


def test_the_slowest_seed_counts():
    mixed = [*figures(99, 100), {**figures(101, updates=30)[0], "seed": 2}]
    assert status(cell(100), mixed) == "approached (30 % of the updates)"


def test_what_has_not_run_says_what_it_needs():
    assert status(cell(100), []) == "not run"
    assert status(cell(100, needs="a GPU"), []) == "not run: needs a GPU"
    assert status(cell(None), figures(1, 2, 3)) == "no published figure"


@pytest.mark.parametrize("change, said", [({"commit": None}, "commit"), ({"commit": "abc123"}, "commit"),
                                          ({"seed": 1}, "one training seed")])
def test_a_figure_without_its_commit_is_refused(tmp_path, change, said):
    good = figures(1, 2)
    write_json(tmp_path / "td3-pendulum.json", good)
    assert load("td3-pendulum", tmp_path) == good
    bad = [{key: value for key, value in {**good[0], **change}.items() if value is not None}, good[1]]
    write_json(tmp_path / "td3-pendulum.json", bad)
    with pytest.raises(UserError, match=said):
        load("td3-pendulum", tmp_path)
    with pytest.raises(UserError, match=said):
        cells(tmp_path)


def test_the_first_line_counts_what_the_table_says():
    text, rows = page(), cells()
    assert {row["cell"] for row in rows} == set(CELLS) and set(runs.RUNS) <= set(CELLS)
    first = text.splitlines()[2]
    for kind in ("reproduced", "above", "below", "approached", "no published figure", "not run"):
        assert f"{sum(row['status'].startswith(kind) for row in rows)} {kind}" in first
    assert all(f"`{name}`" in text for name in CELLS)


def test_only_missing_seeds_run_and_an_interrupted_cell_keeps_its_figures(tmp_path, monkeypatch):
    made = []

    def train(seed, folder):
        if len(made) == 1:
            made.append("interrupted")
            raise KeyboardInterrupt
        made.append(seed)
        return CELLS["td3-pendulum"].planned, float(seed)
    monkeypatch.setattr(runs, "FIGURES", tmp_path)
    monkeypatch.setattr(runs, "load", lambda name: load(name, tmp_path))
    monkeypatch.setattr(runs, "_commit", lambda: COMMIT)
    monkeypatch.setitem(runs.RUNS, "td3-pendulum", train)
    with pytest.raises(KeyboardInterrupt):
        runs.run("td3-pendulum")
    assert [figure["seed"] for figure in load("td3-pendulum", tmp_path)] == [0]
    runs.run("td3-pendulum")
    runs.run("td3-pendulum")
    assert made == [0, "interrupted", 1, 2]
    assert [figure["value"] for figure in load("td3-pendulum", tmp_path)] == [0, 1, 2]


def test_a_cell_that_nothing_can_run_says_why():
    with pytest.raises(UserError, match="needs a GPU"):
        runs.run("pointmaze-medium-hiql-full")
    with pytest.raises(UserError, match="no cell 'td-3'|td-3"):
        runs.run("td-3")
