"""What the formats share: episodes that load their columns when asked, from a source that knows its schema."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core import Feature
from .. import cache, video
from ..episode import Dataset, Episode, PackedEpisodes, _LazyMap

Progress = Callable[[int, int], None]  # (done, of)


class ColumnSource(ABC):
    """Where columns come from. Everything but `column` is known without reading any."""

    key: str  # a digest of the files as they are now
    schema: dict[str, Feature]
    lengths: np.ndarray  # (E,) int64, steps

    @abstractmethod
    def rows(self, name: str) -> np.ndarray:
        """(E,) rows of that column in each episode: its length, or one more."""

    @abstractmethod
    def column(self, name: str, episode: int) -> np.ndarray: ...

    def packed_column(self, name: str) -> np.ndarray | None:
        """All rows of a column, the episodes end to end; None where they are not in one array."""
        return None

    def frames(self, name: str, episode: int) -> Iterator[tuple[Any, np.ndarray]]:
        """(row or rows, image) of a camera, in any order, so that an episode need not fit in memory."""
        return enumerate(self.column(name, episode))

    def stream_episodes(self, first: int, stop: int) -> Iterator[Mapping[str, np.ndarray]]:
        """Of each of these episodes, in order, the columns that are better read once than by way of the cache."""
        return ({} for _ in range(first, stop))

    def episode_metadata(self, episode: int) -> Mapping[str, Any]:
        return {}


class LazyColumns(Mapping):
    """The columns of one episode; each is read when it is asked for, but for those that have been."""

    def __init__(self, source: ColumnSource, episode: int, read: Mapping[str, np.ndarray] | None = None):
        self._source, self._episode, self._read = source, episode, read or {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._read:
            return self._read[name]
        if name not in self._source.schema:
            raise KeyError(name)
        return self._source.column(name, self._episode)

    def __contains__(self, name) -> bool:
        return name in self._source.schema

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.schema)

    def __len__(self) -> int:
        return len(self._source.schema)


class SourceEpisodes(PackedEpisodes):
    def __init__(self, source: ColumnSource, indices: Sequence[int] | None = None):
        self.source = source
        self.indices = range(len(source.lengths)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return SourceEpisodes(self.source, self.indices[i])
        return self._episode(self.indices[i])

    def _episode(self, e: int, read: Mapping[str, np.ndarray] | None = None) -> Episode:
        steps = LazyColumns(self.source, e, read)
        return Episode(steps, self.source.episode_metadata(e), int(self.source.lengths[e]), self.source.schema)

    def iterate_once(self) -> Iterator[Episode]:
        """Each once, without the cache where it is empty: what is read only once need not be written first."""
        first, n = (self.indices[0], len(self.indices)) if len(self.indices) else (0, 0)
        if list(self.indices) != list(range(first, first + n)):
            yield from self
            return
        for e, read in zip(self.indices, self.source.stream_episodes(first, first + n), strict=True):
            yield self._episode(e, read)

    @property
    def lengths(self) -> np.ndarray:
        return self.source.lengths[np.asarray(self.indices, np.int64)]

    def column(self, name):
        array = self.source.packed_column(name) if name in self.source.schema else None
        if array is None:
            return None
        numbers, rows = np.asarray(self.indices, np.int64), self.source.rows(name)
        return array, episode_starts(rows)[numbers], rows[numbers]

    def select(self, indices: Iterable[int]) -> SourceEpisodes:
        return SourceEpisodes(self.source, [self.indices[int(i)] for i in indices])


def iterate_once(data: Dataset) -> Iterator[Episode]:
    """Its episodes, to be looked at once."""
    found = data._episodes
    if isinstance(found, _LazyMap):
        return map(found.function, iterate_once(found.source))
    return found.iterate_once() if isinstance(found, SourceEpisodes) else iter(data)


def batch_ranges(sizes: np.ndarray, max_total: int) -> Iterator[tuple[int, int]]:
    """(first, stop) of items of these sizes (E,), one after another: as many as `most` holds, and at least one."""
    ends, at = np.cumsum(sizes), 0
    while at < len(ends):
        before = ends[at - 1] if at else 0
        stop = max(at + 1, int(np.searchsorted(ends, before + max_total, side="right")))
        yield at, stop
        at = stop


def episode_starts(rows: np.ndarray) -> np.ndarray:
    """(E,) where each episode begins when they lie end to end."""
    return np.cumsum(rows) - rows


def row_counts(data: Dataset, name: str | None = None) -> np.ndarray:
    """(E,) steps of each episode, or rows of a column in it; without loading it where its source knows."""
    if isinstance(data._episodes, SourceEpisodes):
        source, numbers = data._episodes.source, np.asarray(data._episodes.indices, np.int64)
        return np.asarray(source.lengths if name is None else source.rows(name))[numbers]
    return np.array([len(e) if name is None else len(e.steps[name]) for e in data], np.int64)


def camera_names(schema: Mapping[str, Feature]) -> list[str]:
    return [name for name, f in schema.items() if f.kind == "image"]


class DecodedFramesSource(ColumnSource):
    """Another source with its cameras decoded once, at one size, into memory maps."""

    def __init__(self, source: ColumnSource, size: tuple[int, int], where: Path, progress: Progress | None = None):
        self._source, self._size, self._names = source, size, camera_names(source.schema)
        self.lengths = source.lengths
        self.schema = {name: Feature("uint8", (*size, f.shape[2]), "image", f.names) if f.kind == "image" else f
                       for name, f in source.schema.items()}
        self.key = self.cache_key(source, size)
        self._maps = cache.memmap_arrays(self.key, self.bytes, lambda part: self._decode(part, progress), str(where))
        self._first = {name: episode_starts(source.rows(name)) for name in self._names}

    @staticmethod
    def cache_key(source: ColumnSource, size: tuple[int, int]) -> str:
        return cache.json_digest(source.key, "frames", list(size))

    @property
    def bytes(self) -> int:
        return sum(int(self._source.rows(n).sum()) * self.schema[n].size for n in self._names)

    def rows(self, name):
        return self._source.rows(name)

    def episode_metadata(self, episode):
        return self._source.episode_metadata(episode)

    def packed_column(self, name):
        return self._maps.get(name, self._source.packed_column(name))

    def column(self, name, episode):
        if name not in self._maps:
            return self._source.column(name, episode)
        first = self._first[name][episode]
        return self._maps[name][first: first + self._source.rows(name)[episode]]

    def _decode(self, part, progress):
        done, total = 0, sum(int(self._source.rows(n).sum()) for n in self._names)
        for name in self._names:
            rows = self._source.rows(name)
            out = cache.create_array(part, name, (int(rows.sum()), *self.schema[name].shape), np.uint8)
            for e, (first, n) in enumerate(zip(episode_starts(rows), rows, strict=True)):
                for row, image in self._source.frames(name, e):
                    out[first + np.asarray(row)] = video.resize(image, self._size)
                done += int(n)
                if progress is not None:
                    progress(done, total)
            out.flush()
