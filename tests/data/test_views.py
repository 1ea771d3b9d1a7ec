"""Views: operations against plain lists, files that stay as they are, parents that may not change; splits and leaks,
merges and disagreements, curation."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.audit.compatibility import action_convention, find_disagreements
from understudy.audit.leakage import find_leakage
from understudy.cli import main
from understudy.core import Feature, UserError
from understudy.data import views
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import decode_frames, frame_cost, open_dataset, write_dataset
from understudy.data.operations import (
    Crop,
    Delete,
    Drop,
    Filter,
    Label,
    Merge,
    Rename,
    Resample,
    Sample,
    Select,
    Sort,
    assign_groups,
    episode_values,
)
from understudy.data.packed_columns import PackedColumns

STATE, ACTION = "observation.state", "action"


def demonstrations(lengths=(5, 1, 4, 7, 4, 6), seed=0, fps=10.0, cameras=False, **meta) -> Dataset:
    rng = np.random.default_rng(seed)
    made = []
    for i, n in enumerate(lengths):
        ends = np.arange(n) == n - 1
        columns = {STATE: rng.normal(size=(n + 1, 3)).astype(np.float32),
                   ACTION: rng.normal(size=(n, 2)).astype(np.float32),
                   "next.reward": rng.integers(0, 9, n).astype(np.float32),
                   "next.terminated": ends & (i % 2 == 0), "next.success": ends & (i % 2 == 0),
                   "task": np.array([["lift", "öffne"][i % 2]] * n)}
        if cameras:
            columns["observation.images.front"] = rng.integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)
        facts = {"number": i, "success": i % 2 == 0, "operator": ("Ada", "Grace")[i // 2 % 2], **meta}
        made.append(Episode(columns, facts, n, {k: Feature.from_array(v) for k, v in columns.items()}))
    return Dataset(made, {"fps": fps, "robot_type": "arm"})


def plain(data) -> list[tuple[dict, dict]]:
    """[({column: list of rows}, facts)]"""
    return [({k: np.asarray(e.steps[k]).tolist() for k in e.steps}, dict(e.metadata)) for e in data]


def bytes_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(folder)}\0{file.stat().st_mtime_ns}".encode() + file.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    write_dataset(demonstrations(), folder / "demos", images="png")
    write_dataset(demonstrations((3, 8), seed=1), folder / "more", images="png")
    return folder


# -- operations, against plain lists -----------------------------------------------------------------------------------


def steps_of(columns) -> int:
    return min(len(c) for c in columns.values())


def on_lists(what, data):
    """The same operation on [(columns, facts)], written down as simply as it goes."""
    def each(change):
        return [change(i, c, dict(f)) for i, (c, f) in enumerate(data)]

    def meant(i):
        return what.episodes is None or i in what.episodes
    if isinstance(what, Select):
        return [data[i] for i in what.episodes]
    if isinstance(what, Delete):
        return [e for i, e in enumerate(data) if i not in what.episodes]
    if isinstance(what, Filter):
        if what.field == "success":
            return [(c, f) for c, f in data if (f["success"] in what.equals) != what.negate]
        low, high = -1 if what.at_least is None else what.at_least, 99 if what.at_most is None else what.at_most
        return [(c, f) for c, f in data if low <= steps_of(c) <= high]
    if isinstance(what, Sort):
        return sorted(data, key=lambda e: steps_of(e[0]) * (-1 if what.descending else 1))
    if isinstance(what, Rename):
        return each(lambda i, c, f: ({what.into if k == what.column else k: v for k, v in c.items()}, f))
    if isinstance(what, Drop):
        return each(lambda i, c, f: ({k: v for k, v in c.items() if k not in what.columns}, f))
    if isinstance(what, Crop):
        def crop(i, c, f):
            n = steps_of(c)
            a, b, _ = slice(what.start, what.stop).indices(n)
            return ({k: v[a:b] + (v[b:b + 1] if len(v) > n else []) for k, v in c.items()}, f) if meant(i) else (c, f)
        return each(crop)
    if isinstance(what, Label):
        def label(i, c, f):
            if not meant(i):
                return c, f
            f[what.field] = what.value
            if what.field == "task" and "task" in c:
                c = {**c, "task": [what.value] * len(c["task"])}
            if what.field == "success" and "next.success" in c:
                had, n = c["next.success"], len(c["next.success"])
                c = {**c, "next.success": had if what.value and any(had) else [
                    bool(what.value) and t == n - 1 for t in range(n)]}
            return c, f
        return each(label)
    if isinstance(what, Resample):
        def resample(i, c, f):
            n, out = steps_of(c), {}
            ratio = 10 / what.fps
            count = next(k for k in range(10 ** 6) if k * ratio > n - 1e-6)
            rows = [max(t for t in range(n) if t <= k * ratio + 1e-6) for k in range(count)]
            for k, v in c.items():
                if k.startswith("next."):
                    out[k] = []
                    for j, t in enumerate(rows):
                        covered = v[t:(rows + [n])[j + 1]]
                        out[k].append(sum(covered) + 0.0 if k == "next.reward" else any(covered) or (
                            k == "next.success" and v[t]))
                else:
                    out[k] = [v[t] for t in rows] + v[n:]
            return out, f
        return each(resample)
    raise AssertionError(what)


def drawn(draw, kind, data, name):
    some = st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=len(data)).map(tuple)
    named, column = draw(st.none() | some), st.sampled_from(sorted(data[0][0]))
    return {"pick": lambda: Select(draw(some)),
            "delete": lambda: Delete(draw(some)),
            "filter": lambda: Filter("success", (draw(st.booleans()),), negate=draw(st.booleans())),
            "length": lambda: Filter("length", at_least=draw(st.none() | st.integers(0, 6)),
                                     at_most=draw(st.none() | st.integers(0, 6))),
            "order": lambda: Sort("length", draw(st.booleans())),
            "rename": lambda: Rename(draw(column), name),
            "drop": lambda: Drop((draw(column),)),
            "crop": lambda: Crop(draw(st.integers(-3, 3)), draw(st.none() | st.integers(-3, 6)), named),
            "label": lambda: Label("operator", draw(st.sampled_from(["Emmy", "Ada"])), named),
            "task": lambda: Label("task", "fold ü", named),
            "success": lambda: Label("success", draw(st.booleans()), named)}[kind]()


@st.composite
def chains(draw):
    """Operations that fit one another, and how the first data set is: its numbers only."""
    data, what = plain(demonstrations()), []
    for kind in draw(st.lists(st.sampled_from(
            ["pick", "delete", "filter", "length", "order", "rename", "drop", "crop", "label", "task", "success"]),
            max_size=6)):
        one = drawn(draw, kind, data, f"new{len(what)}")
        if kind == "drop" and len(data[0][0]) == 1 or (kind == "task" and "task" not in data[0][0]):
            continue
        then = on_lists(one, data)
        if then and all(steps_of(c) for c, _ in then):
            data, what = then, [*what, one]
    return what


QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(what=chains())
def test_operations_are_what_they_are_on_lists(what):
    data, wanted = demonstrations(), plain(demonstrations())
    for operation in what:
        data, wanted = operation.apply(data), on_lists(operation, wanted)
    assert plain(data) == wanted
    assert [len(e) for e in data] == [steps_of(c) for c, _ in wanted]


@settings(QUICK, max_examples=25)
@given(what=chains())
def test_a_view_shows_what_its_operations_do_and_changes_no_byte(what, stored, tmp_path_factory):
    before = bytes_of(stored / "demos")
    path = tmp_path_factory.mktemp("view") / "v.json"
    views.write_view(path, stored / "demos", *what)
    data, wanted = open_dataset(path), plain(open_dataset(stored / "demos"))
    assert views.read_view(path).operations == tuple(what)
    for operation in what:
        wanted = on_lists(operation, wanted)
    assert plain(data) == wanted
    vectors = [k for k, f in data.features().items() if f.kind == "vector"]
    pack = PackedColumns.from_episodes(data, vectors)  # what windows are gathered from
    for name in vectors:
        for e, (columns, _) in enumerate(wanted):
            rows = np.arange(steps_of(columns))[None]
            assert pack.columns[name].gather(np.array([e]), rows)[0].tolist() == columns[name][:rows.size]
    assert bytes_of(stored / "demos") == before


@QUICK
@given(fps=st.sampled_from([1.0, 2.5, 3.0, 5.0, 10.0, 20.0, 25.0]))
def test_another_rate_shows_the_last_row_by_then(fps):
    data = Resample(fps).apply(demonstrations())
    assert data.fps == fps
    assert plain(data) == on_lists(Resample(fps), plain(demonstrations()))
    for one, other in zip(data, demonstrations(), strict=True):  # nothing earned is lost or made
        assert one.steps["next.reward"].sum() == other.steps["next.reward"].sum()


def line(times=None, n=5, fps=10.0) -> Dataset:
    columns = {STATE: np.arange(n + 1.0)[:, None] * 10, ACTION: np.arange(n, dtype=np.float32)[:, None]}
    if times is not None:
        columns["timestamp"] = np.array(times)
    return Dataset([Episode(columns, {}, n, {k: Feature.from_array(v) for k, v in columns.items()})], {"fps": fps})


def test_rules_of_another_rate_in_closed_form():
    """Rows at 0, 0.1, ... 0.4 s, shown at 0, 0.08, ... 0.48 s."""
    def shown(rule, name):
        return Resample(12.5, rule).apply(line())[0].steps[name][:, 0].tolist()
    assert shown("last", ACTION) == [0, 0, 1, 2, 3, 4, 4]
    assert shown("nearest", ACTION) == [0, 1, 2, 2, 3, 4, 4]
    assert np.allclose(shown("linear", STATE), [0, 8, 16, 24, 32, 40, 48, 50])
    assert np.allclose(shown("linear", ACTION), [0, 0.8, 1.6, 2.4, 3.2, 4, 4])


def test_another_rate_goes_by_the_timestamps():
    """A gap between 0.1 and 0.5 s: the row before it is all there was to see."""
    data = Resample(10.0).apply(line([5.0, 5.1, 5.5, 5.6, 5.7]))[0]
    assert data.steps[ACTION][:, 0].tolist() == [0, 1, 1, 1, 1, 2, 3, 4]
    assert np.allclose(data.steps["timestamp"], np.arange(8) / 10)
    with pytest.raises(UserError, match="finite and not decrease, but 0.1 comes after 0.2"):
        Resample(5.0).apply(line([0.0, 0.2, 0.1, 0.3, 0.4]))


def test_a_crop_keeps_what_was_seen_last_and_counts_time_from_its_first_step():
    data = Crop(1, -1).apply(line([0.0, 0.1, 0.2, 0.3, 0.4]))[0]
    assert data.steps[STATE][:, 0].tolist() == [10, 20, 30, 40] and data.steps[ACTION][:, 0].tolist() == [1, 2, 3]
    assert np.allclose(data.steps["timestamp"], [0, 0.1, 0.2])


def test_camera_frames_follow_crops_and_rates(tmp_path):
    data = demonstrations((4, 6), cameras=True)
    write_dataset(data, tmp_path / "demos", images="png")
    camera = "observation.images.front"
    views.write_view(tmp_path / "v.json", tmp_path / "demos", Select((1, 0)), Crop(1, -1), Resample(20.0))
    shown = open_dataset(tmp_path / "v.json", image_size=8)
    wanted = data[1].steps[camera][[1, 1, 2, 2, 3, 3, 4, 4]]
    assert np.array_equal(shown[0].steps[camera], wanted)
    assert np.array_equal(open_dataset(tmp_path / "v.json")[0].steps[camera], wanted)
    assert decode_frames(open_dataset(tmp_path / "v.json"), 4)[0].steps[camera].shape == (8, 4, 4, 3)


def test_episodes_that_are_not_shown_matter_no_more(tmp_path):
    """One too short for the crop; one with damaged times; frames of many that nobody asked for."""
    write_dataset(demonstrations((1, 9, 4, 4, 4), cameras=True), tmp_path / "demos", images="png")
    views.write_view(tmp_path / "v.json", tmp_path / "demos", Select((1,)), Crop(2))
    data = open_dataset(tmp_path / "v.json")
    assert frame_cost(data, 8).frames == 7 and len(data) == 1
    two = Dataset([*line([0.0, 0.2, 0.1, 0.3, 0.4]), *line([0.0, 0.1, 0.2, 0.3, 0.4])], {"fps": 10.0})
    assert len(Resample(20.0).apply(Delete((0,)).apply(two))[0]) == 10


@pytest.mark.parametrize("operation, says", [
    (Select((0, 6)), "no episode 6; there are 0 to 5"), (Delete((-1,)), "no episode -1"),
    (Sample(7), "draw 7 of 6 episodes"),
    (Crop(3), "leaves nothing of its 1 steps"), (Rename("acton", "x"), "did you mean 'action'"),
    (Rename(ACTION, STATE), "is taken"), (Drop(("nothing",)), "no column 'nothing'"),
    (Filter("operater"), "did you mean 'operator'"),
    (Filter("operator", at_least=3), "'Ada' is not a number"), (Label("success", 1), "true or false"),
    (Label("length", 1), "cannot be set"), (Resample(0.0), "above 0"), (Filter("next.reward"), "more than one value")])
def test_an_operation_that_does_not_fit_says_so(operation, says):
    with pytest.raises(UserError, match=says):
        operation.apply(demonstrations())


@pytest.mark.parametrize("kind, given", [
    (Select, {"episodes": "12"}), (Select, {"episodes": (True,)}), (Crop, {"start": 1.5}), (Resample, {"fps": "fast"}),
    (Resample, {"fps": 5, "rule": "best"}), (Filter, {"field": None}), (Label, {"field": "task", "value": None})])
def test_an_operation_takes_plain_values_of_the_right_kind(kind, given):
    with pytest.raises(UserError, match=" is not "):
        kind(**given)


def test_fields():
    data = demonstrations()
    assert episode_values(data, "length") == [5, 1, 4, 7, 4, 6] and episode_values(data, "episode") == list(range(6))
    assert episode_values(data, "task") == ["lift", "öffne"] * 3
    assert episode_values(demonstrations(robot_type={"arm": 7}), "robot_type.arm") == [7] * 6
    bare = Dataset([Episode(e.steps, {}, len(e), e.schema) for e in data])
    assert episode_values(bare, "success") == [True, False] * 3
    assert len(Filter("masks", ("train",)).apply(demonstrations(masks=["train", "few"]))) == 6


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_view_of_views_and_a_merge(stored, tmp_path):
    views.write_view(tmp_path / "both.json", [stored / "demos", stored / "more"], Merge(), Select((7, 0)))
    views.write_view(tmp_path / "task.json", tmp_path / "both.json", Label("task", "go"))
    data, demos, more = open_dataset(tmp_path / "task.json"), demonstrations(), demonstrations((3, 8), seed=1)
    assert [len(e) for e in data] == [8, 5] and set(data[0].steps["task"]) == {"go"}
    assert np.array_equal(data[0].steps[STATE], more[1].steps[STATE])
    assert np.array_equal(data[1].steps[STATE], demos[0].steps[STATE])
    found = views.lineage(tmp_path / "task.json")
    assert [p["path"].split("/")[-1] for p in found["parents"][0]["parents"]] == ["demos", "more"]
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
    said, times = file.read_text(), file.stat()
    file.write_text(said.replace("10", "11"))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # the same size and time
    for view in ("v.json", "w.json"):
        with pytest.raises(UserError, match=r"demos: the parent .* has changed"):
            open_dataset(tmp_path / view)
    assert views.lineage(tmp_path / "w.json")["parents"][0]["parents"][0]["state"] == "changed"
    file.write_text(said)
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
    ({"parents": []}, "several parents"), ({"parents": ["demos"]}, "no dict"), ({"parents": [{}]}, "path"),
    ({"operations": [{"do": "explode"}]}, "no operation 'explode'"),
    ({"operations": [{"do": ["pick"]}]}, r"operation \['pick'\]"),
    ({"operations": [{"do": "select"}]}, "episodes"), ({"operations": [5]}, "no dict"),
    ({"operations": [{"do": "select", "episodes": [0], "also": 1}]}, "no field 'also'"),
    ({"operations": [{"do": "select", "episodes": [[0]]}]}, "an integer"),
    ({"operations": [{"do": "select", "episodes": [{"$": "os:system"}]}]}, "an integer"),
    ({"operations": [{"do": "select", "episodes": [99]}]}, "no episode 99"),
    ({"operations": [{"do": "merge"}]}, "merge first"),
    ({"episodes": "1"}, "no int"), ({"episodes": 5}, "had 5 episodes"), ({"steps": True}, "no int")])
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


# -- split, and what leaks ---------------------------------------------------------------------------------------------


def run(*args) -> int:
    return main([str(a) for a in args])


def document(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


def _split_options(fractions, seed):
    from understudy.commands.split import SplitOptions

    return SplitOptions(data=Path("x"), by="operator", out=Path("y"), fractions=fractions, seed=seed)


@QUICK
@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=12), shares=st.integers(2, 4), seed=st.integers(0, 99))
def test_a_split_has_every_episode_once_and_groups_whole(sizes, shares, seed):
    from understudy.commands.split import _random_parts
    found = [f"v{i}" for i, n in enumerate(sizes) for _ in range(n)]
    o = _split_options(tuple(np.full(shares, 1 / shares)), seed=seed)
    if len(sizes) < shares:
        with pytest.raises(UserError, match="at least"):
            _random_parts(o, found)
        return
    parts = _random_parts(o, found)
    assert sorted(i for numbers, _ in parts.values() for i in numbers) == list(range(len(found)))
    assert all(numbers for numbers, _ in parts.values()) and parts == _random_parts(o, found)
    whose = [{found[i] for i in numbers} for numbers, _ in parts.values()]
    assert sum(map(len, whose)) == len(sizes)
    by_episode = [len(n) for n, _ in _random_parts(o, list(range(len(found)))).values()]
    assert max(by_episode) - min(by_episode) <= 1  # single episodes fit the shares


@QUICK
@given(sizes=st.lists(st.integers(1, 40), min_size=3, max_size=7), seed=st.integers(0, 99),
       weights=st.lists(st.integers(1, 9), min_size=2, max_size=3))
def test_no_other_assignment_of_groups_is_closer_to_the_fractions(sizes, seed, weights):
    from understudy.commands.split import _random_parts
    fractions = tuple(w / sum(weights) for w in weights)
    found = [i for i, n in enumerate(sizes) for _ in range(n)]

    def distance(counts) -> float:
        return sum((n - f * len(found)) ** 2 for n, f in zip(counts, fractions, strict=True))
    every = [[sum(s for s, q in zip(sizes, where, strict=True) if q == p) for p in range(len(weights))]
             for where in itertools.product(range(len(weights)), repeat=len(sizes))]
    best = min(distance(counts) for counts in every if min(counts) > 0)
    parts = _random_parts(_split_options(fractions, seed=seed), found)
    assert distance([len(n) for n, _ in parts.values()]) == pytest.approx(best, abs=1e-6)


def test_the_larger_group_goes_to_the_larger_part():
    from understudy.commands.split import _random_parts
    for seed in range(20):
        o = _split_options((0.67, 0.33), seed=seed)
        assert [len(n) for n, _ in _random_parts(o, ["a"] * 20 + ["b"] * 40).values()] == [40, 20]
    drawn = [_random_parts(_split_options((0.5, 0.5), seed=seed), list("aabbbccddd"))
             for seed in range(20)]
    assert len({tuple(d["train"][0]) for d in drawn}) > 1  # equally close ones are drawn by the seed
    assert all([len(n) for n, _ in d.values()] == [5, 5] for d in drawn)


def test_a_split_of_many_groups_is_quick_and_close():
    rng = np.random.default_rng(0)
    sizes, fractions = rng.integers(1, 200, 3000).tolist(), (0.7, 0.2, 0.1)
    began = time.perf_counter()
    where = np.array(assign_groups(sizes, fractions))
    counts = [sum(np.array(sizes)[where == p]) for p in range(3)]
    assert np.abs(counts - np.multiply(fractions, sum(sizes))).max() <= 200 and time.perf_counter() - began < 20


def test_split_by_a_field_writes_a_view_for_each_value(stored, tmp_path, capsys):
    assert run("split", stored / "demos", "--by", "operator", "--out", tmp_path / "parts", "--json") == 0
    assert {n: p["episodes"] for n, p in document(capsys)["parts"].items()} == {"Ada": [0, 1, 4, 5], "Grace": [2, 3]}
    assert [e.metadata["number"] for e in open_dataset(tmp_path / "parts" / "Grace.json")] == [2, 3]
    assert run("split", stored / "demos", "--by", "task", "--out", tmp_path / "parts") == 2
    assert run("split", stored / "demos", "--by", "task", "--out", tmp_path / "tasks") == 0
    assert sorted(p.name for p in (tmp_path / "tasks").iterdir()) == ["lift.json", "öffne.json"]
    for bad in (["--by", "scene"], ["--by", "episode", "--fractions", "0.5", "0.6"],
                ["--by", "task", "--fractions", "0.4", "0.3", "0.3"], ["--by", "next.reward"]):
        assert run("split", stored / "demos", *bad, "--out", tmp_path / "bad") == 2
    assert not (tmp_path / "bad").exists()


def test_values_of_a_split_are_sorted_by_size(tmp_path, capsys):
    write_dataset(wander(0, episodes=24), tmp_path / "wander", fps=10)
    assert run("split", tmp_path / "wander", "--by", "episode", "--fractions", 0.5, 0.5, "--out", tmp_path / "parts",
               "--json") == 0
    for part in document(capsys)["parts"].values():
        assert part["values"] == sorted(part["values"]) and any(v > 9 for v in part["values"])


def wander(seed, episodes=12, steps=30) -> Dataset:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(episodes):
        action = rng.normal(size=(steps, 2)).cumsum(0)
        made.append(Episode({STATE: np.concatenate([np.zeros((1, 2)), action.cumsum(0)]), ACTION: action}, {}))
    return Dataset(made)


def changed(data, change) -> Dataset:
    return Dataset([Episode({k: change(np.asarray(v)) for k, v in e.steps.items()}, e.metadata) for e in data])


def test_leaks():
    train, test = wander(0), wander(1)
    assert find_leakage({"train": train, "test": test}) == []
    for copy in (train[:3], Crop(4, -4).apply(train[:3]), changed(train[:3], lambda v: v[::2])):
        [finding] = find_leakage({"train": train, "test": Dataset([*test, *copy])})
        assert finding.code == "same-episode" and finding.message.startswith("3 of 15 episodes of test")
        assert finding.where.episode == 12 and "as episode 0 there" in finding.message
    noise = np.random.default_rng(2)
    for far, codes in ((0.3, ["near-duplicate"]), (3.0, [])):  # of a spread of about 10: 0.03 and 0.3
        near = changed(train[3:5], lambda v, far=far: v + noise.normal(size=v.shape) * far * v.std(0) / 10)
        assert [f.code for f in find_leakage({"train": train, "test": Dataset([*test, *near])})] == codes
    resting = changed(wander(3), lambda v: np.concatenate([np.zeros((25, 2)), v]))  # 25 equal steps are one
    assert find_leakage({"train": resting[:6], "test": resting[6:]}) == []


def test_a_split_of_what_was_merged_twice_says_that_it_leaks(stored, tmp_path, capsys):
    assert run("merge", stored / "demos", stored / "demos", "--out", tmp_path / "twice.json", "--json") == 0
    assert {f["code"] for f in document(capsys)["findings"]} == {"same-episode"}
    assert run("split", tmp_path / "twice.json", "--by", "episode", "--fractions", "0.5", "0.5", "--out",
               tmp_path / "parts", "--json") == 0
    assert [f["code"] for f in document(capsys)["findings"]] == ["same-episode"]


# -- merge -------------------------------------------------------------------------------------------------------------


def arm(seed=0, absolute=False, turn=0.0, gain=1.0, scale=1.0, names=None, unit=None, fps=10.0, dtype=np.float64):
    """Two joints that a person moves along smooth curves; actions are where to be, or by how much to move."""
    rng, made = np.random.default_rng(seed), []
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    for _ in range(20):
        t, phase, speed = np.arange(61)[:, None] / 10, rng.uniform(0, 6, 2), rng.uniform(0.5, 1.5, 2)
        state = np.sin(t * speed + phase) + rng.normal(size=2) * 0.3
        action = state[1:] if absolute else np.diff(state, axis=0) @ rotation * gain
        columns = {STATE: (state * scale).astype(dtype), ACTION: action}
        schema = {STATE: Feature(np.dtype(dtype).name, (2,), names=names, unit=unit), ACTION: Feature("float64", (2,))}
        made.append(Episode(columns, {}, 60, schema))
    return Dataset(made, {"fps": fps})


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
    found = {f.code: f for f in find_disagreements({"a": first, "b": other})}
    assert code in found and found[code].severity == severity, found
    assert "in a" in found[code].message and "in b" in found[code].message


def test_what_agrees_is_not_complained_of():
    for absolute in (False, True):
        assert find_disagreements({"a": arm(0, absolute), "b": arm(1, absolute), "c": arm(2, absolute)}) == []


def test_merge_refuses_errors_unless_told_otherwise(tmp_path, capsys):
    write_dataset(arm(), tmp_path / "a")
    write_dataset(arm(1, fps=30.0), tmp_path / "b")
    assert run("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "v.json") == 2
    said = capsys.readouterr()
    assert "fps-differs" in said.out and "--ignore fps-differs" in said.err and not (tmp_path / "v.json").exists()
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


# -- curate, and the commands of views ---------------------------------------------------------------------------------


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
    wanted = int(np.argmax([e.steps[ACTION][0, 0] for e in demonstrations()]))
    assert views.read_view(tmp_path / "first.json").operations == (Select((wanted,)),)
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
    said = " ".join(capsys.readouterr().out.split())
    assert "4 episodes have the value 2; 2 of them are kept, the first in the order of the data" in said
    assert views.read_view(tmp_path / "w.json").operations == (Select((0, 1, 2)),)


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
