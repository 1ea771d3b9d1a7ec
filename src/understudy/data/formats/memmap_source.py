"""A source whose numbers are read through once, into memory maps of the cache; text and pictures stay in its files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...core import UserError
from .. import cache
from .base import ColumnSource, episode_starts
from .column_names import FLAG_COLUMNS, are_flags


class MemmapSource(ColumnSource):
    """path and facts: of the data set. longer: columns with one row more than there are steps, in every episode."""

    path: Path
    metadata: dict[str, Any]
    columns_with_last_row: frozenset[str] = frozenset()

    @abstractmethod
    def iter_chunks(self) -> Iterator[tuple[str, int, np.ndarray]]:
        """(column, first row, rows) of every column of `numbers`, in pieces and in any order. Rows are counted over
        all episodes."""

    @abstractmethod
    def read_text(self, name: str, episode: int) -> np.ndarray:
        """A column of text; `frames` gives those of pictures."""

    @cached_property
    def numeric_columns(self) -> list[str]:
        return [name for name, f in self.schema.items() if f.kind not in ("image", "string")]

    def rows(self, name):
        return self._longer if name in self.columns_with_last_row else self.lengths

    @cached_property
    def _longer(self) -> np.ndarray:
        return self.lengths + 1

    @cached_property
    def _first(self) -> dict[str, np.ndarray]:
        return {name: episode_starts(self.rows(name)) for name in self.schema}

    @cached_property
    def _maps(self) -> dict[str, np.ndarray]:
        if not self.numeric_columns:
            return {}
        size = sum(int(self.rows(n).sum()) * self.schema[n].size * np.dtype(self.schema[n].dtype).itemsize
                   for n in self.numeric_columns)
        return cache.memmap_arrays(cache.json_digest(self.key, "numbers"), size, self._build, str(self.path))

    def _build(self, part):
        out = {name: cache.create_array(part, name, (int(self.rows(name).sum()), *self.schema[name].shape),
                                  np.dtype(self.schema[name].dtype)) for name in self.numeric_columns}
        for name, row, values in self.iter_chunks():
            if name in FLAG_COLUMNS and not are_flags(values):
                at = np.argwhere(~((values == 0) | (values == 1)))[0]
                raise UserError(f"expected 0 or 1, found {values[tuple(at)]}",
                                where=f"{self.path}, {name}, row {row + int(at[0])}",
                                hint="store it under another name if it is no flag")
            out[name][row: row + len(values)] = np.reshape(values, (len(values), *self.schema[name].shape))
        for array in out.values():
            array.flush()

    def packed_column(self, name):
        return self._maps[name] if name in self.numeric_columns else None

    def column(self, name, episode):
        f, rows = self.schema[name], int(self.rows(name)[episode])
        if name in self.numeric_columns:
            first = self._first[name][episode]
            return self._maps[name][first: first + rows]
        if f.kind == "string":
            return self.read_text(name, episode)
        out = np.empty((rows, *f.shape), np.uint8)
        for row, image in self.frames(name, episode):
            out[row] = image
        return out
