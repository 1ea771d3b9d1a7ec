"""Leaders, keys, recording and replay with emulated arms."""

import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest
from fixtures.servo_arms import CALIBRATION, Script, feetech, patient

from understudy.audit import find_problems
from understudy.core import ConfigError, DataWarning, UserError
from understudy.data.episode import Episode
from understudy.data.formats import open_dataset
from understudy.envs.devices import JointKeyboard, RecordingKeys
from understudy.robots.base import ConnectionLost, Teleoperator
from understudy.robots.calibration import write_calibration
from understudy.robots.emulator import (
    Faults,
)
from understudy.robots.limits import SafetyLimits
from understudy.robots.recording import NoKeys, RecordingTimes, RobotSession, replay_episode
from understudy.robots.registry import RobotConfig, TeleoperatorConfig, make_robot, make_teleoperator, parse_cameras
from understudy.robots.safety import SafeRobot
from understudy.robots.servo_arm import ARM_TYPES, ServoLeader
from understudy.robots.simulated import SimulatedArm

pytest.importorskip("scservo_sdk", reason="extra feetech not installed")
pytest.importorskip("dynamixel_sdk", reason="extra dynamixel not installed")

NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


def wave(emulated, ended):
    """A person moves the leader."""
    began = time.monotonic()
    while not ended.wait(0.01):
        t = time.monotonic() - began
        for servo in emulated.servos:
            servo.push(2000 + 120 * np.sin(2 * t + servo.number))


def test_an_arm_is_teleoperated_recorded_and_replayed(folder):
    write_calibration(folder / "ours" / "so101_follower" / "f.json", CALIBRATION)
    write_calibration(folder / "ours" / "so101_leader" / "l.json", CALIBRATION)
    ended = threading.Event()
    with ExitStack() as stack:
        follower, leader = stack.enter_context(feetech(Faults(missing=0.01, seed=1))), stack.enter_context(feetech())
        person = threading.Thread(target=wave, args=(leader, ended), daemon=True)
        robot = patient(make_robot(RobotConfig("so101_follower", follower.port, "f", max_velocity=(400.0,),
                                               slow_start=0.2)))
        teleop, keys = make_teleoperator(TeleoperatorConfig("so101_leader", leader.port, "l"), robot)
        assert keys is None
        stack.enter_context(robot)
        stack.enter_context(patient(teleop))
        person.start()
        # warm-up 10 steps; episode 0 marked and ended, labeled in the reset; episode 1 discarded, then recorded again
        script = Script(_10="enter", _15="success", _30="enter", _35="failure", _40="enter", _50="discard",
                        _55="enter", _75="enter", _80="enter")
        session = RobotSession(robot, teleop, script, fps=50)
        data = session.record(2, folder / "data", task="wave", times=RecordingTimes(60, 60, 60), by="so101_leader")
        ended.set()
        person.join()
        assert len(data) == 2 and [e.metadata["success"] for e in data if "success" in e.metadata] == [False]
        assert data[0].metadata["robot"] == "so101_follower" and data[0].metadata["task"] == "wave"
        assert tuple(data[0].metadata["calibration"]) == NAMES
        steps = data[1].steps
        assert 15 <= len(data[1]) <= 25
        action, state = np.asarray(steps["action"]), np.asarray(steps["observation.state"])
        assert np.abs(action - state[:len(action)]).max() < 45 and np.ptp(action, axis=0).max() > 1
        assert data.features()["action"].names == tuple(f"{n}.pos" for n in NAMES)
        worst = replay_episode(robot, data[1], 50)
        assert worst.max() < 40
    again = open_dataset(folder / "data")
    assert len(again) == 2


class Still(Teleoperator):
    def read(self):
        return np.zeros(2, np.float32)


def record_still(arm, clock, episodes, out):
    """Records episodes of a second in which nobody moves, without waiting."""
    def sleep(seconds):
        clock[0] += seconds

    limits = SafetyLimits((-90.0,) * 2, (90.0,) * 2, (50.0,) * 2)
    with SafeRobot(arm, limits, lambda: clock[0], watchdog=False) as robot:
        return RobotSession(robot, Still(), NoKeys(), 20, clock=lambda: clock[0], sleep=sleep).record(
            episodes, out, times=RecordingTimes(0, 1, 0))


def test_a_new_calibration_between_two_recordings_is_told(folder, recwarn):
    class Calibrated(SimulatedArm):
        calibration = {"a": "offset 1, 0 to 9", "b": "offset 2, 0 to 9"}  # noqa: RUF012

    clock = [0.0]
    for episodes in (1, 2):
        record_still(Calibrated(clock=lambda: clock[0]), clock, episodes, folder / "demos")
    assert not recwarn
    Calibrated.calibration = {**Calibrated.calibration, "b": "offset 5, 0 to 9"}
    with pytest.warns(DataWarning, match=r"calibrated again \(b\)"):
        data = record_still(Calibrated(clock=lambda: clock[0]), clock, 3, folder / "demos")
    (finding,) = (f for f in find_problems(data) if f.code == "calibration-differs")
    assert finding.episodes == (2,)


def test_an_interrupted_episode_does_not_count(folder):
    """The cable is pulled in the second of three episodes. The same call then records two more."""
    clock = [0.0]

    class Cut(SimulatedArm):
        sends = 0

        def send(self, action):
            self.sends += 1
            self.is_broken = self.sends > 30
            return super().send(action)
    with pytest.warns(DataWarning), pytest.raises(ConnectionLost):
        record_still(Cut(clock=lambda: clock[0]), clock, 3, folder / "demos")
    lengths = [(len(e), bool(e.metadata.get("interrupted"))) for e in open_dataset(folder / "demos")]
    assert [cut for _, cut in lengths] == [False, True]
    data = record_still(SimulatedArm(clock=lambda: clock[0]), clock, 3, folder / "demos")
    assert [bool(e.metadata.get("interrupted")) for e in data] == [False, True, False, False]


def test_a_replay_that_cannot_work_is_refused():
    robot = SafeRobot(SimulatedArm(clock=time.monotonic), SafetyLimits((-90.0,) * 2, (90.0,) * 2, (50.0,) * 2))
    action = {"action": np.zeros((3, 2), np.float32)}
    with robot:
        with pytest.raises(UserError, match="no column 'observation.state'"):
            replay_episode(robot, Episode(action), 30)
        with pytest.raises(ConfigError, match="at 1 steps per second every command would come after the timeout"):
            replay_episode(robot, Episode({**action, "observation.state": action["action"]}), 1)


def test_a_lost_leader_stops_the_follower(folder):
    write_calibration(folder / "ours" / "so101_follower" / "so101_follower.json", CALIBRATION)
    with feetech() as follower, feetech() as leader:
        robot = patient(make_robot(RobotConfig("so101_follower", follower.port)))
        teleop = patient(ServoLeader(ARM_TYPES["so101_leader"], leader.port, CALIBRATION))
        with robot, teleop:
            session = RobotSession(robot, teleop, NoKeys(), fps=50)
            session.begin()
            session.teleoperate(0.2)
            leader.pull_cable()
            with pytest.raises(ConnectionLost):
                session.teleoperate(5.0)
            assert robot._is_holding


def test_keys_move_joints_and_commands_are_those_of_lerobot():
    import os

    read, write = os.pipe()
    now = [0.0]
    keys = JointKeyboard(handle=read, clock=lambda: now[0], n_joints=3)
    os.write(write, b"2w")
    assert keys.read().tolist() == [0, 1, 0]
    os.write(write, b"3\x1b[B9")
    assert keys.read().tolist() == [0, 0, -1]
    commands = RecordingKeys(handle=read, clock=lambda: now[0])
    os.write(write, b"\x1b[Cyw")
    assert commands.commands() == ["enter", "success"]
    os.write(write, b"\x1b[D\x1b[Aq")
    assert commands.commands() == ["discard", "quit"]
    os.write(write, b"\x1b")
    assert commands.commands() == ["quit"]
    os.write(write, b"\x1b[3~\x1bOP\x1b[1;5A\x1b[H")  # delete, F1, control and up, home
    assert commands.commands() == []
    os.write(write, b"\x1b[3~\x1b[Cxn\x1b[D\x1b")
    assert keys.read().tolist() == [0, 0, -1] and keys.commands() == ["enter", "discard", "failure", "discard", "quit"]


def test_options_are_those_of_lerobot(folder):
    text = "{ front: {type: opencv, index_or_path: /dev/video0, width: 640, height: 480, fps: 30}, top: {fps: 2.5}}"
    assert parse_cameras(text) == {"front": {"type": "opencv", "index_or_path": "/dev/video0", "width": 640,
                                             "height": 480, "fps": 30}, "top": {"fps": 2.5}}
    assert parse_cameras('{"a": {"index_or_path": 0, "type": "my.cameras:make"}}') == {
        "a": {"index_or_path": 0, "type": "my.cameras:make"}}
    for invalid_text in ("front", "{front: 1}", "{front: {a: }}", "{front: {a: 1}", "{} x"):
        with pytest.raises(ConfigError, match="does not describe cameras"):
            parse_cameras(invalid_text)
    for twice in ("{front: {index_or_path: 0}, front: {index_or_path: 1}}",
                  '{"front": {"index_or_path": 0}, front: {index_or_path: 1}}'):
        with pytest.raises(ConfigError, match="--robot.cameras: 'front' is given twice"):
            parse_cameras(twice)
    with pytest.raises(ConfigError, match="did you mean 'so101_follower'"):
        make_robot(RobotConfig("so101_folower"))
    with pytest.raises(UserError, match="there is no calibration.*\n.*robot calibrate --robot so101_follower"):
        make_robot(RobotConfig("so101_follower", "/dev/none"))
    limits = make_robot(RobotConfig("simulated_arm", max_velocity=(30.0,), timeout=1.0)).limits
    assert limits.max_velocity == (30.0, 30.0) and limits.timeout == 1.0
    with pytest.raises(ConfigError, match="has 3 numbers, but the robot has 2 joints"):
        make_robot(RobotConfig("simulated_arm", max_velocity=(1.0, 2.0, 3.0)))
