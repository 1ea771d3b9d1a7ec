"""understudy diagnose: what is printed, and input that does not fit."""

import json
import shutil
from html import unescape

import numpy as np
import pytest
from fixtures.cli import refused
from fixtures.runs import plain

from understudy.commands.diagnose import DiagnoseOptions, _command
from understudy.commands.parts.common import command_line
from understudy.data.formats import open_dataset
from understudy.diagnose.base import LEVELS, ORDER, RunFinding
from understudy.learn.train import train

FAULTY = '''
from dataclasses import replace

from understudy.envs.base import EnvWrapper
from understudy.envs.toys.fork import Fork


class Renamed(EnvWrapper):
    def __init__(self, env):
        super().__init__(env)
        self.features = self.names(env.features)

    def names(self, columns):
        return {n.replace("observation.state", "observation.position"): v for n, v in columns.items()}

    def reset(self, which, key):
        return self.names(super().reset(which, key))

    def step(self, action):
        result = super().step(action)
        return type(result)(self.names(result.obs), result.reward, result.terminated, result.truncated, result.info)


def renamed(rows):
    return Renamed(Fork(rows))


class Hopeless(EnvWrapper):
    def step(self, action):
        result = super().step(action)
        return replace(result, info={**result.info, "success": result.reward < -1e9})


def hopeless(rows):
    return Hopeless(Fork(rows))
'''


def findings(out):
    document = json.loads(out)
    assert set(document) == {"ok", "headline", "outcome", "findings", "checked", "unchecked", "next"}
    levels = [LEVELS.index(f["level"]) for f in document["findings"]]
    assert levels == sorted(levels) and {f["code"] for f in document["findings"]} <= set(ORDER)
    for finding in document["findings"]:
        assert isinstance(finding["value"], (int, float)) and len(finding["healthy"]) == 2
        assert finding["message"] and finding["remedy"] and finding["command"].startswith("understudy ")
        assert not {"RUN", "DATA", "METHOD"} & set(finding["command"].split())
    return document


def test_a_hardly_trained_run_is_named_in_text_and_json(place, call, tmp_path, monkeypatch):
    """As a fault where it does not succeed."""
    (tmp_path / "other_world.py").write_text(FAULTY)
    monkeypatch.chdir(tmp_path)
    options = ("--env", "other_world:hopeless", "--trust", "other_world", "--episodes", 4, "--json")
    status, out, _ = call("diagnose", place / "a", *options)
    document = findings(out)
    assert status == 0 and not document["ok"] and document["findings"][0]["code"] == "underfit"
    assert "motion" in document["checked"] and not document["unchecked"]
    status, out, _ = call("diagnose", place / "a")
    assert status == 0 and "fault  underfit  (" in out and "-> train for more updates" in out
    assert "not checked: cameras, units, latency, limits and starts: no --env and no --robot is named" in out


@pytest.mark.parametrize("named", ["", "best", "last"])
def test_another_checkpoint_is_one_of_the_same_run(place, named):
    """RUN/best/checkpoints/... is nowhere."""
    finding = RunFinding("wrong-checkpoint", "note", "", 1.1, (1, 1.5), "", ("eval", "RUN/checkpoints/000060", "ENV"))
    command = _command(DiagnoseOptions(run=place / "a" / named), finding.command)
    assert command == command_line("eval", place / "a" / "checkpoints" / "000060", "fork")


def test_a_server_is_no_run(place, call):
    refused(call("diagnose", "ws://127.0.0.1:8000"), "ws://127.0.0.1:8000: is not a run",
            "the run that is served there")


def test_the_page_has_every_finding_with_its_number_and_its_command(place, call, tmp_path):
    page = tmp_path / "page.html"
    status, out, _ = call("diagnose", place / "a", "--json", "--html", page)
    text = unescape(page.read_text())
    assert status == 0 and "Diagnosis of a<" in text and "Not checked: cameras" in text
    for finding in findings(out)["findings"]:
        message, value = finding["message"], f"{finding['value']:.3g}"
        assert message[0].upper() + message[1:] in text and f"What to do: {finding['remedy']}." in text
        assert f"{finding['code']}: {value}, healthy: " in text and f"<pre>{finding['command']}</pre>" in text


def test_an_environment_with_other_columns(place, call, tmp_path, monkeypatch):
    (tmp_path / "their_world.py").write_text(FAULTY)
    monkeypatch.chdir(tmp_path)
    status, out, err = call("diagnose", place / "a", "--env", "their_world:renamed", "--trust", "their_world", "--json")
    first = findings(out)["findings"][0]
    assert status == 0 and (first["code"], first["where"]["feature"]) == ("missing-column", "observation.state")
    assert "give observation.position the name" in first["remedy"] and "cannot act in their_world:renamed" in err


def test_success_that_is_gone_without_a_fault_is_a_warning(place, call, tmp_path, monkeypatch):
    (tmp_path / "other_world.py").write_text(FAULTY)
    monkeypatch.chdir(tmp_path)
    assert call("train", "knn", place / "demos", "--out", tmp_path / "run")[0] == 0
    assert call("eval", tmp_path / "run", "fork", "--episodes", 20)[0] == 0
    options = ("--env", "other_world:hopeless", "--trust", "other_world", "--json")
    _, out, _ = call("diagnose", tmp_path / "run", *options)
    document = findings(out)
    first = document["findings"][0]
    assert (first["code"], first["level"], first["value"]) == ("success-drop", "warning", 0)
    assert not document["ok"] and (document["outcome"]["successes"], document["outcome"]["episodes"]) == (0, 20)
    assert document["headline"].startswith("The policy succeeds in 0 of 20 episodes") and document["next"]
    assert "0 of 20 episodes succeeded" in first["message"] and "in an evaluation in fork" in first["message"]


def test_a_run_that_does_not_exist(call, tmp_path):
    status, _, err = call("diagnose", tmp_path / "no")
    assert status == 2 and str(tmp_path / "no") in err


def test_data_that_are_gone(place, call, tmp_path):
    run = tmp_path / "moved"
    shutil.copytree(place / "a", run)
    for file in run.glob("checkpoints/*/provenance.json"):
        provenance = json.loads(file.read_text())
        provenance["data"].pop("path")  # as of episodes in memory
        provenance.pop("options")
        file.write_text(json.dumps(provenance))
    status, out, _ = call("diagnose", run, "--json")
    document = findings(out)
    assert status == 0 and document["unchecked"][0] == (
        "the data that it was trained on are not named: its data had no path (name them: --data DATA)")
    status, _, err = call("diagnose", run, "--data", tmp_path / "missing.npz")
    assert status == 2 and "missing.npz" in err
    status, out, _ = call("diagnose", run, "--data", place / "demos", "--json")
    assert status == 0 and "fit" in findings(out)["checked"]


def test_a_run_that_was_trained_in_python_knows_its_data(place, call, tmp_path, monkeypatch):
    """Also after both were moved together, and when it is named from another folder."""
    shutil.copytree(place / "demos", tmp_path / "a" / "demos")
    train(plain(steps=2), open_dataset(tmp_path / "a" / "demos"), tmp_path / "a" / "runs" / "one", progress=False)
    (tmp_path / "a").rename(tmp_path / "b")
    for folder, run in ((tmp_path, "b/runs/one"), (tmp_path / "b" / "runs", "one/last")):
        monkeypatch.chdir(folder)
        _, out, _ = call("diagnose", run, "--json")
        assert "fit" in findings(out)["checked"] and not any("train" in text for text in findings(out)["unchecked"])
    (tmp_path / "b" / "demos").rename(tmp_path / "b" / "others")
    _, out, _ = call("diagnose", "one", "--json")
    looked_for = f"gone: ../demos ({tmp_path / 'b' / 'runs' / '..' / 'demos'})"
    assert looked_for in findings(out)["unchecked"][0]


def test_other_data_are_told_apart(place, call, tmp_path):
    data = open_dataset(place / "demos")
    other = tmp_path / "other.npz"
    np.savez(other, observations=np.concatenate([57.3 * e.steps["observation.state"][:len(e)] for e in data]),
             actions=np.concatenate([e.steps["action"] for e in data]),
             episode_ends=np.cumsum([len(e) for e in data]))
    _, out, _ = call("diagnose", place / "a", "--data", other, "--json")
    document = findings(out)
    assert "are not the data of the run" in document["unchecked"][0]
    assert document["findings"][0]["code"] == "wrong-statistics"


def test_a_run_without_validation(place, call, tmp_path):
    from fixtures.cli import TINY

    assert call("train", "bc", place / "demos", "--out", tmp_path / "run", "--val-fraction", 0, *TINY)[0] == 0
    status, out, _ = call("diagnose", tmp_path / "run", "--env", "fork", "--episodes", 2, "--json")
    codes = {f["code"]: f["level"] for f in findings(out)["findings"]}
    assert status == 0 and codes["no-held-out"] == "note"


def test_a_policy_of_goals_is_diagnosed_although_no_goal_is_recorded(call, tmp_path):
    assert call("record", "four_rooms:play", "--out", tmp_path / "play", "--episodes", 4)[0] == 0
    assert call("train", "gcivl", tmp_path / "play", "--out", tmp_path / "run", "--steps", 2)[0] == 0
    status, out, err = call("diagnose", tmp_path / "run", "--env", "four_rooms", "--episodes", 2, "--json")
    assert status == 0 and "fit" in findings(out)["checked"], err


def test_data_without_actions_leave_the_other_checks(place, call, tmp_path):
    data = open_dataset(place / "demos")
    state, ends = (np.concatenate([e.steps[name][:len(e)] for e in data]) for name in (
        "observation.state", "next.terminated"))
    np.savez(tmp_path / "seen.npz", observations=state, terminals=ends, episode_ends=np.cumsum([len(e) for e in data]))
    status, out, err = call("train", "bco", tmp_path / "seen.npz", "--prior", place / "demos", "--env", "fork",
                            "--out", tmp_path / "run", "--steps", 2)
    assert status == 0 and f"eval {tmp_path / 'run'} {tmp_path / 'seen.npz'}" not in out + err
    status, out, _ = call("diagnose", tmp_path / "run", "--json")
    assert status == 0 and findings(out)["unchecked"][0] == f"there are no actions in {tmp_path / 'seen.npz'}"


def test_a_robot_is_read_and_does_not_move(call, tmp_path, monkeypatch):
    from understudy.robots.simulated import SimulatedArm

    rng = np.random.default_rng(0)
    states = [np.array([20.0, 40.0]) + rng.normal(size=(30, 2)).cumsum(0) for _ in range(8)]
    np.savez(tmp_path / "arm.npz", observations=np.concatenate([s[:-1] for s in states]),
             actions=np.concatenate([s[1:] for s in states]), episode_ends=np.cumsum([29] * 8))
    assert call("train", "knn", tmp_path / "arm.npz", "--out", tmp_path / "run")[0] == 0
    sent = []
    monkeypatch.setattr(SimulatedArm, "send", lambda self, action: sent.append(action))
    status, out, _ = call("diagnose", tmp_path / "run", "--robot", "simulated_arm", "--json")
    document = findings(out)
    assert status == 0 and not sent and {f["code"]: f["level"] for f in document["findings"]}["start-states"] == "note"
    assert "columns" in document["checked"]
    assert "understudy record --robot simulated_arm --teleop TYPE --out more" in out


@pytest.mark.parametrize(("options", "problem"), [
    (["--env", "fork", "--robot", "simulated_arm"], "--env: cannot be used with --robot"),
    (["--robot.port", "/dev/x"], "--robot.port: needs --robot TYPE"),
    (["--env", "fork", "--episodes", "0"], "--episodes: must be at least 1"),
    (["--episodes", "5"], "--episodes: is a number of episodes in the environment of --env"),
    (["--env", "frok"], "frok")])
def test_options_that_do_not_fit(place, call, options, problem):
    status, _, err = call("diagnose", place / "a", *options)
    assert status == 2 and problem in err


def test_an_exported_file_has_no_data(call, tmp_path):
    status, _, err = call("diagnose", tmp_path / "policy.onnx")
    assert status == 2 and "diagnose the run that it was exported from" in err
