"""Commands with a policy of LeRobot in a process of its own."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from fixtures.cli import document, refused
from fixtures.lerobot_stand_in import SCALE, write_checkpoint, write_python

pytest.importorskip("websockets", reason="extra serve not installed")

from understudy.commands.parts.served import LEROBOT_DEVICE, LEROBOT_PYTHON, served_client  # noqa: E402
from understudy.data.formats import open_dataset, write_dataset  # noqa: E402


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """The RUN of a policy of the stand-in that samples its plans ("chunks"), and of one that does not ("direct")."""
    folder = tmp_path_factory.mktemp("policies")
    python = write_python(folder / "stand_in", "fixtures.lerobot_stand_in.install")
    names = {kind: f"lerobot:{write_checkpoint(folder / kind, kind, state=2)}" for kind in ("chunks", "direct")}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(LEROBOT_PYTHON, str(python))
        environment.setenv(LEROBOT_DEVICE, "auto")
        yield names
        for name in names.values():
            served_client(name).close()


# -- calibrate --------------------------------------------------------------------------------------------------------


def test_the_spread_of_its_plans_is_calibrated_in_a_file_of_the_user(policies, call, tmp_path):
    """The noise of its plans has variance 1: (1 / SCALE ** 2 + 1) / 2 in normalized units, where one is constant."""
    run, file = policies["chunks"], tmp_path / "detector.json"
    before = sorted(Path(run.partition(":")[2]).iterdir())
    result = document(call("calibrate", run, "fork", "--rate", 0.2, "--episodes", 8, "--detector", file, "--json"))
    assert result["detector"] == str(file) and sorted(Path(run.partition(":")[2]).iterdir()) == before
    spread = math.sqrt((SCALE ** -2 + 1) / 2)
    assert spread < result["threshold"] < 1.5 * spread
    evaluated = document(call("eval", run, "fork", "--episodes", 8, "--detector", file, "--json", "--save",
                              tmp_path / "e"))
    missed = sum(e.steps["doubt"].max() < result["threshold"] for e in open_dataset(tmp_path / "e")
                 if not e.metadata["success"])
    assert evaluated["detection"]["missed"]["count"] == missed
    assert evaluated["detection"]["threshold"] == result["threshold"]


def test_novelty_is_measured_from_the_demonstrations_that_are_named(policies, place, call, tmp_path):
    run, file = policies["direct"], tmp_path / "detector.json"
    demos = shutil.copytree(place / "demos", tmp_path / "demos")
    novelty = ("calibrate", run, "fork", "--score", "novelty", "--rate", 0.5, "--episodes", 4, "--detector", file)
    refused(call(*novelty), "does not say which these are", "--data DATA")
    status, out, err = call(*novelty, "--data", demos)
    assert status == 0, err
    assert json.loads(file.read_text())["data"] == str(demos)
    assert f"understudy eval {run} fork --detector {file}" in out
    detect = ("eval", run, "fork", "--episodes", 2, "--detector", file)
    assert call(*detect)[0] == 0
    assert call("record", "fork", "--out", demos, "--episodes", 13)[0] == 0
    refused(call(*detect), "have changed since its failure detector was calibrated")


def test_what_cannot_be_calibrated_is_refused(policies, call, tmp_path):
    run, file = policies["direct"], tmp_path / "detector.json"
    refused(call("calibrate", run, "fork"), "is not changed", "--detector detector.json")
    refused(call("calibrate", run, "fork", "--detector", file), "plans without randomness", "--score novelty")
    refused(call("calibrate", policies["chunks"], "fork", "--detector", file, "--score", "loss"), "no loss of its own",
            "spread or novelty")
    refused(call("eval", run, "fork", "--detect"), "is not changed", "--detector detector.json")
    refused(call("eval", run, "fork", "--detector", tmp_path / "fork.json"), "there is no such file",
            "understudy calibrate RUN ENV")
    assert call("calibrate", policies["chunks"], "fork", "--rate", 0.5, "--episodes", 4, "--detector", file)[0] == 0
    refused(call("eval", run, "fork", "--detector", file), "for another checkpoint")


# -- diagnose ---------------------------------------------------------------------------------------------------------


def test_where_it_acts_is_diagnosed_and_what_needs_its_training_is_said(policies, place, call):
    run = policies["direct"]
    result = document(call("diagnose", run, "--env", "fork", "--data", place / "demos", "--episodes", 4, "--json"))
    assert result["outcome"] == {"successes": 0, "episodes": 4, "place": None, "recorded": [12, 12]}
    assert {"columns", "motion", "limits", "trials"} <= set(result["checked"]) and "fit" not in result["checked"]
    assert result["unchecked"] == ["checkpoint, fit, statistics and novelty: they need to know how and on what the "
                                   "policy was trained"]
    assert not any(f["command"] and "METHOD" in f["command"] for f in result["findings"])
    alone = document(call("diagnose", run, "--env", "fork", "--episodes", 4, "--json"))
    assert alone["checked"] == ["columns", "trials"] and "--data DATA" in alone["unchecked"][1]
    refused(call("diagnose", run), "only where it acts can be checked", "--env ENV or --robot TYPE")


def test_recorded_actions_that_do_not_fit_the_environment_are_a_fault(policies, place, call, tmp_path):
    """Actions in units of 1 / 1000 beyond its limits are the reason why a policy that learned them fails there."""
    wrong = tmp_path / "wrong"
    write_dataset(open_dataset(place / "demos").map(
        lambda e: e.replace({"action": 1000 * np.asarray(e.steps["action"])})), wrong, "lerobot")
    result = document(call("diagnose", policies["direct"], "--env", "fork", "--data", wrong, "--episodes", 4, "--json"))
    assert "action-units" in [f["code"] for f in result["findings"] if f["level"] == "fault"]
