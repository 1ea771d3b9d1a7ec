"""Base classes of data sources: cached in memory maps, read in chunks, or wrappers of another source."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..core import Feature, UserError
from . import cache, video
from .episode import ColumnSource, episode_starts

Progress = Callable[[int, int], None]  # (number of decoded frames, number of all frames)
_PIECE = 1 << 26  # bytes of frames that are read at a time
_AT_ONCE = 1 << 22  # bytes of numbers that are read at a time
_DAMAGED = "the file is damaged: take it from a copy"
FLAGS = {"success": "next.success", "terminated": "next.terminated"}  # the columns of fields of metadata


def camera_names(schema: Mapping[str, Feature]) -> list[str]:
    """Returns the names of the image columns."""
    return [name for name, f in schema.items() if f.kind == "image"]


def batch_ranges(sizes: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Splits items into consecutive batches of limited size.

    Args:
        sizes: Size of each item, (E,).
        most: Largest size of a batch. A larger item is a batch by itself.

    Yields:
        The first item of a batch and the item after its last.
    """
    ends, at = np.cumsum(sizes), 0
    while at < len(ends):
        before = ends[at - 1] if at else 0
        stop = max(at + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield at, stop
        at = stop


def first_misfit(values: np.ndarray, cast: np.ndarray) -> tuple[int, ...] | None:
    """Returns the index of the first number that a cast to whole numbers or flags has changed, or None.

    Args:
        cast: `values` after ``astype``. Rounding to floats of another precision is not a change.
    """
    if cast.dtype.kind not in "iub" or np.can_cast(values.dtype, cast.dtype):
        return None
    differs = cast != values
    return tuple(np.argwhere(differs)[0].tolist()) if differs.any() else None


def collect_frames(source: ColumnSource, name: str, episode: int) -> np.ndarray:
    """Returns the images of a camera in one episode from `ColumnSource.frames`, uint8 (rows, H, W, C)."""
    f = source.schema[name]
    out = np.empty((int(source.rows(name)[episode]), *f.shape), f.dtype)
    for row, image in source.frames(name, episode):
        out[row] = image
    return out


def select_frames(frames: Iterator[tuple[Any, np.ndarray]], new_rows: Callable[[np.ndarray], np.ndarray],
                  n_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Selects the frames of some rows from a camera. It stops after `n_rows` rows.

    Args:
        frames: Rows and images as `ColumnSource.frames` yields them.
        new_rows: Returns the new numbers, (m,), of rows, (n,).
    """
    for row, image in frames:
        rows = new_rows(np.atleast_1d(row))
        if len(rows):
            yield rows, image
        n_rows -= len(rows)
        if n_rows <= 0:
            return


class MemmapSource(ColumnSource):
    """Base class of sources that copy their numeric columns into memory maps on first use.

    Images and text stay in the files of the source.

    Attributes:
        row_counts: Number of rows of each column in each episode, (E,).
        flags: Columns that must contain 0 or 1 although their dtype is not bool.
    """

    path: Path
    row_counts: dict[str, np.ndarray]
    flags: frozenset[str] = frozenset()

    @abstractmethod
    def iter_chunks(self) -> Iterator[tuple[str, int | np.ndarray, np.ndarray]]:
        """Reads every column of `numeric_columns`, in chunks and in any order.

        Yields:
            The column; the number of the first row, or of each row (n,), counted over all episodes; the rows (n, ...).
        """

    def read_text(self, name: str, episode: int) -> np.ndarray:
        """Reads a column of text of all episodes, (rows,)."""
        raise NotImplementedError

    def location(self, name: str, episode: int) -> str:
        """Says where a column of an episode is stored, for error messages: file and key."""
        return f"{self.path}, {name}, episode {episode}"

    @cached_property
    def numeric_columns(self) -> list[str]:
        """The columns of numbers, which are cached."""
        return [name for name, f in self.schema.items() if f.kind not in ("image", "string")]

    def rows(self, name):
        return self.row_counts[name]

    @cached_property
    def _layout(self) -> dict[str, tuple[tuple[int, ...], str]]:
        return {name: ((int(self.rows(name).sum()), *self.schema[name].shape), self.schema[name].dtype)
                for name in self.numeric_columns}

    @cached_property
    def _maps(self) -> dict[str, np.ndarray]:
        return cache.columns(self.key, self._layout, self.fill, str(self.path)) if self._layout else {}

    @cached_property
    def _first(self) -> dict[str, np.ndarray]:
        return {name: episode_starts(self.rows(name)) for name in self.schema}

    def fill(self, out: dict[str, np.ndarray]) -> None:
        """Writes all rows of all columns into arrays of the cache, (N, *shape) each."""
        for name, at, values in self.iter_chunks():
            rows = slice(at, at + len(values)) if isinstance(at, int) else at
            out[name][rows] = self.cast_to_schema(values, name, len(values), at)

    def cast_to_schema(self, values: np.ndarray, name: str, rows: int, at: int | np.ndarray) -> np.ndarray:
        """Converts rows to the dtype and shape of the schema.

        Args:
            values: Rows as they are stored, (rows, ...).
            rows: Expected number of rows.
            at: Number of the first row, or of each row, counted over all episodes.

        Returns:
            (rows, *shape).
        """
        def place(row: int) -> str:
            return self.where(name, at + row if isinstance(at, int) else int(at[row]))

        f = self.schema[name]
        if f.kind in ("image", "depth") and values.ndim < 4 and rows:  # PNG or JPEG bytes, which zeros may pad
            values = np.stack([video.decode_frame(bytes(row).rstrip(b"\0"), f.shape, place(i), f.dtype)
                               for i, row in enumerate(values)])
        if values.shape[1:] != f.shape and values.size == rows * f.size and f.kind != "image":
            values = values.reshape(-1, *f.shape)  # (T, 1) as (T,)
        if values.shape != (rows, *f.shape):
            raise UserError(f"the shape is {values.shape} instead of {(rows, *f.shape)}", where=place(0), hint=_DAMAGED)
        if (f.dtype == "bool" or name in self.flags) and values.dtype != np.bool_:
            is_invalid = (values != 0) & (values != 1)
            if is_invalid.any():
                row, *component = map(int, np.argwhere(is_invalid)[0])
                raise UserError(f"a flag must be 0 or 1, not {values[(row, *component)]}", where=place(row),
                                hint="correct the value, or store it under another name if it is not a flag")
        if f.kind == "string":
            return values
        with np.errstate(invalid="ignore"):  # of NaN
            cast = values.astype(f.dtype, copy=False)
        if (misfit := first_misfit(values, cast)) is not None:
            raise UserError(f"{f.dtype} does not hold {values[misfit]}", where=place(misfit[0]),
                            hint=f"correct the value, or make {values.dtype} the type of the column")
        return cast

    def where(self, name: str, row: int) -> str:
        """Says where a row of a column is stored, for error messages. Rows are counted over all episodes."""
        ends = np.cumsum(self.rows(name))
        episode = int(np.searchsorted(ends, row, side="right"))
        return f"{self.location(name, episode)}, row {row - int(ends[episode] - self.rows(name)[episode])}"

    def packed_column(self, name):
        return self._maps[name] if name in self._layout else None

    def column(self, name, episode):
        rows = self.rows(name)[episode]
        if name in self._layout:
            first = self._first[name][episode]
            return self._maps[name][first: first + rows]
        f = self.schema[name]
        if f.kind == "string":
            return self.read_text(name, episode)
        return collect_frames(self, name, episode)


class ChunkedSource(MemmapSource):
    """Base class of sources that can read any rows of any column alone, such as from compressed chunks.

    If the cache is too small for the numeric columns, they are read from the files.
    """

    @abstractmethod
    def read_rows(self, files: Any, name: str, episode: int, first: int, stop: int) -> np.ndarray:
        """Reads the rows `first` to `stop` - 1 of a column of one episode as they are stored, (stop - first, ...).

        `files` is what `open_files` gives.
        """

    def open_files(self) -> AbstractContextManager:
        """Opens the files for several calls of `read_rows`. Returns a context manager."""
        return nullcontext()

    def read_episodes(self, files: Any, name: str, first: int, stop: int) -> np.ndarray:
        """Reads a numeric column of the episodes `first` to `stop` - 1, end to end, (n, *shape)."""
        f, rows = self.schema[name], self.rows(name)[first:stop]
        out, at = np.empty((int(rows.sum()), *f.shape), f.dtype), 0
        for episode, n in enumerate(rows.tolist(), first):
            out[at: at + n] = self._rows(files, name, episode, 0, n)
            at += n
        return out

    def _rows(self, files, name, episode, first, stop) -> np.ndarray:
        values = self.read_rows(files, name, episode, first, stop)
        return self.cast_to_schema(values, name, stop - first, int(self._first[name][episode]) + first)

    def iter_chunks(self):
        with self.open_files() as files:
            for name in self.numeric_columns:
                f, begin = self.schema[name], self._first[name]
                for first, stop in batch_ranges(self.rows(name) * f.size * np.dtype(f.dtype).itemsize, _AT_ONCE):
                    yield name, int(begin[first]), self.read_episodes(files, name, first, stop)

    def stream_episodes(self, first, stop):
        if "_maps" in self.__dict__ or cache.contains(self.key):
            yield from super().stream_episodes(first, stop)
            return
        sizes = sum(self.rows(n)[first:stop] * self.schema[n].size * np.dtype(self.schema[n].dtype).itemsize
                    for n in self.numeric_columns)
        with self.open_files() as files:
            for a, b in batch_ranges(np.broadcast_to(sizes, stop - first), _AT_ONCE):
                columns = {}
                for n in self.numeric_columns:
                    ends = np.cumsum(self.rows(n)[first + a: first + b])
                    columns[n] = np.split(self.read_episodes(files, n, first + a, first + b), ends[:-1])
                yield from ({n: c[i] for n, c in columns.items()} for i in range(b - a))

    @cached_property
    def _fits(self) -> bool:
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self._layout.values()) \
            <= cache.max_bytes()

    def column(self, name, episode):
        if name in self._layout and self._fits:
            return super().column(name, episode)
        with self.open_files() as files:
            return self._rows(files, name, episode, 0, int(self.rows(name)[episode]))

    def frames(self, name, episode):
        n = int(self.rows(name)[episode])
        step = max(1, _PIECE // max(self.schema[name].size, 1))
        with self.open_files() as files:
            for first in range(0, n, step):
                yield from enumerate(self._rows(files, name, episode, first, min(first + step, n)), first)


class WrapperSource(ColumnSource):
    """Base class of sources that wrap another source and change something.

    Args:
        *settings: JSON values that the result depends on. They become part of the key.
    """

    def __init__(self, inner: ColumnSource, *settings):
        self.inner, self.lengths, self.schema, self.metadata = inner, inner.lengths, dict(inner.schema), inner.metadata
        self.key = inner.key and cache.json_digest(inner.key, type(self).__name__, *settings)

    def rows(self, name):
        return self.inner.rows(name)

    def column(self, name, episode):
        return self.inner.column(name, episode)

    def frames(self, name, episode):
        return self.inner.frames(name, episode)

    def episode_metadata(self, episode):
        return self.inner.episode_metadata(episode)

    def packed_column(self, name):
        return self.gather_rows(name)

    def reads_frames(self, name: str) -> bool:
        """Returns whether a column consists of images in files, of which only the needed ones should be read."""
        return self.schema[name].kind == "image" and bool(self.key) and self.inner.packed_column(name) is None

    def gather_rows(self, name: str) -> np.ndarray | None:
        """Returns a column as one array of the cache. None if it is not cached, such as images and text."""
        f, rows = self.schema[name], self.rows(name)
        shape = (int(rows.sum()), *f.shape)
        if not self.key or f.kind in ("string", "image", "depth") or not np.prod(shape):
            return None

        def fill(out):
            for e, (first, n) in enumerate(zip(episode_starts(rows), rows, strict=True)):
                out[name][first: first + n] = self.column(name, e)
        key = cache.json_digest(self.key, name)
        return cache.columns(key, {name: (shape, f.dtype)}, fill, f"view, {name}")[name]


class LabeledSource(WrapperSource):
    """Wraps a source so that some episodes have other metadata fields: see `operations.Label`.

    Args:
        labels: The fields and their values, by the number of the episode. None removes a field.
    """

    def __init__(self, inner: ColumnSource, labels: Mapping[int, Mapping[str, Any]]):
        super().__init__(inner, labels)
        self._labels, self._fields = labels, set().union(*labels.values())
        if "task" in self._fields:
            self.schema = {**self.schema, "task": self.schema.get("task", Feature("string", (), "string"))}
        if "terminated" in self._fields:
            name = FLAGS["terminated"]
            self.schema = {**self.schema, name: self.schema.get(name, Feature("bool", ()))}

    def episode_metadata(self, episode):
        label = self._labels.get(episode, {})
        metadata = {**self.inner.episode_metadata(episode), **label}
        return {k: v for k, v in metadata.items() if k not in label or v is not None}

    def rows(self, name):
        return self.inner.rows(name) if name in self.inner.schema else self.inner.lengths

    def column(self, name, episode):
        n, label = int(self.lengths[episode]), self._labels.get(episode, {})
        column = self.inner.column(name, episode) if name in self.inner.schema else None
        if name == "task" and (column is None or "task" in label):
            text = str(self.episode_metadata(episode).get("task") or "")
            return np.broadcast_to(np.array([text], np.str_), (n if column is None else len(column),))
        field = next((field for field in label if FLAGS.get(field) == name), None)
        if field is None:
            return column
        column = np.zeros(n, bool) if column is None else np.array(column)
        if not label[field]:
            column[:] = 0
        elif not column.any():
            column[n - 1] = 1
        return column

    def packed_column(self, name):
        is_changed = name == "task" or any(FLAGS.get(field) == name for field in self._fields)
        return self.gather_rows(name) if is_changed else self.inner.packed_column(name)


class DecodedFramesSource(WrapperSource):
    """Wraps a source so that its camera frames are decoded once, at one size, into memory maps.

    Args:
        size: Height and width of the frames, in pixels.
        episodes: Episodes to decode. Frames of all other episodes are never read. By default all are decoded.
    """

    def __init__(self, inner: ColumnSource, size: tuple[int, int], where: Path, progress: Progress | None = None,
                 episodes: Sequence[int] | None = None):
        super().__init__(inner)
        self.key, self._size, self._progress = self.cache_key(inner, size, episodes), size, progress
        self._episodes = range(len(inner.lengths)) if episodes is None else episodes
        cameras = {name: Feature("uint8", (*size, inner.schema[name].shape[2]), "image", inner.schema[name].names)
                   for name in camera_names(inner.schema)}
        self.schema = {**self.schema, **cameras}
        layout = {name: ((int(inner.rows(name).sum()), *self.schema[name].shape), np.uint8)
                  for name in camera_names(inner.schema)}
        self._first = {name: episode_starts(inner.rows(name)) for name in layout}
        self._maps = cache.columns(self.key, layout, self._decode, str(where))

    @staticmethod
    def cache_key(source: ColumnSource, size: tuple[int, int], episodes: Sequence[int] | None = None) -> str:
        """Returns the key of the cache entry. `size` is height and width of the frames, in pixels."""
        return cache.json_digest(source.key, "frames", list(size), *([] if episodes is None else [list(episodes)]))

    def packed_column(self, name):
        return self._maps.get(name, self.inner.packed_column(name))

    def column(self, name, episode):
        if name not in self._maps:
            return self.inner.column(name, episode)
        first = self._first[name][episode]
        return self._maps[name][first: first + self.rows(name)[episode]]

    def frames(self, name, episode):
        return enumerate(self.column(name, episode))

    def _decode(self, out):
        done, total = 0, sum(map(len, out.values()))
        for name, array in out.items():
            rows = self.inner.rows(name)
            for e in self._episodes:
                for row, image in self.inner.frames(name, e):
                    array[self._first[name][e] + np.asarray(row)] = video.resize(image, self._size)
                done += int(rows[e])
                if self._progress is not None:
                    self._progress(done, total)
