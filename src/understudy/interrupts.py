"""Signals that stop a command: Ctrl-C, the polite kill of a scheduler, and a closed terminal."""

from __future__ import annotations

import os
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
