"""Stores columns of many episodes end to end, so that a batch is gathered at once.

Episodes are gathered without a copy if their columns already are in one array (a memory map, a rollout). Columns that a
relabeling made are copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..core import DataError, UserError, role
from .episode import Dataset, Episode, episode_starts

_EXACT = 2**53  # whole numbers up to here are exact as float64


@dataclass(frozen=True)
class PackedColumn:
    """A column of all episodes in one array, from which rows are gathered.

    Args:
        array: The rows, (N, *shape). Episode e has the rows ``array[starts[e] : starts[e] + lengths[e]]``.
        starts: First row of each episode, (E,) int64.
        lengths: Number of rows of each episode, (E,) int64.
        constant: Whether the array has a single row for each episode, which stands for all its rows.
    """

    array: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    constant: bool = False

    def gather(self, episode: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Returns rows of episodes, (B, n, *shape), by `flat_indices`."""
        return self.take(self.flat_indices(episode, row))

    def flat_indices(
        self, episode: np.ndarray, row: np.ndarray, clip_start: bool = True, clip_end: bool = True
    ) -> np.ndarray:
        """Returns the indices of rows in `array`, (B, n). Rows outside the episode become its first or last row.

        Columns with the same starts and lengths have the same indices.

        Args:
            episode: Number of the episode, (B,).
            row: Rows of the episode, (B, n).
            clip_start: Whether rows may be before the start of the episode. False saves time.
            clip_end: Whether rows may be after the end of the episode. False saves time.
        """
        first = self.starts[episode][:, None]
        if self.constant:
            return np.broadcast_to(first, row.shape)
        if clip_end:
            row = np.minimum(row, (self.lengths[episode] - 1)[:, None])
        if clip_start:
            row = np.maximum(row, 0)
        return row + first

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Returns ``array[indices]``, by the fastest way that does not copy the whole array first."""
        whole = self.array.flags.c_contiguous and self.array.flags.aligned
        return self.array.take(indices, axis=0) if whole else self.array[indices]


@dataclass(frozen=True)
class PackedColumns:
    """Several packed columns of the same episodes.

    Args:
        lengths: Number of steps of each episode, (E,).
    """

    columns: dict[str, PackedColumn]
    lengths: np.ndarray

    @staticmethod
    def from_episodes(data: Dataset, names: Iterable[str]) -> PackedColumns:
        """Packs columns of a dataset. Each must be in all episodes and have one shape."""
        if not len(data) or not data.lengths.any():
            check_steps(data)
        length, columns = data.lengths, {}
        for name in dict.fromkeys(names):
            if (location := data.column(name)) is not None:
                columns[name] = PackedColumn(*location)
                continue
            parts = [_episode_column(data, episode, i, name) for i, episode in enumerate(data)]
            _check_shapes(data, name, [p.shape[1:] for p in parts])
            if len({p.dtype for p in parts}) > 1:
                parts = _cast_parts(data, parts, name)
            columns[name] = _pack_column(parts, length)
        places = [length]
        for name, c in columns.items():
            columns[name] = replace(c, starts=_deduplicate(c.starts, places), lengths=_deduplicate(c.lengths, places))
        return PackedColumns(columns, length)


def check_columns(data: Dataset, names: Iterable[str]) -> None:
    """Checks that all episodes have some columns, with one shape and a row for each step. Nothing is copied.

    A training checks all of its episodes before it divides them, so that messages count the episodes as the user does.

    Raises:
        UserError: A column is missing in an episode, or its shape or its number of rows does not fit. The message names
            episode and column.
    """
    names = [name for name in dict.fromkeys(names) if data.column(name) is None]
    if not names:
        return
    shapes = [[_step_shape(data, episode, i, name) for name in names] for i, episode in enumerate(data)]
    for name, column_shapes in zip(names, zip(*shapes, strict=True), strict=True):
        _check_shapes(data, name, column_shapes)


def check_steps(data: Dataset) -> None:
    """Raises UserError if there are no episodes, or if an episode has no steps."""
    if not len(data):
        raise UserError("there are no episodes", where=data.metadata.get("path", "data set"),
                        hint="record some (understudy record ENV --out DATA --episodes 20)")
    if (empty := np.flatnonzero(data.lengths == 0)).size:
        raise UserError("the episode has no steps",
                        where=f"{data.metadata.get('path', 'data set')}, episode {empty[0]}",
                        hint="leave empty episodes out, in Python with data.filter(len)")


def _check_shapes(data: Dataset, name: str, shapes: Sequence[tuple[int, ...]]) -> None:
    if (differing_episode := next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)) is not None:
        raise UserError(f"the shape is {shapes[differing_episode]}, but {shapes[0]} in episode 0",
                        where=f"{data.metadata.get('path', 'data set')}, episode {differing_episode}, column {name!r}",
                        hint="leave the odd episodes out, or name a column that is alike in all")


def _step_shape(data: Dataset, episode: Episode, i: int, name: str) -> tuple[int, ...]:
    """Returns the shape of a column of episode i at one step. If the feature is known, the column is not read."""
    if name in episode.schema:
        return tuple(episode.schema[name].shape)
    column = _episode_column(data, episode, i, name)
    if not len(episode) <= len(column) <= len(episode) + 1:
        raise UserError(f"there are {len(column)} rows, but the episode has {len(episode)} steps",
                        where=f"{data.metadata.get('path', 'data set')}, episode {i}, column {name!r}",
                        hint="a column has one row per step, or one more: the observation after the last action")
    return column.shape[1:]


def common_dtype(dtypes: Iterable[np.dtype | str]) -> np.dtype:
    """Returns the dtype that numbers of several dtypes are converted to.

    It is the dtype of NumPy's promotion, except for int64 with uint64. These become int64 and not float64, which holds
    few whole numbers above 2**53.
    """
    distinct = {np.dtype(d) for d in dtypes}
    dtype = np.result_type(*distinct)
    return np.dtype(np.int64) if dtype.kind == "f" and all(d.kind in "iu" for d in distinct) else dtype


def may_change(dtype: np.dtype | str, common: np.dtype | str) -> bool:
    """Returns whether a common dtype cannot hold all numbers of a dtype."""
    dtype = np.dtype(dtype)
    return dtype.kind in "iu" and dtype.itemsize == 8 and dtype != common


def cast_exactly(column: np.ndarray, dtype: np.dtype | str, where: str, others: str = "other episodes",
                 hint: str = "store the column with one type in all episodes, or leave it out") -> np.ndarray:
    """Casts a column to the dtype that it has in other episodes. Raises an error if a value would change.

    Raises:
        DataError: A number would change. The message names its row.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        cast = column.astype(dtype, copy=False)
    if np.can_cast(column.dtype, cast.dtype) and not may_change(column.dtype, cast.dtype):
        return cast
    differs = (cast != column) & ((cast == cast) | (column == column))  # NaN may stay NaN
    if may_change(column.dtype, cast.dtype):
        differs |= (column > _EXACT) | (column < -_EXACT)  # NumPy rounds before it compares with floats
    for at in map(tuple, np.argwhere(differs)):
        if cast[at].item() != column[at].item():
            raise DataError(f"{cast.dtype} does not hold {column[at]}, and the column becomes {cast.dtype}, because "
                            f"{others} are not {column.dtype}", where=f"{where}, row {at[0]}", hint=hint)
    return cast


def _deduplicate(array: np.ndarray, arrays: list[np.ndarray]) -> np.ndarray:
    """Returns an equal array from `arrays` instead, if there is one, so that less memory is read."""
    if (same := next((a for a in arrays if np.array_equal(a, array)), None)) is not None:
        return same
    arrays.append(array)
    return array


def _episode_column(data, episode, i, name):
    try:
        return np.asarray(episode.steps[name])
    except KeyError:
        column_list = ", ".join(sorted(episode.steps))
        raise UserError(f"there is no column {name!r}; the episode has {column_list}",
                        where=f"{data.metadata.get('path', 'data set')}, episode {i}",
                        hint="name a column that every episode has, or leave this episode out") from None


def _cast_parts(data: Dataset, parts: list[np.ndarray], name: str) -> list[np.ndarray]:
    """Returns a column of each episode, all with one dtype if they are numbers or flags."""
    if any(p.dtype.kind not in "biuf" for p in parts):
        return parts
    dtype, path = common_dtype(p.dtype for p in parts), data.metadata.get("path") or "data set"
    if dtype.kind == "f" and role(name) in ("observation", "action") and data[0].features()[name].kind == "discrete":
        i = next(i for i, p in enumerate(parts) if p.dtype.kind == "f")
        raise DataError(f"the numbers are {parts[i].dtype}, but {parts[0].dtype} in episode 0, read as classes",
                        where=f"{path}, episode {i}, column {name!r}",
                        hint="store the column with one type in all episodes, or leave it out")
    return [cast_exactly(p, dtype, f"{path}, episode {i}, column {name!r}") for i, p in enumerate(parts)]


def _pack_column(parts: list[np.ndarray], length: np.ndarray) -> PackedColumn:
    rows = np.minimum([len(p) for p in parts], length + 1).astype(np.int64)
    if all(p.ndim and p.strides[0] == 0 for p in parts):  # broadcast by a column change: one row is enough
        return PackedColumn(np.stack([p[0] for p in parts]), np.arange(len(parts)), rows, constant=True)
    if (shared := _shared_memory(parts)) is not None:
        return PackedColumn(*shared, rows)
    array = np.concatenate([p[:n] for p, n in zip(parts, rows, strict=True)])
    return PackedColumn(array, episode_starts(rows), rows)


def _shared_memory(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns one array over the memory of all parts, and where each begins. None if their layouts differ."""
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
