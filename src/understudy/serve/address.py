"""Addresses of servers, which commands accept in place of runs. This module imports nothing large."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from pathlib import Path

from ..core import UserError


def served_address(run: Path | str) -> str | None:
    """Returns the address of a policy in another process, or None if `run` is a path of files.

    Args:
        run: Such as "ws://gpu:8000" for a server, or "lerobot:outputs/train/act" for a policy of LeRobot. A `Path` has
            one slash of the two.
    """
    text = run.as_posix() if isinstance(run, Path) else run
    if lerobot_name(text) is not None:
        return text
    match = re.fullmatch(r"(wss?):/{1,2}([^/].*)", text)
    return None if match is None else f"{match[1]}://{match[2]}"


def lerobot_name(address: str) -> str | None:
    """Returns the folder or the name of a policy of LeRobot, or None for the address of a server."""
    return address.removeprefix("lerobot:") if re.match("lerobot:.", address) else None


def is_this_machine(host: str) -> bool:
    """Returns whether a host is this machine, so that messages to it cannot be read on the network."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_host(host: str) -> str:
    """Returns the host on which a server listens, as part of an address for clients."""
    if host in ("0.0.0.0", "::", ""):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def cannot_listen(error: OSError, where: str) -> UserError:
    """Builds the error of a server that cannot listen where the options say."""
    return UserError(f"the server cannot listen there: {error.strerror or error}", where=where,
                     hint="another server may use the port: choose another one, or port 0 for any that is free"
                     if error.errno in (errno.EADDRINUSE, errno.EACCES) else
                     "name an address of this machine, such as 127.0.0.1")


def open_port(host: str, port: int, where: str) -> socket.socket:
    """Returns a socket that listens on a port.

    Args:
        port: Port. 0 for any that is free.
        where: The options that say it, for the error.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise cannot_listen(error, where) from None
