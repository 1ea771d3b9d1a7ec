"""Combines two arms into one robot, and two leader arms into one teleoperator."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np

from ..core import Feature
from .base import Robot, RobotError, Teleoperator, connect_all
from .cameras import Camera, camera_features, read_cameras
from .limits import SafetyLimits


class BimanualRobot(Robot):
    """Two robots as one. Their vectors are joined, left first, and names have the prefixes `left_` and `right_`.

    If one arm is lost, both stop.

    Args:
        left_arm: The left robot. It may show nothing but observation.state.
        cameras: Cameras by name. Their frames are the columns observation.images.NAME.
    """

    def __init__(self, left_arm: Robot, right_arm: Robot, cameras: Mapping[str, Camera] | None = None):
        self.arms, self.cameras, self.name = (left_arm, right_arm), dict(cameras or {}), f"bi_{left_arm.name}"
        self.sizes = tuple(arm.schema["action"].size for arm in self.arms)
        joined = {name: _joined(left_arm.schema[name], right_arm.schema[name])
                  for name in ("observation.state", "action")}
        self.schema = {"observation.state": joined["observation.state"], **camera_features(self.cameras),
                       "action": joined["action"]}

    @property
    def n_retries(self):
        return sum(arm.n_retries for arm in self.arms)

    @property
    def calibration(self):
        return {f"{side}_{n}": text for side, arm in zip(("left", "right"), self.arms, strict=True)
                for n, text in arm.calibration.items()}

    def connect(self):
        connect_all((*self.arms, *self.cameras.values()))

    def observe(self):
        state = [arm.observe()["observation.state"] for arm in self.arms]
        return {"observation.state": np.concatenate(state), **read_cameras(self.cameras)}

    def send(self, action):
        cut = self.sizes[0]
        sent = [arm.send(part) for arm, part in zip(self.arms, (action[:cut], action[cut:]), strict=True)]
        return np.concatenate(sent)

    def stop(self):
        positions, errors = [], []
        for arm in self.arms:  # the second one also if the first one is lost
            try:
                positions.append(arm.stop())
            except RobotError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return np.concatenate(positions)

    def disconnect(self):
        for part in (*self.arms, *self.cameras.values()):
            with suppress(RobotError):
                part.disconnect()

    def apply_limits(self, limits: SafetyLimits):
        for arm, part in zip(self.arms, split_limits(limits, self.sizes[0]), strict=True):
            arm.apply_limits(part)

    def load(self):
        first, second = (arm.load() for arm in self.arms)
        return None if first is None or second is None else np.concatenate([first, second])

    def position(self, obs):
        state, (n_left, n_right) = np.asarray(obs["observation.state"], np.float64), self.sizes
        cut = self.arms[0].schema["observation.state"].size
        return np.concatenate([state[:n_left], state[cut:cut + n_right]])


class BimanualTeleoperator(Teleoperator):
    """Two teleoperators as one, whose actions are joined."""

    def __init__(self, left_arm: Teleoperator, right_arm: Teleoperator):
        self.parts = left_arm, right_arm

    def connect(self):
        connect_all(self.parts)

    def read(self):
        return np.concatenate([part.read() for part in self.parts])

    def disconnect(self):
        for part in self.parts:
            part.disconnect()


def join_limits(left_arm: SafetyLimits, right_arm: SafetyLimits) -> SafetyLimits:
    """Joins the limits of two arms. A workspace is not joined. Times and torques are those of the left arm."""
    lead = None if left_arm.max_relative_target is None or right_arm.max_relative_target is None else (
        *left_arm.max_relative_target, *right_arm.max_relative_target)
    return replace(left_arm, low=(*left_arm.low, *right_arm.low), high=(*left_arm.high, *right_arm.high),
                   max_velocity=(*left_arm.max_velocity, *right_arm.max_velocity), max_relative_target=lead,
                   workspace=None)


def split_limits(limits: SafetyLimits, size: int) -> tuple[SafetyLimits, SafetyLimits]:
    """Splits limits into those of the first `size` joints and of the others, without a workspace."""
    def part(place: slice) -> SafetyLimits:
        lead = limits.max_relative_target
        return replace(limits, low=limits.low[place], high=limits.high[place], workspace=None,
                       max_velocity=limits.max_velocity[place], max_relative_target=lead and lead[place])
    return part(slice(size)), part(slice(size, None))


def _joined(left_arm: Feature, right_arm: Feature) -> Feature:
    names = (*(f"left_{n}" for n in left_arm.names or range(left_arm.size)), *(
        f"right_{n}" for n in right_arm.names or range(right_arm.size)))
    return Feature("float32", (left_arm.size + right_arm.size,), names=names,
                   unit=left_arm.unit if left_arm.unit == right_arm.unit else None)
