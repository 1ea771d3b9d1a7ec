"""The unit of an arm is recorded and kept in its policy. Data in another unit never move the arm."""

import io
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from fixtures.cli import TINY, refused
from fixtures.servo_arms import CALIBRATION, feetech

from understudy.audit.compatibility import find_disagreements
from understudy.cli import main
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset
from understudy.data.recording.recorder import Recorder
from understudy.heads.likelihood.regression import Regression
from understudy.hints import unit_hint
from understudy.policy import Policy, PolicyConfig, check_features
from understudy.robots.bimanual import BimanualRobot
from understudy.robots.calibration import write_calibration
from understudy.robots.limits import SafetyLimits
from understudy.robots.motors_bus import MotorsBus
from understudy.robots.recording import NoKeys, replay_episode
from understudy.robots.safety import SafeRobot
from understudy.robots.servo_arm import ARM_TYPES, ServoFollower
from understudy.robots.simulated import SimulatedArm

pytest.importorskip("scservo_sdk", reason="extra feetech not installed")

DEGREES, PERCENT = "deg (gripper: percent)", "signed percent (gripper: percent)"


def follower(use_degrees: bool, kind: str = "so101_follower") -> ServoFollower:
    return ServoFollower(ARM_TYPES[kind], "unused", CALIBRATION, use_degrees=use_degrees)


def episode(schema) -> Episode:
    values = np.linspace(0, 5, 48, dtype=np.float32).reshape(8, 6)
    return Episode({"observation.state": values, "action": values}, schema=schema)


def record(path, schema) -> Dataset:
    with Recorder(schema, path, fps=30, robot_type="so101_follower") as recorder:
        recorder.add(episode(schema))
    return open_dataset(path)


@pytest.mark.parametrize("kind", ["so101_follower", "koch_follower", "viperx"])
def test_the_unit_of_an_arm_names_its_gripper(kind):
    for use_degrees, unit in ((True, DEGREES), (False, PERCENT)):
        schema = follower(use_degrees, kind).schema
        assert (schema["observation.state"].unit, schema["action"].unit) == (unit, unit)


def test_two_arms_have_a_unit_if_it_is_the_same():
    for right, unit in ((True, DEGREES), (False, None)):
        schema = BimanualRobot(follower(True), follower(right)).schema
        assert (schema["observation.state"].unit, schema["action"].unit) == (unit, unit)


def test_the_advice_sets_the_unit_of_the_data():
    assert "--robot.use-degrees true;" in unit_hint(DEGREES, PERCENT, "stop")
    assert "--robot.use-degrees false;" in unit_hint(PERCENT, DEGREES, "stop")
    assert unit_hint("rad", DEGREES, "stop") == unit_hint(DEGREES, DEGREES, "stop") == "stop"


def test_a_recording_keeps_its_unit_and_takes_episodes_without_one(tmp_path):
    degrees, percent = (follower(use_degrees).schema for use_degrees in (True, False))
    data = record(tmp_path / "degrees", degrees)
    assert dict(data.features()) | degrees == dict(data.features())
    assert len(record(tmp_path / "degrees", degrees)) == 2
    unknown = {name: replace(f, unit=None) for name, f in degrees.items()}
    assert len(record(tmp_path / "degrees", unknown)) == 3
    record(tmp_path / "unknown", unknown)
    assert len(record(tmp_path / "unknown", percent)) == 2
    findings = find_disagreements({"one": data, "other": record(tmp_path / "percent", percent)})
    assert {f.where.feature for f in findings if f.code == "unit-differs"} == {"observation.state", "action"}


@pytest.fixture
def arms(folder, monkeypatch):
    """The options of an emulated arm, and those of its leader."""
    monkeypatch.chdir(folder)
    begin = MotorsBus.__init__
    monkeypatch.setattr(MotorsBus, "__init__", lambda self, port, motors: begin(self, port, motors, 1_000_000, 0.3, 5))
    for kind in ("so101_follower", "so101_leader"):
        write_calibration(folder / "ours" / kind / f"{kind}.json", CALIBRATION)
    with feetech() as arm, feetech() as leader:
        yield (["--robot", "so101_follower", "--robot.port", arm.port],
               ["--teleop", "so101_leader", "--teleop.port", leader.port], arm)


def test_an_arm_in_another_unit_is_refused_before_it_moves(arms, capsys, monkeypatch):
    robot, teleop, arm = arms
    record("demos", follower(True).schema)
    assert main(["train", "bc", "demos", "--out", "run", *TINY]) == 0
    assert Policy.load("run").target.unit == DEGREES
    monkeypatch.setattr("understudy.commands.record.command_keys", lambda keyboard: nullcontext(NoKeys()))

    class Terminal(io.StringIO):
        def isatty(self):
            return True
    for words in (["act", "run"], ["eval", "run", "--interactive", "--threshold", "0.5"],
                  ["improve", "run", "--with", "hg-dagger", "--supervisor", "keyboard", "--out", "better"],
                  ["replay", "demos", "--episode", "0"],
                  ["record", *teleop, "--episodes", "3", "--out", "demos"]):
        monkeypatch.setattr("sys.stdin", Terminal("\n" * 9))
        capsys.readouterr()
        result = main([*words, *robot, "--robot.use-degrees", "false"]), *capsys.readouterr()
        refused(result, DEGREES, PERCENT, "--robot.use-degrees true")
        assert arm.servo(1).position == 2000, words
    assert len(open_dataset("demos")) == 1


def test_an_arm_whose_joints_come_in_another_order_is_refused(tmp_path):
    """Its columns have the same shapes and units."""
    at = SafetyLimits((-90.0,) * 2, (90.0,) * 2, (50.0,) * 2)
    robots = SimulatedArm(clock=time.monotonic), SimulatedArm(clock=time.monotonic)
    own = robots[0].schema["action"]
    other = replace(own, names=tuple(reversed(own.names)))
    robots[1].schema = {**robots[1].schema, "observation.state": other, "action": other}
    poses = np.zeros((3, 2), np.float32)
    data = Episode({"observation.state": poses, "action": poses}, schema=robots[0].schema)
    with Recorder(robots[0].schema, tmp_path / "demos", fps=30, require_observation=False) as recorder:
        recorder.add(data)
    with pytest.raises(UserError, match="the episodes there have the components shoulder.pos, elbow.pos, and here they "
                                        "are elbow.pos, shoulder.pos"):
        Recorder(robots[1].schema, tmp_path / "demos", fps=30)
    for robot, refuses in zip(robots, (nullcontext(), pytest.raises(UserError, match="here they are elbow.pos, sho")),
                              strict=True):
        with SafeRobot(robot, at) as safe, refuses:
            replay_episode(safe, data, 30)


def test_only_known_units_are_compared():
    """Data of earlier versions have none."""
    known = Policy(PolicyConfig(Regression()), follower(True).schema)
    schemas = {unit: {name: replace(f, unit=unit) for name, f in known.features.items()} for unit in (None, PERCENT)}
    check_features(known, schemas[None], "arm", resized=True)
    check_features(Policy(PolicyConfig(Regression()), schemas[None]), schemas[PERCENT], "arm", resized=True)
    with pytest.raises(UserError, match=r"the policy was trained with the unit deg .* but this has signed percent"):
        check_features(known, schemas[PERCENT], "arm", resized=True)
