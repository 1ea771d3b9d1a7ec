"""Splits a single CSV table with several episodes. One column says which episode a row belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ....core import DataError, UserError, role, unknown_name
from ....hints import columns_option
from ...episode import ColumnSource, Dataset, episode_starts
from .reader_warnings import MisreadingWarning

_NOT_SECONDS = 60  # between steps: times that are farther apart are milliseconds or nanoseconds
EPISODE_COLUMNS = ("episode", "episode_index", "episode_id")


def cut_table(source: ColumnSource, path: Path, name: str | None = None) -> Dataset:
    """Splits a table into episodes.

    Args:
        source: The table as one episode.
        name: Column with a value that changes where an episode begins. By default one of `EPISODE_COLUMNS`. A table
            without any of them is one episode.
    """
    if name is not None and name not in source.schema:
        raise unknown_boundary("episode", name, source.schema)
    name = name or next((n for n in EPISODE_COLUMNS if n in source.schema and not source.schema[n].shape), None)
    if name is None:
        warnings = [*source.metadata.get("warnings", ()), *map(MisreadingWarning, _several_episodes(source))]
        return Dataset(source, {**source.metadata, "warnings": warnings})
    steps = int(source.lengths[0])
    if any(int(source.rows(n)[0]) != steps for n in source.schema):
        raise DataError("the last row has empty cells, which a table of several episodes must not have", where=path,
                        hint="fill the cells, or leave out the row")
    values = np.asarray(source.column(name, 0))
    data = cut_source(source, lengths_from_numbers(values, f"{path}, {name}"), [name])
    return Dataset(data.source, {**data.metadata, "warnings": [*source.metadata.get("warnings", ()),
                                                               *numbering_notes(values, name)]})


def cut_source(source: ColumnSource, lengths: np.ndarray, leave_out: Sequence[str] = ()) -> Dataset:
    """Splits the only episode of a source into episodes of these lengths, (E,). Their timestamps begin at 0."""
    from ...operations import ConcatSource, SlicedSource

    table = ConcatSource([(source, [0] * len(lengths))], leave_out=leave_out)
    cut = SlicedSource(table, episode_starts(lengths), np.cumsum(lengths), from_zero=True)
    rate = source.metadata.get("fps")
    if not rate and "timestamp" in source.schema and source.schema["timestamp"].kind != "string":
        rate = frame_rate([np.asarray(cut.column("timestamp", e), float) for e in range(len(cut))])
    return Dataset(cut, {**source.metadata, "fps": rate})


def lengths_from_numbers(values: np.ndarray, where: str) -> np.ndarray:
    """Returns the steps of each episode, (E,), from a column, (N,) or (N, 1), that changes where one begins."""
    if values.size != len(values):
        raise DataError(f"it has {values.size // max(len(values), 1)} components, and not one number or text a step",
                        where=where,
                        hint=f"name the column that numbers the episodes: {columns_option('episode=COLUMN')}")
    values = values.reshape(-1)
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    if len(np.unique(values[starts])) < len(starts):
        again = next(row for i, row in enumerate(starts) if values[row] in values[starts[:i]])
        number = f"{values[again]:g}" if values.dtype.kind == "f" else values[again]
        raise DataError(f"rows of episode {number} are in two places; the second begins in row {again + 1}",
                        where=where,
                        hint="give each episode a number of its own, or sort the rows if they are mixed up")
    return np.diff(np.append(starts, len(values)))


def numbering_notes(values: np.ndarray, name: str) -> Iterator[str]:
    """Yields a note if a column, with a row for each step, does not number the episodes from 0 on without gaps."""
    numbers = list(dict.fromkeys(values.reshape(-1).tolist()))
    if values.dtype.kind in "iuf" and numbers != list(range(len(numbers))):
        i = next(i for i, number in enumerate(numbers) if number != i)
        yield f"{name} is not 0, 1, 2, ...: episode {i} of this data set is the one that is {numbers[i]:g} there"


def check_lengths(lengths: np.ndarray, steps: int, where: str) -> np.ndarray:
    """Returns the number of steps of each episode, (E,) int64, from an array that the user named.

    Args:
        lengths: The numbers of steps, from 1, which add up to `steps`; or the step after the last of each episode.
    """
    whole = lengths.ndim == 1 and len(lengths) and lengths.dtype.kind in "iuf" and (lengths == lengths.round()).all()
    if not whole or lengths.min() < 1:
        raise DataError(f"lengths of episodes must be whole numbers from 1, (episodes,), but this is {lengths.dtype} "
                        f"{lengths.shape}", where=where,
                        hint=f"name the array of lengths: {columns_option('episode_lengths=ARRAY')}")
    if are_ends(lengths, steps):
        return np.diff(lengths.astype(np.int64), prepend=0)
    if (total := int(lengths.sum())) != steps:
        raise DataError(f"the lengths add up to {total:,} steps, but there are {steps:,}", where=where,
                        hint="correct the lengths, or name another array")
    return lengths.astype(np.int64)


def are_ends(values: np.ndarray, steps: int) -> bool:
    """Returns whether whole numbers (E,) are episode ends: each is the step after the last of an episode."""
    return len(values) > 1 and values[-1] == steps and values[0] > 0 and bool((np.diff(values) > 0).all())


def boundary_hint(arrays: Mapping[str, np.ndarray], steps: int, ends: str = "") -> str:
    """Returns how to read episodes that lie end to end, if an array says where they end. Otherwise "".

    Args:
        arrays: Arrays by name. Only arrays of one dimension are looked at.
        steps: Number of steps of all episodes.
        ends: Name of the array of ends that the format reads. "" if it reads none.
    """
    arrays = {k: v for k, v in arrays.items() if v.ndim == 1 and len(v) > 1 and (
        v.dtype.kind in "iuU" or v.dtype.kind == "f" and (v == np.round(v)).all())}
    for name, values in arrays.items():
        if values.dtype.kind != "U" and len(values) < steps and values.min() > 0 and int(values.sum()) == steps:
            return (f"{name} adds up to the {steps:,} steps, as lengths of episodes do. If it is that, read it with "
                    + columns_option(f"episode_lengths={name}")
                    + (f", or save {ends}=np.cumsum({name})" if ends else ""))
        if values.dtype.kind != "U" and len(values) < steps and are_ends(values, steps):
            return (f"{name} increases to the {steps:,} steps, as ends of episodes do. If it is that, read it with "
                    + columns_option(f"episode_ends={name}") + (f", or save it as {ends}" if ends else ""))
    for name, values in arrays.items():
        starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
        if len(values) == steps and 1 < len(starts) <= steps // 2 and len(np.unique(values[starts])) == len(starts):
            return (f"{name} has {len(starts)} values, one after the other. If it numbers the episodes, read it with "
                    + columns_option(f"episode={name}"))
    return ""


def unknown_boundary(option: str, name: str, names: Iterable[str]) -> UserError:
    """Returns the error for a column or array that the user named, as "episode" or "episode_lengths", and that does not
    exist."""
    kind = "column that numbers the episodes" if option == "episode" else "array of the lengths of the episodes"
    return unknown_name("column", name, names, f"--columns (in Python: columns=), {option}=", hint=f"name the {kind}")


def _several_episodes(source: ColumnSource) -> Iterator[str]:
    """Yields a warning if a table that is read as one episode looks like several."""
    steps, numbers, restarts, flags = int(source.lengths[0]), [], [], []
    for name, f in source.schema.items():
        if f.shape or f.kind == "image" or int(source.rows(name)[0]) != steps or steps < 4:
            continue
        if role(name) in ("observation", "action", "outcome"):
            continue
        values = np.asarray(source.column(name, 0)).reshape(steps)
        starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
        whole = f.kind == "string" or f.dtype != "bool" and bool((values == np.round(values)).all())
        if whole and 1 < len(starts) <= steps // 2 and len(np.unique(values[starts])) == len(starts):
            numbers.append((name, len(starts)))
        if f.kind == "vector" and np.isin(values, (0, 1)).all() and values[-1] and 1 < values.sum() <= steps // 4:
            flags.append((name, int(values.sum())))
        if f.kind == "vector" and (back := np.flatnonzero(np.diff(values) <= 0)).size and \
                len(back) <= steps // 4 and np.isin(values[back + 1], values[0]).all():
            restarts.append((name, int(back[0]) + 2))
    if numbers:
        name, count = max(numbers, key=lambda number: number[1])
        yield (f"the table is read as one episode, but {name} has {count} values, one after the other. If it numbers "
               f"the episodes, say so: {columns_option(f'episode={name}')}")
    elif flags:
        name, count = flags[0]
        yield (f"the table is read as one episode, but {name} is 1 in {count} rows, of which one is the last. If it "
               "marks the ends of episodes, add a column that numbers them, and name it: "
               + columns_option("episode=COLUMN"))
    elif restarts:
        name, row = restarts[0]
        yield (f"the table is read as one episode, but {name} starts again in row {row}. If it has several episodes, "
               f"name the column that numbers them: {columns_option('episode=COLUMN')}")


def frame_rate(times: list[np.ndarray]) -> float | None:
    """Returns the steps per second from the timestamps (s) of each episode. None if the rate differs between episodes.

    If single steps come early or late, the rate is computed from the usual step, to three digits.
    """
    steps = [gaps for t in times if len(gaps := np.diff(t.reshape(-1)))]
    gaps = np.concatenate([[], *steps])
    typical = float(np.median(gaps)) if len(gaps) else 0.0
    if not 0 < typical < _NOT_SECONDS or any(abs(np.median(each) - typical) > 0.1 * typical for each in steps):
        return None
    even = bool(np.isfinite(gaps).all() and (np.abs(gaps - typical) < 0.01 * typical).all())
    return round(1 / typical, 3) if even else float(f"{1 / typical:.3g}")
