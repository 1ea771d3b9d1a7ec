"""A simulated arm behind a bad connection, for tests and for trying things out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..core import Feature
from .base import ConnectionLost, Robot, connect_all
from .cameras import Camera, camera_features, read_cameras
from .limits import SafetyLimits


@dataclass(frozen=True)
class Connection:
    """A connection that delays and loses messages.

    Args:
        latency: Time of every message (s).
        jitter: Largest additional time (s), uniformly distributed.
        loss: Fraction of messages that are lost.
    """

    latency: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0


class SimulatedArm(Robot):
    """Joints that move to their goals with limited velocity, behind a connection.

    Goals that arrive in another order are executed in that order. Observations are as old as the last message that
    arrived. Time comes from `clock` alone, so a test decides how it passes.

    Args:
        position: Initial position of each joint (deg).
        servo_velocity: Velocity of the servos, until `apply_limits` sets it (deg/s).
    """

    name = "simulated_arm"

    def __init__(self, joints: tuple[str, ...] = ("shoulder", "elbow"), link: Connection = Connection(), seed: int = 0,  # noqa: B008
                 position: tuple[float, ...] | None = None, servo_velocity: float = 1000.0,
                 clock: Callable[[], float] = lambda: 0.0, cameras: Mapping[str, Camera] | None = None):
        column = Feature("float32", (len(joints),), names=tuple(f"{j}.pos" for j in joints), unit="deg")
        self.cameras = dict(cameras or {})
        self.schema = {"observation.state": column, **camera_features(self.cameras), "action": column}
        self.link, self.clock = link, clock
        self.is_connected = self.is_broken = False
        self.joints = np.zeros(len(joints)) if position is None else np.array(position, np.float64)
        self.goal, self.velocity = self.joints.copy(), np.full(len(joints), servo_velocity)
        self.received: list[np.ndarray] = []  # every goal that arrived, in order
        self._rng, self._now = np.random.default_rng(seed), clock()
        self._goals: list[tuple[float, np.ndarray]] = []  # on their way: time of arrival, goal
        self._readings: list[tuple[float, np.ndarray]] = [(self._now, self.joints.copy())]

    def connect(self):
        connect_all(self.cameras.values())
        self.is_connected, self.is_broken = True, False

    def observe(self):
        self._exchange()
        if (delay := self._delay()) is not None:
            self._readings.append((self.clock() + delay, self.joints.copy()))
        arrived = [reading for at, reading in self._readings if at <= self.clock()]
        return {"observation.state": arrived[-1].astype(np.float32), **read_cameras(self.cameras)}

    def send(self, action):
        self._exchange()
        if (delay := self._delay()) is not None:
            self._goals.append((self.clock() + delay, np.array(action, np.float64)))
        self.advance()
        return np.asarray(action, np.float32)

    def stop(self):
        self._exchange()
        self._goals.clear()
        self.goal = self.joints.copy()
        return self.goal

    def disconnect(self):
        self.is_connected = False
        for camera in self.cameras.values():
            camera.disconnect()

    def apply_limits(self, limits: SafetyLimits):
        self.velocity = np.array(limits.max_velocity)

    def advance(self) -> None:
        """Moves the simulated joints up to the present time."""
        now = self.clock()
        for at, goal in sorted((g for g in self._goals if g[0] <= now), key=lambda g: g[0]):
            self._move(at)
            self.goal = goal
            self.received.append(goal)
        self._goals = [g for g in self._goals if g[0] > now]
        self._move(now)

    def _move(self, until: float) -> None:
        change = self.velocity * max(until - self._now, 0.0)
        self.joints = self.joints + np.clip(self.goal - self.joints, -change, change)
        self._now = max(until, self._now)

    def _exchange(self) -> None:
        self.advance()
        if self.is_broken or not self.is_connected:
            raise ConnectionLost("the arm does not answer", where=self.name, hint="check the cable")

    def _delay(self) -> float | None:
        """Returns the delay of the next message. None if it is lost."""
        chance, extra = self._rng.random(2)
        return None if chance < self.link.loss else self.link.latency + extra * self.link.jitter
