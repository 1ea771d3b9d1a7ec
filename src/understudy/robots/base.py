"""Base classes of robots and teleoperators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from ..core import Schema, UserError
from .limits import SafetyLimits


class RobotError(UserError):
    """Raised when a robot cannot continue: it reported a fault, or a safety limit stopped it."""


class ConnectionLost(RobotError):
    """Raised when a device no longer answers, or answers too late."""


class Robot(ABC):
    """A robot that is observed and commanded at a fixed rate.

    The first components of `observation.state` are the measured positions of the components of the action, in the
    same order and units, unless `position` finds them elsewhere. `SafeRobot` and slow starts need them.

    `observe`, `send` and `stop` raise `ConnectionLost` if a part of the robot does not answer.

    Attributes:
        name: Type of the robot, such as "so101_follower".
        schema: Columns of an observation, and "action".
        n_clipped: Number of actions so far that safety limits changed noticeably. See `SafeRobot`.
    """

    name: str
    schema: Schema
    n_clipped = 0

    @property
    def n_retries(self) -> int:
        """Number of requests to its devices that were repeated so far, because no valid reply came."""
        return 0

    @property
    def calibration(self) -> dict[str, str]:
        """Calibration of each servo in words, by its name. Empty if there is none."""
        return {}

    def episode_metadata(self) -> dict[str, Any]:
        """Returns metadata of each episode that the robot records, such as its calibration."""
        return {"robot": self.name, **({"calibration": servos} if (servos := self.calibration) else {})}

    @abstractmethod
    def connect(self) -> None:
        """Opens the connection. The robot does not move.

        Raises:
            RobotError: The robot cannot be reached, or is not calibrated.
        """

    @abstractmethod
    def observe(self) -> dict[str, np.ndarray]:
        """Returns the current observation by column."""

    @abstractmethod
    def send(self, action: np.ndarray) -> np.ndarray:
        """Commands an action, and returns immediately.

        Args:
            action: The action, (A,), in the units of the schema.

        Returns:
            The action that was sent, (A,) float32. It may have been limited.
        """

    @abstractmethod
    def stop(self) -> np.ndarray:
        """Stops moving and holds the present pose.

        Returns:
            The pose that is held, (A,), in the units of the action.
        """

    @abstractmethod
    def disconnect(self) -> None:
        """Closes the connection. It does not fail if the connection is lost."""

    def apply_limits(self, limits: SafetyLimits) -> None:
        """Writes limits into the robot's own controllers, as far as they have such limits. Called after `connect`."""

    def check_rate(self, fps: float) -> None:
        """Raises ConfigError if the robot would not move at this rate, because every command would come too late."""

    def load(self) -> np.ndarray | None:
        """Returns the load of each joint, as a fraction of its largest torque, (A,). None if unknown."""
        return None

    def position(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the measured position of each component of the action, (A,) float64."""
        return np.asarray(obs["observation.state"], np.float64)[: self.schema["action"].size]

    def __enter__(self):
        self.connect()
        return self

    def __exit__(self, *error) -> None:
        self.disconnect()


class Teleoperator(ABC):
    """Base class of devices with which a person acts on a robot: a `TeleopDevice` with a connection.

    `read` and what moves a device raise `ConnectionLost` if it does not answer.
    """

    def connect(self) -> None:
        """Opens the connection."""

    @abstractmethod
    def read(self) -> np.ndarray:
        """Returns the current action, (A,) float32, in the units of the robot's action. It does not wait."""

    def start(self, position: np.ndarray) -> None:
        """Tells the device the pose of the robot at the start. Devices that move relative to the last action need it.

        Args:
            position: Measured positions of the robot, (A,).
        """

    def disconnect(self) -> None:
        """Closes the connection."""

    def __enter__(self):
        self.connect()
        return self

    def __exit__(self, *error) -> None:
        self.disconnect()


def connect_all(devices: Iterable[Any]) -> None:
    """Connects devices one after the other. If one cannot be connected, those before it are disconnected."""
    with ExitStack() as undo:
        for device in devices:
            device.connect()
            undo.callback(device.disconnect)
        undo.pop_all()


class DrivenTeleoperator(Teleoperator):
    """Base class of teleoperators with motors, which go to the pose of a robot before a person takes them."""

    @abstractmethod
    def follow(self, position: np.ndarray) -> bool:
        """Drives the device towards a pose of the robot, slowly, and returns immediately. Call it at a fixed rate.

        Args:
            position: Measured positions of the robot, (A,).

        Returns:
            Whether it is there.
        """

    @abstractmethod
    def release(self) -> None:
        """Switches its motors off, so that a person can move it."""
