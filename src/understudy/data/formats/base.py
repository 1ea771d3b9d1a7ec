"""What the formats share: episodes that load their columns when asked, from a source that knows its schema."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core import Feature
from .. import cache, video
from ..episode import Dataset, Episode, Packed, _Mapped

Progress = Callable[[int, int], None]  # (done, of)


class Source(ABC):
    """Where columns come from. Everything but `column` is known without reading any."""

    key: str  # a digest of the files as they are now
    schema: dict[str, Feature]
    lengths: np.ndarray  # (E,) int64, steps

    @abstractmethod
    def rows(self, name: str) -> np.ndarray:
        """(E,) rows of that column in each episode: its length, or one more."""

    @abstractmethod
    def column(self, name: str, episode: int) -> np.ndarray: ...

    def whole(self, name: str) -> np.ndarray | None:
        """All rows of a column, the episodes end to end; None where they are not in one array."""
        return None

    def frames(self, name: str, episode: int) -> Iterator[tuple[Any, np.ndarray]]:
        """(row or rows, image) of a camera, in any order, so that an episode need not fit in memory."""
        return enumerate(self.column(name, episode))

    def through(self, first: int, stop: int) -> Iterator[Mapping[str, np.ndarray]]:
        """Of each of these episodes, in order, the columns that are better read once than by way of the cache."""
        return ({} for _ in range(first, stop))

    def meta(self, episode: int) -> Mapping[str, Any]:
        return {}


class Steps(Mapping):
    """The columns of one episode; each is read when it is asked for, but for those that have been."""

    def __init__(self, source: Source, episode: int, read: Mapping[str, np.ndarray] | None = None):
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


class Episodes(Packed):
    def __init__(self, source: Source, numbers: Sequence[int] | None = None):
        self.source = source
        self.numbers = range(len(source.lengths)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return Episodes(self.source, self.numbers[i])
        return self._episode(self.numbers[i])

    def _episode(self, e: int, read: Mapping[str, np.ndarray] | None = None) -> Episode:
        steps = Steps(self.source, e, read)
        return Episode(steps, self.source.meta(e), int(self.source.lengths[e]), self.source.schema)

    def in_order(self) -> Iterator[Episode]:
        """Each once, without the cache where it is empty: what is read only once need not be written first."""
        first, n = (self.numbers[0], len(self.numbers)) if len(self.numbers) else (0, 0)
        if list(self.numbers) != list(range(first, first + n)):
            yield from self
            return
        for e, read in zip(self.numbers, self.source.through(first, first + n), strict=True):
            yield self._episode(e, read)

    @property
    def lengths(self) -> np.ndarray:
        return self.source.lengths[np.asarray(self.numbers, np.int64)]

    def column(self, name):
        array = self.source.whole(name) if name in self.source.schema else None
        if array is None:
            return None
        numbers, rows = np.asarray(self.numbers, np.int64), self.source.rows(name)
        return array, starts(rows)[numbers], rows[numbers]

    def pick(self, numbers: Iterable[int]) -> Episodes:
        return Episodes(self.source, [self.numbers[int(i)] for i in numbers])


def in_order(data: Dataset) -> Iterator[Episode]:
    """Its episodes, to be looked at once."""
    found = data._episodes
    if isinstance(found, _Mapped):
        return map(found.change, in_order(found.source))
    return found.in_order() if isinstance(found, Episodes) else iter(data)


def pieces(sizes: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """(first, stop) of items of these sizes (E,), one after another: as many as `most` holds, and at least one."""
    ends, at = np.cumsum(sizes), 0
    while at < len(ends):
        before = ends[at - 1] if at else 0
        stop = max(at + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield at, stop
        at = stop


def starts(rows: np.ndarray) -> np.ndarray:
    """(E,) where each episode begins when they lie end to end."""
    return np.cumsum(rows) - rows


def rows_of(data: Dataset, name: str | None = None) -> np.ndarray:
    """(E,) steps of each episode, or rows of a column in it; without loading it where its source knows."""
    if isinstance(data._episodes, Episodes):
        source, numbers = data._episodes.source, np.asarray(data._episodes.numbers, np.int64)
        return np.asarray(source.lengths if name is None else source.rows(name))[numbers]
    return np.array([len(e) if name is None else len(e.steps[name]) for e in data], np.int64)


def cameras(schema: Mapping[str, Feature]) -> list[str]:
    return [name for name, f in schema.items() if f.kind == "image"]


class Framed(Source):
    """Another source with its cameras decoded once, at one size, into memory maps."""

    def __init__(self, source: Source, size: tuple[int, int], where: Path, progress: Progress | None = None):
        self._source, self._size, self._names = source, size, cameras(source.schema)
        self.lengths = source.lengths
        self.schema = {name: Feature("uint8", (*size, f.shape[2]), "image", f.names) if f.kind == "image" else f
                       for name, f in source.schema.items()}
        self.key = self.key_of(source, size)
        self._maps = cache.arrays(self.key, self.bytes, lambda part: self._decode(part, progress), str(where))
        self._first = {name: starts(source.rows(name)) for name in self._names}

    @staticmethod
    def key_of(source: Source, size: tuple[int, int]) -> str:
        return cache.digest(source.key, "frames", list(size))

    @property
    def bytes(self) -> int:
        return sum(int(self._source.rows(n).sum()) * self.schema[n].size for n in self._names)

    def rows(self, name):
        return self._source.rows(name)

    def meta(self, episode):
        return self._source.meta(episode)

    def whole(self, name):
        return self._maps.get(name, self._source.whole(name))

    def column(self, name, episode):
        if name not in self._maps:
            return self._source.column(name, episode)
        first = self._first[name][episode]
        return self._maps[name][first: first + self._source.rows(name)[episode]]

    def _decode(self, part, progress):
        done, total = 0, sum(int(self._source.rows(n).sum()) for n in self._names)
        for name in self._names:
            rows = self._source.rows(name)
            out = cache.create(part, name, (int(rows.sum()), *self.schema[name].shape), np.uint8)
            for e, (first, n) in enumerate(zip(starts(rows), rows, strict=True)):
                for row, image in self._source.frames(name, e):
                    out[first + np.asarray(row)] = video.resize(image, self._size)
                done += int(n)
                if progress is not None:
                    progress(done, total)
            out.flush()
