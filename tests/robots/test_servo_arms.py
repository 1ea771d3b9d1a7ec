"""Emulated arms: calibrated, teleoperated, recorded, and protected when something fails."""

import json
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from understudy.core import ConfigError, DataWarning, Feature, UserError, keys
from understudy.data.episode import Episode
from understudy.data.formats import open_dataset
from understudy.data.text_columns import TaskText
from understudy.data.window import Window
from understudy.envs.devices import JointKeyboard, RecordingKeys
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, NonFiniteAction, ObservationWrapper, PolicyActor, TransformedActor
from understudy.execute.chunking import RecedingHorizon
from understudy.policy import Planner
from understudy.robots.acting import StepCounts, act_on_robot
from understudy.robots.base import ConnectionLost, RobotError, Teleoperator
from understudy.robots.calibration import MotorCalibration, find_calibration, read_calibration, write_calibration
from understudy.robots.emulator import (
    DynamixelServo,
    EmulatedDynamixelBus,
    EmulatedFeetechBus,
    Faults,
    FeetechServo,
    emulate_arm,
)
from understudy.robots.env import RobotEnv
from understudy.robots.limits import SafetyLimits
from understudy.robots.recording import NoKeys, RecordingTimes, RobotSession, replay_episode
from understudy.robots.registry import RobotConfig, TeleoperatorConfig, make_robot, make_teleoperator, parse_cameras
from understudy.robots.safety import SafeRobot
from understudy.robots.servo_arm import ARM_TYPES, Calibrator, ServoFollower, ServoLeader, set_up_motor
from understudy.robots.simulated import SimulatedArm
from understudy.testing import check_robot

pytest.importorskip("scservo_sdk", reason="extra feetech not installed")
pytest.importorskip("dynamixel_sdk", reason="extra dynamixel not installed")

NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
CALIBRATION = {n: MotorCalibration(i, 0, 10 * i - 30, 1000 + i, 3000 + i) for i, n in enumerate(NAMES, 1)}


def feetech(faults=None, **position):
    return EmulatedFeetechBus(*(FeetechServo(i, position.get(n, 2000)) for i, n in enumerate(NAMES, 1)), faults=faults)


def koch(**position):
    models = [m.model for m in ARM_TYPES["koch_follower"].motors.values()]
    return EmulatedDynamixelBus(*(DynamixelServo(i, model, position.get(n, 2000))
                                  for i, (n, model) in enumerate(zip(NAMES, models, strict=True), 1)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CALIBRATION", str(tmp_path / "ours"))
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path / "lerobot"))
    return tmp_path


def patient(device):
    """Longer waits: a pseudo-terminal takes seconds while the kernel writes much to a disk."""
    arm = (device.robot if hasattr(device, "robot") else device).arm
    arm.bus.reply_timeout, arm.bus.n_retries = 3.0, 5
    return device


# -- calibration ----------------------------------------------------------------------------------------------------


def test_calibrations_of_lerobot_are_found_and_read(folder):
    path = folder / "lerobot" / "robots" / "so_follower" / "mine.json"  # where LeRobot 0.4 writes
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({n: {"id": c.id, "drive_mode": 0, "homing_offset": c.homing_offset,
                                    "range_min": c.range_min, "range_max": c.range_max}
                                for n, c in CALIBRATION.items()}, indent=4))
    assert find_calibration("so101_follower", "mine") == path
    ids = {n: c.id for n, c in CALIBRATION.items()}
    assert read_calibration(path, ids) == CALIBRATION
    ours = folder / "ours" / "so101_follower" / "mine.json"
    write_calibration(ours, CALIBRATION)
    assert find_calibration("so101_follower", "mine") == ours and read_calibration(ours, ids) == CALIBRATION
    assert json.loads(ours.read_text()) == json.loads(path.read_text())
    for change, message in (({"id": 9}, "has id 9 there, but id 3"), ({"range_min": 5000}, "range .* is empty"),
                            ({"range_max": 1.5}, "no whole numbers")):
        broken = json.loads(path.read_text())
        broken["elbow_flex"].update(change)
        ours.write_text(json.dumps(broken))
        with pytest.raises(UserError, match=message):
            read_calibration(ours, ids)


def test_units_are_those_of_lerobot():
    each = MotorCalibration(1, 0, 0, 1000, 3000)
    assert each.to_unit(2000, "degrees", 4096) == 0
    assert each.to_unit(3000, "degrees", 4096) == pytest.approx(1000 * 360 / 4095)
    assert each.to_unit(1500, "percent", 4096) == 25 and each.to_unit(1500, "signed_percent", 4096) == -50
    for unit in ("degrees", "percent", "signed_percent"):
        for steps in range(900, 3100, 7):
            assert each.to_steps(each.to_unit(steps, unit, 4096), unit, 4096) == steps


@pytest.mark.parametrize("name", ["so101_follower", "so100_leader", "koch_follower", "koch_leader"])
def test_an_emulated_arm_is_calibrated(name):
    kind = ARM_TYPES[name]
    with (feetech if kind.manufacturer == "feetech" else koch)() as emulated:
        if name == "koch_leader":
            for servo in emulated.servos:
                servo.set("Model_Number", 1190)
        at = {n: 1000 + 300 * i for i, n in enumerate(NAMES)}
        for n, number in zip(NAMES, range(1, 7), strict=True):
            emulated.servo(number).push(at[n])
        calibrator = Calibrator(kind, emulated.port)
        calibrator.arm.bus.reply_timeout = 3.0
        calibrator.connect()
        calibrator.set_middle()
        assert {p for _, p, _ in calibrator.update().values()} == {2047}  # half a turn
        with pytest.raises(ConfigError, match="shoulder_lift.* moved by less than 9 degrees"):
            calibrator.finish()
        for way in (-500, 800):
            for n, number in zip(NAMES, range(1, 7), strict=True):
                emulated.servo(number).push(at[n] + way)
            calibrator.update()
        found = calibrator.finish()
        assert all(found[n].id == i for i, n in enumerate(NAMES, 1))
        sign = -1 if "elbow_flex" in kind.inverted else 1
        low, high = sorted((2047 + sign * -500, 2047 + sign * 800))
        assert (found["elbow_flex"].range_min, found["elbow_flex"].range_max) == (low, high)
        assert (found["wrist_roll"].range_min, found["wrist_roll"].range_max) == (0, 4095)
        assert found["elbow_flex"].drive_mode == int("elbow_flex" in kind.inverted)
        assert calibrator.arm.stored_calibration() == found  # also in the servos
        calibrator.disconnect()


def test_two_servos_of_a_joint_move_together_or_not_at_all():
    kind = ARM_TYPES["viperx"]
    with emulate_arm(kind) as emulated:
        mirror = {3: 2, 5: 4}  # mounted the other way round

        def hand(steps):
            for servo in emulated.servos:
                servo.push(2300 - steps if servo.number in mirror else 2000 + steps)
        calibrator = Calibrator(kind, emulated.port)
        calibrator.arm.bus.reply_timeout = 3.0
        calibrator.connect()
        hand(0)
        calibrator.set_middle()
        for steps in (-500, 700):
            hand(steps)
            seen = calibrator.update()
            assert seen["shoulder"] == seen["shoulder_shadow"] and seen["elbow_shadow"][1] == 2047 + steps
        calibration = calibrator.finish()
        calibrator.disconnect()
        robot = patient(ServoFollower(kind, emulated.port, calibration))
        with robot:
            assert robot.schema["action"].size == 7 and emulated.servo(3).get("Secondary_ID") == 2
            robot.apply_limits(robot.default_limits(max_velocity=(200.0,) * 7))
            robot.send(np.array([0, 20, -15, 0, 0, 0, 50]))
            time.sleep(0.6)
            for second, first in mirror.items():
                assert emulated.servo(second).get("Goal_Position") == emulated.servo(first).get("Goal_Position")
                assert emulated.servo(second).position - 2300 == pytest.approx(2000 - emulated.servo(first).position,
                                                                                abs=1)
            assert emulated.servo(2).position != 2000 + 700
            np.testing.assert_allclose(robot.observe()["observation.state"][1:3], [20, -15], atol=0.1)
        assert not emulated.servo(3).get("Torque_Enable")
        emulated.servo(3).push(emulated.servo(3).position + 100)
        with pytest.raises(RobotError, match="shoulder_shadow is -100 steps away from shoulder"):
            robot.connect()
        assert not any(s.get("Torque_Enable") for s in emulated.servos)


def test_a_new_servo_gets_its_id():
    kind = ARM_TYPES["so101_follower"]
    with EmulatedFeetechBus(FeetechServo(1)) as emulated:
        assert set_up_motor(kind, emulated.port, "gripper")[0] == 1  # the emulator answers at every rate
        assert emulated.servos[0].number == 6 and emulated.servos[0].get("Lock") == 1
        emulated.servos.append(FeetechServo(3))
        with pytest.raises(RobotError, match="several servos answer: ids 3, 6"):
            set_up_motor(kind, emulated.port, "wrist_roll")
    with EmulatedDynamixelBus(DynamixelServo(1)) as emulated:
        with pytest.raises(RobotError, match="it is xl330-m288, and xl430-w250"):
            set_up_motor(ARM_TYPES["koch_follower"], emulated.port, "shoulder_lift")
        assert set_up_motor(ARM_TYPES["koch_follower"], emulated.port, "gripper")[0] == 1
        assert emulated.servos[0].number == 6


# -- a follower -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda p: (feetech(), "so101_follower"), lambda p: (koch(), "koch_follower")],
                         ids=["so101", "koch"])
def test_a_follower_is_observed_and_moved(make):
    emulated, name = make(None)
    with emulated:
        kind = ARM_TYPES[name]
        robot = patient(ServoFollower(kind, emulated.port, CALIBRATION))
        with robot:
            assert all(s.get("Torque_Enable") for s in emulated.servos)
            sign = -1 if kind.manufacturer == "feetech" else 1
            shown = robot.observe()["observation.state"]
            steps = np.array([2000 + sign * (10 * i - 30) for i in range(1, 7)])
            degrees = (steps - (2000 + np.arange(1, 7))) * 360 / 4095
            np.testing.assert_allclose(shown[:5], degrees[:5], rtol=1e-5)
            np.testing.assert_allclose(shown[5], (steps[5] - 1006) / 20, rtol=1e-5)
            robot.apply_limits(robot.default_limits(max_velocity=(200.0,) * 6))
            goal = np.array([10.0, -10, 5, 0, 20, 60])
            robot.send(goal)
            time.sleep(0.5)
            np.testing.assert_allclose(robot.observe()["observation.state"], goal, atol=0.1)
            before = {s.number: s.get("Present_Position") for s in emulated.servos}
            robot.send(goal + 30)
            held = robot.stop()
            time.sleep(0.2)
            np.testing.assert_allclose(robot.observe()["observation.state"], held, atol=0.1)
            moved = [abs(s.get("Present_Position") - before[s.number]) for s in emulated.servos]
            assert max(moved) < 340  # of the 341 steps that were commanded: it stopped on the way
        assert not any(s.get("Torque_Enable") for s in emulated.servos)


@pytest.mark.parametrize("name", ["so101_follower", "koch_follower"])
def test_lerobots_own_drivers_read_the_same_positions(name):
    lerobot = pytest.importorskip("lerobot.motors", reason="LeRobot not installed")
    from lerobot.motors.dynamixel import DynamixelMotorsBus
    from lerobot.motors.feetech import FeetechMotorsBus

    kind, modes = ARM_TYPES[name], lerobot.MotorNormMode
    with (feetech if kind.manufacturer == "feetech" else koch)() as emulated:
        theirs = (FeetechMotorsBus if kind.manufacturer == "feetech" else DynamixelMotorsBus)(
            emulated.port, {n: lerobot.Motor(m.id, m.model, modes.RANGE_0_100 if n == "gripper" else modes.DEGREES)
                            for n, m in kind.motors.items()},
            {n: lerobot.MotorCalibration(**vars(c)) for n, c in CALIBRATION.items()})
        # A machine that does many other things stands still for longer than their time limit, and clocks jump.
        theirs.port_handler.isPacketTimeout = lambda: time.monotonic() > ended
        ended = time.monotonic() + 60
        theirs.connect(handshake=False)
        assert all(theirs.ping(m.id, num_retry=9) == theirs.model_number_table[m.model] for m in kind.motors.values())
        theirs.write_calibration(theirs.calibration)
        assert theirs.is_calibrated
        theirs.enable_torque()
        theirs.sync_write("Goal_Position", dict.fromkeys(NAMES, 10.0))
        time.sleep(0.3)
        seen = theirs.sync_read("Present_Position")
        theirs.disconnect(disable_torque=False)
        robot = patient(ServoFollower(kind, emulated.port, CALIBRATION))
        robot.arm.bus.connect()
        assert robot.arm.stored_calibration() == CALIBRATION
        np.testing.assert_allclose(robot.observe()["observation.state"], list(seen.values()), rtol=1e-6)
        robot.arm.bus.disconnect()


def test_connecting_does_not_move_the_arm_and_limits_reach_the_servos():
    """The goal that a servo remembers is replaced by its present position before the torque comes on."""
    with feetech(elbow_flex=1500) as emulated:
        emulated.servo(3).set("Goal_Position", 2900)
        robot = patient(ServoFollower(ARM_TYPES["so101_follower"], emulated.port, CALIBRATION))
        with robot:
            limits = robot.default_limits(max_torque=0.4)
            robot.apply_limits(limits)
            time.sleep(0.05)
            assert abs(emulated.servo(3).position - 1500) < 2
            assert emulated.servo(3).get("Torque_Limit") == 400
            assert emulated.servo(3).get("Goal_Velocity") == 1365  # 120 deg/s
            assert emulated.servo(6).get("Goal_Velocity") == 2500  # 125 % of 2000 steps
            assert (limits.low[5], limits.high[5]) == (0, 100)
    with pytest.raises(RobotError, match="not calibrated"), feetech() as emulated:
        ServoFollower(ARM_TYPES["so101_follower"], emulated.port, None).connect()


def test_a_robot_that_is_connected_again_has_one_port_and_one_watchdog():
    with feetech() as emulated:
        arm = patient(ServoFollower(ARM_TYPES["so101_follower"], emulated.port, CALIBRATION))
        robot, before = SafeRobot(arm, arm.default_limits()), threading.active_count()
        robot.connect()
        old = arm.arm.bus._port
        robot.connect()
        assert not old.ser.is_open and arm.arm.bus._port.ser.is_open
        assert threading.active_count() == before + 1
        robot.disconnect()
        assert threading.active_count() == before
        leader = patient(ServoLeader(ARM_TYPES["so101_leader"], emulated.port, CALIBRATION))
        leader.arm.set_torque = lambda on: leader.arm.bus.read("ID", "no such servo")
        with pytest.raises(KeyError):
            leader.connect()
        assert not leader.arm.bus.is_connected


def test_an_overloaded_servo_and_a_pulled_cable_stop_the_arm(folder):
    write_calibration(folder / "ours" / "so101_follower" / "so101_follower.json", CALIBRATION)
    with feetech() as emulated:
        robot = patient(make_robot(RobotConfig("so101_follower", emulated.port)))
        robot.connect()
        robot.observe()
        robot.send(np.zeros(6))
        emulated.servo(2).fault = 32
        with pytest.raises(RobotError, match="shoulder_lift: the servo reports: overload"):
            robot.observe()
        emulated.servo(2).fault = 0
        with pytest.raises(RobotError, match="overload"):  # until somebody connects again
            robot.send(np.zeros(6))
        robot.disconnect()
        robot.connect()
        robot.send(np.zeros(6))
        emulated.pull_cable()
        with pytest.raises(ConnectionLost):
            robot.observe()
        robot.disconnect()


@pytest.mark.parametrize("kind", ["so101_follower", "koch_follower", "simulated", "limited"])
def test_every_robot_keeps_the_contract(kind, folder):
    with ExitStack() as stack:
        if kind == "simulated":
            check_robot(lambda: SimulatedArm(clock=time.monotonic))
            return
        emulated = stack.enter_context(koch() if kind == "koch_follower" else feetech())
        write_calibration(folder / "ours" / "so101_follower" / "so101_follower.json", CALIBRATION)
        if kind == "limited":
            check_robot(lambda: patient(make_robot(RobotConfig("so101_follower", emulated.port))))
        else:
            check_robot(lambda: patient(ServoFollower(ARM_TYPES[kind], emulated.port, CALIBRATION)))


def test_two_arms_are_one_robot(folder):
    for side in ("left", "right"):
        write_calibration(folder / "ours" / "so101_follower" / f"duo_{side}.json", CALIBRATION)
    with feetech() as left, feetech() as right:
        config = RobotConfig("bi_so101_follower", id="duo", left_arm_port=left.port, right_arm_port=right.port,
                             slow_start=0.0, max_velocity=(200.0,))
        robot = make_robot(config)
        for arm in robot.robot.arms:
            patient(arm)
        check_robot(lambda: robot)
        assert robot.schema["action"].names[0] == "left_shoulder_pan.pos"
        assert robot.schema["action"].names[11] == "right_gripper.pos"
        robot.connect()
        goal = np.repeat([10.0, -5.0], 6)
        for _ in range(20):
            robot.observe()
            robot.send(goal)
            time.sleep(0.05)
        np.testing.assert_allclose(robot.observe()["observation.state"][[0, 1, 6, 7]], [10, 10, -5, -5], atol=0.1)
        assert right.servo(3).get("Goal_Velocity") == 2275
        robot.send(goal + 20)
        left.pull_cable()
        with pytest.raises(ConnectionLost):
            robot.observe()
        time.sleep(0.2)  # nobody confirms a goal
        assert abs(right.servo(1).get("Goal_Position") - right.servo(1).get("Present_Position")) < 60  # both stopped
        robot.disconnect()
    with pytest.raises(ConfigError, match="--robot.left-arm-port: is missing"):
        make_robot(RobotConfig("bi_so101_follower", id="duo"))


def test_a_contract_can_fail():
    class Jumps(SimulatedArm):
        def stop(self):
            return super().stop() + 5

    with pytest.raises(AssertionError, match="it holds .* but it was at"):
        check_robot(lambda: Jumps(clock=time.monotonic))


def test_a_robot_is_an_environment():
    now = [0.0]
    arm = SimulatedArm(clock=lambda: now[0])
    robot = SafeRobot(arm, SafetyLimits((-90.0, -90.0), (90.0, 90.0), (50.0, 50.0), slow_start=0.0),
                      lambda: now[0], watchdog=False)

    def sleep(seconds):
        now[0] += seconds
    with robot:
        env = RobotEnv(robot, 20, max_episode_steps=40, clock=lambda: now[0], sleep=sleep)
        assert env.metadata["low"] == (-90.0, -90.0) and env.metadata["fps"] == 20
        data = rollout(Constant(torch.tensor([[500.0, -20.0]])), env, 2)
    assert [len(e) for e in data] == [40, 40] and data[0].steps["next.truncated"][-1]
    state = np.asarray(data[0].steps["observation.state"])
    np.testing.assert_allclose(state[-1], [90, -20], atol=1e-3)  # 50 deg/s for 2 s, cut off at the limit
    assert np.diff(state[:, 0]).max() <= 50 / 20 + 1e-4
    assert now[0] == pytest.approx(80 / 20)


@dataclass(frozen=True)
class Constant(Actor):
    action: torch.Tensor

    def start(self, obs, key):
        return {"key": key}

    def act(self, obs, state):
        return self.action, state


def test_a_policy_acts_within_the_limits_and_a_person_ends_it():
    now = [0.0]
    arm = SimulatedArm(clock=lambda: now[0])
    robot = SafeRobot(arm, SafetyLimits((-90.0, -90.0), (90.0, 90.0), (50.0, 50.0)), lambda: now[0], watchdog=False)

    def sleep(seconds):
        now[0] += seconds
    with robot:
        done = act_on_robot(robot, Constant(torch.tensor([[500.0, -20.0]])), keys(0, [0]), fps=20, seconds=60,
                            keys=Script(_30="success"), clock=lambda: now[0], sleep=sleep)
        assert (done.counts.steps, done.counts.late, done.ended) == (29, 0, "success")
        assert arm.goal.tolist() == arm.joints.tolist()  # it was stopped
        with pytest.raises(NonFiniteAction):
            act_on_robot(robot, Constant(torch.tensor([[np.nan, 0.0]])), keys(0, [0]), fps=20, seconds=60,
                         clock=lambda: now[0], sleep=sleep)
        assert arm.goal.tolist() == arm.joints.tolist()


@pytest.mark.parametrize("action, counts", [
    ([10.0, -10.0], StepCounts(steps=100)),
    ([90.5, -91.7], StepCounts(steps=100)),  # 1 % of the range is not counted
    ([10.0, 92.0], StepCounts(steps=100, clipped=80, bad=80))])  # the first second is a slow start
def test_clipped_steps_are_counted(action, counts):
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds
    limits = SafetyLimits((-90.0, -90.0), (90.0, 90.0), (500.0, 500.0), slow_start=0.97)
    with SafeRobot(SimulatedArm(clock=lambda: now[0]), limits, lambda: now[0], watchdog=False) as robot:
        done = act_on_robot(robot, Constant(torch.tensor([action])), keys(0, [0]), fps=20, seconds=4.97,
                            clock=lambda: now[0], sleep=sleep)
    assert done.counts == counts


def test_late_and_missed_steps_are_counted_once_each():
    """Every tenth action takes 3.5 periods: its step is late, two more periods pass, and the next one is late too."""
    now, shown = [0.0], []

    class Sometimes(Constant):
        def act(self, obs, state):
            state = {"n": state.get("n", 0) + 1}
            now[0] += 3.5 / 20 if state["n"] % 10 == 0 else 0
            return self.action, state

    def sleep(seconds):
        now[0] += seconds
    limits = SafetyLimits((-90.0, -90.0), (90.0, 90.0), (500.0, 500.0), slow_start=0)
    with SafeRobot(SimulatedArm(clock=lambda: now[0]), limits, lambda: now[0], watchdog=False) as robot:
        done = act_on_robot(robot, Sometimes(torch.tensor([[1.0, 1.0]])), keys(0, [0]), fps=20, seconds=6.24,
                            show=shown.append, clock=lambda: now[0], sleep=sleep)
    assert done.counts == StepCounts(steps=100, late=10, missed=20, bad=30)
    assert done.counts.bad_share == 30 / 120 and str(done.counts) == "100 steps, 20 stale, 10 late"
    assert shown[-1].startswith("100 steps, 20 stale, 10 late (")
    assert done.counts + StepCounts(1, 1, bad=1) == StepCounts(101, 1, 0, 10, 20, 31)


@pytest.mark.slow
def test_a_run_of_a_minute_survives_2_percent_lost_packets(folder):
    write_calibration(folder / "ours" / "so101_follower" / "f.json", CALIBRATION)
    with feetech(Faults(lost=0.02)) as emulated, make_robot(RobotConfig("so101_follower", emulated.port, "f")) as robot:
        before = robot.n_retries
        done = act_on_robot(robot, Constant(torch.zeros(1, 6)), keys(0, [0]), fps=30, seconds=60)
        assert robot.n_retries - before >= done.counts.retries > 100
    assert done.counts.steps > 1000 and done.ended is None and "retries" in str(done.counts)
    print(done.counts)


class Slow(Planner):
    """Plans a chunk of zeros. Plans after the first one take as long as the robot moves."""

    inputs, action_dim, device = ("observation.state", "observation.task"), 2, torch.device("cpu")
    features = {"observation.state": Feature("float32", (2,)), "observation.task": Feature("uint8", (4,), "text")}
    window = Window(1, 4)

    def __init__(self):
        self.stopped, self.is_late = threading.Event(), []

    def noise(self, key, count):
        return count.unsqueeze(1)

    def plan(self, obs, noise, guides=()):
        assert (obs["observation.task"] == 7).all()
        self.is_late.append(bool(noise[0, 0] > 0 and not self.stopped.wait(10)))
        return torch.zeros(1, 4, 2)


def test_a_policy_that_is_told_a_task_plans_in_the_background():
    now, planner = [0.0], Slow()
    actor = PolicyActor(planner, RecedingHorizon(2))
    actor = TransformedActor(actor, (TaskText(4),), Feature("float32", (2,)))
    actor = ObservationWrapper(actor, {"observation.task": torch.full((4,), 7, dtype=torch.uint8)})
    robot = SafeRobot(SimulatedArm(clock=lambda: now[0]), SafetyLimits((-90.0,) * 2, (90.0,) * 2, (50.0,) * 2),
                      lambda: now[0], watchdog=False)
    holds = robot.stop

    def sleep(seconds):
        now[0] += seconds

    def stop():
        planner.stopped.set()
        return holds()
    robot.stop = stop
    with robot:
        done = act_on_robot(robot, actor, keys(0, [0]), fps=20, seconds=1, clock=lambda: now[0], sleep=sleep)
    assert planner.is_late == [False, False]
    assert done.counts == StepCounts(steps=20, repeated=16, bad=16)  # a chunk has 4 actions, and no other came
    assert (done.counts.stale, done.counts.bad_share, str(done.counts)) == (16, 0.8, "20 steps, 16 stale")


# -- leaders, recording, replay ---------------------------------------------------------------------------------------


def wave(emulated, ended):
    """A person moves the leader."""
    began = time.monotonic()
    while not ended.wait(0.01):
        t = time.monotonic() - began
        for servo in emulated.servos:
            servo.push(2000 + 120 * np.sin(2 * t + servo.number))


class Script:
    """A person who presses keys after so many calls."""

    def __init__(self, **commands):
        self.commands_at, self.calls = {int(k[1:]): v for k, v in commands.items()}, 0

    def commands(self):
        self.calls += 1
        return [self.commands_at[self.calls]] if self.calls in self.commands_at else []


def test_an_arm_is_teleoperated_recorded_and_replayed(folder):
    write_calibration(folder / "ours" / "so101_follower" / "f.json", CALIBRATION)
    write_calibration(folder / "ours" / "so101_leader" / "l.json", CALIBRATION)
    ended = threading.Event()
    with ExitStack() as stack:
        follower, leader = stack.enter_context(feetech(Faults(lost=0.01, seed=1))), stack.enter_context(feetech())
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
        steps = data[1].steps
        assert 15 <= len(data[1]) <= 25
        action, state = np.asarray(steps["action"]), np.asarray(steps["observation.state"])
        assert np.abs(action - state[:len(action)]).max() < 45 and np.ptp(action, axis=0).max() > 1
        assert data.features()["action"].names == tuple(f"{n}.pos" for n in NAMES)
        worst = replay_episode(robot, data[1], 50)
        assert worst.max() < 40
    again = open_dataset(folder / "data")
    assert len(again) == 2


def test_an_interrupted_episode_does_not_count(folder):
    """The cable is pulled in the second of three episodes. The same call then records two more."""
    clock = [0.0]

    def sleep(seconds):
        clock[0] += seconds

    def record(arm):
        limits = SafetyLimits((-90.0,) * 2, (90.0,) * 2, (50.0,) * 2)
        robot = SafeRobot(arm, limits, lambda: clock[0], watchdog=False)
        with robot:
            return RobotSession(robot, Still(), NoKeys(), 20, clock=lambda: clock[0], sleep=sleep).record(
                3, folder / "demos", times=RecordingTimes(0, 1, 0))

    class Still(Teleoperator):
        def read(self):
            return np.zeros(2, np.float32)

    class Cut(SimulatedArm):
        sends = 0

        def send(self, action):
            self.sends += 1
            self.is_broken = self.sends > 30
            return super().send(action)
    with pytest.warns(DataWarning), pytest.raises(ConnectionLost):
        record(Cut(clock=lambda: clock[0]))
    lengths = [(len(e), bool(e.metadata.get("interrupted"))) for e in open_dataset(folder / "demos")]
    assert [cut for _, cut in lengths] == [False, True]
    data = record(SimulatedArm(clock=lambda: clock[0]))
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
    for wrong in ("front", "{front: 1}", "{front: {a: }}", "{front: {a: 1}", "{} x"):
        with pytest.raises(ConfigError, match="does not describe cameras"):
            parse_cameras(wrong)
    with pytest.raises(ConfigError, match="did you mean 'so101_follower'"):
        make_robot(RobotConfig("so101_folower"))
    with pytest.raises(UserError, match="there is no calibration.*\n.*robot calibrate --robot so101_follower"):
        make_robot(RobotConfig("so101_follower", "/dev/none"))
    limits = make_robot(RobotConfig("simulated_arm", max_velocity=(30.0,), timeout=1.0)).limits
    assert limits.max_velocity == (30.0, 30.0) and limits.timeout == 1.0
    with pytest.raises(ConfigError, match="has 3 numbers, but the robot has 2 joints"):
        make_robot(RobotConfig("simulated_arm", max_velocity=(1.0, 2.0, 3.0)))
