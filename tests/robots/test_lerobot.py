"""LeRobot's robots and teleoperators. Its own driver and calibration of the SO-101 run on the emulated bus."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from fixtures.hands import Hand
from folders import TESTS

from understudy.commands.parts.robot_options import name_lerobot_fields
from understudy.commands.record import RecordOptions
from understudy.core import ConfigError, UserError
from understudy.data.formats import open_dataset
from understudy.robots.emulator import emulate_arm
from understudy.robots.registry import RobotConfig, make_robot
from understudy.robots.servo_arm import ARM_TYPES, ServoFollower

pytest.importorskip("lerobot.motors", reason="LeRobot not installed")
pytest.importorskip("scservo_sdk", reason="extra feetech not installed")

SCRIPT = TESTS / "upstream_lerobot_robots.py"


@pytest.fixture
def child(tmp_path):
    """Starts understudy or a Python file in a process with LeRobot, which shares the emulated ports with this one."""
    started = []

    def start(*args, path=""):
        folders = f"{path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": folders}
        process = subprocess.Popen([sys.executable, SCRIPT, *map(str, args)], stdin=subprocess.PIPE, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=tmp_path)
        started.append(process)
        return process
    yield start
    for process in started:
        process.kill()


def finish(process):
    """Its status, standard output and standard error."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_without_lerobot_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lerobot", None)
    with pytest.raises(UserError, match="--robot lerobot/so101_follower: LeRobot is not installed") as error:
        make_robot(RobotConfig("lerobot/so101_follower", "/dev/null"))
    assert "pip install" in error.value.hint


def test_fields_of_lerobots_config_are_options_of_its_devices_alone():
    from understudy.commands.parts.common import parse

    common = ["--out", "d", "--episodes", "1", "--robot", "lerobot/lekiwi_client"]
    o = parse(RecordOptions, "record", [
        *common, "--robot.remote-ip", "10.0.0.2", "--robot.id=k", "--robot.kp", "1", "-2", "--robot.max-velocity", "3",
        "--teleop=lerobot/x", "--teleop.a-b.c=d=e", "--robot.cameras", "{front: {type: opencv}}"])
    config = o.robot_config()
    assert config.options == {"remote_ip": "10.0.0.2", "kp": "[1, -2]", "cameras": "{front: {type: opencv}}"}
    assert (config.id, config.max_velocity, config.cameras) == ("k", (3,), None)
    assert o.teleop_config(True).options == {"a_b.c": "d=e"}
    again = o.robot_arguments()
    assert again[again.index("--robot.remote_ip") + 1] == "10.0.0.2"
    assert parse(RecordOptions, "record", ["--out", "d", "--episodes", "1", *again]).robot_config() == config
    for words in (["--robot", "so101_follower", "--robot.remote-ip", "x"], ["--robot", "lerobot/a", "--teleop.b", "1"]):
        with pytest.raises(ConfigError, match="there is no option"):
            parse(RecordOptions, "record", ["--out", "d", "--episodes", "1", *words])
    from understudy.commands.robot import main as robot_command

    with pytest.raises(ConfigError, match="lerobot-calibrate and lerobot-setup-motors set up LeRobot's devices"):
        robot_command(["calibrate", "--robot", "lerobot/so101_follower", "--robot.port", "x"])
    with pytest.raises(ConfigError, match=r"--robot.remote-ip: needs a value"):
        name_lerobot_fields([], [*common, "--robot.remote-ip"])


CONTRACT = """
import time
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
from understudy.core import ConfigError
from understudy.robots.base import RobotError
from understudy.robots.calibration import MotorCalibration, write_calibration
from understudy.robots.emulator import emulate_arm
from understudy.robots.registry import RobotConfig, TeleoperatorConfig, make_robot, make_teleoperator
from understudy.robots.servo_arm import ARM_TYPES
from understudy.testing import check_robot

kind, folder = ARM_TYPES["so101_follower"], Path("hf/lerobot/calibration")
calibration = {n: MotorCalibration(m.id, 0, 10 * m.id, 1000, 3000 + m.id) for n, m in kind.motors.items()}
write_calibration(folder / "robots/so_follower/mine.json", calibration)
write_calibration(folder / "teleoperators/koch_leader/mine.json", calibration)
write_calibration(folder / "robots/so_follower/other.json", {
    n: replace(c, homing_offset=c.homing_offset + 300) for n, c in calibration.items()})
with emulate_arm(kind) as bus:
    for servo, each in zip(bus.servos, calibration.values(), strict=True):
        for register, value in (("Homing_Offset", each.homing_offset), ("Min_Position_Limit", each.range_min),
                                ("Max_Position_Limit", each.range_max), ("Goal_Position", 2900)):
            servo.set(register, value)

    with pytest.raises(RobotError, match="the calibration in its servos is not that of its file") as error:
        make_robot(RobotConfig("lerobot/so101_follower", bus.port, "other")).connect()
    command = "lerobot-calibrate --robot.type=so101_follower --robot.port=" + bus.port + " --robot.id=other"
    assert command in str(error.value)
    assert not any((address, data) == (40, bytes([1])) for servo in bus.servos for _, address, data in servo.writes), (
        "the torque came on")

    robot = make_robot(RobotConfig("lerobot/so101_follower", bus.port, "mine"))
    assert {robot.schema[name].unit for name in ("observation.state", "action")} == {"deg (gripper: percent)"}
    wide = (2000 + np.arange(1, 6)) * 180 / 4095
    np.testing.assert_allclose(robot.limits.low, [*-wide, 0])
    np.testing.assert_allclose(robot.limits.high, [*wide, 100])
    steps = 2048 - 10 * np.arange(1, 7) - (4000 + np.arange(1, 7)) / 2  # from the middle of the range
    expected = [*(steps[:5] * 360 / 4095), (2048 - 60 - 1000) / 2006 * 100]
    with robot:
        for pause in (0.0, 0.3):
            time.sleep(pause)
            np.testing.assert_allclose(robot.observe()["observation.state"], expected, rtol=1e-5,
                                       err_msg="it went to the goal that the servos remembered")
        assert all(servo.get("Torque_Enable") for servo in bus.servos)
    assert not any(servo.get("Torque_Enable") for servo in bus.servos)
    check_robot(lambda: robot.robot)

    for changes, option in (({"max_torque": 0.3}, "--robot.max-torque"), ({"max_load": 0.5}, "--robot.max-load")):
        with pytest.raises(ConfigError, match=option + ": LeRobot's robots have no such limit"):
            make_robot(RobotConfig("lerobot/so101_follower", bus.port, "mine", **changes)).connect()
    with pytest.raises(ConfigError, match="shoulder_pan.pos in signed_percent, but the robot takes degrees"):
        make_teleoperator(TeleoperatorConfig("lerobot/koch_leader", "other", "mine"), robot)
    with pytest.raises(ConfigError, match="--teleop.port: is the same port as --robot.port"):
        make_teleoperator(TeleoperatorConfig("lerobot/koch_leader", bus.port, "mine"), robot)
    percent = make_robot(RobotConfig("lerobot/so101_follower", bus.port, "mine", use_degrees=False))
    assert percent.schema["action"].unit == "signed percent (gripper: percent)"
    make_teleoperator(TeleoperatorConfig("lerobot/koch_leader", "other", "mine"), percent)

    robot.connect()
    bus.pull_cable()
    with pytest.raises(RobotError, match="LeRobot's driver"):
        for _ in range(3):
            robot.observe()
            robot.send(expected)
    robot.disconnect()
"""


def test_lerobots_so101_keeps_the_contract_of_robots(child, tmp_path):
    """It does not jump, and a calibration that is not that of the servos is refused before the torque comes on."""
    (tmp_path / "contract.py").write_text(CONTRACT)
    status, _, err = finish(child("python", tmp_path / "contract.py"))
    assert status == 0, err


TOY = '''
from dataclasses import dataclass
import numpy as np
from lerobot.robots import Robot, RobotConfig

@RobotConfig.register_subclass("toy")
@dataclass
class ToyConfig(RobotConfig):
    speed: float
    gains: tuple[float, ...] = ()

class Toy(Robot):
    config_class, name = ToyConfig, "toy"
    is_connected, is_calibrated, camera_works = False, True, True
    observation_features = {"battery": float, "lift.pos": float, "x.vel": float, "front": (4, 6, 3)}
    action_features = {"x.vel": float, "lift.pos": float, "turn.vel": float}

    def __init__(self, config):
        super().__init__(config)
        self.config, self.lift, self.x, self.sent = config, 3.0, 0.0, []

    def connect(self):
        self.is_connected = True

    def calibrate(self): ...
    def configure(self): ...

    def get_observation(self):
        if not self.is_connected or not self.camera_works:
            raise TimeoutError("no frame")
        return {"lift.pos": self.lift, "battery": 0.5, "x.vel": self.x, "front": np.full((4, 6, 3), 7, np.uint8)}

    def send_action(self, action):
        self.sent.append(action)
        self.lift, self.x = action["lift.pos"], action["x.vel"] * self.config.speed
        return {"x.vel": self.x}

    def disconnect(self):
        self.is_connected = False
'''

PLUGIN = """
import numpy as np
import pytest
from understudy.config import dump
from understudy.core import ConfigError, UserError
from understudy.files import write_json
from understudy.robots.base import ConnectionLost, RobotError
from understudy.robots.registry import RobotConfig, make_robot
from understudy.robots.limits import SafetyLimits
from understudy.testing import check_robot

write_json("limits.json", dump(SafetyLimits((-1, 0, -1), (1, 10, 1), (9, 9, 9), slow_start=0)))
options = {"speed": "2", "gains": "[1, 2.5]"}
with pytest.raises(UserError, match="this robot has no limits; its action is x.vel, lift.pos, turn.vel"):
    make_robot(RobotConfig("lerobot/toy", options=options))
robot = make_robot(RobotConfig("lerobot/toy", options=options, limits="limits.json"))
toy = robot.robot.device
assert toy.config.gains == (1.0, 2.5)
check_robot(lambda: robot.robot)
assert robot.schema["observation.state"].names == ("battery", "lift.pos", "x.vel")
assert robot.schema["action"].names == ("x.vel", "lift.pos", "turn.vel")
assert robot.schema["action"].unit is None
with robot.robot as inner:
    obs = inner.observe()
    assert obs["observation.images.front"].shape == (4, 6, 3) and (obs["observation.images.front"] == 7).all()
    assert inner.send(np.array([0.25, 5.0, 0.125])).tolist() == [0.5, 5.0, 0.125]  # what the driver says it sent
    assert inner.position(inner.observe()).tolist() == [0.5, 5.0, 0.125]  # the turn is not measured
    assert inner.stop().tolist() == [0.0, 5.0, 0.0]
    toy.lift = 6.0
    inner.observe()
    toy.camera_works = False
    with pytest.raises(ConnectionLost, match="LeRobot's driver: no frame"):
        inner.observe()
    inner.stop()
    assert toy.sent[-1] == {"x.vel": 0.0, "lift.pos": 6.0, "turn.vel": 0.0}, "the joints hold although a camera is lost"

for kind, options, kinds, texts in (
    ("so101_folower", {}, ConfigError, ["LeRobot has no robot 'so101_folower'", "did you mean 'so101_follower'"]),
    ("so101_follower", {"prt": "x"}, ConfigError, ["`prt`", "it takes --robot.calibration_dir, --robot.cameras"]),
    ("so101_follower", {"port": "x", "port.x": "1"}, ConfigError, ["--robot lerobot/so101"]),
    ("so101_follower", {"port": "x", "cameras": "{front: {type: opencv"}, ConfigError, ["--robot lerobot/so101"]),
    ("so101_follower", {"port": "x"}, RobotError, ["not calibrated", "lerobot-calibrate --robot.type=so101_follower"]),
    ("lekiwi_client", {"remote_ip": "x"}, UserError, ["LeRobot cannot make it", "zmq"]),  # not installed
):
    with pytest.raises(kinds) as error:
        make_robot(RobotConfig("lerobot/" + kind, options=options))
    assert all(text in str(error.value) for text in texts), error.value
"""


def test_a_robot_of_a_package_is_found_and_mistakes_name_what_there_is(child, tmp_path):
    package, about = tmp_path / "site/lerobot_robot_toy", tmp_path / "site/lerobot_robot_toy-1.0.dist-info"
    package.mkdir(parents=True)
    about.mkdir()
    (package / "__init__.py").write_text(TOY)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lerobot_robot_toy\nVersion: 1.0\n")
    (tmp_path / "plugin.py").write_text(PLUGIN)
    status, _, err = finish(child("python", tmp_path / "plugin.py", path=tmp_path / "site"))
    assert status == 0, err


@pytest.mark.slow
def test_lerobots_calibration_driver_and_leader_from_calibration_to_a_replay(child, tmp_path, monkeypatch):
    """The commands of a user, and at the end understudy's own driver with LeRobot's calibration."""
    calibrate = "import sys\nfrom lerobot.scripts.lerobot_calibrate import main\nmain()\n"
    (tmp_path / "calibrate.py").write_text(calibrate)
    with emulate_arm(ARM_TYPES["so101_follower"]) as follower, emulate_arm(ARM_TYPES["so101_leader"]) as leader:
        with Hand(follower, leader):
            for arm in (["--robot.type=so101_follower", f"--robot.port={follower.port}", "--robot.id=mine"],
                        ["--teleop.type=so101_leader", f"--teleop.port={leader.port}", "--teleop.id=mine"]):
                process, output = child("python", tmp_path / "calibrate.py", *arm), ""
                while "press ENTER" not in output:
                    output += (read := process.stdout.read(1))
                    assert read, process.stderr.read()
                process.stdin.write("\n")
                process.stdin.flush()
                ranges = {}
                while len(ranges) < 5 or min(ranges.values()) < 1100:  # the hand moves them by 1,200
                    line = process.stdout.readline()
                    assert line, process.stderr.read()
                    if row := re.match(r"(\w+) +\| +(\d+) \| +\d+ \| +(\d+)", line):
                        ranges[row[1]] = int(row[3]) - int(row[2])
                process.stdin.write("\n")
                process.stdin.flush()
                status, _, err = finish(process)
                assert status == 0, err
        robot = ["--robot", "lerobot/so101_follower", "--robot.port", follower.port, "--robot.id", "mine"]
        teleop = ["--teleop", "lerobot/so101_leader", "--teleop.port", leader.port, "--teleop.id", "mine"]
        with Hand(leader, size=200):
            status, out, err = finish(child(
                "record", *robot, *teleop, "--fps", "20", "--out", "demos", "--episodes", "2", "--warmup-time-s", "0.5",
                "--episode-time-s", "2", "--reset-time-s", "0.3"))
        assert status == 0, err
        assert f"--robot lerobot/so101_follower --robot.port {follower.port} --robot.id mine" in out
        data = open_dataset(tmp_path / "demos")
        assert data[0].metadata["by"] == "lerobot/so101_leader"
        assert data.features()["action"].names == tuple(f"{n}.pos" for n in ARM_TYPES["so101_follower"].motors)
        states = np.asarray(data[1].steps["observation.state"])
        assert np.ptp(states, axis=0).max() > 5 and states.shape[1] == 6
        status, out, err = finish(child("replay", "demos", "--episode", "1", *robot, "--json"))
        assert status == 0 and max(json.loads(out)["max_differences"].values()) < 40, err
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("UNDERSTUDY_CALIBRATION", str(tmp_path / "none"))
        own = make_robot(RobotConfig("so101_follower", follower.port, "mine")).robot
        assert isinstance(own, ServoFollower)
        own.arm.bus.connect()
        assert own.arm.stored_calibration() == own.arm.calibration  # LeRobot wrote into the servos what its file says
        own.arm.bus.disconnect()
