"""The process that puts finished episodes of a recording into its files while the next ones are recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...core import UserError
from ...hints import command_line

WAIT = 0.5  # s between two looks at the encoder


@dataclass(frozen=True)
class Backlog:
    """Finished episodes in the journal that wait for the encoder: number of bytes and steps."""

    bytes: int
    steps: int

    def __str__(self):
        return f"encoding: {self.steps:,} steps behind, {self.bytes / 2**30:.1f} GB"


class EncoderProcess:
    """Handle of the encoder process, to which finished journal segments are passed."""

    def __init__(self, path: Path):
        self._path = path
        self._process: subprocess.Popen | None = None
        self._reader: threading.Thread | None = None
        self._failure: str | None = None
        self._waiting: dict[str, Backlog] = {}  # by segment
        self._progress = "", 0.0  # the last segment that is being encoded, and the fraction that is done
        self._lock = threading.Lock()

    def encode(self, segment: str, backlog: Backlog) -> None:
        """Encodes a finished segment after the earlier ones. If this fails, it stays in the journal."""
        with self._lock:
            self._waiting[segment] = backlog
        try:
            if self._process is None:
                # Ctrl-C and a closed terminal do not reach another session. See `yield_processor` for its priority.
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "understudy.data.recording.recorder", str(self._path)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                    start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
                yield_processor(self._process.pid)
                reader = threading.Thread(target=self._read_reports, args=(self._process,), name="encoder", daemon=True)
                reader.start()
                self._reader = reader  # `check` joins it, which it must not before the thread has started
            assert self._process.stdin is not None
            self._process.stdin.write(f"{segment}\n")
            self._process.stdin.flush()
        except OSError as error:
            if self._process is None:
                self._failure = f"its process cannot be started ({error.strerror})"

    def backlog(self) -> Backlog:
        """Returns the number of bytes and steps that are not encoded yet."""
        with self._lock:
            last, fraction = self._progress
            shares = [(1 - fraction * (segment <= last), b) for segment, b in self._waiting.items()]
        return Backlog(round(sum(share * b.bytes for share, b in shares)),
                       round(sum(share * b.steps for share, b in shares)))

    def check(self) -> None:
        """Raises a UserError if the encoder process has failed."""
        has_ended = self._process is not None and self._process.poll() is not None  # None: it is being started
        if has_ended and self._reader is not None:
            self._reader.join(1)  # its last report says why
        if has_ended or self._failure is not None:
            raise UserError(f"the encoder failed: {self._failure or 'its process has ended'}. Every episode that was "
                            "saved is kept", where=self._path,
                            hint=f"make room on the disk and in memory, then {command_line('repair', self._path)}")

    def forget(self) -> None:
        """Forgets all waiting segments, because another process has encoded them."""
        with self._lock:
            self._waiting.clear()

    def close(self, show: Callable[[str], None]) -> None:
        """Waits until the encoder process has encoded what it can."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        _set_autogroup(self._process.pid, 0)  # nothing is disturbed any more
        while self._process.poll() is None:
            show(str(self.backlog()))
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(WAIT)

    def _read_reports(self, process: subprocess.Popen) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                if not line.endswith("\n"):  # the process was killed
                    return
                report = json.loads(line)
                with self._lock:
                    self._progress = report["segment"], report["fraction"]
                    self._failure = report["failure"]
                    if report["fraction"] == 1:
                        self._waiting = {n: b for n, b in self._waiting.items() if n > report["segment"]}


class Report:
    """Reports progress from the encoder process to the recorder, on standard output."""

    def __init__(self, segment: str):
        self._segment, self._shown = segment, 0.0

    def __call__(self, n_frames: int, total: int) -> None:
        if time.monotonic() - self._shown > WAIT:
            self.send(0.999 * n_frames / total)

    def send(self, fraction: float, failure: str | None = None) -> None:
        self._shown = time.monotonic()
        with suppress(OSError):  # the recorder was killed; its episodes are encoded nevertheless
            print(json.dumps({"segment": self._segment, "fraction": fraction, "failure": failure}), flush=True)


def yield_processor(pid: int) -> None:
    """Gives a process the lowest priority: other programs go first. It must lead a session and have one thread.

    Linux divides the processor between autogroups, one for each session, before it compares the priorities of
    processes inside. So the priority of the autogroup is lowered too. SCHED_IDLE alone, in the session of the recorder,
    was tried: the time of the encoder then counted as the recorder's, and other programs delayed its cameras by 0.5 s.
    """
    _set_autogroup(pid, 19)
    try:
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):  # not Linux
        with suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, pid, 19)


def _set_autogroup(pid: int, nice: int) -> None:
    with suppress(OSError):  # not Linux, or autogroups are switched off
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))
