"""Crash-safe recording: episodes go into a journal as they happen, and from there into LeRobot files.

At any moment the folder is a LeRobot v3.0 data set with the episodes that are in its files. meta/understudy/journal has
the rest: finished episodes, and the current one up to its last second.

A thread writes the journal, and the encoder, a process that gets only processor time that nobody else wants, makes the
files (encoding video takes time), so that the control loop waits for neither. If the encoder falls behind, finished
episodes wait in the journal. After a crash, `publish` moves the rest of the journal into the files. `understudy repair`
calls it.
"""

from __future__ import annotations

import errno
import json
import queue
import shutil
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

from ...core import DataWarning, Feature, Schema, UserError, is_read_by_default, role, suggested_names
from ...files import sync_folder, try_lock, write_json
from ...hints import command_line, unit_hint
from .. import cache, journal
from ..episode import Dataset, Episode
from ..formats import interrupted_recording, lerobot, open_dataset
from ..formats.lerobot_read import read_info
from ..formats.parts.file_kinds import is_lerobot
from ..formats.parts.sidecar import to_json_value
from ..sources import first_misfit
from .encoder import WAIT, Backlog, EncoderProcess, Report

SYNC_SECONDS = 0.5  # s between two syncs during an episode, so that a power cut costs less than a second of it
SEGMENT_BYTES = 64 * 2**20  # bytes of the journal that are moved into the files together
MAX_QUEUED_BYTES = 512 * 2**20  # bytes that may wait in memory for a slow disk
MAX_BACKLOG_BYTES = 32 * 2**30  # bytes of finished episodes that may wait for the encoder
MIN_FREE_DISK = 512 * 2**20  # bytes of the disk that stay free: `repair` needs some of them
ENCODER_THREADS = 1  # threads for each camera; cameras are encoded together
_OPTIONAL_COLUMNS = ("task", "timestamp", "next.success")  # columns that not every episode has
_LATE_FACTOR = 1.5  # a step is late after this many periods

Values = Mapping[str, Any]


def free_disk_text(path: Path) -> str:
    """Returns how much space of a disk is free, in words, with the folder at which it is mounted."""
    mount = next(folder for folder in (path.resolve(), *path.resolve().parents) if folder.is_mount())
    return f"{shutil.disk_usage(path).free / 2**20:,.0f} MB of the disk at {mount} are free"


class Recorder:
    """Records episodes step by step into a LeRobot data set, which is created or extended.

    A step costs the control loop a copy of its arrays. If `max_queued_bytes` wait for a slow disk, further steps are
    dropped: `step` returns False, the timestamps show the gap, and the metadata "dropped" of the episode counts the
    lost steps. "late" counts the steps that were late by more than half a period.

    The encoder may fall behind. If finished episodes of more than `max_backlog_bytes` wait for it, `end` waits too. If
    less than `MIN_FREE_DISK` of the disk is free, the next step raises a UserError, and the episode is kept up to it.

    Policies read columns that are named observation.* (`core.role`). A schema without such a column is refused before
    anything is recorded. Other columns that look like observations cause a warning. With require_observation=False, any
    names are recorded without a warning, and a view can rename the columns later.

    NaN and infinity in actions, observations and outcomes are refused at that step, because training refuses such data
    and a repaired value would be invented. The earlier steps are kept and the episode continues.

    A sensor that can fail needs a second column with its name and a question mark ("observation.force?", bool), as in
    `Batch` and in encoders. If it is False, the sensor gave no value, and NaN and infinity are stored as 0. Columns of
    no known role may contain anything.

    If an interrupted recording left an unfinished episode at `path`, a DataWarning names it. The episode is kept up to
    its last step, marked as interrupted, and left out of training unless you ask for it.

    Args:
        schema: The columns of a step by name, including `action`.
        fps: Intended steps per second.
        clock: Returns seconds. The measured time of each step becomes the column `timestamp` (s since the first step of
            the episode). None is for simulators, which have no time of their own: steps are 1/fps apart.
        metadata: Metadata of every episode ("operator", "scene", ...).
        images: How frames are stored in the end, as in `lerobot.write`. The journal stores them without loss.
        on_saved: Called from another thread with the number of each episode, counted from 0, as soon as it would
            survive a power cut.
        max_queued_bytes: Bytes that may wait in memory for the disk.
        max_backlog_bytes: Bytes of finished episodes that may wait on the disk for the encoder.
        show: Shows one line of text, about twice a second, while something waits for the encoder.

    Raises:
        UserError: Something else is at `path`, another recorder works there, its columns differ, or, at the next call,
            the disk is full.

    Example:
        >>> with Recorder(schema, "demos", fps=30) as recorder:
        ...     for _ in range(100):
        ...         obs = robot.observe()
        ...         recorder.step({"observation.state": obs}, teleoperator.action())
        ...     recorder.end(success=True)
    """

    def __init__(self, schema: Schema, path: str | Path, *, fps: float | None = None, robot_type: str | None = None,
                 clock: Callable[[], float] | None = time.perf_counter, metadata: Mapping[str, Any] | None = None,
                 images: Literal["video", "av1", "h264", "png"] = "video",
                 on_saved: Callable[[int], None] = lambda number: None, max_queued_bytes: int = MAX_QUEUED_BYTES,
                 require_observation: bool = True, max_backlog_bytes: int = MAX_BACKLOG_BYTES,
                 show: Callable[[str], None] = lambda text: None):
        self.path, self.fps, self.clock, self.metadata = Path(path), fps, clock, dict(metadata or {})
        self.schema = {n: replace(f, kind="string") if f.dtype == "string" else f
                       for n, f in schema.items() if n != "timestamp"}
        if "action" not in self.schema:
            raise UserError(f"the schema has no column action, only "
                            f"{', '.join(self.schema) or 'nothing'}", where="schema",
                            hint='give Feature("float32", (7,)) under the name "action"')
        _check_readable(self.schema, require_observation)
        whole = {**self.schema, **({"timestamp": Feature("float32", ())} if clock is not None else {})}
        self._written_schema = {**self.schema, **({"timestamp": Feature("float64", ())} if clock is not None else {})}
        self._on_saved, self._max_queued_bytes = on_saved, max_queued_bytes
        self.max_backlog_bytes, self._show = max_backlog_bytes, show
        self._create_dataset(whole, robot_type, images)
        self._lock = _lock_recording(self.path)
        try:
            warn_of_losses(self.path, publish(self.path))  # the rest of an earlier recording
            self._check_existing(whole)
            self.count = int(read_info(self.path)["total_episodes"])  # finished episodes
        except BaseException:
            self._lock.close()
            raise
        self._steps = -1  # number of steps of the current episode; -1 if there is none
        self._episode_metadata: dict[str, Any] = {}  # metadata of the next episode
        self._can_change_last = False  # whether the last finished episode can still be discarded or labeled
        self._first_time = self._last_time = 0.0  # times of the first step that was kept and of the last step
        self._has_last_time = False  # whether the current episode has a step with a time
        self._dropped = self._n_late = 0
        self.sync_lag = 0.0  # s; the longest time that something waited for its sync so far
        self._queued_bytes, self._guard = 0, threading.Lock()  # bytes
        self._error: Exception | None = None
        self._closed, self._stopped = False, threading.Event()
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        header = {"fps": fps, "robot_type": robot_type, "images": images}
        self._journal = journal.JournalWriter(self.path / journal.JOURNAL_FOLDER, header)
        self._encoder = EncoderProcess(self.path)
        self._thread = threading.Thread(target=self._writer_loop, name="recorder", daemon=True)
        self._thread.start()

    # -- an episode -------------------------------------------------------------------------------------------------

    def step(self, obs: Values, action, columns: Values | None = None, *, time: float | None = None) -> bool:
        """Records one step.

        Args:
            action: The action that was taken after this observation.
            columns: Other columns of the schema (next.reward, task, ...).
            time: Time of the step by the clock (s). By default now.

        Returns:
            Whether the step was kept. False if it was dropped because the disk is too slow.

        Raises:
            UserError: A column is missing, has another shape or dtype, or contains NaN or infinity. The step is not
                recorded, and the episode continues.
        """
        if time is not None and self.clock is None:
            raise UserError("this recorder has no clock, so a step cannot have a time", where="time",
                            hint="pass the clock to the recorder")
        if self._closed:
            raise UserError("the recorder is closed", where=self.path,
                            hint="make another one: it continues where this one ended")
        now = self.clock() if time is None and self.clock is not None else time
        values = self._validate({**obs, "action": action, **(columns or {})}, self.schema, f"step {self.steps}")
        if self._steps < 0:
            self._begin()
        if self.clock is not None:
            assert now is not None
            if self._has_last_time and not now > self._last_time:
                raise UserError(f"times must increase, but {now} comes after {self._last_time}", where="time",
                                hint="use a clock that is never set back (time.perf_counter)")
            if self._has_last_time and self.fps and now - self._last_time > _LATE_FACTOR / self.fps:
                self._n_late += 1
            self._first_time = now if not self._steps else self._first_time
            values["timestamp"], self._last_time, self._has_last_time = np.float64(now - self._first_time), now, True
        parts = journal.pack_row(self._written_schema, values)
        size = sum(map(len, parts))
        if self._queued_bytes + size > self._max_queued_bytes:
            self._dropped += 1
            return False
        self._put(b"S", parts, size)
        self._steps += 1
        return True

    def begin(self, **metadata) -> None:
        """Sets metadata, known in advance, of the episode that starts with the next step."""
        self._check_ended()
        self._episode_metadata = metadata

    def end(self, success: bool | None = None, obs: Values | None = None, **metadata) -> int | None:
        """Finishes the episode.

        Args:
            success: Whether it succeeded. None if it is not known.
            obs: The observation after the last action, by column.

        Returns:
            The number of the episode. None if it has no steps.
        """
        if self._steps < 1:
            if self._steps == 0:
                self.discard()
            return None
        if obs:
            values = self._validate(obs, {n: self.schema[n] for n in obs if n in self.schema}, "the last observation")
            self._put(b"L", journal.pack_last_row(self._written_schema, values))
        metadata = {**metadata, **({} if success is None else {"success": bool(success)}),
                    **({} if self.clock is None else {"late": self._n_late}), "dropped": self._dropped}
        number, steps, self._steps = self.count, self._steps, -1
        self.count, self._can_change_last = self.count + 1, True
        self._put(b"F", [json.dumps({**metadata, "steps": steps}, default=to_json_value).encode()], saved=number)
        self.wait_for_encoder(self.max_backlog_bytes)
        return number

    def discard(self) -> None:
        """Discards the current episode, or the last finished one if none is running. It can then be recorded again."""
        running = self._steps >= 0
        if not running:
            self._last_finished("discarded")
            self.count, self._can_change_last = self.count - 1, False
        self._steps = -1
        self._put(b"D", [b"running" if running else b"last"], saved=-1)

    def label(self, **metadata) -> None:
        """Sets metadata of the last finished episode (success=False, quality=3, ...), until the next one starts."""
        self._last_finished("labeled")
        self._put(b"T", [json.dumps(metadata, default=to_json_value).encode()], saved=-1)

    def add(self, episode: Episode) -> int:
        """Adds a finished episode with its own columns and metadata. Returns its number."""
        self._check_ended()
        _check_same_columns(self.schema, episode.features(), "the other episodes have {}, but this one has {}",
                            f"episode {self.count}", "give all episodes the same columns")
        for name in (n for n in episode.steps if role(n) == "action"):
            values = np.asarray(episode.steps[name])
            if values.dtype.kind == "f" and not (good := np.isfinite(values)).all():
                step, *at = np.argwhere(~good)[0]
                raise _not_finite(name, values[(step, *at)], self.schema[name], at,
                                  f"episode {self.count}, column {name!r}", f", step {step}")
        number, self.count, self._can_change_last = self.count, self.count + 1, True
        parts = journal.episode_record(episode)
        self._put(b"E", parts, sum(map(len, parts)), saved=number)
        return number

    @property
    def steps(self) -> int:
        """Number of steps of the current episode."""
        return max(self._steps, 0)

    def _check_ended(self) -> None:
        if self._steps >= 0:
            raise UserError("an episode is running and must end first", where=self.path, hint="r.end() ends it")

    def _begin(self) -> None:
        self._steps, self._n_late, self._dropped, self._has_last_time, self._can_change_last = 0, 0, 0, False, False
        metadata, self._episode_metadata = {**self.metadata, **self._episode_metadata}, {}
        description = {"columns": journal.describe_columns(self._written_schema), "metadata": metadata}
        self._put(b"B", [json.dumps(description, default=to_json_value).encode()])

    def _last_finished(self, what: str) -> None:
        if self._steps >= 0 or not self._can_change_last:
            raise UserError(f"only an episode that was just finished can be {what}, but "
                            f"{'one is still running' if self._steps >= 0 else 'there is none'}", where=self.path,
                            hint="label or discard the last episode before the next one starts")

    def _validate(self, values: Values, schema: Schema, where: str) -> dict[str, Any]:
        if values.keys() != schema.keys():
            differing_column = next(n for n in (*schema, *values) if n not in values or n not in schema)
            raise UserError(f"the step has the columns {', '.join(values) or 'none'}, "
                            f"but the schema says {', '.join(schema)}",
                            where=f"{where}, column {differing_column!r}", hint="give each step what the schema says")
        out = {}
        for name, f in schema.items():
            if f.kind == "string":
                out[name] = values[name]
                continue
            value = np.asarray(values[name])
            if value.shape != f.shape or value.dtype != f.dtype and not np.can_cast(value.dtype, f.dtype, "same_kind"):
                raise UserError(f"the value is {value.dtype} {value.shape}, but the schema says {f.dtype} {f.shape}",
                                where=f"{where}, column {name!r}", hint="give each step what the schema says")
            cast = value.astype(f.dtype, copy=False)
            if (misfit := first_misfit(value, cast)) is not None:
                raise UserError(f"{f.dtype} does not hold {value[misfit]}", where=f"{where}, column {name!r}",
                                hint=f"scale the values, or give the column the type {value.dtype} in the schema")
            out[name] = _finite(name, cast, f, values, where)
        return out

    # -- the end ----------------------------------------------------------------------------------------------------

    def backlog(self) -> Backlog:
        """The finished episodes that wait for the encoder."""
        return self._encoder.backlog()

    def wait_for_encoder(self, max_bytes: int = 0) -> None:
        """Waits until at most `max_bytes` of finished episodes wait for the encoder.

        Raises:
            UserError: The encoder has failed. What it did not encode stays in the journal.
        """
        while (backlog := self.backlog()).bytes > max_bytes:
            self.check_encoder()
            self._show(str(backlog))
            time.sleep(WAIT)

    @property
    def open_bytes(self) -> int:
        """Bytes in the journal of episodes that are not passed to the encoder yet."""
        return self._journal.n_bytes

    def check_encoder(self) -> None:
        """Raises a UserError if the encoder has failed."""
        self._encoder.check()

    def flush(self) -> None:
        """Waits until every finished episode is in the LeRobot files."""
        self._check_ended()
        done = threading.Event()
        self._queue.put(done)
        while not done.wait(0.2) and self._thread.is_alive():
            pass
        self._check_writer()
        self._can_change_last = False
        warn_of_losses(self.path, publish(self.path, progress=self._show_progress))
        self._encoder.forget()

    def close(self) -> None:
        """Stops recording, and waits as `flush` does.

        A running episode is kept up to its last step, with the metadata "interrupted" and a warning.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._queue.put(self._stopped)
            self._thread.join()
            self._encoder.close(self._show)
            self._check_writer()
            warn_of_losses(self.path, publish(self.path, progress=self._show_progress))
        finally:
            self._lock.close()

    def _show_progress(self, n_frames: int, total: int) -> None:
        self._show(f"encoding: {n_frames:,} of {total:,} frames")

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.close()
        except Exception:
            if error is None:  # else that is what happened first
                raise

    # -- the writer thread -------------------------------------------------------------------------------------------

    def _put(self, kind: bytes, parts: list, size: int = 0, saved: int | None = None) -> None:
        self._check_writer()
        with self._guard:
            self._queued_bytes += size
        first = self.count - (saved is not None and saved >= 0)
        self._queue.put((kind, parts, size, saved, first, time.perf_counter()))

    def _check_writer(self) -> None:
        """Raises the error that stopped the writer thread."""
        if isinstance(self._error, OSError) and self._error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError("the disk is full; every episode that was saved is kept", where=self.path,
                            hint=f"make room, then {command_line('repair', self.path)}") from self._error
        if self._error is not None:
            raise self._error

    def _writer_loop(self) -> None:
        """Runs the writer thread: writes everything that waits, then syncs once."""
        unsynced: list[int] = []
        since = None  # time of the first step that is not synced
        n_steps = 0  # number of steps of the segment
        while not self._stopped.is_set():
            items, asked = [], []
            with suppress(queue.Empty):
                items.append(self._queue.get(timeout=SYNC_SECONDS / 2))
                while len(items) < 1000:
                    items.append(self._queue.get_nowait())
            try:
                for item in items:
                    if isinstance(item, threading.Event):
                        asked.append(item)
                        continue
                    kind, parts, size, saved, first, when = item
                    with self._guard:
                        self._queued_bytes -= size
                    if self._error is not None:
                        continue
                    since = when if since is None else since
                    if kind in (b"B", b"E") and self._journal.n_bytes >= SEGMENT_BYTES:
                        self._sync_journal(unsynced)
                        backlog = Backlog(self._journal.n_bytes, n_steps)
                        segment = self._journal.rotate()
                        assert segment is not None  # it has bytes
                        self._encoder.encode(segment.name, backlog)
                        n_steps = 0
                    self._journal.append(kind, *parts, first_episode=first)
                    n_steps += kind == b"S"
                    if kind == b"D" and first in unsynced:  # discarded before it was reported
                        unsynced.remove(first)
                    if saved is not None:
                        unsynced.append(saved)
                if unsynced or asked or (since is not None and time.perf_counter() - since >= SYNC_SECONDS):
                    self._sync_journal(unsynced)
                    if since is not None:
                        self.sync_lag = max(self.sync_lag, time.perf_counter() - since)
                    since = None
                if asked:
                    self._journal.rotate()
            except Exception as error:  # the next call raises it in the control loop
                self._error = self._error or error
                with suppress(OSError):  # everything that was written before is complete
                    self._sync_journal(unsynced)
            for done in asked:
                done.set()

    def _sync_journal(self, unsynced: list[int]) -> None:
        self._journal.sync()
        if self._error is None and shutil.disk_usage(self.path).free < MIN_FREE_DISK:
            self._error = UserError(f"{free_disk_text(self.path)}, and {MIN_FREE_DISK / 2**20:.0f} MB must stay free; "
                                    "every episode that was saved is kept, and the running one up to its last step",
                                    where=self.path,
                                    hint=f"make room, then {command_line('repair', self.path)}")
        saved_episodes = [number for number in unsynced if number >= 0]
        unsynced.clear()
        for number in saved_episodes:
            self._on_saved(number)

    # -- an existing data set ------------------------------------------------------------------------------------------

    def _create_dataset(self, schema: Schema, robot_type, images) -> None:
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()
        if not self.path.exists():
            lerobot.create(self.path, schema, fps=self.fps, robot_type=robot_type, images=images)
        elif not is_lerobot(self.path):
            raise UserError("the folder does not contain a recording", where=self.path,
                            hint="choose another folder")
        (self.path / journal.JOURNAL_FOLDER).mkdir(parents=True, exist_ok=True)
        for folder in list(journal.JOURNAL_FOLDER.parents):
            sync_folder(self.path / folder)

    def _check_existing(self, schema: Schema) -> None:
        """Checks that the columns fit an existing data set that is extended."""
        info = read_info(self.path)
        if not info["total_episodes"]:
            return
        if info["codebase_version"] != "v3.0":
            raise UserError(f"episodes can be added only to LeRobot v3.0, but this is {info['codebase_version']}",
                            where=self.path, hint="record into another folder, or convert it first")
        data = open_dataset(self.path)
        _check_same_columns(data.features(), schema, "the episodes there have {}, but the schema has {}", self.path,
                            "record into another folder")
        if self.fps is not None and data.fps is not None and data.fps != self.fps:
            raise UserError(f"the episodes there have {data.fps:g} steps a second, but fps is {self.fps:g}",
                            where=self.path, hint="record into another folder")


# -- from the journal into the files --------------------------------------------------------------------------------


@dataclass(frozen=True)
class PublishResult:
    """The result of `publish`: how many episodes were moved, and descriptions of what was lost.

    Args:
        problems: Descriptions of what could not be read or kept.
    """

    episodes: int
    problems: tuple[str, ...] = ()


def publish(path: str | Path, *, stop_segment: str | None = None,
            progress: Callable[[int, int], None] = lambda n_frames, total: None) -> PublishResult:
    """Moves the contents of a journal into the LeRobot files, and removes them from the journal.

    Args:
        stop_segment: Name of the last segment that a working recorder has finished. Without it, an episode that was
            running is kept up to its last step, with the metadata "interrupted".
        progress: Called with the number of frames that are encoded and the number of all frames.
    """
    path = Path(path)
    folder = path / journal.JOURNAL_FOLDER
    if not folder.is_dir():
        return PublishResult(0)
    hint = f"make room, then {command_line('repair', path)}"
    with cache.disk_errors(path, hint), cache.locked(folder / ".publishing"):
        n_published = int(read_info(path)["total_episodes"])
        files = [f for f in journal.segment_files(folder) if stop_segment is None or f.name <= stop_segment]
        segments = [journal.read_segment(file) for file in files]
        segments = interrupted_recording.unpublished_segments(segments, path, n_published)
        losses = [loss for s in segments for loss in s.problems]
        for s in segments:
            if s.unfinished is not None and len(s.unfinished):
                losses.append(
                    f"episode {s.first_episode + len(s.episodes)} was not finished: its {len(s.unfinished)} steps are "
                    'kept, with the metadata "interrupted"; training leaves it out unless asked '
                    "(--include-interrupted)")
                s.unfinished.metadata["interrupted"] = True
                s.episodes.append(s.unfinished)
        episodes = [e for s in segments for e in s.episodes]
        if episodes:
            has_success = any("next.success" in e.schema for e in episodes)
            if n_published:
                has_success = "next.success" in read_info(path)["features"]
            header = next((s.header for s in segments if s.header), {})
            n_frames = sum(len(e) for e in episodes for f in e.schema.values() if f.kind in ("image", "depth"))
            write_json(folder / interrupted_recording.PUBLISHING_FILE, {"segments": [s.path.name for s in segments],
                                                                        "total": n_published + len(episodes)})
            lerobot.append(
                path,
                Dataset([_match_success_column(e.episode(), has_success) for e in episodes],
                        {"fps": header.get("fps")}),
                robot_type=header.get("robot_type"),
                images=header.get("images", "video"),
                threads=ENCODER_THREADS,
                progress=lambda n: progress(n, n_frames))
        else:
            lerobot.append(path, Dataset([]))  # removes what an interrupted one left
        for file in files:
            file.unlink()
        (folder / interrupted_recording.PUBLISHING_FILE).unlink(missing_ok=True)
        sync_folder(folder)
    return PublishResult(len(episodes), tuple(losses))


def warn_of_losses(path: Path, done: PublishResult) -> None:
    """Warns about what `publish` could not keep completely."""
    for loss in done.problems:
        warnings.warn(loss if loss.startswith(str(path)) else f"{path}: {loss}", DataWarning, stacklevel=3)


def repair(path: str | Path) -> PublishResult:
    """Runs `publish` on a recording if its recorder has stopped. Raises UserError if the recorder is still working."""
    if not (Path(path) / journal.JOURNAL_FOLDER).is_dir():
        lerobot.append(path, Dataset([]))  # removes what an interrupted one left
        return PublishResult(0)
    with _lock_recording(Path(path)):
        return publish(path)


def _match_success_column(episode: Episode, has_success: bool) -> Episode:
    """Adds `next.success` (false) to an episode if all other episodes have it, or removes it if they do not."""
    changes: dict[str, np.ndarray | None] = {}
    if ("next.success" in episode.steps) != has_success:
        changes["next.success"] = np.zeros(len(episode), bool) if has_success else None
        if has_success:
            episode = replace(episode, metadata={**episode.metadata, "success": False})
    if "timestamp" in episode.steps:
        changes["timestamp"] = np.asarray(episode.steps["timestamp"], np.float32)
    return episode.replace(changes) if changes else episode


def _lock_recording(path: Path):
    handle = open(path / journal.JOURNAL_FOLDER / ".recording", "a")  # noqa: SIM115 held as long as the recorder lives
    if not try_lock(handle.fileno()):
        handle.close()
        raise UserError("another recorder is working here", where=path,
                        hint="wait until it has finished, or record into another folder")
    return handle


def _check_readable(schema: Schema, required: bool) -> None:
    """Raises a UserError if a policy could read no column, and warns of columns that no policy will read."""
    readable = [n for n, f in schema.items() if is_read_by_default(n, f)]
    names = suggested_names(schema)
    renames = ", ".join(f"{old} -> {new}" for old, new in names.items())
    if not readable and required:
        raise UserError(f"no policy can read this recording: no column is an observation (the columns are "
                        f"{', '.join(schema)})", where="schema",
                        hint="name the columns that policies are to read observation.state, observation.images.NAME or "
                        f"observation.OTHER{': ' + renames if renames else ''}. To record under these names and "
                        "rename them later, give require_observation=False")
    if readable and names and required:
        warnings.warn(f"policies will not read {', '.join(map(repr, names))}; they read columns called observation.* "
                      f"and learn the column action. Other names: {renames}", stacklevel=3)


def _finite(name: str, value: np.ndarray, feature: Feature, values: Values, where: str) -> np.ndarray:
    """Checks that a value is finite. Values that were not sensed in this step are set to 0 instead."""
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
    return UserError(f"the value is {value}, which a policy cannot learn", where=f"{where}{part}{after}",
                     hint=f"correct what gave it. It was not recorded; what was recorded before is kept.{way}")


def _check_same_columns(first: Schema, second: Schema, problem: str, where: object, hint: str) -> None:
    """Raises a UserError for the first column that differs between two schemas. `problem` is formatted with both."""
    for name in dict.fromkeys((*first, *second)):
        columns = [f"{schema[name].dtype} {schema[name].shape}" if name in schema else "no such column"
                   for schema in (first, second)]
        if name in first and name in second and (meaning := first[name].disagreement(second[name])):
            raise UserError(f"{problem.partition(' {}')[0]} {meaning}", where=f"{where}, column {name!r}",
                            hint=unit_hint(first[name].unit, second[name].unit, hint))
        if name not in _OPTIONAL_COLUMNS and columns[0] != columns[1]:
            raise UserError(problem.format(*columns), where=f"{where}, column {name!r}", hint=hint)


def _publish_worker(path: Path) -> None:
    """Runs the encoder process: reads the names of finished segments from standard input until it ends."""
    for line in sys.stdin:
        report = Report(line.strip())
        try:
            publish(path, stop_segment=line.strip(), progress=report)
            report.send(1)
        except (UserError, OSError) as error:  # a full disk: the journal keeps its contents
            report.send(0, str(error).splitlines()[0])


if __name__ == "__main__":
    _publish_worker(Path(sys.argv[1]))
