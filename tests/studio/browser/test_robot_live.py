"""The studio of a robot without a browser: its commands, pictures and project."""

import base64
import re
import shutil
import sys
import threading
import time
import types

import numpy as np
import pytest
from fixtures.cli import TINY
from fixtures.waiting import wait_until

from understudy.cli import main
from understudy.commands.studio import CommandPolicies
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.video import decode_image
from understudy.robots.cameras import EmulatedCamera, frame_number
from understudy.robots.limits import SafetyLimits
from understudy.robots.recording import RecordingTimes
from understudy.robots.safety import SafeRobot
from understudy.robots.simulated import SimulatedArm
from understudy.studio.browser.pictures import camera_shapes, joint_shapes, picture_svg
from understudy.studio.browser.project import Project
from understudy.studio.browser.robot_live import RobotLiveSession

WORDS = ["--robot", "simulated_arm", "--robot.cameras", "{front: {type: emulated}}", "--teleop", "module:leader",
         "--fps", "50"]
TIMES = RecordingTimes(warmup=600, episode=600, reset=600)


class Leader:
    """A leader arm that waves, until its cable comes loose."""

    def __init__(self):
        self.is_loose = False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def connect(self):
        self.read()

    def disconnect(self):
        pass

    def start(self, position):
        pass

    def read(self):
        if self.is_loose:
            raise UserError("the connection is gone", where="leader", hint="plug the cable in")
        return 20 * np.sin(3 * time.monotonic() + np.arange(2.0))


def session(folder, cameras=("front",)):
    cameras = {name: EmulatedCamera(160, 120, 30) for name in cameras}
    arm = SimulatedArm(clock=time.monotonic, cameras=cameras)
    robot = SafeRobot(arm, SafetyLimits((-90.0, -90.0), (90.0, 90.0), (60.0, 60.0), slow_start=0))
    return RobotLiveSession(Project(folder, "simulated_arm", WORDS), robot, Leader(), 50, "leader", CommandPolicies(),
                            "wave", TIMES)


def says(live, text):
    wait_until(lambda: text in live.picture().text, 60)


def record(live, count, *commands):
    """Records an episode, after which the project has so many."""
    live.person.command("enter")
    wait_until(lambda: re.match(r"step ([2-9]|\d\d)", live.picture().text), 60)
    for command in commands:
        live.person.command(command)
    live.person.command("enter")
    says(live, "reset")
    wait_until(lambda: len(live.project.episodes()) == count, 60)


def frames(shapes):
    return [decode_image(base64.b64decode(shape["image"].partition(",")[2]), 3, "page") for shape in shapes]


def test_demonstrations_on_a_robot(tmp_path):
    live = session(tmp_path / "project")
    live.start("show")
    says(live, "warm-up")
    for command in ("pause", "undo", "step"):  # of toys: they end nothing here
        live.person.command(command)
    record(live, 1, "success")
    live.person.command("discard")  # the episode that has just ended is recorded again
    says(live, "discarded")
    record(live, 1, "failure")
    record(live, 2)
    live.stop()
    assert live.mode == "idle" and live.error is None
    shown = live.project.episodes()
    assert [e.success for e in shown] == [False, None]
    assert shown[0].episode.metadata["by"] == "leader" and shown[0].episode.metadata["task"] == "wave"
    for step in (0, len(shown[1].episode) - 1):
        stored = frame_number(shown[1].episode.steps["observation.images.front"][step])
        assert frame_number(frames(live.recorded(shown[1], step))[0]) == stored
    assert max(frames(live.thumbnail(shown[0]))[0].shape) == 80


def test_a_lost_leader_keeps_the_steps(tmp_path):
    live = session(tmp_path / "project", cameras=())
    live.start("show")
    says(live, "warm-up")
    live.person.command("enter")
    says(live, "step 2")
    assert len(live.picture().shapes) == 2  # a bar for each joint
    live.teleop.is_loose = True
    wait_until(lambda: live.mode == "idle", 60)
    assert "the connection is gone" in live.error and "plug the cable in" in live.error
    (demonstration,) = live.project.episodes()
    assert demonstration.is_interrupted and not demonstration.is_used and len(demonstration.episode) >= 2
    live.teleop.is_loose = False
    live.start("show")
    says(live, "warm-up")
    live.stop()
    assert live.error is None


def test_a_project_remembers_its_robot(tmp_path):
    project = Project(tmp_path / "project", "simulated_arm", WORDS)
    assert Project(tmp_path / "project").robot == WORDS
    assert project.robot_words("--robot") == WORDS[:4] and project.robot_words("--robot", "--teleop") == WORDS[:6]
    moved = [*WORDS[:1], "simulated_arm", "--robot.port", "/dev/other"]
    assert Project(tmp_path / "project", "simulated_arm", moved).robot == moved  # it is at another port now
    with pytest.raises(UserError, match="about simulated_arm, not fork"):
        Project(tmp_path / "project", "fork")
    assert "--env" not in project.choose("data", 3)[0] and "--env" in Project(tmp_path / "f", "fork").choose("d", 3)[0]


def test_pictures_of_cameras_and_joints():
    wide = np.zeros((120, 160, 3), np.uint8)
    below = camera_shapes([wide, wide], 480)
    assert [s["at"] for s in below] == [[0.5, 0.25], [0.5, 0.75]]
    assert below[0]["half"] == pytest.approx([0.98 / 3, 0.245])
    beside = camera_shapes([wide.transpose(1, 0, 2)] * 2, 480)
    assert [s["at"] for s in beside] == [[0.25, 0.5], [0.75, 0.5]]
    assert [s["half"] for s in camera_shapes([wide], 480)] == [pytest.approx([0.49, 0.3675])]
    assert frames(camera_shapes([wide], 40))[0].shape == (30, 40, 3)
    assert picture_svg(below, 44).count("<image") == 2
    bars = joint_shapes(np.array([-90.0, 0.0, 200.0]), np.full(3, -90.0), np.full(3, 90.0))
    assert [2 * b["half"][0] for b in bars] == [0.0, 0.5, 1.0] and all(b["at"][0] == b["half"][0] for b in bars)


@pytest.mark.parametrize("words, message", [
    (["push", "--robot", "simulated_arm", "--teleop", "keyboard"], "name an environment or a robot, not both"),
    (["push", "--fps", "10"], "has no effect without a robot"),
    (["--teleop", "so101_leader"], "needs --robot TYPE"),
    (["--robot", "simulated_arm"], "--teleop: is missing"),
    (["--robot", "simulated_arm", "--teleop", "keyboard"], "the keyboard moves a robot in a terminal alone")])
def test_a_wrong_command_makes_no_folder(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["studio", *words, "--no-browser"]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


# -- watch and compare ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project with two policies of a simulated arm."""
    folder, rng = tmp_path_factory.mktemp("trained"), np.random.default_rng(0)
    episodes = []
    for number in range(3):
        action = np.cumsum(rng.uniform(0, 2, (30, 2)), 0).astype(np.float32)
        state = np.concatenate([np.zeros((1, 2), np.float32), action])
        episodes.append(Episode({"observation.state": state, "action": action}, {"number": number, "success": True}))
    project = Project(folder / "project", "simulated_arm", WORDS)
    write_dataset(Dataset(episodes, {"fps": 20}), folder / "demos.npz", "npz")
    for seed in ("1", "2"):
        assert main(["train", "bc", str(folder / "demos.npz"), "--out", str(project.folder / "runs" / seed), "--seed",
                     seed, *TINY]) == 0
    return project.folder


@pytest.fixture
def project(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "project")


def alive(live):
    """Keeps the page of a session alive until the returned event is set."""
    ended = threading.Event()
    live.person.receive([], (0.0, 0.0))  # the page is there before the next command

    def tell():
        while not ended.wait(0.1):
            live.person.receive([], (0.0, 0.0))
    threading.Thread(target=tell, daemon=True).start()
    return ended


def reaches(live, phase):
    wait_until(lambda: live.phase == phase or live.mode == "idle", 60)
    assert live.phase == phase, live.error


def give(live, command, phase):
    live.person.command(command)
    reaches(live, phase)


def steps(live, number):
    wait_until(lambda: live.person.takeover.n_steps >= number, 60)


def test_a_policy_acts_and_the_leader_takes_over(project, monkeypatch, capsys):
    live = session(project)
    live.start("watch", "runs/1")
    closed = alive(live)
    reaches(live, "waits")
    says(live, "Enter begins")
    assert not live.robot.robot.received and live.picture().shapes  # nothing moves, and the cameras are seen
    give(live, "enter", "policy")
    steps(live, 3)
    planned = live.foresight()
    assert planned.curves.shape[0::2] == (1, 2) and planned.names == live.features["action"].names
    give(live, "takeover", "person")
    steps(live, live.person.takeover.n_steps + 30)
    assert live.picture().is_person
    give(live, "takeover", "policy")
    give(live, "pause", "held")
    before = live.person.takeover.n_steps
    says(live, "P continues")
    time.sleep(0.2)
    assert live.person.takeover.n_steps == before
    give(live, "pause", "policy")
    give(live, "success", "waits")
    assert live.tally == [1, 1]
    give(live, "enter", "policy")
    closed.set()  # the page is gone
    reaches(live, "held")
    live.person._received -= 20
    reaches(live, "waits")
    assert live.tally == [1, 1]  # nobody has said how it ended
    live.stop()
    assert live.error is None
    first, second = (open_dataset(path / "episodes.npz")[0] for path in live.project.corrections("runs/1"))
    acted = np.asarray(first.steps["intervention"], bool)
    assert acted.sum() >= 30 and not acted[:3].any() and not acted[-1] and first.metadata["success"] is True
    assert np.asarray(first.steps["handover"]).any()  # it came to the pose of the leader without a jump
    assert second.metadata["interrupted"]

    monkeypatch.chdir(project)  # without a terminal, and without a connection to the arms
    monkeypatch.setitem(sys.modules, "module", types.SimpleNamespace(leader=lambda: Leader()))
    words = ["improve", "runs/1", "--with", "hg-dagger", "--supervisor", "leader",
             *live.project.robot_words("--robot", "--teleop"), "--trust", "module"]
    options = ["--rounds", "1", "--episodes", "2", "--steps", "3", "--device", "cpu"]
    assert main([*words, "--out", "runs/1-1", *options]) == 0, capsys.readouterr().err
    assert [policy.name for policy in live.project.policies()] == ["runs/1", "runs/1-1", "runs/2"]
    assert not live.project.corrections("runs/1")


def test_a_lost_cable_keeps_the_steps_of_a_takeover(project):
    live = session(project, cameras=())
    live.start("watch", "runs/1")
    closed = alive(live)
    reaches(live, "waits")
    give(live, "enter", "policy")
    give(live, "takeover", "person")
    steps(live, live.person.takeover.n_steps + 3)
    live.teleop.is_loose = True
    reaches(live, "lost")
    says(live, "Your device is lost (the connection is gone). Enter connects it again.")
    live.teleop.is_loose = False
    give(live, "enter", "held")
    give(live, "pause", "person")
    live.robot.robot.is_broken = True
    reaches(live, "lost")
    says(live, "The robot is lost")
    live.stop()
    closed.set()
    (path,) = live.project.corrections("runs/1")
    episode = open_dataset(path / "episodes.npz")[0]
    assert episode.metadata["interrupted"] and np.asarray(episode.steps["intervention"]).sum() >= 3
    live.start("watch", "runs/1")  # the cable is plugged in again
    reaches(live, "waits")
    live.stop()
    assert live.error is None


def answer(live, command, begun):
    """Runs the trial of this number, and says how it went."""
    give(live, "enter", "acts")
    assert "runs" not in live.picture().text
    assert live.project.trials().counts[1] == begun
    live.person.command(command)
    wait_until(lambda: live.phase != "acts", 60)


def test_blind_trials(project, monkeypatch, capsys):
    live = session(project)
    live.rivals = "runs/1", "runs/2"
    live.start("judge")
    closed = alive(live)
    reaches(live, "waits")
    says(live, "Round 1, first of two trials")
    answer(live, "failure", 1)
    says(live, "second of two trials")
    answer(live, "discard", 2)  # it is repeated
    reaches(live, "waits")
    give(live, "enter", "acts")
    closed.set()  # a trial that nobody sees is repeated, too
    reaches(live, "waits")
    closed = alive(live)
    give(live, "enter", "acts")
    live.stop()
    assert live.error is None and not live.project.trials().is_over
    live.start("judge")  # the same trials go on, and ask about the one that was stopped
    says(live, "How did trial 4 go?")
    live.person.command("success")
    reaches(live, "waits")
    says(live, "The last one was a success")
    live.person.command("failure")  # that was a mistake
    says(live, "The last one was a failure")
    live.person.command("end")
    wait_until(lambda: live.mode == "idle", 60)
    closed.set()
    trials = live.project.trials()
    assert live.error is None and trials.is_over and trials.counts == (1, 4)
    result = trials.result()
    assert [policy["successes"] for policy in result["policies"]] == [0, 0]
    assert result["verdict"] == ("Cannot tell whether runs/1 or runs/2 is better: 0 of 1 against 0 of 1 on the same "
                                 "starts.")

    monkeypatch.chdir(project)
    words, path = live.project.trials_command("runs/1", "runs/2")
    assert path == "trials/2.jsonl" and words[-1] == path
    assert main(["eval", *words[:-1], "trials/1.jsonl"]) == 0  # the command reads the same trials
    assert result["verdict"] in capsys.readouterr().out
