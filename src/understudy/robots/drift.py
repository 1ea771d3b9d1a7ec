"""Checks whether servos still hold their calibration, and whether recorded data fit the arm's present range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..core import DataError
from ..data.episode import Dataset
from ..hints import unit_hint
from .calibration import MotorCalibration
from .servo_arm import ServoArm

TOLERANCE = 3.0  # degrees, or percent: joints have play, and overshoot their goals
Range = tuple[float, float]


@dataclass(frozen=True)
class ServoState:
    """The values that a servo holds and shows, next to its calibration file.

    Args:
        drift: How far the middle of the range has moved since the file was written (degrees).
        outside: How far the joint is outside the range that the servo holds (degrees).
    """

    stored: MotorCalibration
    expected: MotorCalibration
    is_same: bool
    drift: float
    outside: float

    def describe(self) -> str | None:
        """Describes what is wrong with the servo. None if nothing is."""
        if not self.is_same:
            return (f"the servo holds {self.stored}, but the file {self.expected}. The middle of its range has moved "
                    f"by {self.drift:.1f} degrees")
        if self.outside > TOLERANCE:
            return (f"the joint is {self.outside:.1f} degrees outside its calibrated range. It was not moved to its "
                    "end when it was calibrated, or its horn has slipped")
        return None


def servo_states(arm: ServoArm) -> dict[str, ServoState]:
    """Reads the state of each servo of a connected arm, without writing anything."""
    degrees = 360 / arm.bus.resolution
    positions = arm.bus.positions()
    states = {}
    for name, stored in arm.stored_calibration().items():
        expected, steps = arm.calibration[name], positions[name]
        shift = _turned_steps(arm, stored) - _turned_steps(arm, expected)
        shift = (shift + arm.bus.resolution / 2) % arm.bus.resolution - arm.bus.resolution / 2
        outside = max(stored.range_min - steps, steps - stored.range_max, 0)
        states[name] = ServoState(stored, expected, arm.servo_values(stored) == arm.servo_values(expected),
                                  degrees * shift, degrees * outside)
    return states


def allowed_ranges(arm: ServoArm, states: Mapping[str, ServoState]) -> dict[str, Range]:
    """Returns the positions that calibration file and servos allow, in the units of the arm."""
    ranges = {}
    for name, unit in arm.units.items():
        stored, expected = states[name].stored, states[name].expected
        offset = _offset(arm, stored) - _offset(arm, expected)
        low = max(stored.range_min + offset, expected.range_min)
        high = min(stored.range_max + offset, expected.range_max)
        ranges[name] = (expected.to_unit(low, unit, arm.bus.resolution),
                        expected.to_unit(high, unit, arm.bus.resolution))
    return ranges


def recorded_ranges(dataset: Dataset, joints: Sequence[str], unit: str) -> dict[str, Range]:
    """Returns the smallest and the largest recorded position of each joint, in observation.state and action.

    Args:
        joints: Names of the components, such as "shoulder_pan.pos", in the order of the robot.
        unit: Unit of the robot, as `joint_unit` gives it.
    """
    low, high = np.full(len(joints), np.inf), np.full(len(joints), -np.inf)
    features = dataset.features()
    for column in ("observation.state", "action"):
        if (feature := features.get(column)) is None:
            raise DataError(f"there is no column {column}", where="--data", hint="name a recording of this robot")
        names = list(feature.names or ())
        if set(joints) <= set(names):
            places = [names.index(joint) for joint in joints]
        elif feature.size == len(joints):
            places = list(range(len(joints)))
        else:
            raise DataError(f"{column} has {', '.join(names) or feature.size}, but the robot has "
                            f"{', '.join(joints)}", where="--data", hint="name a recording of this robot")
        if feature.has_other_unit(own := replace(feature, unit=unit)):
            raise DataError(f"{column} was recorded with {feature.disagreement(own)}", where="--data",
                            hint=unit_hint(feature.unit, own.unit, "name a recording of this robot"))
        for episode in dataset:
            steps = np.asarray(episode.steps[column], np.float64)[:, places]
            # leave out NaN, with which no range would be outside the allowed one
            low, high = np.fmin(low, np.fmin.reduce(steps, 0)), np.fmax(high, np.fmax.reduce(steps, 0))
    return {joint: (float(a), float(b)) for joint, a, b in zip(joints, low, high, strict=True)}


def excess(recorded: Range, allowed: Range) -> float:
    """Returns how far a recorded range is outside the allowed range."""
    return max(allowed[0] - recorded[0], recorded[1] - allowed[1], 0.0)


def _offset(arm: ServoArm, each: MotorCalibration) -> int:
    """Returns shaft minus shown position of a servo, in steps. Feetech subtracts the offset, Dynamixel adds it."""
    return each.homing_offset if arm.kind.is_feetech else -each.homing_offset


def _turned_steps(arm: ServoArm, each: MotorCalibration) -> float:
    """Returns the position of the shaft in the middle of the range, in steps."""
    return (each.range_min + each.range_max) / 2 + _offset(arm, each)
