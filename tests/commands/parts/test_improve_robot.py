"""The command improve --robot: a person takes over on a simulated arm."""

from __future__ import annotations

import errno
import io
import json
import sys
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from fixtures.cli import TINY, refused
from fixtures.servo_arms import NAMES
from fixtures.takeovers import Hand, Keys, RobotSession
from fixtures.terminals import Terminal

from understudy.cli import main
from understudy.commands.improve import _Command
from understudy.commands.parts.improve_robot import keys_line
from understudy.core import Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.evaluate.failure_detection import FailureDetector, ObservationNovelty
from understudy.files import write_json
from understudy.heads.likelihood.regression import Regression
from understudy.improve import unlearned_steps
from understudy.improve.blind_promotion import judged_checkpoints
from understudy.improve.success import FrameRates
from understudy.learn.method import Method, load_policy
from understudy.learn.run import Run
from understudy.policy import PolicyConfig
from understudy.robots.calibration import MotorCalibration
from understudy.robots.emulator import EmulatedFeetechBus, FeetechServo
from understudy.robots.registry import RobotConfig, make_robot
from understudy.testing.random_data import random_batch

OPTIONS = ["--with", "hg-dagger", "--robot", "simulated_arm", "--supervisor", "keyboard", "--steps", "3", "--device",
           "cpu", "--rounds", "1", "--episodes", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A policy that was trained on motions of the arm, at 20 steps per second."""
    folder, rng = tmp_path_factory.mktemp("arm"), np.random.default_rng(0)
    episodes = []
    for number in range(6):
        action = np.cumsum(rng.uniform(0, 2, (30, 2)), 0).astype(np.float32)
        state = np.concatenate([np.zeros((1, 2), np.float32), action])
        episodes.append(Episode({"observation.state": state, "action": action}, {"number": number, "success": True}))
    write_dataset(Dataset(episodes, {"fps": 20}), folder / "demos.npz", "npz")
    assert main(["train", "bc", str(folder / "demos.npz"), "--out", str(folder / "run"), *TINY]) == 0
    return folder / "run"


@pytest.fixture
def session(run, monkeypatch, capsys):
    return RobotSession(run, OPTIONS, monkeypatch, capsys)


def test_a_person_takes_over_on_a_robot_and_without_blind_trials_nothing_is_promoted(session, tmp_path):
    out = tmp_path / "run"
    status, text, progress = session(out, _4=["takeover"], _9=["takeover"], _12=["undo", "success"], _13=["success"])
    assert status == 0, progress
    plan = progress.splitlines()
    assert "supervisor: you, with a keyboard" in plan[0] and "without --compare N no round is promoted" in plan[3]
    assert progress.index("press enter to connect") < progress.index("round 1 of 1: 2 episodes")
    assert "Nothing was promoted" in text and "--interactive --robot simulated_arm" in text
    assert Run(out).named_checkpoints() == {"best": "checkpoints/000000", "last": "checkpoints/000003"}
    first, second = open_dataset(out / "collection" / "000000" / "episodes.npz")
    assert np.flatnonzero(first.steps["intervention"]).tolist() == [4, 5, 6, 7, 8] and len(first) == 13
    assert np.array_equal(first.steps["undone"], first.steps["intervention"]) and first.metadata["success"] is True
    assert first.metadata["acted"] == 5 and first.metadata["watched"] == 8
    assert {"policy_action", "supervisor_action", "handover"} <= set(first.steps)
    assert first.metadata["seconds_acted"] == pytest.approx(5 / 20, abs=1e-3)
    assert np.abs(first.steps["action"]).max() <= 90
    before = len(session.envs)
    assert session(out)[0] == 0 and session.keys.calls == 0 and len(session.envs) == before + 1  # nothing is asked


def test_what_is_learned_of_a_takeover_is_counted(session, tmp_path):
    """The hand is 10 degrees beyond the limits of the robot. Its second takeover is taken back."""
    session.patch.setattr(Hand, "read", lambda hand: np.array([100, 0], np.float32))
    weigh, learned = unlearned_steps._LearnedSteps.__call__, []

    def weigh_and_note(function, batch, policy):
        weights = weigh(function, batch, policy)
        learned.append(batch.action[(weights > 0) & batch.mask].numpy())
        return weights
    session.patch.setattr(unlearned_steps._LearnedSteps, "__call__", weigh_and_note)
    session.moves_in_simulated_time, out = True, tmp_path / "run"
    status, text, err = session(out, "--handover", "robot", "--handover-seconds", "0", "--episodes", "1", "--json",
                                _4=["takeover"], _94=["takeover"], _100=["takeover"], _106=["undo"],
                                _107=["success"])
    assert status == 0, err
    episode = open_dataset(out / "collection" / "000000" / "episodes.npz")[0]
    acted, handover = episode.steps["intervention"], episode.steps["handover"]
    n_learned = int((acted & ~handover & ~episode.steps["undone"]).sum())
    assert acted.sum() == 97 and 20 < n_learned <= 90 - handover[4:94].sum() and not handover[80:94].any()
    assert f"(you acted 97 and watched 10); {n_learned} of the 97 are learned, the others are of a handover" in err
    assert json.loads(text)["rounds"][0]["round/learned"] == n_learned
    assert any((actions[:, 0] == 90).any() for actions in learned)  # the limit: what the training was given


def test_no_episode_is_asked_for_twice(session, tmp_path):
    out = tmp_path / "run"
    status, _, err = session(out, _3=["success", "quit"])  # the second episode reaches step 3 with quit
    assert status == 130 and "the same command continues" in err
    assert [p.name for p in (out / "collection" / "unfinished-000000").iterdir()] == ["1000000"]
    env = session.envs[-1]
    assert not env.robot.robot.is_connected and env.robot.state is None
    first = open_dataset(out / "collection" / "unfinished-000000" / "1000000" / "episodes.npz")
    status, _, err = session(out, _5=["failure"])
    assert status == 0 and "1 of 2 episodes are stored and not run again" in err
    data = open_dataset(out / "collection" / "000000" / "episodes.npz")
    assert [e.metadata["success"] for e in data] == [True, False]
    assert np.array_equal(data[0].steps["action"], first[0].steps["action"])


def test_a_run_of_an_unknown_rate_continues_at_the_rate_of_its_first_round(session, tmp_path, monkeypatch):
    monkeypatch.setattr("understudy.commands.parts.improve_robot.trained_rate", lambda run: None)
    monkeypatch.setattr("understudy.commands.parts.common.trained_rate", lambda run: None)
    assert session(tmp_path / "run", "--fps", "10", _3=["success", "quit"])[0] == 130
    refused(session(tmp_path / "run", "--fps", "15"), "--fps: new episodes", "10 steps per second", "--fps 10")
    refused(session(tmp_path / "run"), "--fps: new episodes", "10 steps per second")
    assert session(tmp_path / "run", "--fps", "10", _5=["failure"])[0] == 0


def test_nothing_is_connected_before_enter(session, tmp_path):
    status, _, err = session(tmp_path / "run", answer="")  # the terminal is closed instead
    assert status == 130 and session.keys.calls == 0
    assert not session.envs[0].robot.robot.is_connected and not (tmp_path / "run" / "collection").exists()


def test_a_full_disk_ends_the_command_with_the_motors_at_rest(session, tmp_path, monkeypatch):
    out, full = tmp_path / "run", OSError(errno.ENOSPC, "No space left on device", "disk")
    write = mock.Mock(wraps=write_dataset, side_effect=[mock.DEFAULT, full])
    monkeypatch.setattr("understudy.improve.journal.write_dataset", write)
    status, _, err = session(out, _3=["success", "success"])
    assert status == 2 and "no space is left" in err and "make room" in err
    assert write.call_count == 2 and session.envs[-1].robot._is_holding
    assert not session.envs[-1].robot.robot.is_connected
    monkeypatch.setattr("understudy.improve.journal.write_dataset", write_dataset)
    status, _, err = session(out, _5=["failure"])
    assert status == 0 and "1 of 2 episodes are stored" in err


@pytest.mark.parametrize(("estimate", "low", "high", "is_best"), [
    (0.2, -0.1, 0.5, True), (0.0, -0.3, 0.3, True), (-0.1, -0.4, 0.2, False), (-0.5, -0.8, -0.1, False)])
def test_a_round_is_promoted_by_blind_pairs(estimate, low, high, is_best, session, tmp_path, monkeypatch):
    asked = []

    def judge(options, design, actors, env, path, out):
        asked.append((design.policies, design.test.max_rollouts, len(actors), path.name, env.robot._is_holding))
        return {"rounds": 10, "policies": [{"successes": 5}, {"successes": 3}],
                "difference": {"estimate": estimate, "low": low, "high": high}}
    monkeypatch.setattr("understudy.commands.parts.improve_robot.judge_pairs", judge)
    out = tmp_path / "run"
    status, text, err = session(out, "--compare", 10, _3=["success", "success"])
    assert status == 0, err
    assert asked == [(("the policy of round 1", "000000, the best so far"), 10, 2, "round-1.jsonl", True)]
    assert Run(out).named_checkpoints()["best"] == f"checkpoints/{3 if is_best else 0:06d}"
    assert ("is the policy of round 1" if is_best else "No round improved the policy") in text
    assert judged_checkpoints(Run(out))[1]["promoted"] is is_best
    assert "by the best policy so far" in err


def test_the_page_of_a_robot_says_what_each_round_cost_and_what_was_corrected(session, tmp_path):
    page, out = tmp_path / "page.html", tmp_path / "run"
    status, _, err = session(out, "--html", page, _4=["takeover"], _9=["takeover"], _12=["success"], _14=["success"])
    assert status == 0, err
    episode = open_dataset(out / "collection" / "000000" / "episodes.npz")[0]
    assert np.flatnonzero(episode.steps["intervention"]).tolist() == [4, 5, 6, 7, 8]
    text = page.read_text()
    assert "Nothing was promoted" in text and "4 to 8" in text and "0:00" in text
    assert "Success against steps of the supervisor" in text and "Success against minutes of the person" in text
    change = (np.asarray(episode.steps["supervisor_action"], float) - episode.steps["policy_action"])[4:9].mean(0)
    spread = np.asarray(episode.steps["supervisor_action"], float).std(0)
    most = change[np.argmax(np.abs(change) / spread)]
    assert f"{most:+.3g}".replace("-", "\N{MINUS SIGN}") in text


@pytest.mark.parametrize("method", ["filtered", "residual", "rlpd"])
def test_a_policy_practises_beside_a_person_who_judges_and_may_take_over(method, session, tmp_path):
    out = tmp_path / "run"
    status, text, err = session(out, "--with", method, _4=["takeover"], _9=["takeover"], _12=["success"],
                                _13=["failure"])
    assert status == 0, err
    assert ("untrained: keep" in text) == ("it moves at random at first" in err) == (method == "rlpd")
    judged = open_dataset(out / "collection" / "000000" / "episodes.npz")
    assert [e.metadata["success"] for e in judged] == [True, False]
    first, second = judged
    assert np.flatnonzero(first.steps["intervention"]).tolist() == [4, 5, 6, 7, 8]
    if method != "filtered":
        assert first.steps["next.reward"].tolist() == [0.0] * (len(first) - 1) + [1.0]
        assert not np.any(second.steps["next.reward"])
    before = len(session.envs)
    assert session(out, "--with", method)[0] == 0 and session.keys.calls == 0 and len(session.envs) == before + 1


class Helper(Keys):
    """Takes over when the policy asks for help, gives back 3 steps later, and ends each episode at step 12."""

    def commands(self):
        takeover = self.env.takeover
        if takeover.n_steps >= 12 and takeover.success is None:
            return ["success"]
        if takeover.is_asked:
            self.gives_back_at = takeover.n_steps + 3
            return ["takeover"]
        if takeover.is_person and takeover.n_steps >= self.gives_back_at:
            return ["takeover"]
        return super().commands()


@pytest.mark.parametrize("method", ["ensemble", "thrifty", "doubt"])
def test_the_policy_asks_the_person_who_need_not_watch(method, session, tmp_path, monkeypatch):
    session.build_keys = Helper
    if method == "doubt":  # a detector that raises an alarm at once
        calibrated = SimpleNamespace(error="missed-failures", score=ObservationNovelty())
        detector = SimpleNamespace(method=calibrated, threshold=0.0)
        monkeypatch.setattr(FailureDetector, "load", lambda run, trust: detector)
    out = tmp_path / "run"
    status, _, err = session(out, "--with", method, "--intervention-rate", "0.5")
    assert status == 0, err
    episodes = list(open_dataset(out / "collection" / "000000" / "episodes.npz"))
    assert [len(e) for e in episodes] == [12, 12] and any(e.steps["intervention"].any() for e in episodes)
    for e in episodes:
        asks, acts = e.steps["handover"], e.steps["intervention"]  # the robot holds in place of a step that it doubts
        assert acts[np.flatnonzero(asks[:-1]) + 1].all() and e.steps["advised"][asks].all() and "doubt" in e.steps
        assert [e.metadata[k] for k in ("acted", "labeled", "watched")] == [acts.sum(), 0, 0]
        assert np.ptp(e.steps["action"][asks] - e.steps["observation.state"][:-1][asks], axis=0).max(initial=0) < 1e-3
    before = len(session.envs)
    assert session(out, "--with", method, "--intervention-rate", "0.5")[0] == 0
    assert session.keys.calls == 0 and len(session.envs) == before + 1


def test_a_takeover_is_a_negative_reward_unless_it_is_taken_back(session, tmp_path):
    out = tmp_path / "run"
    status, _, err = session(out, "--with", "rlif", _3=["takeover"], _5=["takeover"], _8=["takeover"],
                             _9=["undo"], _10=["takeover"], _12=["success", "success"])
    assert status == 0, err
    first, second = open_dataset(out / "collection" / "000000" / "episodes.npz")
    assert np.flatnonzero(first.steps["intervention"]).tolist() == [3, 4, 8, 9]
    assert np.flatnonzero(first.steps["next.reward"]).tolist() == [2] and not second.steps["next.reward"].any()
    assert np.flatnonzero(first.steps["undone"]).tolist() == [8, 9]
    assert Method.load(out).collection.leave_out == ("handover", "undone")


@pytest.mark.slow
def test_the_critics_of_a_robot_learn_while_the_next_round_is_collected(session, tmp_path):
    """A round that is stored stays, although the updates that were made meanwhile are lost."""
    out, options = tmp_path / "run", ("--with", "residual", "--rounds", 2)
    status, _, err = session(out, *options, _12=["success"], _13=["failure"], _14=["quit"])
    assert status == 130 and "in another process during the next round" in err
    assert Run(out).saved_steps() == [0] and (out / "collection" / "000000").is_dir()
    status, _, err = session(out, *options, _15=["success"], _16=["failure"])
    assert status == 0, err
    assert Run(out).saved_steps() == [0, 6]
    lengths = [len(e) for n in range(2) for e in open_dataset(out / "collection" / f"{n:06d}" / "episodes.npz")]
    assert lengths == [12, 13, 15, 16]


@pytest.mark.parametrize("method", ["dsrl", "dppo", "residual-ppo"])
def test_methods_that_learn_from_their_own_actions_only_are_refused_beside_a_person(method, session, tmp_path):
    refused(session(tmp_path / "run", "--with", method), "--supervisor", "hg-dagger", "filtered, residual, rlpd")


def test_practice_asks_whether_the_demonstrations_succeeded(run, session, tmp_path):
    demos = open_dataset(run.parent / "demos.npz")
    unmarked = Dataset([Episode(dict(e.steps), {"number": i}) for i, e in enumerate(demos)], {"fps": 20})
    write_dataset(unmarked, tmp_path / "unmarked.npz", "npz")
    refused(session(tmp_path / "run", "--with", "residual", "--data", tmp_path / "unmarked.npz"),
            "nothing says whether the episode succeeded", "--data DATA")


def test_a_classifier_ends_the_episode_as_a_success(session, run, tmp_path, monkeypatch):
    """It says so in the third step, where nobody presses a key. How one is trained: tests/commands/test_improve.py."""
    counted, rates = [], FrameRates(9, 1, 9, 8)

    def shows_success(obs):
        counted.append(obs["observation.state"].shape)
        return torch.tensor([len(counted) % 3 == 0])
    shows_success.planner = load_policy(run)
    monkeypatch.setattr(_Command, "classifier", (shows_success, rates))
    out = tmp_path / "run"
    status, text, err = session(out, "--with", "filtered", "--success", tmp_path)
    assert status == 0, err
    assert "or you; 1 of 9 held-out frames without success are false positives" in err
    judged = open_dataset(out / "collection" / "000000" / "episodes.npz")
    assert [(len(e), e.metadata["success"]) for e in judged] == [(3, True), (3, True)] and counted == [(1, 2)] * 6
    assert np.asarray(judged[0].steps["next.success"]).tolist() == [False, False, True]
    refused(session(out, "--with", "filtered"), f"its rounds were compared with --success {tmp_path}", "choose another")


def test_a_classifier_of_other_columns_is_refused_before_the_robot_moves(session, tmp_path, monkeypatch):
    planner, _ = random_batch(PolicyConfig(Regression()), inputs={"observation.other": Feature("float32", (2,))})
    monkeypatch.setattr(_Command, "classifier", (SimpleNamespace(planner=planner), FrameRates(9, 1, 9, 8)))
    refused(session(tmp_path / "run", "--with", "filtered", "--success", tmp_path), f"--success {tmp_path}, in ",
            "'observation.other'", "train it on episodes of this environment")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("args", "words"), [
    (["--supervisor", "scripted"], ["on a robot a person supervises, not scripted", "keyboard, gamepad or leader"]),
    (["--supervisor", "leader"], ["--teleop: is missing", "so101_leader"]),
    (["--teleop", "so101_leader"], ["--teleop: has no effect with --supervisor keyboard"]),
    (["--env", "fork"], ["an environment and a robot are both named"]),
    (["--compare", "4"], ["4 pairs of trials are too few", "at least 9"]),
    (["--fps", "10"], ["--fps: new episodes are learned together with those of", "20 steps per second"]),
    (["--with", "dagger"], ["at every step what the supervisor would do", "hg-dagger", "ensemble"]),
    (["--episode-time-s", "0"], ["--episode-time-s: must be above 0"]),
    (["--handover-seconds", "-1"], ["--handover-seconds: must be at least 0"])])
def test_bad_input(args, words, session, tmp_path):
    refused(session(tmp_path / "run", *args), *words)
    assert not (tmp_path / "run").exists()


def test_a_robot_without_a_terminal_and_devices_without_a_robot(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    def call(*args):
        capsys.readouterr()
        return main(["improve", str(run), *args, "--out", str(tmp_path / "run")]), *capsys.readouterr()
    refused(call(*OPTIONS), "no terminal to read keys from")
    for args, word in ((["--supervisor", "leader"], "a leader moves a robot"), (["--fps", "3"], "--fps: needs --robot"),
                       (["--supervisor", "keyboard", "--teleop", "gamepad"], "--teleop: needs --robot")):
        refused(call("--with", "hg-dagger", "--env", "fork", *args), word)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a person at a terminal")
def test_the_corrections_of_an_emulated_leader_beyond_the_range_of_the_follower_are_learned(tmp_path, monkeypatch):
    """The leader's elbow is held 8 degrees above the highest goal of the follower."""
    pytest.importorskip("scservo_sdk", reason="extra feetech not installed")
    monkeypatch.setenv("UNDERSTUDY_CALIBRATION", str(tmp_path / "calibration"))

    def arm(kind, low, high, **position):
        servos = [FeetechServo(i, position.get(name, 2000)) for i, name in enumerate(NAMES, 1)]
        for servo in servos:
            servo.set("Min_Position_Limit", low)
            servo.set("Max_Position_Limit", high)
        (tmp_path / "calibration" / kind).mkdir(parents=True)
        write_json(tmp_path / "calibration" / kind / f"{kind}.json", {
            name: asdict(MotorCalibration(i, 0, 0, low, high)) for i, name in enumerate(NAMES, 1)})
        return EmulatedFeetechBus(*servos)
    with (arm("so101_follower", 1000, 3000) as follower,
          arm("so101_leader", 900, 3100, elbow_flex=3000 + 91) as leader):
        robot = make_robot(RobotConfig("so101_follower", follower.port))
        action = np.tile(np.array([0, 0, 0, 0, 0, 50], np.float32), (40, 1))
        action[:, :3] = np.linspace(0, 10, 40)[:, None]
        demos = [Episode({"observation.state": np.concatenate([action[:1], action]), "action": action}, {"number": i},
                         schema=robot.schema) for i in range(4)]
        write_dataset(Dataset(demos, {"fps": 20}), tmp_path / "demos.npz", "npz")
        assert main(["train", "bc", str(tmp_path / "demos.npz"), "--out", str(tmp_path / "run"), *TINY]) == 0
        person = Terminal("improve", "run", "--with", "hg-dagger", "--robot", "so101_follower", "--robot.port",
                          follower.port, "--supervisor", "leader", "--teleop", "so101_leader", "--teleop.port",
                          leader.port, "--handover", "robot", "--rounds", "1", "--episodes", "1", "--steps", "3",
                          "--out", "better", "--yes", cwd=tmp_path)
        for words, keys in (("press enter to connect", "\n"), ("enter: begin the episode", "\n"),
                            ("step 5: the policy acts", "t"), ("step 120: you act", "y")):
            person.until(words)
            person.type(keys)
        status, text = person.end()
    assert status == 0, text
    episode = open_dataset(tmp_path / "better" / "collection" / "000000" / "episodes.npz")[0]
    acted, handover = episode.steps["intervention"], episode.steps["handover"]
    assert not handover[-50:].any() and f"{(acted & ~handover).sum()} of the {acted.sum()} are learned" in text
    assert episode.steps["action"][-1][2] == pytest.approx(robot.limits.high[2])
    assert episode.steps["supervisor_action"][-1][2] == pytest.approx(robot.limits.high[2] + 8, abs=0.1)


def test_the_plan_says_that_moving_the_leader_takes_over():
    lines = {who: keys_line(SimpleNamespace(robot="so101_follower", supervisor=who))
             for who in ("keyboard", "gamepad", "leader")}
    assert "moving the leader takes over" in lines["leader"]
    assert "leader" not in lines["keyboard"] + lines["gamepad"] and "tab: take over" not in lines["keyboard"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a person at a terminal")
def test_a_person_at_a_terminal_moves_a_joint_and_judges_blind_trials(run, tmp_path):
    """Up to nine pairs of trials. The person calls the first of each pair a success, and the second a failure."""
    args = [run, *OPTIONS, "--out", "better", "--compare", "9"]
    args[args.index("--episodes") + 1] = "1"
    person = Terminal("improve", *args, cwd=tmp_path)
    assert "keys: p: hold" in person.until("press enter to connect")
    person.type("\n")
    person.until("enter: begin the episode")
    person.type("\n")
    person.until("the policy acts")
    person.type("2t")
    assert "elbow | step" in person.until("you act")
    for _ in range(20):
        person.type("w")
        person.until("you act")
    person.type("y")
    answers = cycle("yn")
    while "enter: show" not in person.until(" > "):  # it is settled, or nine pairs cannot settle it any more
        person.type("\n")
        person.until("enter: end | y, n")
        person.type(next(answers))
    person.type("\n")
    status, text = person.end()
    assert status == 0, text
    episode = open_dataset(tmp_path / "better" / "collection" / "000000" / "episodes.npz")[0]
    acted = episode.steps["intervention"]
    assert acted.sum() >= 10 and episode.metadata["success"] is True
    assert np.ptp(episode.steps["supervisor_action"][acted], axis=0)[1] > 1  # the elbow was moved
    line = judged_checkpoints(Run(tmp_path / "better"))[1]
    result = json.loads((tmp_path / "better" / "trials" / "round-1.jsonl").read_text().splitlines()[-1])["result"]
    successes = [policy["successes"] for policy in result["policies"]]
    assert line["successes"] == successes and sum(successes) == line["pairs"] > 1
    assert line["promoted"] == (line["difference"] >= 0 and line["difference/high"] >= 0)
