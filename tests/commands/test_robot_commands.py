"""The commands of a robot: an emulated SO-101 is set up, recorded, and driven by the policy that was trained on it."""

import io
import json
import os
import re
import sys
import threading
import time
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from fixtures.hands import Hand

from understudy.advice import advice_about
from understudy.cli import _report_interrupt, main
from understudy.commands.act import _may_begin
from understudy.commands.inspect import _success_lines
from understudy.commands.parts.common import robot_arguments
from understudy.commands.parts.policies import untrained_warning
from understudy.commands.parts.robot_options import command_keys, show_line
from understudy.config import dump
from understudy.core import Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset
from understudy.data.recording.recorder import Recorder
from understudy.files import write_json
from understudy.heads.denoising.flow import Flow
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.run import Run
from understudy.policy import PolicyConfig
from understudy.robots.emulator import emulate_arm
from understudy.robots.motors_bus import MotorsBus
from understudy.robots.recording import RobotSession
from understudy.robots.registry import RobotConfig, make_robot, parse_cameras
from understudy.robots.servo_arm import ARM_TYPES

pytest.importorskip("scservo_sdk", reason="extra feetech not installed")
pytest.importorskip("dynamixel_sdk", reason="extra dynamixel not installed")


@pytest.fixture
def typed(monkeypatch):
    """Lines that a person types: (seconds to wait, text) each."""
    def script(*lines):
        read, write = os.pipe()

        def type_them():
            for wait, text in lines:
                time.sleep(wait)
                os.write(write, text.encode())
            os.close(write)
        threading.Thread(target=type_them, daemon=True).start()
        monkeypatch.setattr(sys, "stdin", os.fdopen(read))
    return script


@pytest.fixture
def patient(monkeypatch):
    """Longer waits, for a machine that does many other things."""
    begin = MotorsBus.__init__
    monkeypatch.setattr(MotorsBus, "__init__", lambda self, port, motors: begin(self, port, motors, 1_000_000, 0.3, 5))


@pytest.mark.slow
def test_an_emulated_arm_from_calibration_to_a_policy_that_acts(tmp_path, monkeypatch, capsys, typed, patient):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_CALIBRATION", str(tmp_path / "calibration"))
    kinds = ARM_TYPES["so101_follower"], ARM_TYPES["so101_leader"]
    with emulate_arm(kinds[0]) as follower, emulate_arm(kinds[1]) as leader:
        robot = ["--robot", "so101_follower", "--robot.port", follower.port, "--robot.id", "mine"]
        teleop = ["--teleop", "so101_leader", "--teleop.port", leader.port]
        assert main(["record", *robot, *teleop, "--out", "demos", "--episodes", "1"]) == 2
        assert "understudy robot calibrate --robot so101_follower --robot.port" in capsys.readouterr().err
        with Hand(follower, leader):
            for device in (robot, teleop):
                typed((0.5, "\n"), (4.0, "\n"))
                assert main(["robot", "calibrate", *device]) == 0
        assert sorted(p.name for p in (tmp_path / "calibration").rglob("*.json")) == ["mine.json", "so101_leader.json"]
        typed()
        with Hand(leader, size=200):
            assert main(["robot", "teleoperate", *robot, *teleop, "--fps", "20", "--teleop-time-s", "1"]) == 0
            assert main(["record", *robot, *teleop, "--fps", "20", "--out", "demos", "--episodes", "2",
                         "--warmup-time-s", "0.5", "--episode-time-s", "2", "--reset-time-s", "0.3",
                         "--task", "follow the hand"]) == 0
        data = open_dataset("demos")
        assert len(data) == 2 and data[0].metadata["by"] == "so101_leader"
        assert np.ptp(np.asarray(data[1].steps["observation.state"]), axis=0).max() > 5  # it moved
        capsys.readouterr()
        assert main(["replay", "demos", "--episode", "1", *robot, "--json"]) == 0
        differences = json.loads(capsys.readouterr().out)["max_differences"]
        assert list(differences) == list(data.features()["action"].names) and max(differences.values()) < 40
        assert main(["train", "bc", "demos", "--out", "run", "--steps", "30"]) == 0
        acting = [*robot, "--episode-time-s", "1", "--max-bad-share", "1"]  # this machine may be busy
        assert main(["act", "run", *acting, "--out", "acted"]) == 0
        assert main(["act", "run", *acting, "--executor", "temporal-ensemble"]) == 0
        if find_spec("websockets") is not None:  # the extra serve
            from understudy.commands.serve import ServeOptions, load_service
            from understudy.serve.server import BackgroundServer

            with BackgroundServer(load_service(ServeOptions(run=Path("run")))) as server:
                for executor in ([], ["--executor", "server"]):
                    assert main(["act", server.url, *acting, *executor]) == 0
                requests = re.search(r'requests_total{kind="plan"} (\d+)', server.server.metrics.text())
                assert int(requests[1]) > 5
        limits = make_robot(RobotConfig("so101_follower", follower.port, "mine")).limits
        acted = np.asarray(open_dataset("acted")[0].steps["action"])
        assert len(acted) > 5 and (acted >= np.array(limits.low) - 0.1).all() and (
            acted <= np.array(limits.high) + 0.1).all()
        typed((0.1, "\n"), (4.0, "3\n"), (0.5, "\n"), (4.0, "1\n"), (0.5, "end\n"), (0.2, "yes\n"))
        main(["eval", "run", "--interactive", "--threshold", "0.5", *robot, "--episode-time-s", "0.5"])
        lines = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
        assert lines[0]["loop"] == "--robot so101_follower"
        assert [e["label"] for e in lines if e["event"] == "label"][:1] == ["success"]


def test_the_end_of_input_is_no_enter(tmp_path, monkeypatch, capsys, typed):
    monkeypatch.setenv("UNDERSTUDY_CALIBRATION", str(tmp_path))
    kind = ARM_TYPES["so101_follower"]
    with emulate_arm(kind) as arm, Hand(arm):
        offsets = [servo.get("Homing_Offset") for servo in arm.servos]
        for action, lines in (("setup", ()), ("calibrate", ()), ("calibrate", ((0.5, "\n"), (3.0, "")))):
            typed(*lines)
            assert main(["robot", action, "--robot", kind.name, "--robot.port", arm.port]) == 2
            assert "standard input: it ended before enter was pressed" in capsys.readouterr().err
        assert [servo.get("Homing_Offset") for servo in arm.servos] == offsets and not list(tmp_path.rglob("*.json"))


def test_options_that_do_not_fit_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for args, message in (
            (["record", "--out", "d", "--episodes", "1"], "name an environment or a robot"),
            (["record", "fork", "--robot", "simulated_arm", "--out", "d", "--episodes", "1"], "robot, not both"),
            (["record", "fork", "--robot.port", "x", "--out", "d", "--episodes", "1"], "--robot.port: needs --robot"),
            (["record", "--robot", "simulated_arm", "--out", "d", "--episodes", "1"], "--teleop: is missing"),
            (["record", "fork", "--teleop", "keyboard", "--out", "d", "--episodes", "1"], "--teleop: needs --robot"),
            (["record", "fork", "--teleop.id", "x", "--out", "d", "--episodes", "1"], "--teleop.id: needs --robot"),
            (["replay", "d", "fork", "--robot.use-degrees", "false"], "--robot.use-degrees: needs --robot"),
            (["eval", "run", "--interactive", "--robot.max-load", "1"], "--robot.max-load: needs --robot"),
            (["replay", "d"], "name an environment or a robot"),
            (["robot", "calibrate", "--robot", "simulated_arm", "--robot.port", "x"], "not an arm of servos"),
            (["robot", "calibrate", "--robot", "so101_follower"], "--robot.port: is missing"),
            (["robot", "teleoperate", "--robot", "simulated_arm", "--teleop", "keybord"], "did you mean 'keyboard'"),
            (["robot", "calibrate", "--robot", "so101_follower", "--data", "d"],
             "--data: has no effect with calibrate"),
            (["robot", "release", "--json"], "--json: has no effect with release"),
            (["robot", "check", "--wave"], "--wave: has no effect with check"),
            (["robot", "teleoperate", "--robot", "arm.drivers:make", "--teleop", "keyboard"], "not trusted"),
            (["record", "fork", "--yes", "--out", "d", "--episodes", "1"], "--yes: needs --robot"),
            (["record", "fork", "--task", "fold", "--out", "d", "--episodes", "1"], "--task: has no effect"),
            (["record", "--robot", "simulated_arm", "--rows", "2", "--out", "d", "--episodes", "1"],
             "--rows: has no effect"),
            (["record", "--robot", "simulated_arm", "--episode-time-s", "0", "--out", "d", "--episodes", "1"],
             "--episode-time-s: must be above 0"),
            (["act", "run", "--robot", "simulated_arm", "--fps", "0"], "--fps: must be above 0"),
            (["robot", "teleoperate", "--robot", "simulated_arm", "--teleop", "keyboard", "--robot.retries", "-1"],
             "--robot.retries: must be at least 0"),
            (["replay", "d", "--robot", "simulated_arm", "--state"], "--state"),
            (["replay", "d", "--robot", "simulated_arm", "--rows", "2"], "--rows: has no effect"),
            (["eval", "run", "fork", "--robot", "simulated_arm"], "--robot: needs --interactive")):
        assert main(args) == 2
        assert message in capsys.readouterr().err, args


def test_results_are_printed_on_a_line_of_their_own(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with command_keys():
        show_line("x" * 200)
    assert terminal.getvalue() == f"\r{'x' * 79}\x1b[K\r\x1b[K"


@pytest.mark.parametrize("said", [["go", ""], ["q"], [EOFError], [KeyboardInterrupt]])  # Ctrl-D, Ctrl-C
def test_only_enter_alone_begins_an_episode(monkeypatch, said):
    words = iter(said)

    def answer(prompt):
        if not isinstance(word := next(words), str):
            raise word
        return word
    monkeypatch.setattr("builtins.input", answer)
    assert _may_begin(0) is (said[-1] == "")


def test_an_interrupt_says_that_the_robot_has_stopped(capsys):
    assert _report_interrupt("act", ["act", "runs/a"]) == 130
    errors = capsys.readouterr().err
    assert "stopped, and so is the robot" in errors and "nothing was changed" not in errors
    assert errors.endswith("To start again:\n  understudy act runs/a\n")


@pytest.fixture
def robot(tmp_path, monkeypatch, capsys):
    """The options of a robot of the user, with which one episode was recorded in "demos".

    Its clock moves only while the recording sleeps, so nothing depends on the speed of the machine.
    """
    def session(*args):
        clock = sys.modules["my_arm"].clock
        return RobotSession(*args, clock=clock, sleep=clock.sleep)
    monkeypatch.setattr("understudy.robots.recording.RobotSession", session)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_arm", raising=False)
    (tmp_path / "my_arm.py").write_text('''
import numpy as np
from understudy.robots.base import Teleoperator
from understudy.robots.limits import SafetyLimits
from understudy.robots.safety import SafeRobot
from understudy.robots.simulated import SimulatedArm

class Clock:
    now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += 1.3 * seconds  # a machine wakes up late

clock = Clock()

def make(port, joints=("shoulder", "elbow")):
    assert port == "can0"
    n = len(joints)
    limits = SafetyLimits((-90,) * n, (90,) * n, (300,) * n, slow_start=0, timeout=20)
    return SafeRobot(SimulatedArm(joints, clock=clock), limits, clock)

def other(port):
    return make(port, ("shoulder", "elbow", "wrist"))

class Fixed(Teleoperator):
    def read(self):
        return np.array([500, 10], np.float32)
''')
    options = ["--robot", "my_arm:make", "--robot.port", "can0", "--trust", "my_arm"]
    assert main(["record", *options, "--teleop", "my_arm:Fixed", "--out", "demos", "--episodes", "1", "--fps", "50",
                 "--warmup-time-s", "0", "--episode-time-s", "0.6", "--reset-time-s", "0"]) == 0
    yield options
    del sys.modules["my_arm"]  # the documents have a module of this name


def test_a_robot_of_the_user_is_recorded_by_a_teleoperator_of_the_user(robot, capsys):
    options, output = "--robot my_arm:make --robot.port can0 --trust my_arm", capsys.readouterr().out
    assert f"understudy replay demos --episode 0 {options}\n" in output and f"understudy act run {options}\n" in output
    data = open_dataset("demos")
    action = np.asarray(data[0].steps["action"])
    assert (np.diff(action[:, 0]) >= 0).all() and action.max() == 90  # not 500
    times = np.asarray(data[0].steps["timestamp"], np.float64)
    speeds = np.diff(action[:, 0]) / np.diff(times)
    assert speeds.max() == pytest.approx(300, rel=1e-3)  # the limit: times are measured
    assert times[-1] == pytest.approx(0.6, abs=0.03) and np.ptp(np.diff(times)) > 0.005


@pytest.mark.slow
def test_a_policy_that_does_not_fit_is_refused_and_keys_say_what_is_recorded(robot, monkeypatch, capsys):
    assert main(["train", "bc", "demos", "--out", "run", "--steps", "1", "--policy.trunk.width", "8"]) == 0
    trained = capsys.readouterr().out
    for command in (["act", "run"], ["eval", "run", "--interactive", "--threshold", "0.5"]):
        for options, message in ((["--task", "wave"], "--task: this policy was trained without words"),
                                 (["--condition", "goal=1"], "no policy reads 'observation.goal'"),
                                 (["--robot", "my_arm:other"], "but this is vector of shape (3,)")):
            assert main([*command, *robot, *options]) == 2
            assert message in capsys.readouterr().err, (command, options)
    assert "understudy act run --robot simulated_arm" in trained and "understudy eval run ENV" not in trained
    assert main(["plot", "run"]) == 0 and "understudy act run" in capsys.readouterr().out
    pressed = Keys([], ["success"], [], [], ["quit"])
    monkeypatch.setattr("understudy.commands.act.command_keys", lambda: nullcontext(pressed))
    assert main(["act", "run", *robot, "--episodes", "3", "--out", "acted", "--executor", "temporal-ensemble",
                 "--max-bad-share", "1"]) == 0
    output = capsys.readouterr().out
    assert "episode 0: 1 steps" in output and "episode 1: 2 steps" in output and "ended by quit" in output
    data = open_dataset("acted")
    assert len(data) == 1 and data[0].metadata["success"] is True
    assert data[0].metadata["by"].endswith(", temporal-ensemble")


def test_the_checkpoint_from_before_the_first_update_is_named(tmp_path):
    def warned(path, **changes):
        for step in ("000000", "000500"):
            folder = tmp_path / "run" / "checkpoints" / step
            folder.mkdir(parents=True, exist_ok=True)
            method = Method(PolicyConfig(Flow()), learner=BehaviorCloning(**changes))
            write_json(folder / "method.json", dump(method))
            write_json(folder / "policy.json", dump(method.policy))
        return untrained_warning(tmp_path / "run" / path) or ""

    write_json(tmp_path / "run.json", {})
    Path(tmp_path / "run").mkdir()
    Run(tmp_path / "run").name_checkpoints(last=0)
    assert warned("").endswith("the command that began the run again, which continues it")
    assert not warned("", steps=0)
    Run(tmp_path / "run").name_checkpoints(last=500)
    assert not warned("")
    assert warned("checkpoints/000000").endswith(f"not trained: use {tmp_path / 'run'}")


@pytest.mark.parametrize("robot, options", [
    ("so101_follower", "so101_follower --robot.port PORT"), ("simulated_arm", "simulated_arm"), ("panda", "TYPE"),
    ("bi_so101_follower", "bi_so101_follower --robot.left-arm-port PORT --robot.right-arm-port PORT")])
def test_the_robot_of_the_data_is_suggested(robot, options):
    state = {"observation.state": Feature("float32", (6,)), "observation.image": Feature("uint8", (8, 8, 3), "image")}
    assert robot_arguments({"robot_type": robot, "fps": 30}, state) == ["--robot", *options.split()]
    assert robot_arguments({"robot_type": None}, state) == robot_arguments({"robot_type": "unknown"}, state) == []
    features = {**state, "observation.images.front": Feature("uint8", (480, 640, 3), "image"),
                "observation.images.wrist": Feature("uint8", (240, 320, 3), "image")}
    *words, cameras = robot_arguments({"robot_type": robot, "fps": 30.0}, features)
    assert words == ["--robot", *options.split(), "--robot.cameras"]
    assert parse_cameras(cameras) == {
        "front": {"type": "opencv", "index_or_path": "INDEX", "width": 640, "height": 480, "fps": 30},
        "wrist": {"type": "opencv", "index_or_path": "INDEX", "width": 320, "height": 240, "fps": 30}}


def test_suggested_cameras_have_the_size_of_the_recording(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = Feature("float32", (2,), names=("shoulder.pos", "elbow.pos"))
    schema = {"observation.state": state, "observation.images.front": Feature("uint8", (160, 200, 3), "image"),
              "action": state}
    with Recorder(schema, "demos", fps=10, robot_type="simulated_arm", clock=None, images="png") as r:
        for episode in range(2):
            for step in range(12):
                r.step({"observation.state": np.full(2, step / 10, np.float32),
                        "observation.images.front": np.full((160, 200, 3), step, np.uint8)}, np.full(2, episode + step))
            r.end()
    camera = "--robot.cameras '{front: {type: opencv, index_or_path: INDEX, width: 200, height: 160, fps: 10}}'"
    for command in ("train bc demos --out run --steps 2", "plot run", "eval run demos"):
        assert main(command.split()) == 0
        assert f"--robot simulated_arm {camera}" in capsys.readouterr().out


def test_episodes_without_an_outcome_are_counted():
    def succeeded(*outcomes):
        steps = {"action": np.zeros((1, 1), np.float32)}
        return _success_lines(Dataset([Episode(steps, {} if x is None else {"success": x}) for x in outcomes]))
    assert succeeded(True, False) == ["1 of 2 succeeded", *advice_about("inspect failures")] and succeeded(None) == []
    assert succeeded(True, None, True) == ["2 of 2 succeeded; 1 other has no outcome"]
    assert succeeded(None, None, False) == ["0 of 1 succeeded; 2 others have no outcome"]


class Keys:
    """A person who presses keys: the commands of each call."""

    def __init__(self, *calls):
        self.calls = list(calls)

    def commands(self):
        return self.calls.pop(0)
