"""The contract of robots."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..core import role
from ..robots.base import Robot, RobotError


def check_robot(build: Callable[[], Robot], tolerance: float = 1.0) -> None:
    """Checks the contract of a robot, which is moved by no more than `tolerance`.

    Args:
        build: Makes the robot, not connected. It is called once.
        tolerance: Largest distance between two measurements of a robot that holds, in units of its action.
    """
    robot = build()
    action, observations = robot.schema["action"], {n: f for n, f in robot.schema.items() if n != "action"}
    assert action.kind == "vector" and len(action.shape) == 1, "the action is not a vector"
    assert all(role(name) == "observation" for name in observations), (
        f"not all columns are observations: {list(observations)}")
    for connection in range(2):  # it can be connected again
        robot.connect()
        obs = robot.observe()
        actual = {n: (v.dtype.name, v.shape) for n, v in obs.items()}
        declared = {n: (f.dtype, f.shape) for n, f in observations.items()}
        assert actual == declared, f"it shows {actual}, but its schema says {declared}"
        at = robot.position(obs)
        assert at.shape == action.shape and np.isfinite(at).all(), f"its position is {at}"
        sent = robot.send(at)
        assert sent.shape == action.shape and sent.dtype == np.float32, f"send returned {sent.dtype} {sent.shape}"
        stop_position = robot.stop()
        assert np.abs(stop_position - at).max() <= tolerance, f"it holds {stop_position}, but it was at {at}"
        still = robot.position(robot.observe())
        assert np.abs(still - stop_position).max() <= tolerance, (
            f"it moved from {stop_position} to {still} after a stop")
        robot.disconnect()
        robot.disconnect()  # nothing to do
        for name, call in (("observe", robot.observe), ("send", lambda at=at: robot.send(at)), ("stop", robot.stop)):
            try:
                call()
            except RobotError:
                continue
            raise AssertionError(f"{name} raises no RobotError after disconnect (connection {connection})")
