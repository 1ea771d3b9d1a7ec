"""Commands with a policy of LeRobot in a process of its own."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.cli import document, proposed, refused
from fixtures.lerobot_arm import FPS, HORIZON, demonstrations, write_small_act
from fixtures.lerobot_stand_in import DIE, FAIL, HANG, SCALE, write_checkpoint, write_python
from fixtures.takeovers import RobotSession
from fixtures.terminals import Terminal
from folders import REPOSITORY

pytest.importorskip("websockets", reason="extra serve not installed")

from understudy.commands.parts.served import LEROBOT_DEVICE, LEROBOT_PYTHON, served_client  # noqa: E402
from understudy.data.episode import Dataset, Episode  # noqa: E402
from understudy.data.formats import open_dataset, write_dataset  # noqa: E402
from understudy.evaluate.failure_detection import FailureDetector  # noqa: E402
from understudy.learn.method import load_policy  # noqa: E402
from understudy.robots.simulated import SimulatedArm  # noqa: E402
from understudy.serve import lerobot_process  # noqa: E402

STATE = "observation.state"
ARM = ("--robot", "simulated_arm", "--robot.slow-start", 0, "--robot.max-velocity", 1e6, "--fps", 20,
       "--max-bad-share", 1)
SENSING_ARM = ("--robot", "fixtures.lerobot_arm:sensing_arm", "--trust", "fixtures", "--fps", FPS)
NEWEST = REPOSITORY / ".venv-peers" / "lerobot" / "bin" / "python"


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


@pytest.fixture(params=["lerobot 0.4.4", "newest lerobot"])
def lerobot(request, tmp_path, monkeypatch):
    """The option with the Python of an environment with LeRobot."""
    if request.param == "newest lerobot" and not NEWEST.exists():
        pytest.skip("no .venv-peers")
    monkeypatch.setenv(LEROBOT_PYTHON, "none")  # the option sets it
    monkeypatch.setenv(LEROBOT_DEVICE, "auto")
    return "--lerobot-python", NEWEST if request.param == "newest lerobot" else write_python(
        tmp_path / "python", "upstream_lerobot.stand_in")


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


# -- compare ----------------------------------------------------------------------------------------------------------


def test_it_is_compared_with_a_run_on_the_same_starts(policies, place, call, tmp_path):
    run = policies["direct"]
    result = document(call("compare", place / "a", run, "--env", "fork", "--episodes", 6, "--save", tmp_path / "saved",
                           "--json"))
    rollouts = [open_dataset(folder) for folder in sorted((tmp_path / "saved").iterdir())]
    for one, other in zip(*rollouts, strict=True):
        assert np.array_equal(one.steps[STATE][0], other.steps[STATE][0])
        state = np.asarray(other.steps[STATE])[:len(other) // 4 * 4:4, :1]  # at which it plans
        assert np.array_equal(np.asarray(other.steps["action"])[:len(state) * 4], np.repeat(state, 4, 0).repeat(2, 1))
    assert [p["name"] for p in result["policies"]] == [str(place / "a"), run]
    assert [p["success"]["estimate"] for p in result["policies"]] == [
        np.mean([e.metadata["success"] for e in data]) for data in rollouts]


def test_act_of_lerobot_and_the_run_that_it_was_exported_from_do_not_differ(lerobot, call, tmp_path):
    """Both act alike on the same starts, so that no episode tells them apart."""
    assert call("record", "maze", "--out", tmp_path / "mazes", "--episodes", 6)[0] == 0
    write_small_act(open_dataset(tmp_path / "mazes"), tmp_path / "run", tmp_path / "act")
    runs = tmp_path / "run", f"lerobot:{tmp_path / 'act'}"
    result = document(call("compare", *runs, "--env", "maze", "--episodes", 4, "--save", tmp_path / "saved", *lerobot,
                           "--json"))
    ours, lerobots = (open_dataset(folder) for folder in sorted((tmp_path / "saved").iterdir()))
    for one, other in zip(ours, lerobots, strict=True):
        np.testing.assert_allclose(one.steps["action"], other.steps["action"], rtol=1e-4, atol=1e-4)
    assert result["pairs"][0]["difference"] == 0 and [p["letters"] for p in result["policies"]] == ["a", "a"]
    served_client(runs[1]).close()


# -- act --------------------------------------------------------------------------------------------------------------


def test_it_acts_on_a_robot_and_its_detector_ends_an_episode(policies, call, tmp_path, monkeypatch):
    """The elbow goes where the shoulder is."""
    run, file, acted = policies["direct"], tmp_path / "detector.json", tmp_path / "acted"
    monkeypatch.setattr(SimulatedArm, "__init__", lambda arm, init=SimulatedArm.__init__, **options: init(
        arm, position=(5.0, 1.0), **options))
    status, _, err = call("act", run, *ARM, "--episode-time-s", 0.6, "--episodes", 2, "--out", acted)
    assert status == 0, err
    first, second = open_dataset(acted)
    assert np.array_equal(first.steps["action"], np.full((len(first), 2), 5)) and len(first) > 3
    assert first.steps[STATE][0].tolist() == [5, 1] and first.steps[STATE][-1].tolist() == [5, 5]
    labeled = [replace(e, metadata={**e.metadata, "success": success}) for e, success in ((first, True),
                                                                                         (second, False))]
    write_dataset(Dataset(labeled, {"fps": 20}), tmp_path / "labeled.npz", "npz")
    novelty = ("--score", "novelty", "--data", acted, "--rate", 0.5, "--detector", file)
    status, out, err = call("calibrate", run, tmp_path / "labeled.npz", *novelty)
    assert status == 0 and f"understudy act {run} --robot TYPE --detector {file}" in out, err
    detector = FailureDetector.read(file)
    for threshold, is_ended in ((0.0, True), (1e9, False)):
        replace(detector, threshold=threshold).save(file)
        status, out, err = call("act", run, *ARM, "--episode-time-s", 0.4, "--detector", file)
        assert status == 0, err
        assert out.startswith("episode 0: 0 steps, ended by alarm of the failure detector") == is_ended


@pytest.mark.parametrize(("state", "problem"), [
    (FAIL, "LeRobot cannot plan: ValueError: the state is 8"), (DIE, "the process of LeRobot has ended"),
    (HANG, "nothing came from the process of LeRobot")])
def test_the_robot_stops_when_no_plan_comes(state, problem, policies, call, tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_process, "PLAN_SECONDS", 0.5)
    observe, observed, stopped = SimulatedArm.observe, [], []

    def observe_state(arm):
        observed.append(observe(arm))
        return {STATE: np.array([state, 0], np.float32)} if len(observed) > 12 else observed[-1]
    monkeypatch.setattr(SimulatedArm, "observe", observe_state)
    monkeypatch.setattr(SimulatedArm, "stop", lambda arm, stop=SimulatedArm.stop: stopped.append(arm) or stop(arm))
    run = f"lerobot:{write_checkpoint(tmp_path / 'policy', 'direct', state=2)}"
    status, out, err = call("act", run, *ARM, "--episode-time-s", 30)
    assert (status, out) == (2, "") and problem in err and "steps of the episode were done" in err
    assert stopped and not stopped[-1].is_connected
    served_client(run).close()


def test_act_of_lerobot_moves_an_arm(lerobot, call, tmp_path):
    """Each action is one of our plans from an observation of the last steps, however long a plan takes."""
    write_small_act(demonstrations(), tmp_path / "run", tmp_path / "act")
    run = f"lerobot:{tmp_path / 'act'}"
    status, _, err = call("act", run, *lerobot, *SENSING_ARM, "--max-bad-share", 1, "--episode-time-s", 1.5, "--out",
                          tmp_path / "acted")
    assert status == 0, err
    episode, policy = open_dataset(tmp_path / "acted")[0], load_policy(tmp_path / "act")
    obs = {name: torch.tensor(episode.steps[name])[:, None] for name in policy.inputs}
    plans = policy.plan(obs, torch.zeros(len(obs[STATE]), *policy.noise_shape)).detach().numpy()
    for t, action in enumerate(episode.steps["action"]):
        assert np.abs(plans[max(t - HORIZON, 0):t + 1] - action).max(-1).min() < 1e-4
    assert np.abs(episode.steps[STATE][-1]).min() > 1
    result = document(call("diagnose", run, *lerobot, *SENSING_ARM[:4], "--json"))
    assert "columns" in result["checked"] and not [f for f in result["findings"] if f["level"] == "fault"]
    served_client(run).close()


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


def test_a_robot_is_read_and_does_not_move(policies, call, tmp_path, monkeypatch):
    """The demonstrations begin far from where the arm rests."""
    states = np.array([20.0, 40.0]) + np.random.default_rng(0).normal(size=(8, 30, 2)).cumsum(1)
    demos = [Episode({STATE: s.astype(np.float32), "action": s[1:].astype(np.float32)}) for s in states]
    write_dataset(Dataset(demos, {"fps": 20}), tmp_path / "demos.npz", "npz")
    sent = []
    monkeypatch.setattr(SimulatedArm, "send", lambda arm, action: sent.append(action))
    result = document(call("diagnose", policies["direct"], "--robot", "simulated_arm", "--data", tmp_path / "demos.npz",
                           "--json"))
    findings = {f["code"]: f for f in result["findings"]}
    assert not sent and findings["start-states"]["level"] == "note" and "columns" in result["checked"]
    assert "understudy record --robot simulated_arm" in findings["start-states"]["command"]


def test_recorded_actions_that_do_not_fit_the_environment_are_a_fault(policies, place, call, tmp_path):
    """Actions in units of 1 / 1000 beyond its limits are the reason why a policy that learned them fails there."""
    wrong = tmp_path / "wrong"
    write_dataset(open_dataset(place / "demos").map(
        lambda e: e.replace({"action": 1000 * np.asarray(e.steps["action"])})), wrong, "lerobot")
    result = document(call("diagnose", policies["direct"], "--env", "fork", "--data", wrong, "--episodes", 4, "--json"))
    assert "action-units" in [f["code"] for f in result["findings"] if f["level"] == "fault"]


# -- improve ----------------------------------------------------------------------------------------------------------

RECORD = ("--with", "hg-dagger", "--robot", "simulated_arm", "--supervisor", "keyboard", "--fps", "20", "--episodes",
          "2")


def test_takeovers_are_recorded_and_trained_on_with_the_commands_that_it_says(policies, call, tmp_path, monkeypatch,
                                                                              capsys):
    """The person takes over at steps 4 to 8 and takes that back, and then at steps 3 to 6."""
    run, out = policies["direct"], tmp_path / "corrected"
    monkeypatch.chdir(tmp_path)
    path = np.linspace([0, 0], [30, 20], 31, dtype=np.float32)
    write_dataset(Dataset([Episode({STATE: path, "action": path[1:]}, schema=SimulatedArm().schema)] * 2, {"fps": 20}),
                  tmp_path / "demos")
    before = sorted(Path(run.partition(":")[2]).iterdir())
    session = RobotSession(run, RECORD, monkeypatch, capsys)
    status, text, err = session(out, "--data", "demos", _4=["takeover"], _9=["takeover"], _12=["undo", "success"],
                                _3=["", "takeover"], _7=["", "takeover"], _13=["failure"])
    assert status == 0 and "without training" in err, err
    first, second = open_dataset(out / "collection" / "000000" / "episodes.npz")
    assert np.flatnonzero(first.steps["intervention"]).tolist() == [4, 5, 6, 7, 8]
    assert np.flatnonzero(second.steps["intervention"]).tolist() == [3, 4, 5, 6]
    assert [e.metadata["success"] for e in (first, second)] == [False, True]
    learned = np.flatnonzero(second.steps["intervention"] & ~second.steps["handover"])
    [takeover] = open_dataset(out / "takeovers")
    assert {name for name in takeover.steps if name.startswith(("observation", "action", "inter"))} == {STATE, "action"}
    assert np.array_equal(takeover.steps["action"], np.asarray(second.steps["action"])[learned])
    assert sorted(Path(run.partition(":")[2]).iterdir()) == before
    assert f"1 takeover of {len(learned)} steps" in text and f"--policy.path={run.partition(':')[2]}" in text
    merge, convert, lerobots, train = proposed(text)
    assert lerobots[-2:] == ["--dataset.root=together", "--policy.push_to_hub=false"]
    for words in (merge, convert, ["knn" if word == "METHOD" else word for word in train]):
        assert call(*words)[0] == 0, words
    assert len(open_dataset("together")) == 3
    n_calls, n_envs = session.keys.calls, len(session.envs)
    assert n_calls and session(out)[0] == 0 and session.keys.calls == 0 and len(session.envs) == n_envs + 1
    refused(session(out, "--seed", "1"), "--seed is 1, and was 0 when this recording began", "another --out")


def test_a_recording_that_was_interrupted_continues(policies, tmp_path, monkeypatch, capsys):
    session = RobotSession(policies["direct"], RECORD, monkeypatch, capsys)
    assert session(tmp_path / "run", _3=["success", "quit"])[0] == 130
    status, text, err = session(tmp_path / "run", _5=["failure"])
    assert status == 0 and "1 of 2 episodes are stored" in err
    assert "Nothing is to be learned" in text and "next:" not in text and not (tmp_path / "run" / "takeovers").exists()
    episodes = open_dataset(tmp_path / "run" / "collection" / "000000" / "episodes.npz")
    assert [e.metadata["success"] for e in episodes] == [True, False]


def test_a_policy_that_reads_a_task_is_told_it_and_the_takeovers_have_it(policies, tmp_path, monkeypatch, capsys):
    run = f"lerobot:{write_checkpoint(tmp_path / 'words', 'words', state=2)}"
    session = RobotSession(run, RECORD, monkeypatch, capsys)
    refused(session(tmp_path / "out"), "reads the task in words", "--task")
    result = document(session(tmp_path / "out", "--task", "push", "--json", "--episodes", 1, _6=["takeover"],
                              _9=["success"]))
    [whole] = open_dataset(tmp_path / "out" / "collection" / "000000" / "episodes.npz")
    assert (np.asarray(whole.steps["policy_action"]) == 4).all()  # the length of the words
    [takeover] = open_dataset(tmp_path / "out" / "takeovers")
    assert takeover.metadata["task"] == "push" and result["learned"] == len(takeover) > 0
    assert result["human_steps"] == {"acted": 3, "watched": 6}


@pytest.mark.parametrize(("args", "words"), [
    (["--with", "iwr"], ["iwr trains, and LeRobot trains this policy", "--with hg-dagger"]),
    (["--steps", "10"], ["--steps: has no effect on a policy of LeRobot"]),
    (["--batch-size", "8"], ["--batch-size: is no option of this command", "lerobot-train"]),
    (["--supervisor", "scripted"], ["on a robot a person supervises"])])
def test_what_would_train_it_is_refused(args, words, policies, tmp_path, monkeypatch, capsys):
    session = RobotSession(policies["direct"], RECORD, monkeypatch, capsys)
    refused(session(tmp_path / "run", *args), *words)
    assert not (tmp_path / "run").exists()


def test_in_an_environment_a_person_supervises(policies, place, call, tmp_path):
    refused(call("improve", policies["direct"], "--with", "hg-dagger", "--env", "fork", "--supervisor", "scripted",
                 "--out", tmp_path / "run"), "the takeovers of a person are recorded", "--supervisor keyboard")
    refused(call("improve", place / "a", "--with", "hg-dagger", "--supervisor", "scripted", "--task", "push", "--out",
                 tmp_path / "run"), "--task: is for policies of LeRobot")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a person at a terminal")
def test_a_person_at_a_terminal_corrects_it_in_a_toy(policies, tmp_path):
    person = Terminal("improve", policies["direct"], "--with", "hg-dagger", "--env", "fork", "--supervisor", "keyboard",
                      "--episodes", "1", "--out", "mine", cwd=tmp_path)
    for words, keys in (("enter: begin the episode", "\n"), ("step 2: the policy acts", "t"), ("step 5: you act", "y")):
        person.until(words)
        person.type(keys)
    status, text = person.end()
    assert status == 0, text
    [takeover] = open_dataset(tmp_path / "mine" / "takeovers")
    assert len(takeover) > 1 and f"1 takeover of {len(takeover)} steps" in text
