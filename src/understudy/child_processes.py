"""Starts child processes, and ends them with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any


def exit_reason(status: int) -> str:
    """Describes why a process ended, by its exit status."""
    if status >= 0:
        return f"it ended with status {status}"
    return f"killed by {signal.Signals(-status).name}" if -status in set(signal.Signals) else f"signal {-status}"


def spawn(function: Callable, *args: Any, name: str) -> tuple[SpawnProcess, Connection]:
    """Calls function(pipe, *args) in a new process, and returns it with the other end of the pipe.

    The process is spawned, because a forked one may hang on the threads of its parent.
    """
    context = multiprocessing.get_context("spawn")
    own_end, other_end = context.Pipe()
    process = context.Process(target=function, args=(other_end, *args), name=name)
    process.start()
    other_end.close()  # so that the pipe ends when the process dies
    return process, own_end


def end_processes(children: Collection[tuple[SpawnProcess, Connection]]) -> None:
    """Ends processes, by force where it takes more than 5 seconds, and closes their pipes."""
    for process, _ in children:
        process.terminate()
    for process, pipe in children:
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()
        pipe.close()


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
