"""Handles signals that stop a command: Ctrl-C, termination by a scheduler, and a closed terminal."""

from __future__ import annotations

import errno
import os
import select
import signal
import stat

INTERRUPTS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def leave_closed_terminal(number: int) -> None:
    """After SIGHUP, drops what is still printed to the terminal. It is closed, and writing to it would fail."""
    if number != getattr(signal, "SIGHUP", None):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(null, descriptor)
    os.close(null)


def is_of_closed_terminal(error: BaseException | None) -> bool:
    """Returns whether an error comes from a terminal that has been closed, maybe before SIGHUP arrives."""
    visited: set[int] = set()  # an error may be its own cause
    while error is not None and error.args[:1] != (errno.EIO,):
        visited.add(id(error))
        cause = error.__cause__ or error.__context__
        error = None if id(cause) in visited else cause
    if error is None or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            poll.register(descriptor, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
