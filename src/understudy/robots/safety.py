"""Enforces the safety limits of a robot for any sequence of actions.

`SafetyLimits.step` is a pure function of the last state, so its properties can be tested without a robot. `SafeRobot`
applies it to a robot and adds what needs a clock: a watchdog, and a stop when the connection is lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import numpy as np

from ..core import ConfigError, NonFiniteAction
from .base import ConnectionLost, Robot, RobotError
from .limits import SafetyLimits, SafetyState

_CLIPPED = 0.01  # of the range of a joint: a smaller change of an action is not counted


class SafeRobot(Robot):
    """Wraps a robot so that its commands are limited.

    It limits every command by `SafetyLimits.step`. If no command comes for `limits.timeout`, a thread stops the robot,
    and the next command starts slowly. If the connection is lost or the robot reports a fault, it is stopped as far as
    it can be reached, and every later call raises the same error, until `connect` is called again.

    Args:
        watchdog: Whether a thread watches for missing commands.

    Attributes:
        n_pauses: Number of times that the robot was moving and no command came for `limits.timeout`. After `stop` it
            does not move.
        n_clipped: Number of actions in which a limit changed a joint by more than 1 % of its range. Actions during a
            slow start do not count.
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

    @property
    def calibration(self):
        return self.robot.calibration

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
                self._check_frames(obs)
            except RobotError as error:
                self._fail(error)
                raise
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
                error = RobotError(state.fault, where=self.name, hint="free the arm, and connect again")
                self._fail(error)
                raise error
            try:
                sent = self.robot.send(goal)
            except RobotError as error:
                self._fail(error)
                raise
            self.state, self._is_holding = state, False
            if now - state.began >= self.limits.slow_start:
                self.n_clipped += bool((np.abs(goal - action) > self._noticeable).any())
            if self.on_step is not None and self._obs:
                self.on_step(self._obs, action, sent)
            return sent

    def stop(self):
        with self._lock:
            self._is_holding = True
            position = self.robot.stop()
            if self.state is not None:
                self.state = self.limits.hold(self.state, position, self.clock())
            return position

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

    def _check_frames(self, obs: Mapping[str, np.ndarray]) -> None:
        """Raises an error for frames of another size than in the schema."""
        for name, feature in self.schema.items():
            if feature.kind in ("image", "depth") and name in obs and np.shape(obs[name]) != feature.shape:
                (height, width, *_), size = feature.shape, np.shape(obs[name])
                now = f"{size[1]} x {size[0]} pixels" if len(size) == 3 else f"the shape {size}"
                raise RobotError(f"the frames of {name} now have {now}, and before {width} x {height}, so the robot "
                                 "stopped", where=self.name,
                                 hint="check whether another program changed the camera, and connect again")

    def _fail(self, error: RobotError) -> None:
        """Stops the robot for good, as far as it can be reached."""
        self._error = error
        with suppress(RobotError):
            self.stop()

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
