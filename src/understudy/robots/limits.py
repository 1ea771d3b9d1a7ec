"""Safety limits of the commands to robots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..core import ConfigError

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
        """Returns the position of the tip, (3,) m, at a pose of the joints (A,)."""
        at, frame = np.array(self.base, np.float64), np.eye(3)
        for link, reading in zip(self.links, position, strict=False):
            frame = frame @ _rotation(np.array(link.axis, np.float64), (reading - link.zero) * link.scale)
            at = at + frame @ np.array(link.offset, np.float64)
        return at

    def excess(self, position: np.ndarray) -> float:
        """Returns the distance of the tip from the box (m). 0 inside."""
        at = self.tip(position)
        return float(np.linalg.norm(at - np.clip(at, self.low, self.high)))


def _rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@dataclass(frozen=True)
class SafetyState:
    """State of the safety limits between two commands.

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
            raise ConfigError("every joint needs low <= high, and velocity, lead, torque and timeout above 0, "
                              f"but these are {self}", where="safety limits",
                              hint="give one number per joint to each of them")

    def start(self, position: Sequence[float] | np.ndarray, now: float) -> SafetyState:
        """Returns the state of the limits for a robot that holds a pose.

        Args:
            position: The measured pose, (A,). It may be outside the limits; then the robot can only move back.
        """
        return SafetyState(np.array(position, np.float64), now, now)

    def step(self, state: SafetyState, command: np.ndarray, position: np.ndarray, now: float,
             load: np.ndarray | None = None) -> tuple[np.ndarray, SafetyState]:
        """Limits one command, and returns the limited goal and the next state.

        Between two commands no component changes by more than ``max_velocity`` times the time between them, whatever
        was wanted or measured. The result is within `low` and `high` (outside, it only comes nearer), its tip is not
        farther outside the workspace than before, and it is at most `max_relative_target` from the measured position
        (beyond, it only comes nearer). If `command` is not finite, or there is a fault, it is the last goal.

        Args:
            command: The commanded goal, (A,).
            position: The measured position, (A,). It may be late or wrong.
            load: Measured load of each joint, as a fraction, (A,). None if unknown.

        Returns:
            The goal to send, (A,) float64, and the next state.
        """
        state = self._with_load(state, load, now)
        elapsed = max(now - state.sent, 0.0)
        if elapsed > self.timeout:  # the robot has been holding
            elapsed, state = 0.0, replace(state, began=now)
        target = np.asarray(command, np.float64)
        if state.fault is not None or target.shape != state.goal.shape or not np.isfinite(target).all():
            return state.goal, replace(state, sent=max(now, state.sent))
        if self.max_relative_target is not None and np.isfinite(position).all():
            lead = np.array(self.max_relative_target)
            target = np.clip(target, position - lead, position + lead)
        target = np.clip(target, self.low, self.high)
        ramp = 1.0 if self.slow_start == 0 else min(max(now - state.began, 0.0) / self.slow_start, 1.0)
        change = ramp * elapsed * np.array(self.max_velocity)
        goal = state.goal + np.clip(target - state.goal, -change, change)
        if self.workspace is not None:
            goal = _inside(self.workspace, state.goal, goal)
        return goal, replace(state, goal=goal, sent=max(now, state.sent))

    def reachable(self, goal: np.ndarray, command: np.ndarray) -> np.ndarray:
        """Returns the goal, (A,) float64, that repeating a command would reach within the limits.

        The limits of velocity, lead and load do not change this goal: they delay a robot that nothing blocks, but it
        still arrives.

        Args:
            goal: The last goal that was sent, (A,).
            command: The commanded goal, (A,).
        """
        target = np.clip(np.asarray(command, np.float64), self.low, self.high)
        return target if self.workspace is None else _inside(self.workspace, np.asarray(goal, np.float64), target)

    def hold(self, state: SafetyState, pose: np.ndarray, now: float) -> SafetyState:
        """Returns the state of the limits after a stop.

        Args:
            pose: The pose that the robot holds now, (A,).
        """
        return replace(state, goal=np.array(pose, np.float64), sent=now, began=now)

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
    """Returns the farthest goal from `start` to `end` whose tip does not leave the box farther."""
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
