"""Commands of understudy as child processes of the studio, one after another."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...files import write_json
from ...hints import command_line
from ...learn.run import Run

LOG = "commands.jsonl"  # every command of a project, and how it ended
FOUND_ERRORS = 3  # exit status of an audit, or a check of a robot, that has found errors
TAIL = 12  # lines of what a command printed last that are kept
State = Literal["running", "stopping", "done", "stopped", "failed", "interrupted"]


@dataclass
class Job:
    """Commands that are run in the folder of a project until one fails.

    Args:
        title: What it does, for the page.
        commands: The words of each command after "understudy".
        run: The run that the last command trains, if it does. Its metrics tell the progress.
        steps: Number of updates of that training.
        output: Where to write the JSON that the last command prints, in the folder.
        hear: Called with each line that a command prints while a person answers it (`JobRunner.answer`).
    """

    title: str
    commands: list[list[str]]
    run: str | None = None
    steps: int | None = None
    output: str | None = None
    hear: Callable[[str], None] | None = None
    state: State = "running"
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))

    @property
    def texts(self) -> list[str]:
        """The commands as a user could type them."""
        return [command_line(*words) for words in self.commands]


class JobRunner:
    """Runs one job at a time in the folder of a project, and logs each there.

    The log tells which job was running when the process was killed. It can be continued: a training then
    continues from its last checkpoint.

    Args:
        on_end: Called with a job that has ended, in the event loop.
    """

    def __init__(self, folder: Path, on_end: Callable[[Job], None]):
        self.folder, self._on_end = folder, on_end
        self.job = self._last_job()
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task | None = None
        self._began: tuple[float, int] | None = None  # time and update at which the progress was first known

    def _last_job(self) -> Job | None:
        """The last job of the log. It was interrupted if its end is missing."""
        job = None
        for entry in self._entries():
            if "ended" not in entry:
                job = Job(**entry, state="interrupted")
            elif job is not None:
                job.state = entry["ended"]
        if job is not None and job.state == "interrupted" and job.commands[-1][0] == "view" and not self._missing(job):
            job.state = "done"
        return job

    def _missing(self, job: Job) -> list[list[str]]:
        """The commands of a job whose file is not there."""
        return [words for words in job.commands
                if "--out" not in words or not (self.folder / words[words.index("--out") + 1]).exists()]

    def _entries(self) -> Iterator[dict[str, Any]]:
        """The lines of the log, without one that a full disk has cut."""
        path = self.folder / LOG
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            with suppress(ValueError):
                yield json.loads(line)

    def history(self) -> list[str]:
        """All commands so far, as a user could type them."""
        return [command_line(*words) for entry in self._entries() if "ended" not in entry
                for words in entry["commands"]]

    def _log(self, entry: dict[str, Any]) -> None:
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(f"\n{json.dumps(entry)}\n")  # a line that was cut ends here

    @property
    def state(self) -> str:
        """The state of the job, or "" if there is none."""
        return "" if self.job is None else self.job.state

    @property
    def is_busy(self) -> bool:
        return self.state in ("running", "stopping")

    def start(self, job: Job) -> None:
        """Starts a job in the event loop.

        Raises:
            RuntimeError: Another job is running.
        """
        if self.is_busy:
            raise RuntimeError("another command is running; wait for it or stop it")
        self._log({key: getattr(job, key) for key in ("title", "commands", "run", "steps", "output")})
        self.job, self._began, job.state = job, None, "running"
        self._task = asyncio.create_task(self._run(job))

    def resume(self) -> None:
        """Continues the last job: commands that have written their file are not run again."""
        if (job := self.job) is None or self.is_busy:
            raise RuntimeError("there is nothing to continue")
        before = [words for words in job.commands[:-1] if words in self._missing(job)]
        self.start(Job(job.title, [*before, job.commands[-1]], job.run, job.steps, job.output))

    def stop(self) -> None:
        """Interrupts the running command as Ctrl-C does: a training keeps what it has learned."""
        if self.job is not None and self.is_busy:
            self.job.state = "stopping"
            if self._process is not None and self._process.returncode is None:
                self._process.send_signal(signal.SIGINT)

    def answer(self, text: str) -> None:
        """Gives the running command a line, as if a person had typed it."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(f"{text}\n".encode())

    def progress(self) -> tuple[int, float | None]:
        """Returns the number of updates so far, and the seconds that are left, if they are known."""
        job = self.job
        if job is None or job.run is None or job.steps is None:
            return 0, None
        step = max((line["step"] for line in Run(self.folder / job.run).read_metrics() if "loss" in line), default=0)
        if self._began is None:
            self._began = (time.monotonic(), step) if step else None
            return step, None
        began, first = self._began
        return step, (time.monotonic() - began) / (step - first) * (job.steps - step) if step > first else None

    async def _run(self, job: Job) -> None:
        try:
            for words in job.commands:
                if job.state != "running" or not await self._run_command(job, words):
                    break
            else:
                job.state = "done"
        except (OSError, ValueError) as error:  # no process can be started, or what it printed cannot be stored
            job.tail.append(str(error))
        if job.state in ("running", "stopping"):
            job.state = "stopped" if job.state == "stopping" else "failed"
        self._log({"ended": job.state})
        self._on_end(job)

    async def _run_command(self, job: Job, words: list[str]) -> bool:
        """Runs one command. Returns whether it succeeded."""
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "understudy", *words, cwd=self.folder,
            stdin=asyncio.subprocess.DEVNULL if job.hear is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        assert process.stdout is not None and process.stderr is not None

        async def keep_tail(stream: asyncio.StreamReader) -> None:
            async for line in stream:
                job.tail.append(line.decode(errors="replace").rstrip())

        async def hear_lines(stream: asyncio.StreamReader, hear: Callable[[str], None]) -> bytes:
            async for line in stream:
                hear(line.decode(errors="replace").rstrip())
            return b""
        printed, _ = await asyncio.gather(
            process.stdout.read() if job.hear is None else hear_lines(process.stdout, job.hear),
            keep_tail(process.stderr))
        finds = words[0] == "audit" or words[:2] == ["robot", "check"]
        succeeded = await process.wait() in (0, *([FOUND_ERRORS] if finds else []))
        if succeeded and job.output is not None and words is job.commands[-1]:
            write_json(self.folder / job.output, json.loads(printed))
        return succeeded
