"""All claims that are due, within a budget: what has no record, or one whose code or data have changed since."""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from multiprocessing import connection
from typing import Any

import torch

from ..core import UserError
from ..evaluate.workers import Count, cause, connect, serve
from ..files import write_json
from .base import Claim, NotHere
from .records import find, listing, record_path
from .run import run

Say = Callable[[str], None]


def due(entries: Sequence[dict] | None = None) -> list[dict]:
    """Of `records.listing`, those that are stale or not run: the cheapest by its last record first, of equals the older
    record; then those that never ran, whose cost nobody knows."""
    listed = listing() if entries is None else entries
    waiting = [e for e in listed if e["stale"] or e["verdict"] == "not run"]
    return sorted(waiting, key=lambda e: (e["seconds"] is None, e["seconds"] or 0.0, e["date"] or "", e["name"]))


def missing(claim: Claim) -> list[str]:
    """Of what the claim needs, in its own words, what is not on this machine."""
    return [need for need in claim.needs if not _here(need)]


def _here(need: str) -> bool:
    if m := re.fullmatch(r"the (\w+) extra", need):
        return all(_installed(name) for name in _extra(m[1]))
    if m := re.search(r"\(([A-Z_]+)\)", need):  # a variable that names a folder
        return os.path.isdir(os.environ.get(m[1], ""))
    return True  # its run will say


def _extra(name: str) -> list[str]:
    """The packages of one of understudy's extras."""
    wanted = [r for r in metadata.requires("understudy") or () if re.search(rf"extra == ['\"]{name}['\"]", r)]
    return [re.match(r"[\w.-]+", r)[0] for r in wanted]


def _installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


@dataclass
class Outcome:
    """What became of the claims that were due. `here`: {name: verdict} of those that ran. left: {name: why}, of those
    that the budget did not reach."""

    here: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)  # {name: what it needs}
    failed: dict[str, str] = field(default_factory=dict)  # {name: error}
    left: dict[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether nothing that can run here is left to run."""
        return not self.failed and not self.left


def attempted(name: str, say: Say = lambda text: None) -> tuple[str, Any]:
    """One claim: ("done", record), ("absent", what it needs) or ("failed", why)."""
    import traceback

    torch.set_num_threads(1)
    try:
        return "done", run(find(name), say=say)
    except NotHere as error:
        return "absent", str(error)
    except UserError as error:
        return "failed", str(error)
    except Exception:
        return "failed", traceback.format_exc()


def run_all(entries: Sequence[dict], budget: float | None = None, workers: Count = 1, say: Say = lambda text: None, *,
            attempt: Callable[..., tuple[str, Any]] = attempted) -> Outcome:
    """Runs these claims in their order, `workers` at a time, each in a process of its own and in one thread.

    budget: seconds from now; None is all the time there is. A claim starts only if what its record says it took still
    fits; one that is running when the budget ends is stopped. The cells of it that are done are kept, and the next run
    goes on from there. attempt: what is done in the process.
    """
    out, began = Outcome(), time.monotonic()
    waiting: deque[dict] = deque()
    for e in entries:
        if lacks := e.get("missing"):
            out.absent[e["name"]] = ", ".join(lacks)
        else:
            waiting.append(e)
    for name, lacks in out.absent.items():
        say(f"{name}: not here, needs {lacks}")

    def left() -> float | None:
        return None if budget is None else budget - (time.monotonic() - began)
    with (_Cluster if workers == "ray" else _Local)(workers, attempt) as crew:
        while waiting or crew.running:
            while waiting and len(crew.running) < crew.count:
                e, time_left = waiting.popleft(), left()
                if time_left is not None and time_left <= (e["seconds"] or 0.0):
                    took = "never ran" if e["seconds"] is None else f"took {e['seconds']:.0f} s"
                    out.left[e["name"]] = f"{took}, and {max(time_left, 0):.0f} s are left"
                    say(f"{e['name']}: left for another time ({out.left[e['name']]})")
                    continue
                took = "its first run" if e["seconds"] is None else f"took {e['seconds']:.0f} s last time"
                say(f"{e['name']}: starts ({took})")
                crew.start(e["name"])
            if crew.running:
                for name, kind, said in crew.heard(left()):
                    if kind == "said":
                        say(f"{name}: {said}")
                        continue
                    if kind == "done":
                        out.here[name] = said["verdict"]
                        write_json(record_path(name), said)  # also where it ran elsewhere
                    else:
                        (out.absent if kind == "absent" else out.failed)[name] = said
                    words = f"{said['verdict']} here" if kind == "done" else f"{'not here' * (kind == 'absent')} {said}"
                    say(f"{name}: {words.strip()}")
                if (time_left := left()) is not None and time_left <= 0:
                    for name in crew.stop():
                        out.left[name] = "stopped at the end of the budget; what it has done is kept"
                        say(f"{name}: {out.left[name]}")
    return out


# -- where they run -------------------------------------------------------------------------------------------------


class _Local:
    """A process for each claim, on this machine."""

    def __init__(self, count: int, attempt: Callable):
        self.count, self.attempt, self.running = count, attempt, {}
        self.context = multiprocessing.get_context("spawn")

    def __enter__(self) -> _Local:
        return self

    def __exit__(self, *error) -> None:
        self.stop()

    def start(self, name: str) -> None:
        mine, theirs = self.context.Pipe()
        process = self.context.Process(target=_one, args=(self.attempt, name, theirs), name=f"claim {name}")
        process.start()
        theirs.close()
        self.running[name] = (process, mine)

    def heard(self, timeout: float | None) -> Iterator[tuple[str, str, Any]]:
        """What has been said by when the time is out."""
        said = set(connection.wait([pipe for _, pipe in self.running.values()], timeout and max(timeout, 0.0)))
        for name, (process, pipe) in [r for r in self.running.items() if r[1][1] in said]:
            try:
                kind, what = pipe.recv()
            except (EOFError, OSError):
                process.join()
                kind, what = "failed", f"its process died: {cause(process.exitcode)}"
            if kind != "said":
                del self.running[name]
                process.join()
                pipe.close()
            yield name, kind, what

    def stop(self) -> list[str]:
        """The names of those that were running."""
        names = list(self.running)
        for process, _ in self.running.values():
            process.terminate()
        for process, pipe in self.running.values():
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()
        self.running = {}
        return names


def _one(attempt: Callable, name: str, pipe: connection.Connection) -> None:
    serve()
    pipe.send(attempt(name, lambda text: pipe.send(("said", text))))


class _Cluster:
    """A process for each claim, on a Ray cluster whose machines share the folders of this one."""

    def __init__(self, count: Count, attempt: Callable):
        self.ray, self.began = connect()
        self.count = max(int(self.ray.cluster_resources().get("CPU", 1)), 1)
        self.task = self.ray.remote(num_cpus=1, max_retries=0, max_calls=1)(attempt)
        self.running: dict[str, Any] = {}

    def __enter__(self) -> _Cluster:
        return self

    def __exit__(self, *error) -> None:
        self.stop()
        if self.began:
            self.ray.shutdown()

    def start(self, name: str) -> None:
        self.running[name] = self.task.remote(name)

    def heard(self, timeout: float | None) -> Iterator[tuple[str, str, Any]]:
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
