"""Addresses of servers in place of runs. This module imports nothing that is large or optional."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path


def served_address(run: Path | str) -> str | None:
    """Returns the address of a server, or None if `run` is a path of files.

    Args:
        run: Such as "ws://gpu:8000". A `Path` has one slash of the two.
    """
    text = run.as_posix() if isinstance(run, Path) else run
    match = re.fullmatch(r"(wss?):/{1,2}([^/].*)", text)
    return None if match is None else f"{match[1]}://{match[2]}"


def is_this_machine(host: str) -> bool:
    """Whether a host is this machine, so that what is sent to it cannot be read on the network."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
