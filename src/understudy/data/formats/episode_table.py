"""A single CSV table with several episodes. One column says which episode a row belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...core import ConfigError, DataError
from ..episode import ColumnSource, Dataset

EPISODE_COLUMNS = ("episode", "episode_index", "episode_id")


def cut_table(source: ColumnSource, path: Path, name: str | None = None) -> Dataset:
    """Split a table into episodes.

    Args:
        source: The table as one episode.
        path: The file, for error messages.
        name: Column whose value changes where an episode begins. By default one of `EPISODE_COLUMNS`. A table without
            any of them is one episode.

    Raises:
        DataError: The rows of an episode are in two places, or some cells are empty.
        ConfigError: There is no column of that name.
    """
    from ..operations import ConcatSource, SlicedSource

    if name is not None and name not in source.schema:
        raise ConfigError(f"there is no column {name!r}; there are {', '.join(source.schema)}",
                          where="--columns episode=", hint="name the column that numbers the episodes")
    name = name or next((n for n in EPISODE_COLUMNS if n in source.schema and not source.schema[n].shape), None)
    if name is None:
        warnings = [*source.metadata.get("warnings", ()), *_several_episodes(source)]
        return Dataset(source, {**source.metadata, "warnings": warnings})
    steps = int(source.lengths[0])
    if any(int(source.rows(n)[0]) != steps for n in source.schema):
        raise DataError("the last row has empty cells, which a table of several episodes must not have", where=path,
                        hint="fill the cells, or leave out the row")
    values = np.asarray(source.column(name, 0)).reshape(steps)
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    if len(np.unique(values[starts])) < len(starts):
        again = next(row for i, row in enumerate(starts) if values[row] in values[starts[:i]])
        raise DataError(f"rows of episode {values[again]} are in two places; the second begins in row {again + 1}",
                        where=f"{path}, {name}", hint="sort the rows by episode")
    table = ConcatSource([(source, [0] * len(starts))], leave_out=[name])
    cut = SlicedSource(table, starts, np.append(starts[1:], steps))
    rate = source.metadata.get("fps")
    if not rate and "timestamp" in source.schema and source.schema["timestamp"].kind != "string":
        rate = even_rate([np.asarray(cut.column("timestamp", e), float) for e in range(len(cut))])
    return Dataset(cut, {**source.metadata, "fps": rate})


def _several_episodes(source: ColumnSource) -> Iterator[str]:
    """Yield a warning if a table that is read as one episode looks like several.

    It does if a column of integers or text keeps a value for some rows that never comes back, or if a time starts
    again.
    """
    steps, numbers, restarts = int(source.lengths[0]), [], []
    for name, f in source.schema.items():
        if f.shape or f.kind == "image" or int(source.rows(name)[0]) != steps or steps < 4:
            continue
        values = np.asarray(source.column(name, 0)).reshape(steps)
        starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
        if f.dtype != "bool" and not f.dtype.startswith("float") and 1 < len(starts) <= steps // 2 and \
                len(np.unique(values[starts])) == len(starts):
            numbers.append((name, len(starts)))
        if f.kind == "vector" and (back := np.flatnonzero(np.diff(values) <= 0)).size and \
                len(back) <= steps // 4 and np.isin(values[back + 1], values[0]).all():
            restarts.append((name, int(back[0]) + 2))
    if numbers:
        name, count = max(numbers, key=lambda found: found[1])
        yield (f"the table is read as one episode, but {name} has {count} values, one after the other. If it numbers "
               f"the episodes, say so: --columns episode={name}")
    elif restarts:
        name, row = restarts[0]
        yield (f"the table is read as one episode, but {name} starts again in row {row}. If it has several episodes, "
               "name the column that numbers them: --columns episode=COLUMN")


def even_rate(times: list[np.ndarray]) -> float | None:
    """Return the steps per second from the timestamps (s) of each episode. None if they are not evenly spaced."""
    gaps = np.concatenate([[], *(np.diff(t.reshape(-1)) for t in times)])
    typical = float(np.median(gaps)) if len(gaps) else 0.0
    even = typical > 0 and bool(np.isfinite(gaps).all() and (np.abs(gaps - typical) < 0.01 * typical).all())
    return round(1 / typical, 3) if even else None
