"""Calibration of servo arms: a JSON file in LeRobot's format, and the units that follow from it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path

from ..core import UserError
from ..files import read_json, write_json

MAX_STEPS = 4095  # highest position of a servo within one turn


@dataclass(frozen=True)
class MotorCalibration:
    """Calibration of one servo.

    Args:
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

    @property
    def is_factory(self) -> bool:
        """Whether these are the values of a new servo."""
        return (self.drive_mode, self.homing_offset, self.range_min, self.range_max) == (0, 0, 0, MAX_STEPS)

    def __str__(self) -> str:
        return f"offset {self.homing_offset}, {self.range_min} to {self.range_max}" + (
            ", inverted" * self.drive_mode if self.drive_mode < 2 else f", Drive_Mode {self.drive_mode}")

    def to_unit(self, steps: float, unit: str, resolution: int) -> float:
        """Converts a position in steps of the servo to the units of the arm.

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
        """Converts a position in the units of the arm to the nearest position of the servo in steps."""
        if unit != "degrees":
            part = value / 100 if unit == "percent" else (value + 100) / 200
            return round(self.range_min + part * (self.range_max - self.range_min))
        return round((self.range_min + self.range_max) / 2 + value * (resolution - 1) / 360)


Calibration = Mapping[str, MotorCalibration]  # by the name of the servo


def calibration_folder() -> Path:
    """Returns the folder of understudy's calibrations: `UNDERSTUDY_CALIBRATION`, or the user's folder for settings."""
    if folder := os.environ.get("UNDERSTUDY_CALIBRATION"):
        return Path(folder)
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA", Path.home())) / "understudy" / "calibration"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "understudy" / "calibration"


def lerobot_folder() -> Path:
    """Returns the folder of LeRobot's calibrations."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    lerobot = Path(os.environ.get("HF_LEROBOT_HOME") or home / "lerobot").expanduser()
    return Path(os.environ.get("HF_LEROBOT_CALIBRATION") or lerobot / "calibration").expanduser()


def known_calibrations() -> Iterator[tuple[Path, dict[str, MotorCalibration]]]:
    """Yields the path and content of all calibrations in understudy's and LeRobot's folders.

    The folder of each file is the type of the arm.
    """
    for folder, pattern in ((calibration_folder(), "*/*.json"), (lerobot_folder(), "*/*/*.json")):
        for path in sorted(folder.glob(pattern)):
            with suppress(UserError, TypeError, AttributeError):  # other files do not matter here
                yield path, {name: MotorCalibration(**values) for name, values in read_json(path).items()}


def same_values(first: Calibration, second: Calibration) -> bool:
    """Returns whether servos with these two calibrations hold the same offsets and ranges."""
    values, others = ({name: (c.id, c.homing_offset, c.range_min, c.range_max) for name, c in calibration.items()}
                      for calibration in (first, second))
    return values == others


def is_leader_folder(kind: str) -> bool:
    """Returns whether a folder of calibrations is of a leader arm, which a person moves."""
    return "leader" in kind or kind == "widowx"


def find_calibration(kind: str, name: str, folder: Path | None = None) -> Path | None:
    """Finds the calibration of an arm, made by understudy or by LeRobot.

    Args:
        kind: Type of the arm, such as "so101_follower".
        name: Its id.
        folder: Folder of the file. None to look in understudy's folder, and then in LeRobot's.
    """
    if folder is not None:
        return path if (path := folder / f"{name}.json").is_file() else None
    role = "teleoperators" if is_leader_folder(kind) else "robots"
    kinds = [kind, *([f"so_{kind.split('_')[1]}"] if kind.startswith("so1") else [])]  # LeRobot's names since 0.4
    places = [calibration_folder() / kind, *(lerobot_folder() / role / k for k in kinds)]
    return next((path for place in places if (path := place / f"{name}.json").is_file()), None)


def read_calibration(path: Path, motors: Mapping[str, int], max_offset: int = 2047) -> dict[str, MotorCalibration]:
    """Reads a calibration from a JSON file.

    Args:
        motors: Ids of the servos by name.
        max_offset: Largest homing offset that the servos store (steps).
    """
    stored, calibration = read_json(path), {}
    field_names = {f.name for f in fields(MotorCalibration)}
    for name, number in motors.items():
        values = stored.get(name) if isinstance(stored, dict) else None
        if not isinstance(values, dict) or not all(type(values.get(k)) is int for k in field_names):
            raise UserError(f"there are no whole numbers {', '.join(sorted(field_names))} of the servo {name!r}",
                            where=path, hint="calibrate the arm again: understudy robot calibrate")
        each = MotorCalibration(**{k: values[k] for k in field_names})
        if each.id != number:
            raise UserError(f"the servo {name!r} has id {each.id} there, but id {number} on this arm", where=path,
                            hint="check that the file belongs to this arm")
        if each.range_min >= each.range_max:
            raise UserError(f"the range of the servo {name!r} is empty: {each.range_min} to {each.range_max}",
                            where=path, hint="calibrate the arm again, and move every joint through its range")
        if problem := _problem(each, max_offset):
            raise UserError(f"the servo {name!r} has {problem}", where=path,
                            hint="calibrate the arm again: understudy robot calibrate")
        calibration[name] = each
    return calibration


def _problem(each: MotorCalibration, max_offset: int) -> str | None:
    """Returns why a servo cannot store a calibration. None if it can."""
    if abs(each.homing_offset) > max_offset:
        return f"the homing_offset {each.homing_offset}, but it must be from {-max_offset} to {max_offset}"
    if each.range_min < 0 or each.range_max > MAX_STEPS:
        return f"the range {each.range_min} to {each.range_max}, but it must be within 0 to {MAX_STEPS}"
    if each.drive_mode not in (0, 1):
        return f"the drive_mode {each.drive_mode}, but it must be 0 or 1"
    return None


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Writes a calibration, in LeRobot's format."""
    write_json(path, {name: asdict(each) for name, each in calibration.items()})


def keep_old_calibration(path: Path) -> Path | None:
    """Copies a calibration that is about to be replaced to NAME.1.json, NAME.2.json, ... next to it.

    Returns:
        The copy. `--robot.id NAME.1` names it. None if there was none.
    """
    if not path.exists():
        return None
    old = next(p for i in count(1) if not (p := path.with_name(f"{path.stem}.{i}.json")).exists())
    shutil.copy2(path, old)
    return old
