"""Safety limits of a robot. They hold for any sequence of actions, whatever a policy or a person commands.

`SafetyLimits.step` is a pure function of the last state, so its properties can be tested without a robot. `SafeRobot`
applies it to a robot and adds what needs a clock: a watchdog, and a stop when the connection is lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from ..core import ConfigError
from ..execute.actor import NonFiniteAction
from .base import ConnectionLost, Robot, RobotError

_CLIPPED = 0.01  # of the range of a joint: a smaller change of an action is not counted
_BISECTIONS = 20  # of a step that would leave the workspace


@dataclass(frozen=True)
class Link:
    """A joint and the rigid link behind it, in a serial chain.

    Args:
        axis: Axis of the joint in the frame of the link before it.
        offset: From this joint to the next, in the frame of this link (m).
        zero: Reading of the joint at which the link has the orientation of the link before it.
        scale: Radians per unit of the reading. The default is for degrees.
    """

    axis: tuple[float, float, float]
    offset: tuple[float, float, float]
    zero: float = 0.0
    scale: float = np.pi / 180


@dataclass(frozen=True)
class Workspace:
    """A box that the tip of a serial chain must not leave.

    Args:
        links: The chain from the base. Its joints are the first components of the action.
        low: Lowest corner of the box in the frame of the base (m).
        high: Highest corner (m).
        base: Position of the first joint (m).
    """

    links: tuple[Link, ...]
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    base: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def tip(self, position: np.ndarray) -> np.ndarray:
        """Position of the tip, (3,) m, at a pose of the joints (A,)."""
        at, frame = np.array(self.base, np.float64), np.eye(3)
        for link, reading in zip(self.links, position, strict=False):
            frame = frame @ _rotation(np.array(link.axis, np.float64), (reading - link.zero) * link.scale)
            at = at + frame @ np.array(link.offset, np.float64)
        return at

    def excess(self, position: np.ndarray) -> float:
        """Distance of the tip from the box (m). 0 inside."""
        at = self.tip(position)
        return float(np.linalg.norm(at - np.clip(at, self.low, self.high)))


def _rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@dataclass(frozen=True)
class SafetyState:
    """What the limits remember between two commands.

    Args:
        goal: The last goal that was sent, (A,).
        sent: When it was sent (s).
        began: When the slow start began (s).
        overloaded: Since when the load is too high (s). None if it is not.
        fault: Why the robot does not move any more. None while it may.
    """

    goal: np.ndarray
    sent: float
    began: float
    overloaded: float | None = None
    fault: str | None = None


@dataclass(frozen=True)
class SafetyLimits:
    """Limits of the goals that a robot is given. All are in the units of the action, one number per joint.

    Args:
        low: Lowest goals.
        high: Highest goals.
        max_velocity: Largest change of a goal per second.
        max_relative_target: Largest distance of a goal from the measured position. A blocked joint is then not pushed
            harder and harder, and a robot whose commands end stops at most so far ahead. None for no such limit.
        max_torque: Fraction of its largest torque that a joint may use, if the servos can limit it.
        max_load: Fraction of the largest torque at which the robot stops, if it lasts longer than `overload_time`. None
            for no such limit.
        overload_time: s.
        workspace: A box for the tip of the arm. None for no such limit.
        slow_start: Duration (s) after the start, and after every pause, in which the velocity limit grows from 0 to
            `max_velocity`.
        timeout: Longest time between two commands (s). After a longer one the robot holds, and starts slowly again.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    max_velocity: tuple[float, ...]
    max_relative_target: tuple[float, ...] | None = None
    max_torque: float = 1.0
    max_load: float | None = None
    overload_time: float = 0.5
    workspace: Workspace | None = None
    slow_start: float = 2.0
    timeout: float = 0.5

    def __post_init__(self):
        lead = self.max_relative_target or ()
        sizes = {len(self.low), len(self.high), len(self.max_velocity), len(lead or self.low)}
        numbers = np.array([*self.low, *self.high, *self.max_velocity, *lead], np.float64)
        positive = (*self.max_velocity, *lead, self.max_torque, self.timeout)
        if len(sizes) > 1 or not np.isfinite(numbers).all() or not all(a <= b for a, b in zip(
                self.low, self.high, strict=False)) or min(positive) <= 0 or self.slow_start < 0:
            raise ConfigError("every joint needs low <= high, and velocity, lead, torque and timeout above 0; "
                              f"found {self}", where="safety limits", hint="give one number per joint to each of them")

    def start(self, position: Sequence[float] | np.ndarray, now: float) -> SafetyState:
        """The state of a robot that holds a pose.

        Args:
            position: The measured pose, (A,). It may be outside the limits; then the robot can only move back.
            now: Current time (s).
        """
        return SafetyState(np.array(position, np.float64), now, now)

    def step(self, state: SafetyState, wanted: np.ndarray, position: np.ndarray, now: float,
             load: np.ndarray | None = None) -> tuple[np.ndarray, SafetyState]:
        """Limits one command.

        Between two commands no component changes by more than ``max_velocity`` times the time between them, whatever
        was wanted or measured. The result is within `low` and `high` (outside, it only comes nearer), its tip is not
        farther outside the workspace than before, and it is at most `max_relative_target` from the measured position
        (beyond, it only comes nearer). If `wanted` is not finite, or there is a fault, it is the last goal.

        Args:
            state: The last state.
            wanted: The commanded goal, (A,).
            position: The measured position, (A,). It may be late or wrong.
            now: Current time (s).
            load: Measured load of each joint, as a fraction, (A,). None if unknown.

        Returns:
            The goal to send, (A,) float64, and the next state.
        """
        state = self._with_load(state, load, now)
        elapsed = max(now - state.sent, 0.0)
        if elapsed > self.timeout:  # the robot has been holding
            elapsed, state = 0.0, replace(state, began=now)
        wanted = np.asarray(wanted, np.float64)
        if state.fault is not None or wanted.shape != state.goal.shape or not np.isfinite(wanted).all():
            return state.goal, replace(state, sent=max(now, state.sent))
        if self.max_relative_target is not None and np.isfinite(position).all():
            lead = np.array(self.max_relative_target)
            wanted = np.clip(wanted, position - lead, position + lead)
        wanted = np.clip(wanted, self.low, self.high)
        ramp = 1.0 if self.slow_start == 0 else min(max(now - state.began, 0.0) / self.slow_start, 1.0)
        change = ramp * elapsed * np.array(self.max_velocity)
        goal = state.goal + np.clip(wanted - state.goal, -change, change)
        if self.workspace is not None:
            goal = _inside(self.workspace, state.goal, goal)
        return goal, replace(state, goal=goal, sent=max(now, state.sent))

    def hold(self, state: SafetyState, held: np.ndarray, now: float) -> SafetyState:
        """The state after a stop.

        Args:
            state: The last state.
            held: The pose that the robot holds now, (A,).
            now: Current time (s).
        """
        return replace(state, goal=np.array(held, np.float64), sent=now, began=now)

    def _with_load(self, state: SafetyState, load: np.ndarray | None, now: float) -> SafetyState:
        if self.max_load is None or load is None or not (np.abs(load) > self.max_load).any():
            return replace(state, overloaded=None)
        since = now if state.overloaded is None else state.overloaded
        if now - since < self.overload_time:
            return replace(state, overloaded=since)
        worst = int(np.abs(load).argmax())
        return replace(state, overloaded=since, fault=state.fault or (
            f"joint {worst} was loaded with {abs(load[worst]):.0%} of its torque for more than {self.overload_time:g} s"
        ))


def _inside(workspace: Workspace, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The farthest goal from `start` to `end` whose tip is not farther outside than at the start."""
    allowed = workspace.excess(start)
    if workspace.excess(end) <= allowed:
        return end
    good, bad = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (good + bad) / 2
        if workspace.excess(start + middle * (end - start)) <= allowed:
            good = middle
        else:
            bad = middle
    return start + good * (end - start)


class SafeRobot(Robot):
    """A robot whose commands are limited.

    It limits every command by `SafetyLimits.step`. If no command comes for `limits.timeout`, a thread stops the robot,
    and the next command starts slowly. If the connection is lost or the robot reports a fault, it is stopped as far as
    it can be reached, and every later call raises the same error, until `connect` is called again.

    Args:
        robot: The robot.
        limits: Its limits.
        clock: Current time (s).
        watchdog: Whether a thread watches for missing commands.

    Attributes:
        n_pauses: Number of times that the robot was moving and no command came for `limits.timeout`. After `stop` it
            does not move.
        n_clipped: Number of actions of which a limit changed a joint by more than 1 % of its range. Those of slow
            starts do not count.
        on_step: Called after each command with the last observation, the action and what was sent. It must not wait.
    """

    def __init__(self, robot: Robot, limits: SafetyLimits, clock: Callable[[], float] = time.monotonic,
                 watchdog: bool = True):
        if len(limits.low) != (size := robot.schema["action"].size):
            raise ConfigError(f"the limits are for {len(limits.low)} joints, but the robot has {size}",
                              where="safety limits", hint="give one number per joint")
        self.robot, self.limits, self.clock, self.watchdog = robot, limits, clock, watchdog
        self.name, self.schema = robot.name, robot.schema
        self.state: SafetyState | None = None
        self._noticeable = _CLIPPED * np.subtract(limits.high, limits.low)
        self.on_step: Callable[[Mapping[str, np.ndarray], np.ndarray, np.ndarray], None] | None = None
        self._position, self._obs = np.zeros(size), {}
        self._error: RobotError | None = None
        self._is_holding = True
        self.n_pauses = self.n_clipped = 0
        self._lock, self._ended = threading.RLock(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def n_retries(self):
        return self.robot.n_retries

    def connect(self) -> None:
        self._end_watchdog()
        with self._lock:
            self._error = None
            self.robot.connect()
            try:
                self.robot.apply_limits(self.limits)
                self._position = self.robot.position(self.robot.observe())
            except BaseException:
                self.robot.disconnect()
                raise
            self.state, self._is_holding = self.limits.start(self._position, self.clock()), True
        if self.watchdog:
            self._ended.clear()
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def observe(self):
        with self._lock:
            self._check()
            try:
                obs = self.robot.observe()
            except RobotError as error:
                raise self._fail(error) from error
            self._position, self._obs = self.robot.position(obs), obs
            return obs

    def send(self, action):
        with self._lock:
            self._check()
            assert self.state is not None
            action = np.asarray(action, np.float64)
            now = self.clock()
            if action.shape != self.state.goal.shape or not np.isfinite(action).all():
                self.stop()
                if action.shape != self.state.goal.shape:
                    raise RobotError(f"the action has shape {action.shape}, but the robot has {len(self.state.goal)} "
                                     "joints", where=self.name, hint="use a policy for this robot")
                bad = int((~np.isfinite(action)).argmax())
                raise NonFiniteAction(f"{action[bad]} was commanded, and the robot holds", 0, place=self.name,
                                      hint="a policy that computes NaN must not drive a robot")
            self.n_pauses += now - self.state.sent > self.limits.timeout and not self._is_holding
            goal, state = self.limits.step(self.state, action, self._position, now, self.robot.load())
            if state.fault is not None:
                raise self._fail(RobotError(state.fault, where=self.name, hint="free the arm, and connect again"))
            try:
                sent = self.robot.send(goal)
            except RobotError as error:
                raise self._fail(error) from error
            self.state, self._is_holding = state, False
            if now - state.began >= self.limits.slow_start:
                self.n_clipped += bool((np.abs(goal - action) > self._noticeable).any())
            if self.on_step is not None and self._obs:
                self.on_step(self._obs, action, sent)
            return sent

    def stop(self):
        with self._lock:
            self._is_holding = True
            held = self.robot.stop()
            if self.state is not None:
                self.state = self.limits.hold(self.state, held, self.clock())
            return held

    def disconnect(self) -> None:
        with self._lock:
            if self.state is not None and self._error is None and not self._is_holding:
                with suppress(RobotError):
                    self.stop()
            self.state = None
            self.robot.disconnect()
        self._end_watchdog()

    def _end_watchdog(self) -> None:
        self._ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None

    def check_rate(self, fps):
        if 1 / fps > self.limits.timeout:
            raise ConfigError(f"at {fps:g} steps per second every command would come after the timeout of "
                              f"{self.limits.timeout:g} s, and the robot would not move", where="fps",
                              hint="choose a higher rate, or a longer --robot.timeout")

    def apply_limits(self, limits):
        self.robot.apply_limits(limits)

    def load(self):
        return self.robot.load()

    def position(self, obs):
        return self.robot.position(obs)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self.state is None:
            raise ConnectionLost("the robot is not connected", where=self.name, hint="call connect() first")

    def _fail(self, error: RobotError) -> RobotError:
        """Stops the robot for good, as far as it can be reached."""
        self._error = error
        with suppress(RobotError):
            self.stop()
        return error

    def _watch(self) -> None:
        while not self._ended.wait(self.limits.timeout / 4):
            with self._lock:
                late = self.state is not None and self.clock() - self.state.sent > self.limits.timeout
                if late and not self._is_holding and self._error is None:
                    self.n_pauses += 1
                    try:
                        self.stop()
                    except RobotError as error:  # the next call raises it
                        self._fail(error)
