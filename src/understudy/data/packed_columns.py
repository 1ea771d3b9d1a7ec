"""Columns of many episodes end to end, so that one gather makes a batch.

Episodes whose columns already lie in one array (a memory map, a rollout) are gathered where they lie; only what a
relabeling made is copied.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ..core import UserError
from .episode import Dataset


@dataclass(frozen=True)
class PackedColumn:
    """`array[first[e] : first[e] + rows[e]]` is the column of episode e. A constant column has one row an episode."""

    array: np.ndarray
    starts: np.ndarray  # (E,) int64
    lengths: np.ndarray  # (E,) int64
    constant: bool = False

    def gather(
        self, episode: np.ndarray, row: np.ndarray, clip_start: bool = True, clip_end: bool = True
    ) -> np.ndarray:
        """episode (B,), row (B, n) of that episode -> (B, n, *shape). Rows beyond its ends are its first or last.
        early, late: whether there may be such rows; small batches are the faster for each that is known."""
        return self.take(self.flat_indices(episode, row, clip_start, clip_end))

    def flat_indices(
        self, episode: np.ndarray, row: np.ndarray, clip_start: bool = True, clip_end: bool = True
    ) -> np.ndarray:
        """Where these rows lie: as `gather`, what `at` reads. Columns that lie alike have the same places."""
        first = self.starts[episode][:, None]
        if self.constant:
            return np.broadcast_to(first, row.shape)
        if clip_end:
            row = np.minimum(row, (self.lengths[episode] - 1)[:, None])
        if clip_start:
            row = np.maximum(row, 0)
        return row + first

    def take(self, indices: np.ndarray) -> np.ndarray:
        """array[places]: several times as fast where `take` does not copy the whole array first."""
        whole = self.array.flags.c_contiguous and self.array.flags.aligned
        return self.array.take(indices, axis=0) if whole else self.array[indices]


@dataclass(frozen=True)
class PackedColumns:
    columns: dict[str, PackedColumn]
    lengths: np.ndarray  # (E,) steps of each episode

    @staticmethod
    def from_episodes(data: Dataset, names: Iterable[str]) -> PackedColumns:
        """Raises UserError naming the episode and the column that it lacks or that differs in shape."""
        if not len(data):
            raise UserError("there are no episodes", where=data.metadata.get("path", "data set"),
                            hint="record some (understudy record ENV --out DATA --episodes 20)")
        length, columns = data.lengths, {}
        for name in dict.fromkeys(names):
            if (lies := data.column(name)) is not None:
                columns[name] = PackedColumn(*lies)
                continue
            parts = [_episode_column(data, i, name) for i in range(len(data))]
            shapes = {p.shape[1:] for p in parts}
            if len(shapes) > 1:
                odd = next(i for i, p in enumerate(parts) if p.shape[1:] != parts[0].shape[1:])
                raise UserError(f"the shape is {parts[odd].shape[1:]}, but {parts[0].shape[1:]} in episode 0",
                                where=f"{data.metadata.get('path', 'data set')}, episode {odd}, column {name!r}",
                                hint="leave the odd episodes out, or name a column that is alike in all")
            columns[name] = _pack_column(parts, length)
        places = [length]
        return PackedColumns(
            {
                k: replace(c, starts=_deduplicate(c.starts, places), lengths=_deduplicate(c.lengths, places))
                for k, c in columns.items()
            },
            length,
        )


def _deduplicate(array: np.ndarray, known: list[np.ndarray]) -> np.ndarray:
    """Of equal arrays one: a batch out of a million episodes waits for every other that it has to look into."""
    if (same := next((a for a in known if np.array_equal(a, array)), None)) is not None:
        return same
    known.append(array)
    return array


def _episode_column(data, i, name):
    try:
        return np.asarray(data[i].steps[name])
    except KeyError:
        have = ", ".join(sorted(data[i].steps))
        raise UserError(f"there is no column {name!r}; the episode has {have}",
                        where=f"{data.metadata.get('path', 'data set')}, episode {i}",
                        hint="name a column that every episode has, or leave this episode out") from None


def _pack_column(parts: list[np.ndarray], length: np.ndarray) -> PackedColumn:
    rows = np.minimum([len(p) for p in parts], length + 1).astype(np.int64)
    if all(p.ndim and p.strides[0] == 0 for p in parts):  # broadcast by a relabeling: one row will do
        return PackedColumn(np.stack([p[0] for p in parts]), np.arange(len(parts)), rows, constant=True)
    if (shared := _shared_memory(parts)) is not None:
        return PackedColumn(*shared, rows)
    array = np.concatenate([p[:n] for p, n in zip(parts, rows, strict=True)])
    return PackedColumn(array, np.concatenate([[0], np.cumsum(rows)[:-1]]).astype(np.int64), rows)


def _shared_memory(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """One array over the memory of all parts and where each begins, if they are rows of the same layout in the same
    memory: whole arrays, some of their columns, or another reading of their bytes."""
    low = min(parts, key=_address)
    step = low.strides[0] if low.ndim else 0
    if step <= 0 or any(_base_array(p) is not _base_array(low) or p.strides != low.strides
                                            or p.dtype != low.dtype or (_address(p) - _address(low)) % step
                                            for p in parts):
        return None
    first = np.array([(_address(p) - _address(low)) // step for p in parts], np.int64)
    last = max(int(f) + len(p) for f, p in zip(first, parts, strict=True))
    return np.lib.stride_tricks.as_strided(low, (last, *low.shape[1:]), low.strides, writeable=False), first


def _address(a: np.ndarray) -> int:
    return a.__array_interface__["data"][0]


def _base_array(a: np.ndarray) -> np.ndarray:
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a
