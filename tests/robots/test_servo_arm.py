"""Followers: observed, moved, and protected when something fails."""

import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from fixtures.servo_arms import CALIBRATION, Script, feetech, koch, patient

from understudy.core import ConfigError, Feature, NonFiniteAction, keys
from understudy.data.text_columns import TaskText
from understudy.data.window import Window
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, ObservationWrapper, PolicyActor, TransformedActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.doubt import DoubtActor
from understudy.interrupts import is_of_closed_terminal
from understudy.policy import Planner
from understudy.robots.acting import StepCounts, act_on_robot
from understudy.robots.base import ConnectionLost, RobotError
from understudy.robots.calibration import write_calibration
from understudy.robots.emulator import (
    Faults,
)
from understudy.robots.env import RobotEnv
from understudy.robots.limits import SafetyLimits
from understudy.robots.registry import RobotConfig, make_robot
from understudy.robots.safety import SafeRobot
from understudy.robots.servo_arm import ARM_TYPES, ServoFollower, ServoLeader
from understudy.robots.simulated import SimulatedArm
from understudy.testing import check_robot

pytest.importorskip("scservo_sdk", reason="extra feetech not installed")
pytest.importorskip("dynamixel_sdk", reason="extra dynamixel not installed")

NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


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
            state = robot.observe()["observation.state"]
            steps = np.array([2000 + sign * (10 * i - 30) for i in range(1, 7)])
            degrees = (steps - (2000 + np.arange(1, 7))) * 360 / 4095
            np.testing.assert_allclose(state[:5], degrees[:5], rtol=1e-5)
            np.testing.assert_allclose(state[5], (steps[5] - 1006) / 20, rtol=1e-5)
            robot.apply_limits(robot.default_limits(max_velocity=(200.0,) * 6))
            goal = np.array([10.0, -10, 5, 0, 20, 60])
            robot.send(goal)
            time.sleep(0.5)
            np.testing.assert_allclose(robot.observe()["observation.state"], goal, atol=0.1)
            before = {s.number: s.get("Present_Position") for s in emulated.servos}
            robot.send(goal + 30)
            stopped_at = robot.stop()
            time.sleep(0.2)
            np.testing.assert_allclose(robot.observe()["observation.state"], stopped_at, atol=0.1)
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
        lerobot_bus = (FeetechMotorsBus if kind.manufacturer == "feetech" else DynamixelMotorsBus)(
            emulated.port, {n: lerobot.Motor(m.id, m.model, modes.RANGE_0_100 if n == "gripper" else modes.DEGREES)
                            for n, m in kind.motors.items()},
            {n: lerobot.MotorCalibration(**vars(c)) for n, c in CALIBRATION.items()})
        # A machine that does many other things stands still for longer than their time limit, and clocks jump.
        lerobot_bus.port_handler.isPacketTimeout = lambda: time.monotonic() > ended
        ended = time.monotonic() + 60
        lerobot_bus.connect(handshake=False)
        assert all(lerobot_bus.ping(m.id, num_retry=9) == lerobot_bus.model_number_table[m.model]
                   for m in kind.motors.values())
        lerobot_bus.write_calibration(lerobot_bus.calibration)
        assert lerobot_bus.is_calibrated
        lerobot_bus.enable_torque()
        lerobot_bus.sync_write("Goal_Position", dict.fromkeys(NAMES, 10.0))
        time.sleep(0.3)
        positions = lerobot_bus.sync_read("Present_Position")
        lerobot_bus.disconnect(disable_torque=False)
        robot = patient(ServoFollower(kind, emulated.port, CALIBRATION))
        robot.arm.bus.connect()
        assert robot.arm.stored_calibration() == CALIBRATION
        np.testing.assert_allclose(robot.observe()["observation.state"], list(positions.values()), rtol=1e-6)
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
            assert emulated.servo(6).get("Torque_Limit") == 200  # of the half that the gripper may use
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


@dataclass(frozen=True)
class PullsCable(Actor):
    """Rests, and pulls the cable of the arm before its fourth action."""

    emulated: object

    def start(self, obs, key):
        return {"n": torch.zeros_like(key)}

    def act(self, obs, state):
        if state["n"] == 3:
            self.emulated.pull_cable()
        return obs["observation.state"].clone(), {"n": state["n"] + 1}


def test_an_episode_that_loses_its_arm_ends_with_why(folder):
    """And not with an error of stopping what is gone, or one that is its own cause."""
    write_calibration(folder / "ours" / "so101_follower" / "so101_follower.json", CALIBRATION)
    with feetech() as emulated:
        robot = patient(make_robot(RobotConfig("so101_follower", emulated.port)))
        with pytest.raises(ConnectionLost, match="connection is gone") as caught, robot:
            act_on_robot(robot, PullsCable(emulated), keys(0, [0]), fps=20, seconds=10)
    assert "3 steps of the episode were done" in caught.value.__notes__
    assert caught.value.__cause__ is not caught.value and not is_of_closed_terminal(caught.value)
    error = ValueError("x")
    error.__cause__ = error
    assert not is_of_closed_terminal(error)


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
    with feetech() as left_arm, feetech() as right:
        config = RobotConfig("bi_so101_follower", id="duo", left_arm_port=left_arm.port, right_arm_port=right.port,
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
        left_arm.pull_cable()
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


def test_an_alarm_stops_the_robot_before_the_action_of_its_step():
    now = [0.0]

    class Watched(Constant):
        def start(self, obs, key):
            return {"seen": obs}

        def act(self, obs, state):
            return self.action, {"seen": {name: value.unsqueeze(1) for name, value in obs.items()}}

    def moved(obs, key, count):
        return obs["observation.state"][:, -1, 0]  # how far the first joint is

    def sleep(seconds):
        now[0] += seconds
    arm = SimulatedArm(clock=lambda: now[0])
    limits = SafetyLimits((-90.0, -90.0), (90.0, 90.0), (50.0, 50.0), slow_start=0)
    with SafeRobot(arm, limits, lambda: now[0], watchdog=False) as robot:
        actor = DoubtActor(Watched(torch.tensor([[80.0, 0.0]])), moved)
        done = act_on_robot(robot, actor, keys(0, [0]), fps=20, seconds=60, alarm_at=19.0, clock=lambda: now[0],
                            sleep=sleep)
        assert (done.counts.steps, done.ended, done.success) == (9, "alarm", None)  # 2.5 degrees a step after the first
        assert arm.goal.tolist() == arm.joints.tolist() and arm.joints[0] == pytest.approx(20)  # the tenth was not sent


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
    now, messages = [0.0], []

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
                            show=messages.append, clock=lambda: now[0], sleep=sleep)
    assert done.counts == StepCounts(steps=100, late=10, missed=20, bad=30)
    assert done.counts.bad_share == 30 / 120 and str(done.counts) == "100 steps, 20 stale, 10 late"
    assert messages[-1].startswith("100 steps, 20 stale, 10 late (")
    assert done.counts + StepCounts(1, 1, bad=1) == StepCounts(101, 1, 0, 10, 20, 31)


@pytest.mark.slow
def test_a_run_of_a_minute_survives_2_percent_lost_packets(folder):
    write_calibration(folder / "ours" / "so101_follower" / "f.json", CALIBRATION)
    with (feetech(Faults(missing=0.02)) as emulated,
          make_robot(RobotConfig("so101_follower", emulated.port, "f")) as robot):
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
