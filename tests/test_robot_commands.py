"""The commands of a robot: an emulated SO-101 is set up, recorded, and driven by the policy that was trained on it."""

import json
import os
import re
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from understudy.cli import main
from understudy.data.formats import open_dataset
from understudy.robots.emulator import emulate_arm
from understudy.robots.registry import RobotConfig, make_robot
from understudy.robots.servo_arm import ARM_TYPES

pytest.importorskip("scservo_sdk", reason="extra feetech not installed")
pytest.importorskip("dynamixel_sdk", reason="extra dynamixel not installed")


class Hand:
    """A hand that moves the joints of arms whose torque is off."""

    def __init__(self, *buses, size=600):
        self.buses, self.size, self.ended = buses, size, threading.Event()
        self.thread = threading.Thread(target=self.move, daemon=True)

    def move(self):
        began = time.monotonic()
        while not self.ended.wait(0.01):
            for bus in self.buses:
                with bus.lock:
                    for servo in bus.servos:
                        if not servo.get("Torque_Enable"):
                            servo.push(2048 + self.size * np.sin(3 * (time.monotonic() - began) + servo.number))

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *error):
        self.ended.set()
        self.thread.join()


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


@pytest.mark.slow
def test_an_emulated_arm_from_calibration_to_a_policy_that_acts(tmp_path, monkeypatch, capsys, typed):
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
        assert main(["act", "run", *robot, "--episode-time-s", "1", "--out", "acted"]) == 0
        assert main(["act", "run", *robot, "--episode-time-s", "1", "--executor", "temporal-ensemble"]) == 0
        if find_spec("websockets") is not None:  # the extra serve
            from understudy.commands.serve import ServeOptions, load_service
            from understudy.serve.server import BackgroundServer

            with BackgroundServer(load_service(ServeOptions(Path("run")))) as server:
                for executor in ([], ["--executor", "server"]):
                    assert main(["act", server.url, *robot, "--episode-time-s", "1", *executor]) == 0
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


def test_options_that_do_not_fit_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for args, message in (
            (["record", "--out", "d", "--episodes", "1"], "name an environment or a robot"),
            (["record", "fork", "--robot", "simulated_arm", "--out", "d", "--episodes", "1"], "robot, not both"),
            (["record", "fork", "--robot.port", "x", "--out", "d", "--episodes", "1"], "--robot.port: needs --robot"),
            (["record", "--robot", "simulated_arm", "--out", "d", "--episodes", "1"], "--teleop: is missing"),
            (["replay", "d"], "name an environment or a robot"),
            (["robot", "calibrate", "--robot", "simulated_arm", "--robot.port", "x"], "not an arm of servos"),
            (["robot", "calibrate", "--robot", "so101_follower"], "--robot.port: is missing"),
            (["robot", "teleoperate", "--robot", "simulated_arm", "--teleop", "keybord"], "did you mean keyboard"),
            (["robot", "teleoperate", "--robot", "arm.drivers:make", "--teleop", "keyboard"], "not trusted"),
            (["eval", "run", "fork", "--robot", "simulated_arm"], "--robot: needs --interactive"),
            (["act", "ws://gpu:8000", "--robot", "simulated_arm"], "cannot act yet")):
        assert main(args) == 2
        assert message in capsys.readouterr().err, args


def test_a_robot_of_the_user_is_recorded_by_a_teleoperator_of_the_user(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_arm.py").write_text('''
import time
from importlib.util import find_spec
from pathlib import Path
import numpy as np
from understudy.robots.base import Teleoperator
from understudy.robots.safety import SafeRobot, SafetyLimits
from understudy.robots.simulated import SimulatedArm

def make(port):
    assert port == "can0"
    return SafeRobot(SimulatedArm(clock=time.monotonic), SafetyLimits((-90,) * 2, (90,) * 2, (300,) * 2, slow_start=0))

class Fixed(Teleoperator):
    def read(self):
        return np.array([500, 10], np.float32)
''')
    assert main(["record", "--robot", "my_arm:make", "--robot.port", "can0", "--teleop", "my_arm:Fixed", "--trust",
                 "my_arm", "--out", "demos", "--episodes", "1", "--fps", "50", "--warmup-time-s", "0",
                 "--episode-time-s", "0.6", "--reset-time-s", "0"]) == 0
    data = open_dataset("demos")
    action = np.asarray(data[0].steps["action"])
    assert (np.diff(action[:, 0]) >= 0).all() and action.max() == 90  # not 500
    steps = np.diff(action[:, 0]) / np.diff(np.asarray(data[0].steps["timestamp"]))
    assert steps.max() < 300 * 1.5  # times are those of the observations
