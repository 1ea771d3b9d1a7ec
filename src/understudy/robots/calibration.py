"""Calibration of servo arms: a JSON file in LeRobot's format, and the units that follow from it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..core import UserError
from ..files import read_json, write_json


@dataclass(frozen=True)
class MotorCalibration:
    """Calibration of one servo.

    Args:
        id: Id of the servo.
        drive_mode: 1 if its direction is inverted, otherwise 0.
        homing_offset: Steps that the servo subtracts (Feetech) or adds (Dynamixel), so that the middle of the range is
            half a turn.
        range_min: Lowest position of the joint (steps, with the offset).
        range_max: Highest position (steps).
    """

    id: int
    drive_mode: int
    homing_offset: int
    range_min: int
    range_max: int

    def to_unit(self, steps: float, unit: str, resolution: int) -> float:
        """Position in the units of the arm.

        Args:
            steps: Position of the servo.
            unit: "degrees" around the middle of the range, "percent" of the range (0 to 100), or "signed_percent"
                (-100 to 100).
            resolution: Steps of a turn.
        """
        if unit != "degrees":
            part = (steps - self.range_min) / (self.range_max - self.range_min)
            return 100 * part if unit == "percent" else 200 * part - 100
        return (steps - (self.range_min + self.range_max) / 2) * 360 / (resolution - 1)

    def to_steps(self, value: float, unit: str, resolution: int) -> int:
        """The nearest position of the servo."""
        if unit != "degrees":
            part = value / 100 if unit == "percent" else (value + 100) / 200
            return round(self.range_min + part * (self.range_max - self.range_min))
        return round((self.range_min + self.range_max) / 2 + value * (resolution - 1) / 360)


Calibration = Mapping[str, MotorCalibration]  # by the name of the servo


def calibration_folder() -> Path:
    """Folder of calibrations that understudy writes: `UNDERSTUDY_CALIBRATION`, or the user's folder for settings."""
    if given := os.environ.get("UNDERSTUDY_CALIBRATION"):
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA", Path.home())) / "understudy" / "calibration"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "understudy" / "calibration"


def lerobot_folder() -> Path:
    """Folder of LeRobot's calibrations."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    lerobot = Path(os.environ.get("HF_LEROBOT_HOME") or home / "lerobot").expanduser()
    return Path(os.environ.get("HF_LEROBOT_CALIBRATION") or lerobot / "calibration").expanduser()


def find_calibration(kind: str, name: str, folder: Path | None = None) -> Path | None:
    """Finds the calibration of an arm, made by understudy or by LeRobot.

    Args:
        kind: Type of the arm, such as "so101_follower".
        name: Its id.
        folder: Folder of the file. None to look in understudy's folder, and then in LeRobot's.
    """
    if folder is not None:
        return path if (path := folder / f"{name}.json").is_file() else None
    role = "teleoperators" if "leader" in kind or kind == "widowx" else "robots"
    kinds = [kind, *([f"so_{kind.split('_')[1]}"] if kind.startswith("so1") else [])]  # LeRobot's names since 0.4
    places = [calibration_folder() / kind, *(lerobot_folder() / role / k for k in kinds)]
    return next((path for place in places if (path := place / f"{name}.json").is_file()), None)


def read_calibration(path: Path, motors: Mapping[str, int]) -> dict[str, MotorCalibration]:
    """Reads a calibration.

    Args:
        path: The JSON file.
        motors: Ids of the servos by name.

    Raises:
        UserError: A servo is missing, has another id, or its values make no sense.
    """
    stored, found = read_json(path), {}
    for name, number in motors.items():
        values = stored.get(name) if isinstance(stored, dict) else None
        wanted = {f.name for f in fields(MotorCalibration)}
        if not isinstance(values, dict) or not all(type(values.get(k)) is int for k in wanted):
            raise UserError(f"there are no whole numbers {', '.join(sorted(wanted))} of the servo {name!r}", where=path,
                            hint="calibrate the arm again: understudy robot calibrate")
        each = MotorCalibration(**{k: values[k] for k in wanted})
        if each.id != number:
            raise UserError(f"the servo {name!r} has id {each.id} there, but id {number} on this arm", where=path,
                            hint="check that the file belongs to this arm")
        if each.range_min >= each.range_max:
            raise UserError(f"the range of the servo {name!r} is empty: {each.range_min} to {each.range_max}",
                            where=path, hint="calibrate the arm again, and move every joint through its range")
        found[name] = each
    return found


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Writes a calibration, in LeRobot's format."""
    write_json(path, {name: asdict(each) for name, each in calibration.items()})
