"""Recording that survives: episodes go into a journal as they happen, and from there into LeRobot files.

At any moment the folder is a LeRobot v3.0 data set with what has been put into its files, and meta/understudy/journal
has the rest: finished episodes, and the running one until its last second. The journal is written by a thread, the
files (video takes its time) by a process of low priority, so that the control loop waits for neither.
What a crash leaves is put into the files by `publish`, which is what `understudy repair` does.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core import DataWarning, Feature, Schema, UserError, role, suggested_names
from ..files import sync_folder, write_json
from . import cache, journal
from .episode import Dataset, Episode
from .formats import interrupted, lerobot
from .formats.lerobot_read import read_info

SYNC = 0.5  # s between two syncs while an episode runs, so that a power cut takes less than a second of it
SEGMENT = 64 * 2**20  # bytes of journal that go into the files at once
ROOM = 512 * 2**20  # bytes that may wait in memory for a disk that is slow
_FREE = ("task", "timestamp", "next.success")  # columns that not every episode has
_LATE = 1.5  # periods after the last step, beyond which a step is late

Values = Mapping[str, Any]


class Recorder:
    """Episodes, step by step, into the LeRobot data set at `path`, which is made or added to.

        with Recorder(schema, "demos", fps=30) as r:
            while going:
                r.step({"observation.state": joints, "observation.images.front": frame}, action)
                ...
                r.end(success=True)

    schema: the columns of a step by name (core.Feature), `action` among them. fps: steps a second, as planned.
    clock: gives seconds; each step's own time becomes the column `timestamp` (s since the episode's first step),
    uneven as it is. Without a clock (None: a simulator, which has no time of its own) steps are 1/fps apart. facts: of
    every episode ("operator", "scene", ...). images: how frames are stored in the end, as in `lerobot.write`; the
    journal has them as they are. saved: called from another thread with the number of each episode, counted from 0,
    once it would survive a power cut. room: bytes that may wait for the disk.

    A step costs the control loop a copy of its arrays. If the disk falls so far behind that `room` is full, steps are
    dropped: `step` returns False, the timestamps have the gap, and the fact "dropped" of the episode has the number;
    "late" is how many steps came more than half a period late.

    Policies read columns that are called observation.* (`core.role`). A schema without any is refused before anything
    is recorded, and columns beside these that look like observations are warned of. require_observation=False records
    any names, without a warning, and a view can rename the columns later.

    What is not finite (NaN, infinity) in actions, observations and outcomes is refused at that step: training refuses
    such data, and a repaired value would be invented. The steps before it are kept and the episode goes on. A sensor
    that can drop out needs a second column of its name and a question mark ("observation.force?", bool), the
    convention of `Batch` and the encoders: where it is False, the sensor gave nothing, and what is not finite is stored
    as 0. Columns of no known role may hold anything.

    Raises UserError where something else is at `path`,
    where another recorder is at work there, where its columns differ, and, at the next call, where the disk is full.
    Warns (DataWarning) of each episode that an interrupted recording left unfinished at `path`: it is kept as far as it
    went, marked as interrupted, and left out of training unless asked.
    """

    def __init__(self, schema: Schema, path: str | Path, *, fps: float | None = None, robot_type: str | None = None,
                 clock: Callable[[], float] | None = time.perf_counter, facts: Mapping[str, Any] | None = None,
                 images: Literal["video", "av1", "h264", "png"] = "video",
                 saved: Callable[[int], None] = lambda number: None, room: int = ROOM,
                 require_observation: bool = True):
        self.path, self.fps, self.clock, self.facts = Path(path), fps, clock, dict(facts or {})
        self.schema = {n: replace(f, kind="string") if f.dtype == "string" else f
                       for n, f in schema.items() if n != "timestamp"}
        if "action" not in self.schema:
            raise UserError(f"expected a column action, found {', '.join(self.schema) or 'none'}", where="schema",
                            do='give Feature("float32", (7,)) under the name "action"')
        _check_readable(self.schema, require_observation)
        whole = {**self.schema, **({"timestamp": Feature("float32", ())} if clock is not None else {})}
        self._written = {**self.schema, **({"timestamp": Feature("float64", ())} if clock is not None else {})}
        self._saved, self._room = saved, room
        self._make(whole, robot_type, images)
        self._lock = _lock(self.path)
        try:
            warn_of_losses(self.path, publish(self.path))  # what an earlier recording left
            self._check(whole)
            self.count = int(read_info(self.path)["total_episodes"])  # episodes that are finished
        except BaseException:
            self._lock.close()
            raise
        self._steps = -1  # of the running episode; -1 where none runs
        self._facts: dict[str, Any] = {}  # of the next episode
        self._last = False  # whether the episode that was finished last can still be discarded or labelled
        self._began = self._before = 0.0  # by the clock: the first step that was kept, and the last that came
        self._dropped, self._late, self._seen = 0, 0, False
        self.lag = 0.0  # s; the longest that something waited for its sync so far
        self._waiting, self._guard = 0, threading.Lock()  # bytes
        self._error: Exception | None = None
        self._closed = False
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        header = {"fps": fps, "robot_type": robot_type, "images": images}
        self._journal = journal.Writer(self.path / journal.FOLDER, header)
        self._worker: subprocess.Popen | None = None
        self._thread = threading.Thread(target=self._write, name="recorder", daemon=True)
        self._thread.start()

    # -- an episode -------------------------------------------------------------------------------------------------

    def step(self, obs: Values, action, others: Values | None = None, *, at: float | None = None) -> bool:
        """What was seen, what was done then, and other columns of the schema (next.reward, task, ...). at: when, by the
        clock; now, if not given. Returns whether it was kept: see above. Raises UserError naming a column that is
        missing, of another shape or dtype, or not finite; that step is not recorded, and the episode goes on."""
        if at is not None and self.clock is None:
            raise UserError("expected no time where there is no clock, found one", where="at",
                            do="give the recorder the clock that it is of")
        if self._closed:
            raise UserError("expected a recorder that is open, found one that was closed", where=self.path,
                            do="make another: it goes on where this one ended")
        now = self.clock() if at is None and self.clock is not None else at
        values = self._checked({**obs, "action": action, **(others or {})}, self.schema, f"step {max(self._steps, 0)}")
        if self._steps < 0:
            self._begin()
        if self.clock is not None:
            if self._seen and not now > self._before:
                raise UserError(f"expected times that grow, found {now} after {self._before}", where="at",
                                do="give seconds of one clock that is never set back (time.perf_counter)")
            if self._seen and self.fps and now - self._before > _LATE / self.fps:
                self._late += 1
            self._began = now if not self._steps else self._began
            values["timestamp"], self._before, self._seen = np.float64(now - self._began), now, True
        parts = journal.packed(self._written, values)
        size = sum(map(len, parts))
        if self._waiting + size > self._room:
            self._dropped += 1
            return False
        self._put(b"S", parts, size)
        self._steps += 1
        return True

    def begin(self, **facts) -> None:
        """Facts of the episode that the next step begins; only needed where it has some that are known before."""
        if self._steps >= 0:
            raise UserError("expected the running episode to be ended first", where=self.path, do="r.end() ends it")
        self._facts = facts

    def end(self, success: bool | None = None, obs: Values | None = None, **facts) -> int | None:
        """The episode is finished; its number, or None where it has no step. obs: what was seen after the last action.
        facts: plain JSON values, of this episode."""
        if self._steps < 1:
            if self._steps == 0:
                self.discard()
            return None
        if obs:
            values = self._checked(obs, {n: self.schema[n] for n in obs if n in self.schema}, "the last observation")
            self._put(b"L", journal.last(self._written, values))
        facts = {**facts, **({} if success is None else {"success": bool(success)}),
                 **({} if self.clock is None else {"late": self._late}), "dropped": self._dropped}
        number, steps, self._steps = self.count, self._steps, -1
        self.count, self._last = self.count + 1, True
        self._put(b"F", [json.dumps({**facts, "steps": steps}, default=_plain).encode()], saved=number)
        return number

    def discard(self) -> None:
        """The running episode; where none runs, the one that was finished last, to be recorded again."""
        running = self._steps >= 0
        if not running:
            self._recent("discarded")
            self.count, self._last = self.count - 1, False
        self._steps = -1
        self._put(b"D", [b"running" if running else b"last"], saved=-1)

    def label(self, **facts) -> None:
        """Facts of the episode that was finished last (success=False, quality=3, ...), until the next one begins."""
        self._recent("labelled")
        self._put(b"T", [json.dumps(facts, default=_plain).encode()], saved=-1)

    def add(self, episode: Episode) -> int:
        """A finished episode as it is, with its own columns and facts; its number."""
        if self._steps >= 0:
            raise UserError("expected the running episode to be ended first", where=self.path, do="r.end() ends it")
        found = {n: (f.dtype, f.shape) for n, f in episode.features().items()}
        wanted = {n: (f.dtype, f.shape) for n, f in self.schema.items()}
        for name in dict.fromkeys((*wanted, *found)):
            if name not in _FREE and found.get(name) != wanted.get(name):
                raise UserError(f"expected {_said(wanted, name)} as in the other episodes, found {_said(found, name)}",
                                where=f"episode {self.count}, column {name!r}", do="give all episodes the same columns")
        for name in (n for n in episode.steps if role(n) == "action"):
            values = np.asarray(episode.steps[name])
            if values.dtype.kind == "f" and not (good := np.isfinite(values)).all():
                step, *at = np.argwhere(~good)[0]
                raise _not_finite(name, values[(step, *at)], self.schema[name], at,
                                  f"episode {self.count}, column {name!r}", f", step {step}")
        number, self.count, self._last = self.count, self.count + 1, True
        parts = journal.whole(episode)
        self._put(b"E", parts, sum(map(len, parts)), saved=number)
        return number

    @property
    def steps(self) -> int:
        """Of the running episode."""
        return max(self._steps, 0)

    def _begin(self) -> None:
        self._steps, self._late, self._dropped, self._seen, self._last = 0, 0, 0, False, False
        told = {"columns": journal.columns(self._written), "meta": {**self.facts, **self._facts}}
        self._facts = {}
        self._put(b"B", [json.dumps(told, default=_plain).encode()])

    def _recent(self, what: str) -> None:
        if self._steps >= 0 or not self._last:
            raise UserError(f"expected an episode that was just finished, to be {what}, found "
                            f"{'one that runs' if self._steps >= 0 else 'none'}", where=self.path,
                            do="label or discard the last episode before the next one begins")

    def _checked(self, values: Values, schema: Schema, where: str) -> dict[str, Any]:
        if values.keys() != schema.keys():
            odd = next(n for n in (*schema, *values) if n not in values or n not in schema)
            raise UserError(f"expected the columns {', '.join(schema)}, found {', '.join(values)}",
                            where=f"{where}, column {odd!r}", do="give each step what the schema says")
        out = {}
        for name, f in schema.items():
            if f.kind == "string":
                out[name] = values[name]
                continue
            value = np.asarray(values[name])
            if value.shape != f.shape or value.dtype != f.dtype and not np.can_cast(value.dtype, f.dtype, "same_kind"):
                raise UserError(f"expected {f.dtype} {f.shape}, found {value.dtype} {value.shape}",
                                where=f"{where}, column {name!r}", do="give each step what the schema says")
            out[name] = _finite(name, value if value.dtype == f.dtype else value.astype(f.dtype), f, values, where)
        return out

    # -- the end ----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Waits until every finished episode is in the LeRobot files."""
        if self._steps >= 0:
            raise UserError("expected the running episode to be ended first", where=self.path, do="r.end() ends it")
        self._ask("rotate")
        self._last = False
        warn_of_losses(self.path, publish(self.path))

    def close(self) -> None:
        """As flush; an episode that runs is kept as far as it went, with the fact "interrupted", and a warning."""
        if self._closed:
            return
        self._closed = True
        try:
            self._queue.put(("stop", threading.Event()))
            self._thread.join()
            if self._worker is not None:
                with suppress(OSError):
                    self._worker.stdin.close()
                self._worker.wait()
            if self._error is not None:
                self._raise()
            warn_of_losses(self.path, publish(self.path))
        finally:
            self._lock.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.close()
        except Exception:
            if error is None:  # else that is what happened first
                raise

    # -- what happens beside the control loop -----------------------------------------------------------------------

    def _put(self, kind: bytes, parts: list, size: int = 0, saved: int | None = None) -> None:
        if self._error is not None:
            self._raise()
        with self._guard:
            self._waiting += size
        first = self.count - (saved is not None and saved >= 0)
        self._queue.put((kind, parts, size, saved, first, time.perf_counter()))

    def _ask(self, what: str) -> None:
        done = threading.Event()
        self._queue.put((what, done))
        while not done.wait(0.2):
            if not self._thread.is_alive():
                break
        if self._error is not None:
            self._raise()

    def _raise(self):
        if isinstance(self._error, OSError) and self._error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError("the disk is full; every episode that was saved is kept", where=self.path,
                            do=f"make room, then understudy repair {self.path}") from self._error
        raise self._error

    def _write(self) -> None:
        """The thread: everything that waits is written, then synced at once."""
        unsynced: list[int] = []
        since, stop = None, False  # when the first step that is not synced came
        while not stop:
            items, asked = [], []
            with suppress(queue.Empty):
                items.append(self._queue.get(timeout=SYNC / 2))
                while len(items) < 1000:
                    items.append(self._queue.get_nowait())
            try:
                for item in items:
                    if isinstance(item[0], str):
                        asked.append(item)
                        continue
                    kind, parts, size, saved, first, when = item
                    with self._guard:
                        self._waiting -= size
                    if self._error is not None:
                        continue
                    since = when if since is None else since
                    if kind in (b"B", b"E") and self._journal.size >= SEGMENT:
                        self._settle(unsynced)
                        self._hand_over(self._journal.rotate())
                    self._journal.put(kind, *parts, first=first)
                    if kind == b"D" and first in unsynced:  # discarded before it was told of
                        unsynced.remove(first)
                    if saved is not None:
                        unsynced.append(saved)
                if unsynced or asked or (since is not None and time.perf_counter() - since >= SYNC):
                    self._settle(unsynced)
                    if since is not None:
                        self.lag = max(self.lag, time.perf_counter() - since)
                    since = None
                if asked:
                    self._journal.rotate()
            except Exception as error:  # the control loop is told at its next call
                self._error = self._error or error
                with suppress(OSError):  # what was written before is whole
                    self._settle(unsynced)
            for what, done in asked:
                stop = stop or what == "stop"
                done.set()

    def _settle(self, unsynced: list[int]) -> None:
        self._journal.sync()
        told = [number for number in unsynced if number >= 0]
        unsynced.clear()
        for number in told:
            self._saved(number)

    def _hand_over(self, segment: Path) -> None:
        """Complete segments to a process of low priority; if it cannot be had, `close` does its work."""
        with suppress(OSError):
            if self._worker is None:
                self._worker = subprocess.Popen(
                    [sys.executable, "-m", "understudy.data.record", str(self.path)], stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1"})
            self._worker.stdin.write(f"{segment.name}\n")
            self._worker.stdin.flush()

    # -- what is there ----------------------------------------------------------------------------------------------

    def _make(self, schema: Schema, robot_type, images) -> None:
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()
        if not self.path.exists():
            lerobot.create(self.path, schema, fps=self.fps, robot_type=robot_type, images=images)
        elif not (self.path / "meta" / "info.json").exists():
            raise UserError("expected a recording, or nothing, found something else", where=self.path,
                            do="name another folder")
        (self.path / journal.FOLDER).mkdir(parents=True, exist_ok=True)
        for folder in list(journal.FOLDER.parents):
            sync_folder(self.path / folder)

    def _check(self, schema: Schema) -> None:
        """Of what is there already."""
        info = read_info(self.path)
        if not info["total_episodes"]:
            return
        if info["codebase_version"] != "v3.0":
            raise UserError(f"expected a LeRobot v3.0 data set to add to, found {info['codebase_version']}",
                            where=self.path, do="record into another folder, or convert it first")
        data = Dataset.open(self.path)
        there = {n: (f.dtype, f.shape) for n, f in data.features().items()}
        ours = {n: (f.dtype, f.shape) for n, f in schema.items()}
        for name in dict.fromkeys((*there, *ours)):
            if name not in _FREE and there.get(name) != ours.get(name):
                raise UserError(f"expected {_said(there, name)} as the episodes there have, found {_said(ours, name)}",
                                where=f"{self.path}, column {name!r}", do="record into another folder")
        if self.fps is not None and data.fps is not None and data.fps != self.fps:
            raise UserError(f"expected {data.fps:g} steps a second as the episodes there have, found {self.fps:g}",
                            where=self.path, do="record into another folder")


# -- from the journal into the files --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """episodes: how many were put into the files; losses: what could not be read, or not be kept, in words."""

    episodes: int
    losses: tuple[str, ...] = ()


def publish(path: str | Path, *, until: str | None = None) -> Published:
    """Puts what the journal at `path` holds into the LeRobot files, adding to them, and removes it from the journal.

    until: the name of the last segment that a recorder at work has done with. Without it, an episode that was running
    is kept as far as it went, with the fact "interrupted".
    """
    path = Path(path)
    folder = path / journal.FOLDER
    if not folder.is_dir():
        return Published(0)
    with cache.room_on_disk(path, f"make room, then understudy repair {path}"), cache.locked(folder / ".publishing"):
        there = int(read_info(path)["total_episodes"])
        all_of_it = [f for f in journal.segments(folder) if until is None or f.name <= until]
        found = interrupted.unpublished([journal.read(file) for file in all_of_it], path, there)
        losses = [loss for s in found for loss in s.losses]
        for s in found:
            if s.running is not None and len(s.running):
                losses.append(f"episode {s.first + len(s.episodes)} was not finished: its {len(s.running)} steps are "
                              'kept, with the fact "interrupted"; training leaves it out unless asked '
                              "(--include-interrupted)")
                s.running.meta["interrupted"] = True
                s.episodes.append(s.running)
        taken = [e for s in found for e in s.episodes]
        if taken:
            told = any("next.success" in e.schema for e in taken)
            if there:
                told = "next.success" in read_info(path)["features"]
            header = next((s.header for s in found if s.header), {})
            write_json(folder / interrupted.PUBLISHING, {"segments": [s.path.name for s in found],
                                                         "total": there + len(taken)})
            lerobot.append(path, Dataset([_as_stored(e.episode(), told) for e in taken], {"fps": header.get("fps")}),
                           robot_type=header.get("robot_type"), images=header.get("images", "video"))
        else:
            lerobot.append(path, Dataset([]))  # removes what an interrupted one left
        for file in all_of_it:
            file.unlink()
        (folder / interrupted.PUBLISHING).unlink(missing_ok=True)
        sync_folder(folder)
    return Published(len(taken), tuple(losses))


def warn_of_losses(path: Path, done: Published) -> None:
    """Warns of what `publish` could not keep whole."""
    for loss in done.losses:
        warnings.warn(loss if loss.startswith(str(path)) else f"{path}: {loss}", DataWarning, stacklevel=3)


def repair(path: str | Path) -> Published:
    """`publish` of a recording whose recorder is gone. Raises UserError where one is at work."""
    if not (Path(path) / journal.FOLDER).is_dir():
        lerobot.append(path, Dataset([]))  # removes what an interrupted one left
        return Published(0)
    with _lock(Path(path)):
        return publish(path)


def _as_stored(episode: Episode, told: bool) -> Episode:
    """With `next.success` if the others have it: an environment that has not told of success has not had one."""
    changes: dict[str, np.ndarray | None] = {}
    if ("next.success" in episode.steps) != told:
        changes["next.success"] = np.zeros(len(episode), bool) if told else None
        if told:
            episode = replace(episode, meta={**episode.meta, "success": False})
    if "timestamp" in episode.steps:
        changes["timestamp"] = np.asarray(episode.steps["timestamp"], np.float32)
    return episode.but(changes) if changes else episode


def _lock(path: Path):
    handle = open(path / journal.FOLDER / ".recording", "a")  # noqa: SIM115 held as long as the recorder lives
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise UserError("expected nobody else to record here, found another recorder at work", where=path,
                        do="wait until it has ended, or record into another folder") from None
    except (ImportError, OSError):
        pass
    return handle


def _check_readable(schema: Schema, required: bool) -> None:
    """Raises UserError where no policy could read anything, and warns of columns that none will."""
    readable = [n for n, f in schema.items() if role(n) == "observation" and f.kind != "string"]
    names = suggested_names(schema)
    told = ", ".join(f"{old} -> {new}" for old, new in names.items())
    if not readable and required:
        raise UserError(f"no policy can read this recording: no column is an observation (the columns are "
                        f"{', '.join(schema)})", where="schema",
                        do="name the columns that policies are to read observation.state, observation.images.NAME or "
                           f"observation.OTHER{': ' + told if told else ''}. To record under these names and rename "
                           "them later, give require_observation=False")
    if readable and names and required:
        warnings.warn(f"policies will not read {', '.join(map(repr, names))}; they read columns called observation.* "
                      f"and learn the column action. Other names: {told}", stacklevel=3)


def _finite(name: str, value: np.ndarray, feature: Feature, values: Values, where: str) -> np.ndarray:
    """`value`, if it is finite; with 0 for what is not, if the step says that it was not sensed."""
    if value.dtype.kind != "f" or role(name) in ("other", "index") or (good := np.isfinite(value)).all():
        return value
    if role(name) == "observation" and f"{name}?" in values and not np.asarray(values[f"{name}?"]).any():
        return np.where(good, value, value.dtype.type(0))
    at = np.argwhere(~good)[0]
    raise _not_finite(name, value[tuple(at)], feature, at, f"{where}, column {name!r}")


def _not_finite(name: str, value, feature: Feature, at, where: str, after: str = "") -> UserError:
    part = "".join(f"[{feature.names[i] if feature.names and len(feature.shape) == 1 else i}]" for i in at)
    way = (f' A sensor that can drop out needs the column "{name}?" (bool), False where it gave nothing.'
           if role(name) == "observation" else "")
    return UserError(f"the value is {value}, which is no number that a policy can learn", where=f"{where}{part}{after}",
                     do=f"correct what gave it. It was not recorded; what was recorded before is kept.{way}")


def _said(columns, name: str) -> str:
    return "no such column" if name not in columns else f"{columns[name][0]} {columns[name][1]}"


def _plain(value):
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)


def _work(path: Path) -> None:
    """The process beside: a line on standard input is work, its end is the end."""
    with suppress(OSError, AttributeError):
        os.nice(10)
    for name in sys.stdin:
        with suppress(UserError, OSError):  # a full disk: what is in the journal stays there
            publish(path, until=name.strip())


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
