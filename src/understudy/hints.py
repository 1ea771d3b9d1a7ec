"""Texts for people: lists of names, commands that can be pasted into a shell, the nearest known names, durations."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LONG_SECONDS = 15 * 60  # seconds; work that takes longer announces its duration


def command_line(*parts: object) -> str:
    """Joins the arguments after `understudy` to a command that can be pasted into a shell, with any path."""
    return shlex.join(["understudy", *map(path_text, parts)])


def path_text(path: object) -> str:
    """Returns a path as a user would type it.

    `Path` turns ws://HOST into ws:/HOST, which is undone. A name that begins with "-" gets ./ before it.
    """
    text = re.sub(r"^(wss?):/(?=[^/])", r"\1://", str(path))
    return f"./{text}" if isinstance(path, Path) and text.startswith("-") else text


def is_standard_library(name: str) -> bool:
    """Returns whether a name of code, such as "package.module:function", is in Python's standard library."""
    return name.partition(":")[0].partition(".")[0] in sys.stdlib_module_names


def trust_hint(package: str) -> str:
    """Returns what to do if code of a package is not trusted. Nothing of understudy is in the standard library."""
    if is_standard_library(package):
        return (f"{package} is a module of Python's standard library, which has nothing for understudy; do not use "
                "what names it, or rename a module of yours with this name")
    return f"add --trust {package} if you trust that code to run"


def columns_option(*columns: str) -> str:
    """Returns the option that names columns, such as "state=q1,q2", on the command line and in Python."""
    return f"--columns {' '.join(columns)} (in Python: columns={list(columns)})"


def escape_control(text: str) -> str:
    """Writes control characters of a text as escapes, except tabs and ends of lines.

    Names in files and errors of servers are text of strangers, which must not move the cursor, change colors or the
    direction of writing, or hide parts of a message.
    """
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def repair_hint(path: object) -> str:
    """Returns what to do about damaged data: the command that saves the readable episodes."""
    return f"take the data from a copy; {command_line('repair', path, '--out', 'DST')} saves what can be read"


def join_and(names: Sequence[str]) -> str:
    """Joins at least one name to "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def pluralize(n: int, what: str) -> str:
    """Formats a number and what is counted: "1 step", "2 steps"."""
    return f"{n} {what}{'s' * (n != 1)}"


def nearest_names(name: object, valid_names: Iterable[object], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """Finds the known names that are nearest to a name, in upper or lower case: those that it begins come first.

    Args:
        most: Largest number of names.
        cutoff: Least similarity, from 0 to 1 (see `difflib.get_close_matches`).
    """
    import difflib  # late: only errors need it

    names, asked = {str(k).lower(): str(k) for k in valid_names}, str(name).lower()
    # so100 of so100_follower, and episode of episodes
    begun = [n for n in names if n == f"{asked}s" or n.startswith((f"{asked}-", f"{asked}_"))]
    begun.sort(key=lambda n: n != f"{asked}s")
    alike = difflib.get_close_matches(asked, names, most, cutoff)
    return [names[n] for n in dict.fromkeys([*begun, *alike])][:most]


def did_you_mean(name: object, valid_names: Iterable[object], most: int = 1, cutoff: float = 0.6) -> str:
    """Returns the question "did you mean 'a'?" with the nearest of the known names. Empty if none is near."""
    suggestions = nearest_names(name, valid_names, most, cutoff)
    return f"did you mean {' or '.join(map(repr, suggestions))}?" if suggestions else ""


def unit_hint(data: str | None, robot: str | None, otherwise: str) -> str:
    """Returns advice for data in another unit than a robot, whose joints may be in this one.

    Args:
        data: The unit of the data, if it is known.
        robot: That of the robot.
        otherwise: Advice for other differences, and for robots that have no other units.
    """
    unit = data if data and robot and data != robot else ""
    use_degrees = "true" if unit.startswith("deg") else "false" if unit.startswith("signed percent") else None
    return otherwise if use_degrees is None else (
        f"with an arm of servos, --robot.use-degrees {use_degrees}; otherwise {otherwise}")


def format_duration(seconds: float) -> str:
    """Formats a duration in seconds as text, with one or two digits."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
