"""Curation, and the commands of views."""

from __future__ import annotations

import numpy as np
from fixtures.views import demonstrations, document, plain, run

from understudy.data.formats import open_dataset
from understudy.data.opening import views
from understudy.data.operations import (
    Select,
)

STATE, ACTION = "observation.state", "action"


def test_the_best_are_kept_ties_in_order_and_nan_last():
    from understudy.commands.curate import select_best
    score = np.array([1.0, np.nan, 3.0, 1.0, 3.0])
    assert select_best(score, 0.4) == ([2, 4], [2, 4, 0, 3, 1]) and select_best(score, 0.6)[0] == [0, 2, 4]
    assert select_best(score, 0.4, lowest=True)[0] == [0, 3] and select_best(score, 0.01)[0] == [2]
    assert select_best(score, 1.0)[0] == [*range(5)]


def test_curate_records_the_score_and_every_value(stored, tmp_path, capsys, monkeypatch):
    assert run("curate", stored / "demos", "--score", "length", "--keep", "0.5", "--out", tmp_path / "long.json") == 0
    view = views.read_view(tmp_path / "long.json")
    assert view.operations == (Select((0, 3, 5)),) and view.created_with["values"] == [5, 1, 4, 7, 4, 6]
    assert view.created_with["by"] == "length" and view.created_with["keep"] == 0.5
    (tmp_path / "mine.py").write_text("def first(data):\n    return [float(e.steps['action'][0, 0]) for e in data]\n"
                                      "def wrong(data):\n    return [1.0, 2.0]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    args = ["curate", stored / "demos", "--score", "mine:first", "--keep", "0.2", "--out", tmp_path / "first.json"]
    assert run(*args) == 2 and "--trust mine" in capsys.readouterr().err
    assert run(*args, "--trust", "mine") == 0
    best = int(np.argmax([e.steps[ACTION][0, 0] for e in demonstrations()]))
    assert views.read_view(tmp_path / "first.json").operations == (Select((best,)),)
    for bad in (["--score", "operator"], ["--score", "nothing"], ["--score", "mine:wrong", "--trust", "mine"],
                ["--score", "mine:absent", "--trust", "mine"], ["--score", "length", "--keep", "1.5"]):
        keep = [] if "--keep" in bad else ["--keep", "0.5"]
        assert run("curate", stored / "demos", *bad, *keep, "--out", tmp_path / "bad.json") == 2
    assert not (tmp_path / "bad.json").exists()


def test_equal_scores_are_nothing_to_choose_by(stored, tmp_path, capsys, monkeypatch):
    """All equal: refused, unless all are kept. A tie across the limit: said, and who is left out by order alone."""
    (tmp_path / "alike.py").write_text("def same(data):\n    return [2.0] * len(data)\n"
                                       "def tied(data):\n    return [3.0] + [2.0] * (len(data) - 2) + [1.0]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    args = ["curate", stored / "demos", "--trust", "alike"]
    assert run(*args, "--score", "alike:same", "--keep", "0.5", "--out", tmp_path / "v.json") == 2
    assert "all 6 episodes have the same value, 2" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "v.json").exists()
    assert run(*args, "--score", "alike:same", "--keep", "1", "--out", tmp_path / "v.json") == 0
    assert run(*args, "--score", "alike:tied", "--keep", "0.5", "--out", tmp_path / "w.json") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "4 episodes have the value 2; 2 of them are kept, the first in the order of the data" in output
    assert views.read_view(tmp_path / "w.json").operations == (Select((0, 1, 2)),)


def test_a_score_of_an_environment_needs_its_name(stored, tmp_path, capsys, monkeypatch):
    from understudy.audit.scores import Transferability

    def steps_and_env(score, data):
        assert score == Transferability("fork", trust=("mine",))
        return np.array(data.lengths, float)
    monkeypatch.setattr(Transferability, "__call__", steps_and_env)
    args = ["curate", stored / "demos", "--keep", "0.5", "--out", tmp_path / "v.json", "--trust", "mine"]
    for bad, words in ((["--score", "transferability"], "--score transferability: it needs the environment in which"),
                       (["--score", "length", "--env", "fork"], "--env: the score length reads no environment"),
                       (["--score", "transferabilty", "--env", "fork"], "did you mean 'transferability'?")):
        assert run(*args, *bad) == 2 and words in " ".join(capsys.readouterr().err.split()), bad
    assert run(*args, "--score", "transferability", "--env", "fork") == 0
    view = views.read_view(tmp_path / "v.json")
    assert view.created_with["by"] == "transferability" and view.created_with["settings"]["env"] == "fork"


def test_a_view_is_made_shown_listed_and_materialized(stored, tmp_path, capsys):
    path = tmp_path / "v.json"
    assert run("view", "make", stored / "demos", "--out", path, "--filter", "operator=Ada", "--filter", "length>=4",
               "--sort", "length", "--descending", "--crop=:-1", "--rename", f"{ACTION}=action.arm", "--drop",
               "next.reward", "--label", "task=4") == 0
    data = open_dataset(path)
    assert [len(e) for e in data] == [5, 4, 3] and set(data[0].steps["task"]) == {"4"}
    assert set(data.features()) == {STATE, "action.arm", "next.terminated", "next.success", "task"}
    capsys.readouterr()
    assert run("view", "show", path) == 0
    assert '1. filter(field="operator", equals=["Ada"])' in capsys.readouterr().out
    assert run("view", "list", tmp_path, "--json") == 0
    assert [v["state"] for v in document(capsys)] == ["as it was"]
    assert run("view", "make", path, "--out", tmp_path / "w.json", "--rename", f"action.arm={ACTION}") == 0
    materialize = ["view", "materialize", tmp_path / "w.json", "--out", tmp_path / "own"]
    assert run(*materialize) == 2  # the crop has cut the success off, of which the facts still tell
    assert "--ignore success-disagrees" in capsys.readouterr().err
    assert run(*materialize, "--ignore", "success-disagrees") == 0
    again = open_dataset(tmp_path / "own")
    assert plain(again) == plain(open_dataset(tmp_path / "w.json"))
    for bad in (["make", stored / "demos"], ["show"], ["materialize", stored / "demos", "--out", tmp_path / "x"],
                ["make", stored / "demos", "--out", path], ["list", path],
                ["materialize", path, "--out", tmp_path / "own"],
                ["make", stored / "demos", "--out", tmp_path / "x", "--crop", "a:b"],
                ["make", stored / "demos", "--out", tmp_path / "x", "--crop", "5"],
                ["make", stored / "demos", "--out", tmp_path / "x", "--filter", "length"],
                ["make", stored / "demos", "--out", tmp_path / "x", "--filter", "length>=long"],
                ["make", stored / "demos", "--out", tmp_path / "x", "--rename", "action"]):
        capsys.readouterr()
        assert run("view", *bad) == 2, bad
        assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
