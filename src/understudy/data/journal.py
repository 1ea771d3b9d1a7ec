"""The journal of a recorder: a log of records that are only appended.

A journal is a folder of segments, read in the order of their names. A segment is a sequence of records. A record has a
mark, its kind, the length of its payload, a CRC-32 of kind, length and payload, and the payload.

What a crash leaves at the end (an incomplete record, pages of zeros) fails the check and is skipped, and everything
before and after it is read (write-ahead logging: Mohan et al., ARIES, 1992). Numbers are little-endian. The kinds are:

    H  JSON: information for LeRobot ("fps", "robot_type", "images")
    B  JSON: start of an episode, with its columns and metadata
    S  one step: its columns end to end
    L  the observation after the last action
    F  JSON: end of the episode, with more metadata
    E  a whole episode that was made elsewhere (a rollout)
    T  JSON: metadata of the last finished episode
    D  an episode is discarded: the current one ("running") or the last finished one ("last")
"""

from __future__ import annotations

import json
import math
import os
import struct
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..core import Feature, Schema
from ..files import sync_folder
from .episode import Episode, LazyColumns

JOURNAL_FOLDER = Path("meta") / "understudy" / "journal"
_MAGIC = b"\xd5uj1"
_RECORD_HEADER = struct.Struct("<4scQI")  # mark, kind, length, CRC
_LENGTH = struct.Struct("<I")
_WINDOW = 1 << 16  # bytes; shorter values are read together
_PIECE = 1 << 20  # bytes of a record that are read at once to check it


# -- writing --------------------------------------------------------------------------------------------------------


class JournalWriter:
    """Writer of a recorder's journal: appends records to segments. They survive a crash of this process.

    If a write fails (a full disk), the segment is cut back to its last complete record, and the OSError is raised.

    Args:
        header: Information for LeRobot that is written at the start of each segment, JSON values.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]):
        self.folder, self.header = folder, dict(header)
        self.segment: Path | None = None
        self.n_bytes = 0  # bytes of the segment
        self._handle = -1

    def append(self, kind: bytes, *parts, first_episode: int) -> None:
        """Appends a record.

        Args:
            kind: Kind of the record: one letter (see the module).
            first_episode: Number of the next finished episode, which names a new segment.
        """
        if self.segment is None:
            self._open_segment(first_episode)
        self._write(kind, parts)

    def _open_segment(self, first: int) -> None:
        used_names = {p.name for p in self.folder.iterdir()}
        # Readers of the data set ignore files that end with .part.
        name = next(n for i in range(len(used_names) + 1) if (n := f"{first:08d}-{i:04d}.part") not in used_names)
        self._handle = os.open(self.folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        self.segment, self.n_bytes = self.folder / name, 0
        self._write(b"H", (json.dumps(self.header).encode(),))
        sync_folder(self.folder)

    def _write(self, kind: bytes, parts: Sequence) -> None:
        length = sum(len(p) for p in parts)
        check = zlib.crc32(kind + length.to_bytes(8, "little"))
        for part in parts:
            check = zlib.crc32(part, check)
        try:
            for part in (_RECORD_HEADER.pack(_MAGIC, kind, length, check), *parts):
                unwritten = memoryview(part)
                while unwritten:
                    unwritten = unwritten[os.write(self._handle, unwritten):]
        except OSError:
            os.ftruncate(self._handle, self.n_bytes)
            raise
        self.n_bytes += _RECORD_HEADER.size + length

    def sync(self) -> None:
        """Waits until all records are synced to the disk, so that they survive a power cut."""
        if self.segment is not None:
            os.fsync(self._handle)

    def rotate(self) -> Path | None:
        """Starts a new segment. Returns the completed one, or None if it has no records."""
        complete = self.segment
        if complete is not None:
            self.sync()
            os.close(self._handle)
            self.segment, self.n_bytes = None, 0
        return complete


def describe_columns(schema: Schema) -> dict[str, dict]:
    """Describes the columns of a step as JSON values, in their order in a record. Text is last: its length varies."""
    return {n: asdict(schema[n]) for n in columns_with_last_row(schema, schema)}


def pack_row(schema: Schema, values: Mapping[str, Any]) -> list[bytes]:
    """Encodes one row as bytes, in parts. `values` have the dtypes and shapes of `schema`; columns may be missing."""
    out = []
    for name in columns_with_last_row(schema, values):
        value = values[name]
        if schema[name].kind == "string":
            text = str(value).encode()
            out += [_LENGTH.pack(len(text)), text]
        else:
            out.append(np.asarray(value).tobytes())
    return out


def columns_with_last_row(schema: Schema, names) -> list[str]:
    """Returns the columns of `schema` that are in `names`, in their order in a record."""
    return [n for n in sorted(schema, key=lambda n: schema[n].kind == "string") if n in names]


def pack_last_row(schema: Schema, values: Mapping[str, Any]) -> list[bytes]:
    """Encodes the observation after the last action as bytes, in parts, with the names of its columns."""
    names = json.dumps(columns_with_last_row(schema, values)).encode()
    return [_LENGTH.pack(len(names)), names, *pack_row(schema, values)]


def episode_record(episode: Episode) -> list:
    """Encodes a finished episode as the parts of one record."""
    arrays = {n: np.ascontiguousarray(episode.steps[n]) for n in episode.steps}
    features = episode.features()
    described = {n: {"feature": asdict(features[n]), "dtype": a.dtype.str, "shape": a.shape}
                 for n, a in arrays.items()}
    text = json.dumps({"columns": described, "metadata": dict(episode.metadata)}).encode()
    return [_LENGTH.pack(len(text)), text, *(a.tobytes() for a in arrays.values())]


# -- reading --------------------------------------------------------------------------------------------------------


class _SegmentBytes:
    """Reads the bytes of a journal segment, even after the file is removed, without a memory map."""

    def __init__(self, path: Path):
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)  # with the last episode that needs it
        self.size = os.fstat(self._handle).st_size
        self._window = 0, b""  # first position, and the bytes there

    def read(self, at: int, size: int) -> bytes:
        if size > _WINDOW:
            return os.pread(self._handle, size, at)
        first, window = self._window
        if not first <= at <= at + size <= first + len(window):
            first, window = self._window = at, os.pread(self._handle, _WINDOW, at)
        return window[at - first: at - first + size]

    def find(self, mark: bytes, at: int) -> int:
        """Returns the position of the first `mark` from `at` on, or -1."""
        while at < self.size:
            if (place := self.read(at, _PIECE).find(mark)) >= 0:
                return at + place
            at += _PIECE - len(mark) + 1
        return -1

    def unpack(self, layout: struct.Struct, at: int) -> tuple:
        return layout.unpack(self.read(at, layout.size))


class JournalFrames:
    """Camera frames of an episode in a journal, (rows, H, W, C), which are read when the column is sliced."""

    def __init__(self, episode: JournalEpisode, name: str):
        self._episode, self._name, f = episode, name, episode.schema[name]
        self.dtype, self.shape = np.dtype(f.dtype), (episode.rows(name), *f.shape)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._episode.column(self._name, rows)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i:i + 1][0] for i in range(len(self)))

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self[:], dtype)


@dataclass
class JournalEpisode:
    """An episode in a journal segment. A column is assembled when it is asked for.

    Args:
        steps: Position of each step in the segment, in bytes.
        last_row: The columns of the row after the last action, and its position.
        arrays: Dtype, shape and position of each column, for an episode that was added as a whole.
    """

    bytes: _SegmentBytes
    schema: dict[str, Feature]
    metadata: dict[str, Any]
    steps: list[int] = field(default_factory=list)
    last_row: tuple[list[str], int] | None = None
    arrays: dict[str, tuple[str, tuple[int, ...], int]] | None = None

    def __len__(self) -> int:
        if self.arrays is not None:
            return min(shape[0] for _, shape, _ in self.arrays.values())
        return len(self.steps)

    def rows(self, name: str) -> int:
        """Returns the number of rows of a column: its steps, or one more."""
        if self.arrays is not None:
            return self.arrays[name][1][0]
        return len(self.steps) + (self.last_row is not None and name in self.last_row[0])

    def column(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Returns some rows of a column, (n, *shape). By default all of them."""
        begin, stop, _ = rows.indices(self.rows(name))
        if self.arrays is not None:
            dtype, shape, at = self.arrays[name]
            size = math.prod(shape[1:]) * np.dtype(dtype).itemsize
            flat = self.bytes.read(at + begin * size, max(stop - begin, 0) * size)
            return np.frombuffer(flat, dtype).reshape(-1, *shape[1:])
        places = [(list(self.schema), at) for at in self.steps]
        if self.last_row is not None and self.rows(name) > len(self.steps):
            places.append(self.last_row)
        values = [self._read_value(name, names, at) for names, at in places[begin:stop]]
        f = self.schema[name]
        if f.kind == "string":
            return np.array(values, np.str_)
        return np.stack(values) if values else np.empty((0, *f.shape), f.dtype)

    def _read_value(self, name: str, names: list[str], at: int):
        for n in names:
            f = self.schema[n]
            if f.kind == "string":
                (size,), at = self.bytes.unpack(_LENGTH, at), at + _LENGTH.size
                if n == name:
                    return self.bytes.read(at, size).decode()
            else:
                size = f.size * np.dtype(f.dtype).itemsize
                if n == name:
                    return np.frombuffer(self.bytes.read(at, size), f.dtype).reshape(f.shape)
            at += size
        raise KeyError(name)

    def episode(self) -> Episode:
        """Returns the episode. Columns are read when they are asked for. Columns of cameras are `JournalFrames`."""
        return Episode(LazyColumns(self.schema, self._read), self.metadata, rows=len(self), schema=self.schema)

    def _read(self, name: str) -> np.ndarray | JournalFrames:
        return JournalFrames(self, name) if self.schema[name].kind in ("image", "depth") else self.column(name)


@dataclass
class JournalSegment:
    """The readable contents of a segment.

    Args:
        header: Information for LeRobot.
        unfinished: An episode that was started, but neither finished nor discarded.
        problems: Descriptions of what cannot be read.
    """

    path: Path
    header: dict[str, Any]
    episodes: list[JournalEpisode]
    unfinished: JournalEpisode | None
    problems: list[str]

    @property
    def first_episode(self) -> int:
        """The number of the first episode in the segment."""
        return int(self.path.name[:8])


def segment_files(folder: Path) -> list[Path]:
    """Returns the segments of a journal in order."""
    return sorted(folder.glob("*.part")) if folder.is_dir() else []


def read_segment(path: Path) -> JournalSegment:
    """Reads all complete records of a segment. They stay readable if the file is removed meanwhile."""
    reader = _SegmentReader(path)
    for kind, at, length in _valid_records(reader.data, reader.segment.problems, path):
        reader.add(kind, at, length)
    return reader.segment


class _SegmentReader:
    """Joins the records of a journal segment to episodes."""

    def __init__(self, path: Path):
        self.data, self.segment = _SegmentBytes(path), JournalSegment(path, {}, [], None, [])
        self.has_hole = False  # whether a part of the current episode is missing, so that no later steps follow

    def add(self, kind: bytes, at: int, length: int) -> None:
        segment = self.segment
        if kind == b"?":
            self.has_hole = True
        elif kind == b"H":
            segment.header = self._json(at, length)
        elif kind == b"E":
            segment.episodes.append(_decode_episode(self.data, at))
        elif kind == b"B":
            self._start_episode(self._json(at, length))
        elif kind in (b"S", b"L"):
            if segment.unfinished is not None and not self.has_hole:
                self._add_step(segment.unfinished, at, is_last=kind == b"L")
        elif kind == b"F":
            metadata = self._json(at, length)
            self._finish_episode(metadata, metadata.pop("steps"))
        elif kind == b"T" and segment.episodes:
            segment.episodes[-1].metadata.update(self._json(at, length))
        elif kind == b"D":
            if self.data.read(at, length) == b"running":
                segment.unfinished = None
            elif segment.episodes:
                segment.episodes.pop()

    def _json(self, at: int, length: int) -> Any:
        return json.loads(self.data.read(at, length))

    def _start_episode(self, description: dict) -> None:
        if self.segment.unfinished is not None:
            self._finish_episode({}, None)
        self.has_hole = False
        self.segment.unfinished = JournalEpisode(self.data, _schema(description["columns"]), description["metadata"])

    def _add_step(self, episode: JournalEpisode, at: int, is_last: bool) -> None:
        if not is_last:
            episode.steps.append(at)
            return
        (size,) = self.data.unpack(_LENGTH, at)
        at += _LENGTH.size
        episode.last_row = self._json(at, size), at + size

    def _finish_episode(self, metadata: dict, steps: int | None) -> None:
        """Finishes the current episode. `steps` is how many steps it had, if that is known."""
        segment = self.segment
        episode, segment.unfinished = segment.unfinished, None
        if episode is None or not len(episode):
            segment.problems.append(f"{segment.path}: an episode whose beginning cannot be read")
            return
        episode.metadata.update(metadata)
        if steps != len(episode):
            segment.problems.append(
                f"{segment.path}: episode {segment.first_episode + len(segment.episodes)} can be read until its step "
                f"{len(episode)}" + (f" of {steps}" if steps else ""))
            episode.metadata["interrupted"] = True
        segment.episodes.append(episode)


def _valid_records(data: _SegmentBytes, losses: list[str], path: Path) -> Iterator[tuple[bytes, int, int]]:
    """Yields (kind, start of the payload, its length) of each valid record. Kind "?" marks damage."""
    at = 0
    while at < data.size:
        if (record := _record_at(data, at)) is not None:
            yield record
            at = record[1] + record[2]
            continue
        start, at = at, data.find(_MAGIC, at + 1)
        while at >= 0 and _record_at(data, at) is None:
            at = data.find(_MAGIC, at + 1)
        if at < 0:
            losses.append(f"{path}: {data.size - start} bytes at its end, of a record that was not finished")
            return
        losses.append(f"{path}: {at - start} bytes that cannot be read, from byte {start}")
        yield b"?", start, at - start


def _record_at(data: _SegmentBytes, at: int) -> tuple[bytes, int, int] | None:
    if at + _RECORD_HEADER.size > data.size:
        return None
    mark, kind, length, check = data.unpack(_RECORD_HEADER, at)
    begin = at + _RECORD_HEADER.size
    if mark != _MAGIC or begin + length > data.size:
        return None
    computed = zlib.crc32(kind + length.to_bytes(8, "little"))
    for first in range(begin, begin + length, _PIECE):
        computed = zlib.crc32(data.read(first, min(_PIECE, begin + length - first)), computed)
    return (kind, begin, length) if computed == check else None


def _schema(columns: Mapping[str, Mapping]) -> dict[str, Feature]:
    return {n: Feature.from_json(f) for n, f in columns.items()}


def _decode_episode(data: _SegmentBytes, at: int) -> JournalEpisode:
    (size,) = data.unpack(_LENGTH, at)
    at += _LENGTH.size
    description = json.loads(data.read(at, size))
    at, arrays = at + size, {}
    for name, c in description["columns"].items():
        arrays[name] = c["dtype"], tuple(c["shape"]), at
        at += math.prod(c["shape"]) * np.dtype(c["dtype"]).itemsize
    schema = _schema({n: c["feature"] for n, c in description["columns"].items()})
    return JournalEpisode(data, schema, description["metadata"], arrays=arrays)
