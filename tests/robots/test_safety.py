"""No sequence of actions, late replies or lost connections makes a robot exceed a limit."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.core import ConfigError, Feature, NonFiniteAction
from understudy.robots.base import ConnectionLost, RobotError
from understudy.robots.limits import Link, SafetyLimits, Workspace
from understudy.robots.safety import SafeRobot
from understudy.robots.simulated import Connection, SimulatedArm

ARM = (Link((0, 1, 0), (0.2, 0, 0)), Link((0, 1, 0), (0.1, 0, 0)))  # two links of 20 and 10 cm in a vertical plane
BOX = Workspace(ARM, (-0.31, -0.1, -0.1), (0.31, 0.1, 0.31))  # z >= -0.1: above a table
LIMITS = SafetyLimits((-90.0, -60.0), (90.0, 60.0), (50.0, 100.0), max_relative_target=(20.0, 20.0), workspace=BOX,
                      slow_start=1.0)
NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=64)
POSES = st.tuples(st.floats(-400, 400), st.floats(-400, 400))
STEPS = st.lists(st.tuples(st.tuples(NUMBERS, NUMBERS), POSES, st.floats(-0.1, 1.5)), max_size=40)


def test_the_tip_of_a_chain_is_where_trigonometry_says():
    at = BOX.tip(np.array([30.0, 60.0]))  # about the y axis a positive angle points down
    np.testing.assert_allclose(at, [0.2 * np.cos(np.pi / 6), 0, -0.2 * np.sin(np.pi / 6) - 0.1], atol=1e-12)
    assert BOX.excess(np.array([90.0, 0.0])) == pytest.approx(0.2) and BOX.excess(np.zeros(2)) == 0
    offset = Workspace((Link((0, 0, 1), (1, 0, 0), zero=45.0),), (0, 0, 0), (1, 1, 1), base=(0, 0, 2))
    np.testing.assert_allclose(offset.tip(np.array([135.0])), [0, 1, 2], atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(STEPS, POSES)
def test_every_goal_keeps_every_limit_for_any_actions_and_measurements(steps, start):
    low, high, fastest = map(np.array, (LIMITS.low, LIMITS.high, LIMITS.max_velocity))
    state, now = LIMITS.start(start, 0.0), 0.0
    for action, position, wait in steps:
        now += wait
        before, elapsed = state, max(0.0, now - state.sent)
        goal, state = LIMITS.step(state, np.array(action), np.array(position), now)
        is_stopped = elapsed > LIMITS.timeout or not np.isfinite(action).all()
        allowed = 0.0 if is_stopped else min(1.0, max(0.0, now - before.began) / LIMITS.slow_start) * elapsed * fastest
        assert (np.abs(goal - before.goal) <= allowed + 1e-9).all()  # no jump, not even where the measurement jumps
        outside = np.maximum(low - goal, 0) + np.maximum(goal - high, 0)
        was_outside = np.maximum(low - before.goal, 0) + np.maximum(before.goal - high, 0)
        assert (outside <= was_outside + 1e-9).all()
        assert BOX.excess(goal) <= BOX.excess(before.goal) + 1e-9
        ahead, was_ahead = np.abs(goal - position), np.abs(before.goal - position)
        pulled_in = np.clip(position, low, high) != position  # joint limits come before the lead
        assert ((ahead <= np.maximum(20.0, was_ahead) + 1e-9) | pulled_in).all()


@settings(max_examples=50, deadline=None)
@given(st.tuples(st.floats(-80, 80), st.floats(-50, 50)), st.booleans())
def test_the_reachable_goal_is_where_the_same_command_leads(command, has_table):
    """The table is 10 cm below the base, and the way to most commands ends at a joint limit or above it."""
    limits = replace(LIMITS, workspace=BOX if has_table else None, low=(-30.0, -20.0), high=(20.0, 30.0))
    state, now = limits.start(np.zeros(2), 0.0), 0.0
    for _ in range(600):
        now += 0.02
        goal, state = limits.step(state, np.array(command), state.goal, now)
    assert limits.reachable(goal, np.array(command)) == pytest.approx(goal, abs=1e-3)
    if not has_table:
        assert limits.reachable(np.zeros(2), np.array(command)) == pytest.approx(goal, abs=1e-6)


def test_the_limits_do_not_stop_what_is_allowed():
    limits = SafetyLimits((-90.0,), (90.0,), (50.0,), slow_start=1.0)
    state, goals = limits.start([0.0], 0.0), []
    for i in range(1, 401):
        goal, state = limits.step(state, np.array([60.0]), state.goal, i / 100)
        goals.append(goal[0])
    speeds = np.diff([0.0, *goals]) * 100
    assert speeds[9] == pytest.approx(5) and speeds[49] == pytest.approx(25) and speeds[110] == pytest.approx(50)
    assert goals[-1] == 60.0  # it arrives exactly
    for seconds, expected in ((1.0, 60.0), (0.1, 59.5), (0.1, 58.5)):  # after a pause it starts slowly again
        goal, state = limits.step(state, np.array([0.0]), state.goal, state.sent + seconds)
        assert goal[0] == pytest.approx(expected)
    away = limits.start([120.0], 0.0)  # a start outside can only move back
    assert limits.step(away, np.array([500.0]), np.array([120.0]), 0.1)[0][0] < 120


CONNECTIONS = st.builds(Connection, st.floats(0, 0.3), st.floats(0, 0.3), st.floats(0, 0.6))
EVENTS = st.lists(st.tuples(st.sampled_from(["act"] * 8 + ["pause", "cut", "stop", "look"]),
                            st.tuples(NUMBERS, NUMBERS), st.floats(0.001, 0.2)), max_size=60)


@settings(max_examples=80, deadline=None)
@given(EVENTS, CONNECTIONS, st.integers(0, 2**31), st.tuples(st.floats(-90, 90), st.floats(-60, 60)))
def test_a_simulated_arm_never_exceeds_a_limit_behind_any_connection(events, link, seed, start):
    now = [0.0]
    if BOX.excess(np.array(start)):
        start = (0.0, 0.0)
    arm = SimulatedArm(link=link, seed=seed, position=start, clock=lambda: now[0])
    robot = SafeRobot(arm, LIMITS, clock=lambda: now[0], watchdog=False)
    robot.connect()
    last, at = arm.joints.copy(), 0.0
    for event, action, wait in events:
        try:
            if event == "act":
                robot.observe()
                robot.send(np.array(action))
            elif event == "look":
                robot.observe()
            elif event == "stop":
                robot.stop()
            elif event == "cut":
                arm.is_broken = not arm.is_broken
        except NonFiniteAction:
            assert not np.isfinite(action).all()
        except RobotError:
            assert arm.is_broken or robot._error is not None
            robot.disconnect()
            robot.connect()
        now[0] += 1.0 if event == "pause" else wait
        arm.advance()
        assert (arm.joints >= np.array(LIMITS.low) - 1e-9).all() and (arm.joints <= np.array(LIMITS.high) + 1e-9).all()
        assert (np.abs(arm.joints - last) <= np.array(LIMITS.max_velocity) * (now[0] - at) + 1e-9).all()
        last, at = arm.joints.copy(), now[0]
    goals = [BOX.excess(goal) for goal in arm.received]
    assert max(goals, default=0.0) <= 1e-9


def test_a_negative_control_without_limits_exceeds_them():
    now = [0.0]
    arm = SimulatedArm(clock=lambda: now[0])
    arm.connect()
    arm.send(np.array([200.0, 0.0]))
    now[0] = 1.0
    arm.advance()
    assert arm.joints[0] > LIMITS.high[0]


def test_a_lost_connection_stops_for_good_and_a_new_one_starts_slowly():
    now = [0.0]
    arm = SimulatedArm(clock=lambda: now[0])
    robot = SafeRobot(arm, LIMITS, clock=lambda: now[0], watchdog=False)
    robot.connect()
    for _ in range(20):
        now[0] += 0.1
        robot.observe()
        robot.send(np.array([40.0, 0.0]))
    arm.is_broken = True
    with pytest.raises(ConnectionLost):
        robot.observe()
    arm.is_broken = False
    with pytest.raises(ConnectionLost):  # also when the cable is back: nobody has looked yet
        robot.send(np.array([40.0, 0.0]))
    robot.connect()
    now[0] += 0.1
    stopped_at = robot.state.goal
    np.testing.assert_allclose(stopped_at, arm.joints, atol=1e-5)
    assert np.abs(robot.send(np.array([-40.0, 0.0])) - stopped_at).max() <= 0.1 * 0.1 * 50 + 1e-5
    expectation = pytest.raises(RobotError, match=r"shape \(3,\), but the robot has 2 joints")
    with expectation:
        robot.send(np.zeros(3))


def test_the_watchdog_stops_a_robot_whose_policy_hangs():
    arm = SimulatedArm(clock=time.monotonic)
    fast = SafetyLimits((-90.0, -60.0), (90.0, 60.0), (50.0, 100.0), slow_start=0.0, timeout=0.1)
    robot = SafeRobot(arm, fast)
    with robot:
        arm.velocity[:] = 1.0  # slower than its goals, so that there is something to stop
        for _ in range(5):
            time.sleep(0.02)
            robot.send(np.array([90.0, 0.0]))
        assert arm.goal[0] > 2
        time.sleep(0.3)  # the policy hangs
        stopped = arm.goal.copy()
        assert stopped[0] < 1  # it held where it was, and not at the last goal
        time.sleep(0.05)
        robot.send(np.array([90.0, 0.0]))
        assert arm.goal[0] == stopped[0] and robot.n_pauses == 1  # the first command after a pause does not move
        with pytest.raises(ConfigError, match="at 5 steps per second every command would come after the timeout"):
            robot.check_rate(5)


def test_a_stop_between_two_episodes_is_no_pause():
    now = [0.0]
    robot = SafeRobot(SimulatedArm(clock=lambda: now[0]), LIMITS, clock=lambda: now[0], watchdog=False)
    robot.connect()
    for _ in range(2):
        for _ in range(3):
            now[0] += 0.1
            robot.send(np.zeros(2))
        robot.stop()
        now[0] += 30.0  # a person arranges the scene
    assert robot.n_pauses == 0
    robot.send(np.zeros(2))
    now[0] += 30.0
    robot.send(np.zeros(2))
    assert robot.n_pauses == 1


def test_an_overload_stops_after_a_while():
    limits = SafetyLimits((-90.0, -60.0), (90.0, 60.0), (50.0, 100.0), max_load=0.8, overload_time=0.29, slow_start=0.0)
    state = limits.start([0.0, 0.0], 0.0)
    for i in range(1, 10):
        load = np.array([0.9, 0.1]) if i != 3 else np.zeros(2)  # a pause of the load starts the time again
        goal, state = limits.step(state, np.array([90.0, 0.0]), state.goal, i / 10, load)
        assert (state.fault is None) == (i < 7), i  # 0.4 s to 0.7 s
    assert "joint 0 was loaded with 90%" in state.fault and goal.tolist() == state.goal.tolist()
    again, _ = limits.step(state, np.zeros(2), state.goal, 2.0, np.zeros(2))
    assert again.tolist() == goal.tolist()  # a fault stays


def test_limits_that_make_no_sense_are_refused():
    for limits in ({"low": (1.0,), "high": (0.0,)}, {"max_velocity": (0.0,)}, {"max_relative_target": (1.0, 2.0)},
                   {"timeout": 0.0}, {"high": (float("inf"),)}):
        with pytest.raises(ConfigError, match="every joint needs low <= high"):
            SafetyLimits(**{"low": (0.0,), "high": (1.0,), "max_velocity": (1.0,), **limits})
    with pytest.raises(ConfigError, match="limits are for 2 joints, but the robot has 3"):
        SafeRobot(SimulatedArm(("a", "b", "c")), LIMITS)
    assert SimulatedArm().schema["action"] == Feature("float32", (2,), names=("shoulder.pos", "elbow.pos"), unit="deg")
