"""What `merge` proposes for units, signs, gains and orders that differ is executed, and the merge then succeeds."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest

from understudy.core import Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset

STATE, ACTION = "observation.state", "action"
NAMES = ("pan", "lift", "grip")


def arm(path, phase=0.0, state=lambda s: s, action=lambda a: a, names=NAMES, absolute=False, unit=None):
    """Episodes of three joints whose positions are sines; actions are the next positions, or the changes."""
    episodes = []
    for e in range(8):
        t = np.arange(41) / 10
        s = np.stack([np.sin(3 * t + e + phase), np.cos(2 * t + e + phase), 0.5 * np.sin(t + 0.3 * e + phase)], 1)
        columns = {STATE: state(s).astype(np.float32),
                   ACTION: action(s[1:] if absolute else np.diff(s, axis=0)).astype(np.float32)}
        feature = Feature("float32", (3,), names=names, unit=unit)
        episodes.append(Episode(columns, {}, 40, dict.fromkeys(columns, feature)))
    write_dataset(Dataset(episodes, {"fps": 10.0}), path)


def merge_as_proposed(call, a, b, out):
    """Merges, executes the commands that the refusal proposes, and returns their options and the second data set."""
    code, _, err = call("merge", a, b, "--out", out)
    assert code == 2 and not out.exists()
    commands = re.search(r"correct it: (.*); otherwise", err)[1].split(" && ")
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "understudy" and call(*words[1:])[0] == 0, command
    first, data = open_dataset(a), open_dataset(out)
    assert len(data) == 16 and data.features()[ACTION].names == first.features()[ACTION].names
    return shlex.split(commands[0])[4:-2], data.select(range(8, 16))


CASES = {
    "degrees": (np.rad2deg, np.rad2deg, [("--scale", "observation.state=deg2rad"), ("--scale", "action=deg2rad")]),
    "radians": (np.deg2rad, np.deg2rad, [("--scale", "observation.state=rad2deg"), ("--scale", "action=rad2deg")]),
    "millimeters": (lambda s: s * 1000, lambda a: a, [("--scale", "observation.state=mm2m")]),
    "two components in millimeters": (lambda s: s * [1000, 1000, 1], lambda a: a * [1000, 1000, 1], [
        ("--scale", "observation.state[pan,lift]=mm2m"), ("--scale", "action[pan,lift]=mm2m")]),
    "bytes": (lambda s: s, lambda a: a * 255, [("--scale", f"action={1 / 255:.17g}")]),
    "sign": (lambda s: s, lambda a: a * [1, -1, 1], [("--sign", "action[lift]")]),
    "all signs": (lambda s: s, lambda a: -a, [("--sign", "action")]),
    "gain": (lambda s: s, lambda a: a * [1, 1, 0.25], [("--scale", "action[grip]=4")]),
    "exchanged": (lambda s: s, lambda a: a[:, [1, 0, 2]], [("--swap", "action[pan,lift]")]),
    "three in a circle, one with another sign": (lambda s: s, lambda a: a[:, [1, 2, 0]] * [1, 1, -1], [
        ("--sign", "action[grip]"), ("--swap", "action[pan,grip]"), ("--swap", "action[lift,grip]")])}


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_proposed_commands_make_the_data_alike(case, absolute, call, tmp_path):
    state, action, expected = CASES[case]
    arm(tmp_path / "first", absolute=absolute)
    arm(tmp_path / "second set", 20, state, action, absolute=absolute)
    options, corrected = merge_as_proposed(call, tmp_path / "first", tmp_path / "second set", tmp_path / "both.json")
    assert list(zip(options[::2], options[1::2], strict=True)) == expected
    arm(tmp_path / "alike", 20, absolute=absolute)  # as it would have been recorded
    for e, original in zip(corrected, open_dataset(tmp_path / "alike"), strict=True):
        assert np.allclose(e.steps[STATE], original.steps[STATE], rtol=1e-5, atol=1e-5)
        assert np.allclose(e.steps[ACTION], original.steps[ACTION], rtol=1e-5, atol=1e-5)


def test_another_order_and_another_unit_are_corrected_together(call, tmp_path):
    arm(tmp_path / "first")
    order = [2, 0, 1]
    arm(tmp_path / "second", 20, lambda s: np.rad2deg(s[:, order]), lambda a: np.rad2deg(a[:, order] * [1, -1, 1]),
        tuple(NAMES[i] for i in order))
    options, corrected = merge_as_proposed(call, tmp_path / "first", tmp_path / "second", tmp_path / "both.json")
    assert sorted(zip(options[::2], options[1::2], strict=True)) == [
        ("--reorder", "action=pan,lift,grip"), ("--reorder", "observation.state=pan,lift,grip"),
        ("--scale", "action=deg2rad"), ("--scale", "observation.state=deg2rad"), ("--sign", "action[pan]")]
    arm(tmp_path / "alike", 20)
    for e, original in zip(corrected, open_dataset(tmp_path / "alike"), strict=True):
        assert np.allclose(e.steps[STATE], original.steps[STATE], atol=1e-5)
        assert np.allclose(e.steps[ACTION], original.steps[ACTION], atol=1e-5)


def test_known_units_are_converted(call, tmp_path):
    arm(tmp_path / "first", unit="rad")
    arm(tmp_path / "second", 20, np.rad2deg, np.rad2deg, unit="deg")
    options, corrected = merge_as_proposed(call, tmp_path / "first", tmp_path / "second", tmp_path / "both.json")
    assert sorted(options[1::2]) == ["action=deg2rad", "observation.state=deg2rad"]
    assert corrected.features()[STATE].unit == "rad"


def test_data_that_go_together_are_merged_without_a_proposal(call, tmp_path):
    for absolute in (False, True):
        folder = tmp_path / str(absolute)
        arm(folder / "a", absolute=absolute), arm(folder / "b", 20, absolute=absolute)
        assert call("merge", folder / "a", folder / "b", "--out", folder / "both.json")[0] == 0
