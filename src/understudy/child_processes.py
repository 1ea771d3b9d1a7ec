"""Processes that this one spawns."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading


def exit_reason(status: int) -> str:
    """The reason of a process's end, by its exit status."""
    if status >= 0:
        return f"it ended with status {status}"
    return f"killed by {signal.Signals(-status).name}" if -status in set(signal.Signals) else f"signal {-status}"


def watch_parent() -> None:
    """Called first in a spawned process: the process ends when its parent says so or no longer exists."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes
    sys.stdout = sys.stderr  # libraries must not print between the answers
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Ends this process when the parent is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this process was spawned
    parent.join()
    os._exit(1)
