"""Columns of many episodes end to end, so that one gather makes a batch.

Episodes whose columns already lie in one array (a memory map, a rollout) are gathered where they lie; only what a
relabelling made is copied.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..core import UserError
from .episode import Dataset, Packed


@dataclass(frozen=True)
class Column:
    """`array[first[e] : first[e] + rows[e]]` is the column of episode e. A constant column has one row an episode."""

    array: np.ndarray
    first: np.ndarray  # (E,) int64
    rows: np.ndarray  # (E,) int64
    constant: bool = False

    def gather(self, episode: np.ndarray, row: np.ndarray, early: bool = True, late: bool = True) -> np.ndarray:
        """episode (B,), row (B, n) of that episode -> (B, n, *shape). Rows beyond its ends are its first or last.
        early, late: whether there may be such rows; small batches are the faster for each that is known."""
        first = self.first[episode][:, None]
        if self.constant:
            return _rows(self.array, np.broadcast_to(first, row.shape))
        if late:
            row = np.minimum(row, (self.rows[episode] - 1)[:, None])
        if early:
            row = np.maximum(row, 0)
        return _rows(self.array, row + first)


@dataclass(frozen=True)
class Pack:
    columns: dict[str, Column]
    length: np.ndarray  # (E,) steps of each episode

    @staticmethod
    def of(data: Dataset, names: Iterable[str]) -> Pack:
        """Raises UserError naming the episode and the column that it lacks or that differs in shape."""
        if not len(data):
            raise UserError("expected at least one episode, found none", where=data.facts.get("path", "data set"))
        packed = data._episodes if isinstance(data._episodes, Packed) else None
        length = packed.lengths if packed else np.array([len(e) for e in data], np.int64)
        columns = {}
        for name in dict.fromkeys(names):
            if packed and (lies := packed.column(name)) is not None:
                columns[name] = Column(*lies)
                continue
            parts = [_part(data, i, name) for i in range(len(data))]
            shapes = {p.shape[1:] for p in parts}
            if len(shapes) > 1:
                odd = next(i for i, p in enumerate(parts) if p.shape[1:] != parts[0].shape[1:])
                raise UserError(f"expected shape {parts[0].shape[1:]} as in episode 0, found {parts[odd].shape[1:]}",
                                where=f"{data.facts.get('path', 'data set')}, episode {odd}, column {name!r}")
            columns[name] = _column(parts, length)
        return Pack(columns, length)


def _rows(array: np.ndarray, at: np.ndarray) -> np.ndarray:
    """array[at]: several times as fast where `take` does not copy the whole array first."""
    return array.take(at, axis=0) if array.flags.c_contiguous and array.flags.aligned else array[at]


def _part(data, i, name):
    try:
        return np.asarray(data[i].steps[name])
    except KeyError:
        have = ", ".join(sorted(data[i].steps))
        raise UserError(f"expected a column {name!r}, found {have}",
                        where=f"{data.facts.get('path', 'data set')}, episode {i}") from None


def _column(parts: list[np.ndarray], length: np.ndarray) -> Column:
    rows = np.minimum([len(p) for p in parts], length + 1).astype(np.int64)
    if all(p.ndim and p.strides[0] == 0 for p in parts):  # broadcast by a relabelling: one row will do
        return Column(np.stack([p[0] for p in parts]), np.arange(len(parts)), rows, constant=True)
    if (shared := _shared(parts)) is not None:
        return Column(*shared, rows)
    array = np.concatenate([p[:n] for p, n in zip(parts, rows, strict=True)])
    return Column(array, np.concatenate([[0], np.cumsum(rows)[:-1]]).astype(np.int64), rows)


def _shared(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """One array over the memory of all parts and where each begins, if they are rows of the same layout in the same
    memory: whole arrays, some of their columns, or another reading of their bytes."""
    low = min(parts, key=_address)
    step = low.strides[0] if low.ndim else 0
    if step <= 0 or any(_owner(p) is not _owner(low) or p.strides != low.strides
                                            or p.dtype != low.dtype or (_address(p) - _address(low)) % step
                                            for p in parts):
        return None
    first = np.array([(_address(p) - _address(low)) // step for p in parts], np.int64)
    last = max(int(f) + len(p) for f, p in zip(first, parts, strict=True))
    return np.lib.stride_tricks.as_strided(low, (last, *low.shape[1:]), low.strides, writeable=False), first


def _address(a: np.ndarray) -> int:
    return a.__array_interface__["data"][0]


def _owner(a: np.ndarray) -> np.ndarray:
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a
