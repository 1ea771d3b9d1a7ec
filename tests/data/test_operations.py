"""Operations of views, against plain lists."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fixtures.views import QUICK, bytes_of, demonstrations, plain
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.core import Feature, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import decode_frames, frame_cost, open_dataset, write_dataset
from understudy.data.opening import views
from understudy.data.operations import (
    Crop,
    Delete,
    Drop,
    Filter,
    Label,
    Rename,
    Resample,
    Sample,
    Select,
    Sort,
    episode_values,
)
from understudy.data.packed_columns import PackedColumns

STATE, ACTION = "observation.state", "action"


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
            if what.field == "terminated":
                n = steps_of(c)
                had = c.get("next.terminated", [False] * n)
                c = {**c, "next.terminated": had if what.value and any(had) else [
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
            "success": lambda: Label("success", draw(st.booleans()), named),
            "terminated": lambda: Label("terminated", draw(st.booleans()),
                                        named if "next.terminated" in data[0][0] else None)}[kind]()


@st.composite
def chains(draw):
    """Operations that fit one another, and how the first data set is: its numbers only."""
    data, what = plain(demonstrations()), []
    for kind in draw(st.lists(st.sampled_from(
            ["pick", "delete", "filter", "length", "order", "rename", "drop", "crop", "label", "task", "success",
             "terminated"]),
            max_size=6)):
        one = drawn(draw, kind, data, f"new{len(what)}")
        if kind == "drop" and len(data[0][0]) == 1 or (kind == "task" and "task" not in data[0][0]):
            continue
        then = on_lists(one, data)
        if kind == "drop" and any(steps_of(c) != steps_of(d) for (c, _), (d, _) in zip(then, data, strict=True)):
            continue  # the lists know the steps of an episode by its columns alone
        if then and all(steps_of(c) for c, _ in then):
            data, what = then, [*what, one]
    return what


@QUICK
@given(what=chains())
def test_operations_are_what_they_are_on_lists(what):
    data, expected = demonstrations(), plain(demonstrations())
    for operation in what:
        data, expected = operation.apply(data), on_lists(operation, expected)
    assert plain(data) == expected
    assert [len(e) for e in data] == [steps_of(c) for c, _ in expected]


@settings(QUICK, max_examples=25)
@given(what=chains())
def test_a_view_shows_what_its_operations_do_and_changes_no_byte(what, stored, tmp_path_factory):
    before = bytes_of(stored / "demos")
    path = tmp_path_factory.mktemp("view") / "v.json"
    views.write_view(path, stored / "demos", *what)
    data, expected = open_dataset(path), plain(open_dataset(stored / "demos"))
    assert views.read_view(path).operations == tuple(what)
    for operation in what:
        expected = on_lists(operation, expected)
    assert plain(data) == expected
    vectors = [k for k, f in data.features().items() if f.kind == "vector"]
    pack = PackedColumns.from_episodes(data, vectors)  # what windows are gathered from
    for name in vectors:
        for e, (columns, _) in enumerate(expected):
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


TIMES = np.arange(30) / 10


@pytest.mark.parametrize("times, says", [
    ((1.7e9 + TIMES).astype(np.float32), "timestamps are equal: near 1.7e.09, float32 has multiples of 128 only\n"),
    (np.zeros(30), "timestamp: most timestamps are equal\n"),
    (1000 * TIMES, "timestamp: timestamps are read as seconds, and are 100 apart: each step would become 500 steps\n"),
    ((1_700_000_000_000_000_000 + 1e9 * TIMES).astype(np.int64), "would become 500,000,000 steps\n  -> divide milli"),
    (np.append(0, 1.7e9 + TIMES[1:]), "step 1, timestamp: the step comes 1.7e.09 s after the one before"),
    (np.array(["2024-01-01T00:00:00"] * 30), "step 0, timestamp: a timestamp must be one number of seconds, not '2024"),
    (np.stack([TIMES, TIMES], 1), "must be one number of seconds, not .0.0, 0.0")])
def test_times_that_cannot_be_seconds_are_refused_at_another_rate(times, says):
    with pytest.raises(UserError, match=f"^data set, episode 0.*{says}") as error:
        Resample(5.0).apply(line(times, 30))
    assert "--drop timestamp" in error.value.hint
    kept = Drop(("timestamp",)).apply(line(times, 30))
    assert Resample(5.0).apply(kept).lengths.tolist() == [15]


def test_slow_steps_are_legal_times():
    """A step every 20 s, shown more rarely and three times as often; and ten equal times of a burst."""
    slow = line(np.arange(30) * 20.0, 30, fps=0.05)
    assert Resample(0.025).apply(slow).lengths.tolist() == [15] and Resample(0.15).apply(slow).lengths.tolist() == [90]
    burst = line(np.append(np.zeros(10), TIMES[1:21]), 30)
    assert Resample(5.0).apply(burst).lengths.tolist() == [11]


def test_whole_seconds_and_small_integers_do_not_overflow_at_another_rate():
    data = line(np.arange(5), 5, fps=1.0)
    assert Resample(2.0).apply(data)[0].steps["timestamp"].tolist() == [t / 2 for t in range(10)]
    reward = Dataset([data[0].replace({"next.reward": np.full(5, 100, np.uint8)})], {"fps": 1.0})
    assert Resample(0.2).apply(reward)[0].steps["next.reward"].tolist() == [500]


def test_a_crop_keeps_what_was_seen_last_and_counts_time_from_its_first_step():
    data = Crop(1, -1).apply(line([0.0, 0.1, 0.2, 0.3, 0.4]))[0]
    assert data.steps[STATE][:, 0].tolist() == [10, 20, 30, 40] and data.steps[ACTION][:, 0].tolist() == [1, 2, 3]
    assert np.allclose(data.steps["timestamp"], [0, 0.1, 0.2])


def test_camera_frames_follow_crops_and_rates(tmp_path):
    data = demonstrations((4, 6), cameras=True)
    write_dataset(data, tmp_path / "demos", images="png")
    camera = "observation.images.front"
    views.write_view(tmp_path / "v.json", tmp_path / "demos", Select((1, 0)), Crop(1, -1), Resample(20.0))
    resized = open_dataset(tmp_path / "v.json", image_size=8)
    expected = data[1].steps[camera][[1, 1, 2, 2, 3, 3, 4, 4]]
    assert np.array_equal(resized[0].steps[camera], expected)
    assert np.array_equal(open_dataset(tmp_path / "v.json")[0].steps[camera], expected)
    assert decode_frames(open_dataset(tmp_path / "v.json"), 4)[0].steps[camera].shape == (8, 4, 4, 3)


def test_episodes_that_are_not_shown_matter_no_more(tmp_path):
    """One too short for the crop; one with damaged times; frames of many that nobody asked for."""
    write_dataset(demonstrations((1, 9, 4, 4, 4), cameras=True), tmp_path / "demos", images="png")
    views.write_view(tmp_path / "v.json", tmp_path / "demos", Select((1,)), Crop(2))
    data = open_dataset(tmp_path / "v.json")
    assert frame_cost(data, 8).frames == 7 and len(data) == 1
    two = Dataset([*line([0.0, 0.2, 0.1, 0.3, 0.4]), *line([0.0, 0.1, 0.2, 0.3, 0.4])], {"fps": 10.0})
    assert len(Resample(20.0).apply(Delete((0,)).apply(two))[0]) == 10


def test_a_damaged_frame_matters_only_if_its_episode_is_shown(shared):
    data = open_dataset(shared / "fixtures/broken/lerobot_image_not_png")
    shown, camera = Delete((0,)).apply(data), "observation.images.top"
    for _ in range(2):  # decoded, and from the cache
        assert frame_cost(shown, data[0].schema[camera].shape[:2]).frames
        decoded = decode_frames(shown, data[0].schema[camera].shape[:2])
        for mine, other in zip(decoded, shown, strict=True):
            assert np.array_equal(mine.steps[camera], other.steps[camera])
    with pytest.raises(UserError, match="not a PNG"):
        decode_frames(data, 4)


@pytest.mark.parametrize("operation, says", [
    (Select((0, 6)), "no episode 6; there are 0 to 5"), (Delete((-1,)), "no episode -1"),
    (Sample(7), "--sample: cannot draw 7 of 6 episodes"),
    (Crop(3), "leaves nothing of its 1 steps"), (Rename("acton", "x"), "did you mean 'action'"),
    (Rename(ACTION, STATE), "is taken"), (Drop(("nothing",)), "no column 'nothing'"),
    (Filter("operater"), "did you mean 'operator'"),
    (Filter("operator", at_least=3), "'Ada' is not a number"), (Label("success", 1), "true or false"),
    (Label("terminated", "yes"), "terminated are true or false"),
    (Label("next.reward", 1.0), "is the name of a column"),
    (Label("length", 1), "cannot be set"), (Resample(0.0), "above 0"), (Filter("next.reward"), "more than one value")])
def test_an_operation_that_does_not_fit_says_so(operation, says):
    with pytest.raises(UserError, match=says):
        operation.apply(demonstrations())


def test_whether_episodes_terminated_is_labeled_where_no_column_says_it():
    data = Drop(("next.terminated",)).apply(demonstrations())
    with pytest.raises(UserError, match=r"no column next.terminated that other.*\n.*label all episodes first"):
        Label("terminated", True, (0,)).apply(data)
    last = Label("terminated", True, (0,)).apply(Label("terminated", False).apply(data))
    assert [bool(e.steps["next.terminated"].any()) for e in last] == [True, *[False] * (len(last) - 1)]
    assert last[0].steps["next.terminated"].sum() == 1 and last[0].metadata["terminated"] is True


@pytest.mark.parametrize("kind, given", [
    (Select, {"episodes": "12"}), (Select, {"episodes": (True,)}), (Crop, {"start": 1.5}), (Resample, {"fps": "fast"}),
    (Resample, {"fps": 5, "rule": "best"}), (Filter, {"field": None}), (Label, {"field": "task", "value": None})])
def test_an_operation_takes_plain_values_of_the_right_kind(kind, given):
    with pytest.raises(UserError, match=" is not "):
        kind(**given)


NAN = float("nan")


def scored(scores) -> Dataset:
    return Dataset([replace(e, metadata={"score": score})
                    for e, score in zip(demonstrations((2,) * len(scores)), scores, strict=True)], {"fps": 10.0})


@pytest.mark.parametrize("scores, rising, falling", [
    ([2, NAN, 1, 3, 0], [4, 2, 0, 3, 1], [3, 0, 2, 4, 1]), ([0.3, NAN, 0.1, 0.2], [2, 3, 0, 1], [0, 3, 2, 1]),
    ([NAN, 2, None, np.float32("nan"), 1], [4, 1, 0, 2, 3], [1, 4, 0, 2, 3])])
def test_nan_is_no_value_to_sort_or_filter_by(scores, rising, falling):
    data = Dataset([replace(e, metadata={**e.metadata, "was": i}) for i, e in enumerate(scored(scores))])
    for descending, order in ((False, rising), (True, falling)):
        assert [e.metadata["was"] for e in Sort("score", descending).apply(data)] == order
    without = sum(v is None or v != v for v in scores)
    assert len(Filter("score").apply(data)) == len(Filter("score", at_least=-1).apply(data)) == len(scores) - without
    assert len(Filter("score", negate=True).apply(data)) == without


def test_float32_equals_the_decimal_that_it_was_rounded_from():
    data = Dataset([Episode({"observation.state": np.zeros((3, 2)), "force": np.full(3, force, np.float32)})
                    for force in (0.1, 0.2, 0.5)])
    for condition, n in ((Filter("force", at_most=0.1), 1), (Filter("force", (0.1,)), 1), (Filter("force", (0.2,)), 1),
                         (Filter("force", at_least=0.2), 2), (Filter("force", at_most=0.0999), 0)):
        assert len(condition.apply(data)) == n, condition
    assert len(Filter("score", at_most=0.1).apply(scored([0.1 + 1e-9, 0.2]))) == 0  # float64 is compared exactly
    assert len(Filter("success", (1,)).apply(demonstrations())) == 3


def test_values_that_have_no_order_are_refused():
    for scores in ([1, "", 2], [np.arange(2), np.arange(2)], [{"a": 1}, {"a": 0}]):
        with pytest.raises(UserError, match="not all numbers, and not all text"):
            Sort("score").apply(scored(scores))
    with pytest.raises(UserError, match="no episode has a value of 'score': all are NaN"):
        Sort("score").apply(scored([NAN, NAN]))


def test_fields():
    data = demonstrations()
    assert episode_values(data, "length") == [5, 1, 4, 7, 4, 6] and episode_values(data, "episode") == list(range(6))
    assert episode_values(data, "task") == ["lift", "öffne"] * 3
    assert episode_values(demonstrations(robot_type={"arm": 7}), "robot_type.arm") == [7] * 6
    bare = Dataset([Episode(e.steps, {}, len(e), e.schema) for e in data])
    assert episode_values(bare, "success") == [True, False] * 3
    assert len(Filter("masks", ("train",)).apply(demonstrations(masks=["train", "few"]))) == 6
