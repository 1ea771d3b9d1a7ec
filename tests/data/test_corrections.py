"""Corrections of columns, against data whose values are known in closed form."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from fixtures.views import demonstrations

from understudy.core import Feature, UserError
from understudy.data.corrections import Reorder, Scale, Shift, Swap
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.opening import views

STATE, ACTION, CAMERA = "observation.state", "action", "observation.images.front"


def recorded(n=9, late=0, last=1, **features) -> Dataset:
    """Two episodes in which every column says its own time: state and image t, action 100 + t, `late` steps late."""
    episodes = []
    for e, length in enumerate((n, n + 2)):
        t = np.arange(length + last, dtype=np.float32)
        actions = 100 + t[:length] - late
        columns = {STATE: np.stack([t, -t, 10 * t], 1), ACTION: np.stack([actions, -actions], 1),
                   CAMERA: np.broadcast_to(t[:, None, None, None], (length + last, 2, 2, 3)).astype(np.uint8),
                   "timestamp": t[:length] / 10, "next.reward": t[:length]}
        schema = {k: features.get(k.rpartition(".")[2], Feature.from_array(v)) for k, v in columns.items()}
        episodes.append(Episode(columns, {"number": e}, length, schema))
    return Dataset(episodes, {"fps": 10.0})


def named(names=("a", "b", "c"), unit=None, dtype="float32") -> Feature:
    return Feature(dtype, (3,), names=names, unit=unit)


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("late", [3, -3, 1, -8])
def test_a_shift_restores_actions_that_are_stored_late_or_early(late, last):
    data = Shift(ACTION, -late).apply(recorded(late=late, last=last))
    assert [len(e) for e in data] == [9 - abs(late), 11 - abs(late)]
    for e in data:
        steps, first = {k: np.asarray(e.steps[k]) for k in e.steps}, max(0, -late)
        t = first + np.arange(len(e))
        assert np.array_equal(steps[ACTION], np.stack([100 + t, -100 - t], 1))
        assert len(steps[STATE]) == len(steps[CAMERA]) == len(e) + last
        assert np.array_equal(steps[STATE][:, 0], first + np.arange(len(e) + last))
        assert np.array_equal(steps[CAMERA][:, 1, 1, 2], first + np.arange(len(e) + last))
        assert np.array_equal(steps["next.reward"], t)
        assert np.allclose(steps["timestamp"], np.arange(len(e)) / 10)  # from the first step that is left


@pytest.mark.parametrize("late", [2, -2])
def test_a_camera_is_shifted_frame_by_frame(late):
    """A camera with a row after the last action keeps one that belongs to the observation after the last step."""
    data = recorded(last=1)
    data = Dataset([replace(e, steps={**e.steps, CAMERA: e.steps[CAMERA] + np.uint8(50 - late)}) for e in data],
                   data.metadata)
    for number, e in enumerate(shifted := Shift(CAMERA, -late).apply(data)):
        state, images = np.asarray(e.steps[STATE])[:, 0], np.asarray(e.steps[CAMERA])[:, 0, 0, 0]
        assert np.array_equal(images, state + 50) and len(images) == len(e) + 1
        assert {int(r): image[0, 0, 0] for rows, image in shifted.frames(CAMERA, number) for r in np.atleast_1d(rows)
                } == dict(enumerate(images))


def test_two_shifts_undo_each_other_except_for_the_ends():
    there = Shift(ACTION, -2).apply(Shift(ACTION, 2).apply(recorded()))
    for e, original in zip(there, recorded(), strict=True):
        assert np.array_equal(e.steps[ACTION], original.steps[ACTION][2:-2])
        assert np.array_equal(e.steps[STATE], original.steps[STATE][2:-2])


def test_a_shift_that_leaves_nothing_is_refused_with_the_episode():
    with pytest.raises(UserError, match=r"shift, action, episode 1: leaves nothing of its 1 steps[\s\S]*length>=2"):
        Shift(ACTION, -1).apply(demonstrations())
    assert len(Shift(ACTION, -1).apply(demonstrations().select([0, 2]))) == 2  # others may be too short
    with pytest.raises(UserError, match="changes nothing"):
        Shift(ACTION, 0).apply(recorded())
    with pytest.raises(UserError, match="no column 'actions'"):
        Shift("actions", 1).apply(recorded())


def test_factors_and_signs_in_closed_form():
    data = Scale(STATE, 0.5, ("c",)).apply(Scale(STATE, -1.0, (0, "b")).apply(recorded(state=named())))
    for e, original in zip(data, recorded(), strict=True):
        assert np.array_equal(e.steps[STATE], original.steps[STATE] * np.float32([-1, -1, 0.5]))
        assert e.steps[STATE].dtype == np.float32
        assert np.array_equal(e.steps[ACTION], original.steps[ACTION])
    assert data.features()[STATE].names == ("a", "b", "c")


@pytest.mark.parametrize("by, unit, after, factor", [
    ("deg2rad", "deg", "rad", np.pi / 180), ("deg2rad", None, "rad", np.pi / 180),
    ("rad2deg", "radians", "deg", 180 / np.pi),
    ("mm2m", "mm", "m", 1e-3), ("m2mm", "meters", "mm", 1e3), (2.0, "deg", None, 2), (-1.0, "deg", "deg", -1)])
def test_a_conversion_changes_values_and_unit(by, unit, after, factor):
    data = Scale(STATE, by).apply(recorded(state=named(unit=unit)))
    assert np.allclose(data[0].steps[STATE], np.asarray(recorded()[0].steps[STATE], float) * factor, rtol=1e-6)
    assert data.features()[STATE].unit == after


def test_exceptions_in_the_unit_are_not_converted():
    unit = "deg (gripper: percent)"
    data = Scale(STATE, "deg2rad").apply(recorded(state=named(("pan.pos", "lift.pos", "gripper.pos"), unit)))
    before, after = recorded()[0].steps[STATE], data[0].steps[STATE]
    assert np.allclose(after[:, :2], np.deg2rad(before[:, :2])) and np.array_equal(after[:, 2], before[:, 2])
    assert data.features()[STATE].unit == "rad (gripper: percent)"
    with pytest.raises(UserError, match="is not known from 'deg \\(gripper: percent\\)'"):
        Scale(STATE, "deg2rad").apply(recorded(state=named(unit=unit)))


@pytest.mark.parametrize("operation, says", [
    (Scale(STATE, "deg2rad"), "the unit is rad, and deg2rad converts deg"),
    (Scale(STATE, "deg2grad"), "no conversion 'deg2grad'; there are deg2rad, rad2deg, mm2m, m2mm"),
    (Scale(STATE, 0), "scale, observation.state: 0 is not a factor"),
    (Scale(STATE, float("nan")), "nan is not a factor"),
    (Scale(STATE, 1.0), "1 is not a factor"), (Scale(STATE, 2, ("d",)), "no component 'd'; there are a, b, c"),
    (Scale(STATE, 2, (3,)), "no component 3; there are a, b, c"), (Scale(STATE, 2, (0, "a")), "'a' is given twice"),
    (Scale(STATE, 2, (-1,)), "no component -1"),
    (Scale(CAMERA, 2), "scale, observation.images.front: the column has the kind 'image'"),
    (Scale("next.done", 2), "no column 'next.done'"),
    (Reorder(STATE, ("a", "b")), "2 components are named, and the column has 3\n.*in the new order: a, b, c"),
    (Reorder(STATE, ("a", "b", "b")), "'b' is given twice"),
    (Reorder("timestamp", ("0",)), r"the shape \(\), and only vectors"),
    (Swap(STATE, ("a", "x")), "swap, observation.state: there is no component 'x'")])
def test_what_does_not_fit_is_refused_with_column_and_component(operation, says):
    with pytest.raises(UserError, match=says):
        operation.apply(recorded(state=named(unit="rad")))


def test_values_of_the_wrong_type_are_refused():
    for make in (lambda: Shift(ACTION, 1.5), lambda: Scale(ACTION, True), lambda: Swap(ACTION, (0,)),
                 lambda: Reorder(ACTION, (0.5,))):
        with pytest.raises(UserError):
            make()


def test_names_move_with_a_reorder_and_stay_with_a_swap():
    data, before = recorded(state=named()), recorded()[1].steps[STATE]
    for components in (("c", "a", "b"), (2, 0, 1), ("2", "a", "1")):
        changed = Reorder(STATE, components).apply(data)
        assert changed.features()[STATE].names == ("c", "a", "b")
        assert np.array_equal(changed[1].steps[STATE], before[:, [2, 0, 1]])
    swapped = Swap(STATE, ("c", 0)).apply(data)
    assert swapped.features()[STATE].names == ("a", "b", "c")
    assert np.array_equal(swapped[1].steps[STATE], before[:, [2, 1, 0]])
    assert Swap(STATE, ("a", "c")).apply(swapped).fingerprint() == data.fingerprint()


def test_classes_follow_their_components():
    columns = {STATE: np.zeros((4, 1)), ACTION: np.array([[0, 4]] * 3)}
    schema = {STATE: Feature("float64", (1,)), ACTION: Feature("int64", (2,), "discrete", num_classes=(2, 5))}
    data = Dataset([Episode(columns, {}, 3, schema)])
    assert Reorder(ACTION, (1, 0)).apply(data).features()[ACTION].num_classes == (5, 2)
    with pytest.raises(UserError, match="kind 'discrete', and needs vector"):
        Scale(ACTION, 2.0).apply(data)


def test_whole_numbers_are_scaled_without_rounding():
    columns = {STATE: np.arange(4, dtype=np.int16)[:, None], ACTION: np.zeros((3, 1))}
    schema = {STATE: Feature("int16", (1,)), ACTION: Feature("float64", (1,))}
    data = Scale(STATE, 0.1).apply(Dataset([Episode(columns, {}, 3, schema)]))
    assert data[0].steps[STATE][:, 0].tolist() == [0.0, 0.1, 0.2, 3 * 0.1]
    assert data.features()[STATE].dtype == "float64"


CHAIN = (Shift(ACTION, -2), Scale(STATE, "deg2rad"), Scale(ACTION, -1.0, ("1",)), Swap(STATE, (0, 2)),
         Reorder(ACTION, (1, 0)))


def test_a_view_stores_corrections_and_leaves_the_data_as_they_are(tmp_path):
    write_dataset(recorded(), tmp_path / "data", images="png")
    data = open_dataset(tmp_path / "data")
    before = data.fingerprint()
    views.write_view(tmp_path / "v.json", tmp_path / "data", *CHAIN)
    assert views.read_view(tmp_path / "v.json").operations == CHAIN
    view, expected = open_dataset(tmp_path / "v.json"), data
    for operation in CHAIN:
        expected = operation.apply(expected)
    assert view.fingerprint() == expected.fingerprint() != before == open_dataset(tmp_path / "data").fingerprint()
    t = np.arange(7.0)
    assert np.allclose(view[0].steps[ACTION], np.stack([100 + t + 2, 100 + t + 2], 1))
    assert np.allclose(view[0].steps[STATE], np.deg2rad(np.arange(8.0))[:, None] * [10, -1, 1], rtol=1e-6)


def test_statistics_of_a_written_view_are_those_of_its_values(tmp_path):
    write_dataset(recorded(), tmp_path / "data")
    views.write_view(tmp_path / "v.json", tmp_path / "data", *CHAIN)
    view = open_dataset(tmp_path / "v.json")
    write_dataset(view, tmp_path / "copy")
    copy = open_dataset(tmp_path / "copy")
    stats = json.loads((tmp_path / "copy" / "meta" / "stats.json").read_text())
    for name in (STATE, ACTION):
        values = np.concatenate([np.asarray(e.steps[name])[:len(e)] for e in view])
        assert np.array_equal(values, np.concatenate([np.asarray(e.steps[name])[:len(e)] for e in copy]))
        assert np.allclose(stats[name]["mean"], values.mean(0)) and np.allclose(stats[name]["max"], values.max(0))
    assert copy.features()[STATE].unit == "rad"
