"""Rotations at another rate take the shortest way, against closed-form rotations."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.core import Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import write_dataset
from understudy.data.operations import Resample
from understudy.data.resampling import find_rotations

STATE = "observation.state"


def resampled(values, names=None, unit=None, fps=30.0, name=STATE) -> np.ndarray:
    """A column of 10 rows a second at another rate, except for the rows after the last time, which repeat it."""
    values = np.array(values, np.float64)
    feature = Feature("float64", values.shape[1:], names=names, unit=unit)
    data = Dataset([Episode({name: values}, {}, len(values), {name: feature})], {"fps": 10.0})
    out = Resample(fps, "linear").apply(data)[0].steps[name]
    return out[:int((len(values) - 1) * fps / 10) + 1]


def quaternion(angle, flips=slice(10, 20)):
    q = np.stack([np.sin(angle / 2), 0 * angle, 0 * angle, np.cos(angle / 2)], 1)
    q[flips] *= -1
    return q


def same_rotation(a, b):
    return np.allclose(np.abs((a * b).sum(1)), 1, atol=1e-9)


@pytest.mark.parametrize("names", [("qx", "qy", "qz", "qw"), ("q_x", "q_y", "q_z", "q_w"), None,
                                   tuple(f"pose.orientation.{axis}" for axis in "xyzw"), tuple("abcd")])
def test_quaternions_stay_rotations_of_even_speed(names):
    fine = resampled(quaternion(np.arange(30) * 0.3), names)
    assert np.allclose(np.linalg.norm(fine, axis=1), 1)
    assert same_rotation(fine, quaternion(np.arange(len(fine)) * 0.1, slice(0, 0)))


def test_quaternions_are_found_between_other_components():
    angle = np.arange(30) * 0.3
    position = np.stack([angle, angle ** 2, -angle], 1)
    fine = resampled(np.concatenate([position, quaternion(angle), position[:, :1]], 1))
    assert same_rotation(fine[:, 3:7], quaternion(np.arange(len(fine)) * 0.1, slice(0, 0)))
    assert np.allclose(fine[:, 0], np.arange(len(fine)) * 0.1) and np.allclose(fine[:, 7], fine[:, 0])


def test_a_quaternion_may_lack_axes_and_come_first():
    q = quaternion(np.arange(30) * 0.3)
    fine = resampled(np.concatenate([q[:, [3, 0]], q[:, 3:]], 1), ("left.q_w", "left.q_x", "gripper"))
    assert np.allclose(np.linalg.norm(fine[:, :2], axis=1), 1)


@pytest.mark.parametrize("names, unit, turn, low, name", [
    (("yaw",), None, 2 * np.pi, -np.pi, STATE), (("yaw",), None, 2 * np.pi, 0, STATE),
    (("heading",), "deg", 360, -180, STATE), (("theta",), None, 360, 0, "action"),
    (("j0",), "rad", 2 * np.pi, -np.pi, STATE),
    (None, None, 360, -180, "observation.yaw")])
def test_angles_take_the_short_way(names, unit, turn, low, name):
    def angle(t):
        return (t * turn / 15 - low) % turn + low
    fine = resampled(angle(np.arange(60.0))[:, None], names, unit, name=name)[:, 0]
    gap = fine - angle(np.arange(len(fine)) / 3)
    assert np.allclose((gap + turn / 2) % turn - turn / 2, 0, atol=1e-9)
    assert low <= fine.min() and fine.max() <= low + turn


def test_what_is_no_rotation_is_interpolated_as_before():
    values = np.array([[0.0, -3], [1, 3], [0, -3], [1, 3]])
    for names in (None, ("grip", "yaw_rate")):
        assert np.allclose(resampled(values, names, fps=20)[:, 1], [-3, 0, 3, 0, -3, 0, 3])
    classes = np.eye(4)
    assert np.allclose(resampled(classes, fps=20)[1], [0.5, 0.5, 0, 0])
    assert not find_rotations(STATE, Feature("float64", (4,)), classes).quaternions
    counted = np.array([[0.0], [300], [700], [1100]])  # more than a turn: it does not wrap
    assert np.allclose(resampled(counted, ("yaw",), fps=20)[:, 0], [0, 150, 300, 500, 700, 900, 1100])


def test_view_make_warns_of_angles_without_a_name(tmp_path, capsys):
    from understudy.cli import main
    yaw = ((np.arange(60) * 0.4 + np.pi) % (2 * np.pi) - np.pi).astype(np.float32)[:, None]
    for names, warns in ((("a",), True), (("yaw",), False)):
        feature = Feature("float32", (1,), names=names)
        write_dataset(Dataset([Episode({STATE: yaw, "action": yaw * 0}, {}, 60, {STATE: feature})], {"fps": 10.0}),
                      tmp_path / names[0])
        for rule in ("linear", "nearest"):
            capsys.readouterr()
            assert main(["view", "make", str(tmp_path / names[0]), "--fps", "20", "--rule", rule, "--out",
                         str(tmp_path / f"{names[0]}_{rule}.json")]) == 0
            warning = "component 0 of observation.state jumps by almost a full turn in episode 0"
            assert (warning in capsys.readouterr().err) == (warns and rule == "linear")
