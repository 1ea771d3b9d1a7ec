"""Commands of understudy as child processes of the studio, one after another."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..hints import command_line
from ..learn.run import Run

TAIL = 12  # lines of what a command printed last that are kept


@dataclass
class Job:
    """Commands that are run in a folder until one fails.

    Args:
        title: What it does, for the page.
        commands: The words of each command after "understudy".
        run: The run that the last command trains, if it does. Its metrics tell the progress.
        steps: Number of updates of that training.
        output: Where to write what the last command prints, which is JSON.
    """

    title: str
    commands: list[list[str]]
    folder: Path
    run: str | None = None
    steps: int | None = None
    output: Path | None = None
    state: Literal["running", "stopping", "done", "stopped", "failed"] = "running"
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))
    started: float = field(default_factory=time.monotonic)

    @property
    def texts(self) -> list[str]:
        """The commands as a user could type them."""
        return [command_line(*words) for words in self.commands]

    def progress(self) -> tuple[int, float | None]:
        """Returns the number of updates so far, and the seconds that are left, if both are known."""
        if self.run is None or self.steps is None:
            return 0, None
        step = max((line["step"] for line in Run(self.folder / self.run).read_metrics() if "loss" in line), default=0)
        passed = time.monotonic() - self.started
        return step, passed / step * (self.steps - step) if step else None


class JobRunner:
    """Runs one job at a time.

    Args:
        on_end: Called with a job that has ended, in the event loop.
    """

    def __init__(self, on_end: Callable[[Job], None]):
        self.job: Job | None = None
        self._on_end, self._process = on_end, None
        self._task: asyncio.Task | None = None

    @property
    def is_busy(self) -> bool:
        return self.job is not None and self.job.state in ("running", "stopping")

    def start(self, job: Job) -> None:
        """Starts a job in the event loop.

        Raises:
            RuntimeError: Another job is running.
        """
        if self.is_busy:
            raise RuntimeError("another command is running; wait for it or stop it")
        self.job, self._task = job, asyncio.create_task(self._run(job))

    def stop(self) -> None:
        """Interrupts the running command as Ctrl-C does: a training keeps what it has learned."""
        if self.job is not None and self.is_busy:
            self.job.state = "stopping"
            if self._process is not None and self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGINT)

    async def _run(self, job: Job) -> None:
        try:
            for words in job.commands:
                if job.state != "running" or not await self._run_command(job, words):
                    break
            else:
                job.state = "done"
        except OSError as error:  # no process can be started, or the report not be written
            job.tail.append(str(error))
        if job.state in ("running", "stopping"):
            job.state = "stopped" if job.state == "stopping" else "failed"
        self._on_end(job)

    async def _run_command(self, job: Job, words: list[str]) -> bool:
        """Runs one command. Returns whether it succeeded."""
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "understudy", *words, cwd=job.folder, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True)
        assert process.stdout is not None and process.stderr is not None

        async def keep_tail(stream: asyncio.StreamReader) -> None:
            async for line in stream:
                job.tail.append(line.decode(errors="replace").rstrip())
        printed, _ = await asyncio.gather(process.stdout.read(), keep_tail(process.stderr))
        succeeded = await process.wait() == 0
        if succeeded and job.output is not None and words is job.commands[-1]:
            job.output.write_text(json.dumps(_last_json(printed.decode()), indent=1), encoding="utf-8")
        return succeeded


def _last_json(text: str) -> Any:
    """The JSON document that a command with --json prints."""
    return json.loads(text)
