"""Compares, for understudy robot check, the calibration in servos and file and the range of data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from .common import Output, demonstrations_path, plain_table

if TYPE_CHECKING:
    from ...robots.drift import Range
    from ...robots.servo_arm import ServoArm


def check_arms(arms: Sequence[tuple[str, ServoArm]], recording: Path | None, out: Output) -> bool:
    """Prints the calibration that arms hold, and what is wrong with it or with the data. Returns whether nothing is.

    Args:
        arms: The arms, each with the prefix of its joints in recorded data ("left_", or nothing).
        recording: Recorded data of the followers, if they are to be compared.
    """
    from ...data.formats import open_dataset
    from ...robots.drift import allowed_ranges, recorded_ranges, servo_states
    from ...robots.servo_arm import joint_unit

    documents, problems, ranges = [], [], {}
    for prefix, arm in arms:
        with arm.bus.connected():
            states = servo_states(arm)
        out.print(f"{arm.place}, {arm.calibration_file}", plain_table(
            ("servo", "in the servo", "in the file", "moved by (deg)"),
            ((name, state.stored, state.expected, f"{state.drift:.1f}") for name, state in states.items())))
        problems += [f"{arm.kind.name}, {prefix}{name}: {text}" for name, state in states.items()
                     if (text := state.describe())]
        documents.append({"type": arm.kind.name, "port": arm.bus.port_name, "file": str(arm.calibration_file),
                          "servos": {name: asdict(state) for name, state in states.items()}})
        if not arm.kind.is_leader:
            ranges |= {f"{prefix}{name}.pos": allowed for name, allowed in allowed_ranges(arm, states).items()}
    recorded = {} if recording is None else recorded_ranges(
        open_dataset(demonstrations_path(recording)), list(ranges), joint_unit(arms[0][1].units))
    if recorded:
        out.print(f"recorded in {recording}", _range_table(recorded, ranges))
        problems += _range_problems(recorded, ranges)
    out.print(*problems or ["nothing differs"])
    out.print_json({"arms": documents, "recorded": recorded, "allowed": ranges, "differences": problems})
    return not problems


def _range_problems(recorded: Mapping[str, Range], allowed: Mapping[str, Range]) -> Iterator[str]:
    from ...robots.drift import TOLERANCE, excess

    for joint, (low, high) in recorded.items():
        if (outside := excess((low, high), allowed[joint])) > TOLERANCE:
            yield (f"{joint}: recorded from {low:.1f} to {high:.1f}, but this arm reaches {allowed[joint][0]:.1f} to "
                   f"{allowed[joint][1]:.1f}: {outside:.1f} outside. The data were recorded with another calibration")


def _range_table(recorded: Mapping[str, Range], allowed: Mapping[str, Range]) -> Table:
    from ...robots.drift import excess

    return plain_table(("joint", "recorded", "reachable", "outside"), (
        (joint, "{:.1f} to {:.1f}".format(*span), "{:.1f} to {:.1f}".format(*allowed[joint]),
         f"{excess(span, allowed[joint]):.1f}") for joint, span in recorded.items()))
