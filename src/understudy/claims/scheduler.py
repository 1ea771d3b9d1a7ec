"""Runs all claims that are due within a budget: those without a record, and those whose code or data have changed
since.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any

import torch

from ..child_processes import end_processes, exit_reason, spawn, watch_parent
from ..core import UserError
from ..evaluate.workers import WorkerCount, connect_ray
from ..files import write_json
from .base import MissingRequirement
from .folder import open_claims
from .probe import confirm_all, save_confirmation, store_all
from .records import find_claim, find_text, record_path
from .runner import run_claim

LogFunction = Callable[[str], None]


def due_claims(entries: Sequence[dict]) -> list[dict]:
    """The entries of claims that are stale or have not run.

    The claim with the cheapest last run comes first, and of equals the older record. Claims that never ran come last,
    because their cost is unknown.

    Args:
        entries: Entries of `records.list_claims`.
    """
    waiting = [e for e in entries if e["stale"] or e["verdict"] == "not run"]
    return sorted(waiting, key=lambda e: (e["seconds"] is None, e["seconds"] or 0.0, e["date"] or "", e["name"]))


def confirm_stale(entries: Sequence[dict], log: LogFunction = lambda text: None) -> tuple[list[dict], list[str]]:
    """Probes the stale records, which takes seconds each, so that only changed claims run.

    Returns:
        The entries that are still due, and the names of the confirmed ones. A confirmation is saved.
    """
    confirmed = []
    stale = [entry["name"] for entry in entries if entry["verdict"] != "not run"]
    for name, confirmation in zip(stale, confirm_all(stale), strict=True):
        if confirmation.status == "confirmed":
            save_confirmation(find_claim(name))
            confirmed.append(name)
            log(f"{name}: confirmed by its probe ({confirmation.seconds:.1f} s)")
    return [entry for entry in entries if entry["name"] not in confirmed], confirmed


@dataclass
class ScheduleOutcome:
    """Result of running the claims that were due.

    Attributes:
        verdicts: {name: verdict} of those that ran.
        unavailable: {name: what it needs} of those that cannot run on this machine.
        failed: {name: error}.
        not_run: {name: why} of those that the budget did not reach.
    """

    verdicts: dict[str, str] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether every claim that can run here has run."""
        return not self.failed and not self.not_run


def try_claim(name: str, log: LogFunction = lambda text: None, trust: tuple[str, ...] = ()) -> tuple[str, Any]:
    """Runs one claim and stores its probe.

    Returns:
        ("done", record), ("absent", what it needs) or ("failed", why).
    """
    torch.set_num_threads(1)
    try:
        open_claims(trust)
        claim = find_claim(name)
        record = run_claim(claim, revision=find_text(name).revision, log=log)
        store_all([name])
        return "done", record
    except MissingRequirement as error:
        return "absent", str(error)
    except UserError as error:
        return "failed", str(error)
    except Exception:
        return "failed", traceback.format_exc()


def run_all(
    entries: Sequence[dict],
    budget: float | None = None,
    workers: WorkerCount = 1,
    log: LogFunction = lambda text: None,
    *,
    run_one: Callable[..., tuple[str, Any]] = try_claim,
) -> ScheduleOutcome:
    """Runs claims in this order, each in a separate process with one thread.

    Args:
        entries: Entries of `records.list_claims`. "missing" names what a claim lacks on this machine.
        budget: Seconds from now, or None for no limit. A claim starts only if the time of its last run still fits. A
            claim that runs when the budget ends is stopped. Its finished cells are kept for the next run.
        run_one: Called with (name, log) in the process.
    """
    out, began = ScheduleOutcome(), time.monotonic()
    waiting = deque(e for e in entries if not e.get("missing"))
    for e in entries:
        if lacks := e.get("missing"):
            out.unavailable[e["name"]] = ", ".join(lacks)
            log(f"{e['name']}: not here, needs {out.unavailable[e['name']]}")

    def remaining_seconds() -> float | None:
        return None if budget is None else budget - (time.monotonic() - began)
    with _RayBackend(workers, run_one) if workers == "ray" else _ProcessBackend(workers, run_one) as crew:
        while waiting or crew.running:
            while waiting and len(crew.running) < crew.count:
                e, time_left = waiting.popleft(), remaining_seconds()
                if time_left is not None and time_left <= (e["seconds"] or 0.0):
                    took = "never ran" if e["seconds"] is None else f"took {e['seconds']:.0f} s"
                    out.not_run[e["name"]] = f"{took}, and {max(time_left, 0):.0f} s are left"
                    log(f"{e['name']}: left for another time ({out.not_run[e['name']]})")
                    continue
                took = "its first run" if e["seconds"] is None else f"took {e['seconds']:.0f} s last time"
                log(f"{e['name']}: starts ({took})")
                crew.start(e["name"])
            if crew.running:
                for name, kind, content in crew.receive(remaining_seconds()):
                    if kind == "said":
                        log(f"{name}: {content}")
                        continue
                    if kind == "done":
                        out.verdicts[name] = content["verdict"]
                        write_json(record_path(name), content)  # also where it ran elsewhere
                    else:
                        (out.unavailable if kind == "absent" else out.failed)[name] = content
                    words = (f"{content['verdict']} here" if kind == "done"
                             else f"{'not here' * (kind == 'absent')} {content}")
                    log(f"{name}: {words.strip()}")
                if (time_left := remaining_seconds()) is not None and time_left <= 0:
                    for name in crew.stop():
                        out.not_run[name] = "stopped at the end of the budget; what it has done is kept"
                        log(f"{name}: {out.not_run[name]}")
    return out


# -- where they run -------------------------------------------------------------------------------------------------


class _ProcessBackend(AbstractContextManager):
    """A process for each claim, on this machine."""

    def __init__(self, n_workers: int, attempt: Callable):
        self.count, self.run_one, self.running = n_workers, attempt, {}

    def __exit__(self, *error) -> None:
        self.stop()

    def start(self, name: str) -> None:
        self.running[name] = spawn(_claim_process, self.run_one, name, name=f"claim {name}")

    def receive(self, timeout: float | None) -> Iterator[tuple[str, str, Any]]:
        """The messages that arrive within `timeout` seconds."""
        ready = set(connection.wait([pipe for _, pipe in self.running.values()], timeout and max(timeout, 0.0)))
        for name, (process, pipe) in [r for r in self.running.items() if r[1][1] in ready]:
            try:
                kind, what = pipe.recv()
            except (EOFError, OSError):
                process.join()
                kind, what = "failed", f"its process died: {exit_reason(process.exitcode)}"
            if kind != "said":
                del self.running[name]
                process.join()
                pipe.close()
            yield name, kind, what

    def stop(self) -> list[str]:
        """Stops all claims and returns the names of those that were running."""
        names = list(self.running)
        end_processes(self.running.values())
        self.running = {}
        return names


def _claim_process(pipe: connection.Connection, attempt: Callable, name: str) -> None:
    watch_parent()
    pipe.send(attempt(name, lambda text: pipe.send(("said", text))))


class _RayBackend(AbstractContextManager):
    """A process for each claim, on a Ray cluster whose machines share the folders of this one."""

    def __init__(self, count: WorkerCount, attempt: Callable):
        self.ray, self.began = connect_ray()
        self.count = max(int(self.ray.cluster_resources().get("CPU", 1)), 1)
        self.task = self.ray.remote(num_cpus=1, max_retries=0, max_calls=1)(attempt)
        self.running: dict[str, Any] = {}

    def __exit__(self, *error) -> None:
        self.stop()
        if self.began:
            self.ray.shutdown()

    def start(self, name: str) -> None:
        self.running[name] = self.task.remote(name)

    def receive(self, timeout: float | None) -> Iterator[tuple[str, str, Any]]:
        ready, _ = self.ray.wait(list(self.running.values()), timeout=timeout and max(timeout, 0.0))
        for name, ref in [r for r in self.running.items() if r[1] in ready]:
            del self.running[name]
            try:
                yield name, *self.ray.get(ref)
            except self.ray.exceptions.RayError as error:
                yield name, "failed", f"its process died: {type(error).__name__}"

    def stop(self) -> list[str]:
        names = list(self.running)
        for ref in self.running.values():
            self.ray.cancel(ref, force=True)
        self.running = {}
        return names
