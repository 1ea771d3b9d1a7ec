"""Columns that cannot be mapped as they lie on disk: compressed, in many pieces, or one to an episode."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...core import Feature, UserError
from .. import cache
from .base import ColumnSource, batch_ranges, episode_starts

_PIECE = 1 << 26  # bytes of frames that are read at a time
_AT_ONCE = 1 << 22  # bytes of numbers


class ChunkedSource(ColumnSource):
    """Numbers are copied into memory maps once, when the first of them is asked for, if the cache can hold them;
    frames and text are read where they lie, each time they are asked for."""

    path: Path
    row_counts: dict[str, np.ndarray]  # column -> (E,) its rows

    @abstractmethod
    def read_rows(self, files: Any, name: str, episode: int, first: int, stop: int) -> np.ndarray:
        """Rows first to stop of a column of an episode. files: what `reading` gave."""

    @abstractmethod
    def location(self, name: str, episode: int) -> str:
        """Where that column lies, for messages: file and key."""

    def open_files(self) -> AbstractContextManager:
        return nullcontext()

    def rows(self, name):
        return self.row_counts[name]

    @cached_property
    def _numbers(self) -> list[str]:
        return [name for name, f in self.schema.items() if f.kind not in ("image", "string")]

    @cached_property
    def _bytes(self) -> int:
        return sum(int(self.row_counts[n].sum()) * self.schema[n].size * np.dtype(self.schema[n].dtype).itemsize
                   for n in self._numbers)

    @cached_property
    def _maps(self) -> dict[str, np.ndarray]:
        return cache.memmap_arrays(self.key, self._bytes, self._build, str(self.path))

    @cached_property
    def _first(self) -> dict[str, np.ndarray]:
        return {name: episode_starts(self.row_counts[name]) for name in self._numbers}

    def _build(self, part):
        with self.open_files() as files:
            for name in self._numbers:
                f, rows, ends = self.schema[name], self.row_counts[name], np.cumsum(self.row_counts[name])
                out = cache.create_array(part, name, (int(rows.sum()), *f.shape), np.dtype(f.dtype))
                for first, stop in batch_ranges(rows * f.size * np.dtype(f.dtype).itemsize, _AT_ONCE):
                    out[ends[first] - rows[first]: ends[stop - 1]] = self.read_episodes(files, name, first, stop)
                out.flush()

    def stream_episodes(self, first, stop):
        if "_maps" in self.__dict__ or cache.contains(self.key):
            yield from super().stream_episodes(first, stop)
            return
        sizes = sum(self.row_counts[n][first:stop] * self.schema[n].size * np.dtype(self.schema[n].dtype).itemsize
                    for n in self._numbers)
        with self.open_files() as files:
            for a, b in batch_ranges(np.broadcast_to(sizes, stop - first), _AT_ONCE):
                columns = {n: np.split(self.read_episodes(files, n, first + a, first + b),
                                       np.cumsum(self.row_counts[n][first + a: first + b])[:-1]) for n in self._numbers}
                yield from ({n: c[i] for n, c in columns.items()} for i in range(b - a))

    def read_episodes(self, files, name, first, stop) -> np.ndarray:
        """All rows of a column of numbers of episodes first to stop - 1, end to end."""
        f, rows = self.schema[name], self.row_counts[name][first:stop]
        out, at = np.empty((int(rows.sum()), *f.shape), f.dtype), 0
        for e, n in enumerate(rows.tolist(), first):
            out[at: at + n] = self._rows(files, name, e, 0, n)
            at += n
        return out

    def _rows(self, files, name, episode, first, stop) -> np.ndarray:
        values = self.read_rows(files, name, episode, first, stop)
        return self.cast_to_schema(values, name, stop - first, lambda row: (episode, first + row))

    def cast_to_schema(
        self, values: np.ndarray, name: str, rows: int, at: Callable[[int], tuple[int, int]]
    ) -> np.ndarray:
        """As the schema says; a cast that would change a value is an error. at: episode and row in it of a row."""
        f = self.schema[name]
        if values.shape[1:] != f.shape and values.size == rows * f.size and f.kind != "image":
            values = values.reshape(-1, *f.shape)  # (T, 1) as (T,)
        if values.shape != (rows, *f.shape):
            raise UserError(f"expected the shape {(rows, *f.shape)}, found {values.shape}",
                            where=self.location(name, at(0)[0]), hint="the file is damaged: take it from a copy")
        if f.dtype == "bool" and values.dtype != np.bool_:
            odd = (values != 0) & (values != 1)
            if odd.any():
                wrong = int(np.argwhere(odd)[0][0])
                episode, row = at(wrong)
                raise UserError(f"expected flags, 0 or 1, found {values[wrong]}",
                                where=f"{self.location(name, episode)}, row {row}", hint="correct the value")
        return values if f.kind == "string" else values.astype(f.dtype, copy=False)

    def packed_column(self, name):
        return self._maps[name] if name in self._numbers else None

    def column(self, name, episode):
        n = int(self.row_counts[name][episode])
        if name in self._numbers and self._bytes <= cache.max_bytes():
            first = self._first[name][episode]
            return self._maps[name][first: first + n]
        with self.open_files() as files:
            return self._rows(files, name, episode, 0, n)

    def frames(self, name, episode):
        n = int(self.row_counts[name][episode])
        step = max(1, _PIECE // max(self.schema[name].size, 1))
        with self.open_files() as files:
            for first in range(0, n, step):
                yield from enumerate(self._rows(files, name, episode, first, min(first + step, n)), first)


@lru_cache(1024)  # files have thousands of arrays of a few kinds
def stored_feature(name: str, shape: tuple[int, ...], dtype: np.dtype, flag: bool = False) -> Feature:
    """Of a column as it is stored. Outcomes are one number a step; bytes are numbers, unless they make an image."""
    shape = () if name.startswith("next.") and tuple(shape) == (1,) else tuple(shape)
    dtype = np.dtype(bool) if flag else np.dtype(dtype).newbyteorder("=")
    if dtype == np.uint8 and len(shape) != 3:
        return Feature("uint8", shape)
    return Feature.from_array(np.empty((0, *shape), dtype))


def sort_numbered(names: Iterator[str] | list[str], prefix: str) -> list[str]:
    """Those that are `prefix` and digits, by number: demo_2 before demo_10."""
    found = [n for n in names if isinstance(n, str) and re.fullmatch(f"{prefix}[0-9]+", n)]
    return sorted(found, key=lambda n: (int(n[len(prefix):]), n))
