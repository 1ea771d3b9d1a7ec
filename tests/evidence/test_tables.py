"""Tables of families: their figures, their comparisons, and runs that continue."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evidence import run
from evidence.experiment import DemonstrationSource, Experiment, ExpertDemonstrations
from evidence.pages import family_page
from evidence.tables import SUCCESS, Family, Measure, Table, all_tables, compare, families, find_table
from understudy.core import UserError
from understudy.files import write_json

FIGURES = {"seeds": [100, 101, 102], "commits": ["0123456789ab"], "exploratory": False, "seconds": 60,
           "figures": {"success": {"plain": [0.5, 0.4, 0.6], "new": [0.9, 0.8, 0.9]}}}


@pytest.fixture
def table(tmp_path):
    family = Family("toys", "Which?", "A world.", {"loss": Measure(lower=True)}, tmp_path)
    return Table(family, "one", "Which one", "Three seeds.", "plain")


def write(table, **changes):
    write_json(table.path, {**FIGURES, **changes})
    return replace(table)


def test_a_difference_has_the_interval_of_student():
    """Differences 0.1, 0.3, 0.5: mean 0.3, standard error 0.2 / sqrt(3), and t(0.975, 2) = 4.302653."""
    mean, low, high, word = compare([0.3, 0.6, 0.9], [0.2, 0.3, 0.4], SUCCESS)
    assert (mean, high - mean, mean - low) == pytest.approx((0.3, 4.302653 * 0.2 / 3**0.5, 4.302653 * 0.2 / 3**0.5))
    assert word == "open"


@pytest.mark.parametrize("shift, measure, word", [
    (0.5, SUCCESS, "better"), (-0.5, SUCCESS, "worse"), (0.5, Measure(lower=True), "worse"),
    (-0.5, Measure(lower=True), "better"), (0.0, SUCCESS, "equal"), (0.0, Measure(0.001), "open"),
    (0.0, Measure(), "open")])
def test_a_word_says_where_the_interval_is(shift, measure, word):
    noise = np.array([-0.01, 0.0, 0.01, 0.0])
    assert compare(0.5 + shift + noise, np.full(4, 0.5), measure)[3] == word


@pytest.mark.parametrize("changes, problem", [
    ({"commits": []}, "do not name the commits"), ({"commits": ["main"]}, "do not name the commits"),
    ({"seeds": [100, 101]}, "'plain' has 3 figures of 'success' for 2 seeds")])
def test_figures_that_cannot_be_read_are_refused(table, changes, problem):
    with pytest.raises(UserError, match=problem) as error:
        _ = write(table, **changes).record
    assert str(table.path) in str(error.value)


def test_each_arm_is_compared_with_the_plainest_rival_and_ablations_with_what_they_lack(table):
    arms = {**FIGURES["figures"]["success"], "bare": [0.5, 0.5, 0.5]}
    table = write(replace(table, ablations={"bare": "new"}), figures={"success": arms})
    assert table.arms == ["plain", "new", "bare"]
    assert [(c.arm, c.rival) for c in table.comparisons("success")] == [("new", "plain"), ("new", "bare")]
    page = family_page(replace_tables(table))
    assert "| difference from plain |" in page and "| plain | 50 |  |" in page
    assert "| bare *(ablation)* | 50 |  |" in page
    (row,) = [line for line in page.splitlines() if line.startswith("| new |")]
    assert "| +37 [+22, +51] **better** <i" in row and "<br>from bare: +37 [+22, +51] **better** <i" in row


def replace_tables(table):
    family = table.family
    family.__dict__["tables"] = {table.name: table}
    return family


def test_a_family_says_what_is_wrong_with_its_tables(tmp_path):
    head = 'question = "Which?"\ntext = ""\n[tables.one]\ntitle = ""\ntext = ""\n'
    family = Family("toys", "Which?", "", {}, tmp_path)
    for entry, problem in (('', "no plainest rival"), ('rival = "plain"\nrivl = 1', "no entry 'rivl'")):
        (tmp_path / "family.toml").write_text(head + entry)
        with pytest.raises(UserError, match=problem):
            _ = replace(family).tables


class Source(DemonstrationSource):
    """No demonstrations."""

    def load(self, seed):
        return seed


def test_a_run_that_was_stopped_continues_with_the_same_figures(table, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "CELLS", tmp_path / "cells")
    measured = []

    def measure(experiment, option, data, seed, episodes, starts):
        if len(measured) == 2 and option == "stop":
            raise KeyboardInterrupt
        measured.append((option, seed))
        return {"success": [0.0, 1.0, seed % 2]}
    experiment = Experiment(Source(), {"plain": "a", "new": "stop"}, 100, measure, "fork", n_seeds=2)
    monkeypatch.setattr(Table, "load_experiment", lambda self: experiment)
    monkeypatch.setattr(run, "design", lambda experiment, arm, seed: f"{arm}-{seed}")
    with pytest.raises(KeyboardInterrupt):
        run.run_table(table, log=lambda line: None)
    assert not table.path.exists() and measured == [("a", 100), ("a", 101)]
    measured.append("resumed")
    run.run_table(table, log=lambda line: None)
    assert measured[3:] == [("stop", 100), ("stop", 101)]
    record = replace(table).record
    assert record["figures"]["success"] == {"plain": [0.333333, 0.666667], "new": [0.333333, 0.666667]}
    run.run_table(table, log=lambda line: None)
    assert json.loads(table.path.read_text())["earlier"][0]["design"] == "the same"


def test_a_design_differs_with_the_arm_the_seed_and_the_settings():
    one = Experiment(ExpertDemonstrations("fork", 5), {"a": 1, "b": 2}, 100, run.run_cell)
    six = ExpertDemonstrations("fork", 6)
    others = [replace(one, episodes=3), replace(one, source=six), replace(one, first_seed=101)]
    designs = [run.design(one, "a", 100), run.design(one, "b", 100), run.design(one, "a", 101),
               *(run.design(other, "a", 100) for other in others)]
    assert len(set(designs)) == len(designs) and designs[0] == run.design(replace(one), "a", 100)


def test_seeds_of_pilots_and_levels_of_no_arm_are_refused():
    with pytest.raises(ValueError, match="pilots"):
        Experiment(Source(), {}, 50, run.run_cell, "fork")
    with pytest.raises(ValueError, match="lacks: b"):
        Experiment(Source(), {"a": 1}, 100, run.run_cell, "fork", levels={"b": 0.5})


@pytest.mark.parametrize("name", all_tables())
def test_every_table_can_be_read(name):
    """Its figures match its seeds, its arms exist, and its code has the same arms and seeds."""
    table = find_table(name)
    assert table.title and table.text
    if table.family.name == "advice" and not table.path.is_file():  # not judged yet
        assert table.rival in table.load_experiment().arms
        return
    assert table.rival in table.arms
    for measure in table.measures:
        assert table.comparisons(measure), f"{name} compares nothing by {measure}"
    ablations = table.ablations or {}
    assert {*ablations, *ablations.values(), *(arm for pair in table.also for arm in pair)} <= set(table.arms)
    if table.experiment is None:
        assert table.was.startswith("claims/")
        return
    experiment = table.load_experiment()
    assert set(table.arms) <= set(experiment.arms) and table.record["seeds"] == list(experiment.seeds)
    designs = {run.design(experiment, arm, experiment.first_seed) for arm in experiment.arms}
    assert len(designs) == len(experiment.arms), "two arms compute the same"


@pytest.mark.parametrize("name", [name for name in families() if name != "advice"])
def test_the_page_of_a_family_can_be_written(name):
    family = families()[name]
    page = family_page(family)
    assert all(f"{{#{table}}}" in page for table in family.tables)
    strays = {path.stem for path in (family.folder / "figures").glob("*.json")} - set(family.tables)
    assert not strays, "figures of no table"
    assert Path(family.folder, "family.toml").read_text().count("\n") < 400
