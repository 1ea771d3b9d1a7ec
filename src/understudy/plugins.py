"""Finds methods, environments and formats that installed packages register by entry points.

A package registers them in its `pyproject.toml`:

    [project.entry-points."understudy.methods"]
    my-method = "my_package.methods:my_method"

    [project.entry-points."understudy.envs"]
    my-robot = "my_package.envs:make_robot"

    [project.entry-points."understudy.formats"]
    my-logs = "my_package.logs:LOGS"

The package is imported when one of its names is used, and not before. It was installed to be used by that name, so it
needs no --trust. A checkpoint that names its code still does.
"""

from __future__ import annotations

import functools
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from .core import UserError

Kind = Literal["methods", "envs", "formats"]


def find_plugins(kind: Kind) -> dict[str, EntryPoint]:
    """Returns the entry points of installed packages by name, without importing them.

    The packages are listed once for each state of `sys.path`, because that takes milliseconds, and every data set that
    is opened asks for it. What is installed while the program runs is found by the next one.
    """
    entry_points: dict[str, EntryPoint] = {}
    for entry in _registered(f"understudy.{kind}", tuple(sys.path)):
        other = entry_points.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise UserError(f"two packages register the name {entry.name!r}: {other.value} and {entry.value}",
                            where=f"understudy.{kind}", hint="uninstall one of them")
    return entry_points


@functools.lru_cache(maxsize=16)
def _registered(group: str, search_path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))


def load_plugin(kind: Kind, name: str) -> Any:
    """Loads the object that a package registers under a name among "methods", "envs" or "formats"."""
    entry = find_plugins(kind)[name]
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"the package {package_of(entry)} registers {entry.value}, which cannot be loaded: {error}",
                        where=f"understudy.{kind}, {name}", hint="reinstall or repair the package") from error


def package_of(entry: EntryPoint) -> str:
    """Returns the name of the package that registers an entry point."""
    return entry.dist.name if entry.dist is not None else entry.module.partition(".")[0]
