"""Checks and names serial ports: one port for each arm, and names that stay the same."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ..core import ConfigError

BY_ID = Path("/dev/serial/by-id")  # Linux: a link for each USB adapter, named after its serial number


def refuse_shared_ports(ports: Mapping[str, str | None]) -> None:
    """Raises an error if two arms have one port, also under two names.

    Args:
        ports: Names of ports by the option that gave them.
    """
    options: dict[object, str] = {}
    for option, port in ports.items():
        if port is None:
            continue
        if (other := options.setdefault(_device(port), option)) != option:
            both = port if port == ports[other] else f"{port} and {ports[other]}"
            raise ConfigError(f"is the same port as {other} ({both}), but each arm has a port of its own", where=option,
                              hint="understudy robot find-port finds the port of each arm")


def stable_port(port: str) -> str | None:
    """Returns the stable name in /dev/serial/by-id of a port such as /dev/ttyACM0. None if it has none."""
    if not re.fullmatch(r"tty(ACM|USB)\d+", Path(port).name) or not BY_ID.is_dir():
        return None
    return next((str(link) for link in sorted(BY_ID.iterdir()) if os.path.realpath(link) == os.path.realpath(port)),
                None)


def _device(port: str) -> object:
    """Returns what two names of one port have in common."""
    path = re.sub(r"^/dev/tty\.", "/dev/cu.", os.path.normcase(os.path.realpath(port)))  # macOS has both
    with suppress(OSError):
        if stat.S_ISCHR((status := os.stat(path)).st_mode):
            return status.st_rdev
    return path
