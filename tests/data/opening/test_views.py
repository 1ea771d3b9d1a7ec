"""Views: files that stay as they are, and parents that may not change."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from fixtures.views import bytes_of, demonstrations

from understudy.cli import main
from understudy.core import UserError
from understudy.data.formats import open_dataset
from understudy.data.opening import views
from understudy.data.operations import (
    Filter,
    Label,
    Merge,
    Select,
)

STATE, ACTION = "observation.state", "action"


def test_a_view_of_views_and_a_merge(stored, tmp_path):
    views.write_view(tmp_path / "both.json", [stored / "demos", stored / "more"], Merge(), Select((7, 0)))
    views.write_view(tmp_path / "task.json", tmp_path / "both.json", Label("task", "go"))
    data, demos, more = open_dataset(tmp_path / "task.json"), demonstrations(), demonstrations((3, 8), seed=1)
    assert [len(e) for e in data] == [8, 5] and set(data[0].steps["task"]) == {"go"}
    assert np.array_equal(data[0].steps[STATE], more[1].steps[STATE])
    assert np.array_equal(data[1].steps[STATE], demos[0].steps[STATE])
    lineage = views.lineage(tmp_path / "task.json")
    assert [p["path"].split("/")[-1] for p in lineage["parents"][0]["parents"]] == ["demos", "more"]
    assert views.list_views(tmp_path) == [tmp_path / "both.json", tmp_path / "task.json"]


def test_views_move_and_are_copied_with_their_data(stored, tmp_path):
    shutil.copytree(stored / "demos", tmp_path / "a" / "demos")
    views.write_view(tmp_path / "a" / "lists" / "v.json", tmp_path / "a" / "demos", Filter("success", (True,)))
    os.rename(tmp_path / "a", tmp_path / "b")
    assert len(open_dataset(tmp_path / "b" / "lists" / "v.json")) == 3
    shutil.copytree(tmp_path / "b", tmp_path / "c")  # other times and inodes, the same bytes
    for file in (tmp_path / "c" / "demos").rglob("*"):
        os.utime(file, (1, 1))
    shutil.rmtree(tmp_path / "b")
    assert len(open_dataset(tmp_path / "c" / "lists" / "v.json")) == 3
    assert str(tmp_path) not in (tmp_path / "c" / "lists" / "v.json").read_text()


def test_a_parent_that_is_not_what_it_was_is_an_error(stored, tmp_path):
    shutil.copytree(stored / "demos", tmp_path / "demos")
    views.write_view(tmp_path / "v.json", tmp_path / "demos", Select((0,)))
    views.write_view(tmp_path / "w.json", tmp_path / "v.json")
    file = tmp_path / "demos" / "meta" / "info.json"
    original_text, times = file.read_text(), file.stat()
    file.write_text(original_text.replace("10", "11"))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # the same size and time
    for view in ("v.json", "w.json"):
        with pytest.raises(UserError, match=r"demos: the parent .* has changed"):
            open_dataset(tmp_path / view)
    assert views.lineage(tmp_path / "w.json")["parents"][0]["parents"][0]["state"] == "changed"
    file.write_text(original_text)
    assert len(open_dataset(tmp_path / "w.json")) == 1
    (tmp_path / "demos" / "understudy.npz").write_bytes(b"x")  # a file more is another data set, too
    with pytest.raises(UserError, match="has changed since the view was made"):
        open_dataset(tmp_path / "v.json")
    shutil.rmtree(tmp_path / "demos")
    with pytest.raises(UserError, match=r"demos: the parent of this view is missing"):
        open_dataset(tmp_path / "v.json")


def test_a_view_is_never_written_over_something_or_into_its_data(stored, tmp_path):
    (tmp_path / "v.json").write_text("mine")
    with pytest.raises(UserError, match="there is already a file or folder"):
        views.write_view(tmp_path / "v.json", stored / "demos")
    assert (tmp_path / "v.json").read_text() == "mine"
    before = bytes_of(stored / "demos")
    with pytest.raises(UserError, match="a data set stays as it is"):
        views.write_view(stored / "demos" / "v.json", stored / "demos")
    with pytest.raises(UserError, match="the view has no episodes"):
        views.write_view(tmp_path / "w.json", stored / "demos", Filter("length", at_least=99))
    assert bytes_of(stored / "demos") == before and [p.name for p in tmp_path.iterdir()] == ["v.json"]


@pytest.mark.parametrize("change, says", [
    ({"version": 2}, "version 2, but .* reads version 1"), ({"version": None}, "version None"),
    ({"parents": None}, "parents"),
    ({"parents": []}, "several parents"), ({"parents": ["demos"]}, "not of type dict"), ({"parents": [{}]}, "path"),
    ({"operations": [{"do": "explode"}]}, "no operation 'explode'"),
    ({"operations": [{"do": ["pick"]}]}, r"operation \['pick'\]"),
    ({"operations": [{"do": "select"}]}, "episodes"), ({"operations": [5]}, "not of type dict"),
    ({"operations": [{"do": "select", "episodes": [0], "also": 1}]}, "no field 'also'"),
    ({"operations": [{"do": "select", "episodes": [[0]]}]}, "an integer"),
    ({"operations": [{"do": "select", "episodes": [{"$": "os:system"}]}]}, "an integer"),
    ({"operations": [{"do": "select", "episodes": [99]}]}, "no episode 99"),
    ({"operations": [{"do": "merge"}]}, "merge first"),
    ({"episodes": "1"}, "not of type int"), ({"episodes": 5}, "had 5 episodes"), ({"steps": True}, "not of type int")])
def test_a_view_that_is_wrong_says_where(change, says, stored, tmp_path):
    document = json.loads(views.write_view(stored / "one.json", stored / "demos", Select((0,))).path.read_text())
    (stored / "one.json").unlink()
    document["parents"][0]["path"] = str(stored / "demos")
    (tmp_path / "v.json").write_text(json.dumps(document | change))
    with pytest.raises(UserError, match=says) as error:
        open_dataset(tmp_path / "v.json")
    assert "v.json" in str(error.value)


def test_a_view_cut_short_is_refused_and_other_json_is_no_view(tmp_path, capsys):
    (tmp_path / "v.json").write_text('{"understudy": "view", "version": 1, "epi')
    (tmp_path / "deep.json").write_text('{"understudy": "view", "x": ' + "[" * 100_000)
    (tmp_path / "other.json").write_text('{"a": 1}')
    for name in ("v.json", "deep.json", "other.json"):
        assert main(["inspect", str(tmp_path / name)]) == 2
        assert main(["view", "show", str(tmp_path / name)]) == 2
        assert "Traceback" not in capsys.readouterr().err
