"""What a view does to data: operations, frozen dataclasses of plain values, each a function Dataset -> Dataset.

Nothing is read before a column is asked for, and nothing is copied that can be shown where it lies. Episodes are
numbered from 0, as they stand when the operation comes to them; T is the number of steps of one.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from ..core import Feature, UserError, keys, role
from . import cache
from .episode import ColumnSource, Dataset, Episode
from .relabel import task_texts
from .sources import WrapperSource

Scalar = str | bool | int | float
_TIMESTAMP, _SUCCESS = "timestamp", "next.success"
_MIRRORED_COLUMNS = {("task", "task"), (_SUCCESS, "success")}  # columns that say the same as a fact


class Operation(ABC):
    """A frozen dataclass. It never changes what it is given."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __post_init__(self):
        """What is read from a file is not of the right type by itself."""
        hints = get_type_hints(type(self))
        for f in fields(self):
            if not _matches_type(value := getattr(self, f.name), hints[f.name]):
                raise UserError(f"{value!r} is not {_type_name(hints[f.name])}",
                                where=f"{type(self).__name__.lower()}, {f.name}", hint="correct it where it is written")

    @abstractmethod
    def apply(self, data: Dataset) -> Dataset:
        """The data as this shows them. Raises UserError that names what in them does not fit."""


# -- which episodes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Select(Operation):
    """These episodes, in this order; one may come twice."""

    episodes: tuple[int, ...]

    def apply(self, data: Dataset) -> Dataset:
        _check_indices(self.episodes, data, self)
        return data.select(self.episodes)


@dataclass(frozen=True)
class Delete(Operation):
    """All but these episodes."""

    episodes: tuple[int, ...]

    def apply(self, data: Dataset) -> Dataset:
        _check_indices(self.episodes, data, self)
        gone = set(self.episodes)
        return data.select(i for i in range(len(data)) if i not in gone)


@dataclass(frozen=True)
class Filter(Operation):
    """The episodes whose `field` (see `values`) is one of `equals`, and at least, and at most, what is given. What
    lacks the field is not kept. A field that is a list fits if one of its entries does. unless: all the others."""

    field: str
    equals: tuple[Scalar, ...] | None = None
    at_least: float | None = None
    at_most: float | None = None
    negate: bool = False

    def apply(self, data: Dataset) -> Dataset:
        found = episode_values(data, self.field)
        kept = [i for i, v in enumerate(found) if self._matches(v) is not self.negate]
        return data.select(kept)

    def _matches(self, value) -> bool:
        if isinstance(value, (list, tuple)):
            return any(self._matches(v) for v in value)
        if value is None or (self.equals is not None and value not in self.equals):
            return False
        if self.at_least is None and self.at_most is None:
            return True
        if not isinstance(value, (int, float)):
            raise UserError(f"{value!r} is not a number", where=f"filter, {self.field}",
                            hint="compare text with equals")
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True)
class Sort(Operation):
    """By a field (see `values`), the smallest first, or with `descending` the largest; equal ones keep their order,
    and those without it come last."""

    by: str
    descending: bool = False

    def apply(self, data: Dataset) -> Dataset:
        found = episode_values(data, self.by)
        known = [i for i, v in enumerate(found) if v is not None]
        try:
            order = sorted(known, key=lambda i: found[i], reverse=self.descending)
        except TypeError:
            raise UserError("the values cannot be compared: some are numbers, others are text or lists",
                            where=f"order, {self.by}", hint="order by another field") from None
        return data.select([*order, *(i for i, v in enumerate(found) if v is None)])


@dataclass(frozen=True)
class Sample(Operation):
    """`count` episodes drawn without replacement, in the order that they had."""

    count: int
    seed: int = 0

    def apply(self, data: Dataset) -> Dataset:
        if not 0 < self.count <= len(data):
            raise UserError(f"cannot draw {self.count} of {len(data)} episodes", where="sample, count",
                            hint="draw at least 1, and no more than there are")
        return data.select(sorted(permutation(len(data), self.seed)[: self.count]))


def permutation(n: int, seed: int) -> list[int]:
    """0 to n-1 in an order of that seed, the same on every machine and with every version of NumPy."""
    return np.argsort(keys(seed, np.arange(n)).numpy(), kind="stable").tolist()


def assign_groups(sizes: Sequence[int], fractions: Sequence[float]) -> list[int]:
    """Assigns whole groups of episodes to parts, as close to `fractions` as possible.

    The distance is the sum over parts of (episodes - fraction * all episodes) squared. Every part gets a group. The
    result is optimal if all groups have one size, or if the search takes at most `_MAX_PARTIAL_SUMS` partial sums.
    Otherwise the largest groups are assigned first, each to the part that lacks most episodes. The order of `sizes`
    decides among equally close assignments.

    Args:
        sizes: Episodes of each group. There are at least as many groups as parts.
        fractions: Fraction of each part. They sum to 1.

    Returns:
        The part of each group.
    """
    wanted = [f * sum(sizes) for f in fractions]

    def distance(totals: Sequence[int]) -> float:
        return sum((t - w) ** 2 for t, w in zip(totals, wanted, strict=True))

    def totals(parts: Sequence[int]) -> list[int]:
        return np.bincount(parts, sizes, len(wanted)).astype(int).tolist()

    simple = _assign_greedily(sizes, range(len(sizes)), wanted)
    if len(set(sizes)) == 1:
        return simple
    best = _assign_exactly(sizes, len(wanted), distance)
    if best is None:  # too many groups of different sizes
        best = _assign_greedily(sizes, sorted(range(len(sizes)), key=lambda g: -sizes[g]), wanted)
    return best if distance(totals(best)) < distance(totals(simple)) - 1e-9 else simple


_MAX_PARTIAL_SUMS = 2_000_000  # a few seconds of work


def _assign_greedily(sizes: Sequence[int], order: Sequence[int], wanted: Sequence[float]) -> list[int]:
    """Assigns each group, in the given order, to the part that lacks most episodes."""
    parts, missing, empty = [0] * len(sizes), list(wanted), set(range(len(wanted)))
    for n, group in enumerate(order):
        p = max(sorted(empty) if len(order) - n <= len(empty) else range(len(missing)), key=lambda p: missing[p])
        parts[group] = p
        missing[p] -= sizes[group]
        empty.discard(p)
    return parts


def _assign_exactly(sizes: Sequence[int], parts: int, distance: Callable[[Sequence[int]], float]) -> list[int] | None:
    """The closest assignment, by dynamic programming over the totals of the parts. None if there are too many."""
    layers: list[dict[tuple[int, ...], int]] = [{(0,) * parts: -1}]  # totals -> the part of the group before
    work = 0
    for size in sizes:
        work += len(layers[-1]) * parts
        if work > _MAX_PARTIAL_SUMS:
            return None
        after: dict[tuple[int, ...], int] = {}
        for totals in layers[-1]:
            for p in range(parts):
                after.setdefault((*totals[:p], totals[p] + size, *totals[p + 1:]), p)
        layers.append(after)
    totals = min((t for t in layers[-1] if min(t) > 0), key=distance)
    found = []
    for size, layer in zip(reversed(sizes), reversed(layers[1:]), strict=True):
        p = layer[totals]
        found.append(p)
        totals = (*totals[:p], totals[p] - size, *totals[p + 1:])
    return found[::-1]


@dataclass(frozen=True)
class Merge(Operation):
    """The episodes of several data sets, one after the other. What they must have in common is judged where a merge is
    made (audit/compatibility.py); here columns are those of the first, without `leave_out`; numbers of two widths are
    read
    as the wider. fps and robot_type are unknown where they differ."""

    drop_columns: tuple[str, ...] = ()

    def apply(self, data: Dataset, *others: Dataset) -> Dataset:
        every = [data, *others]
        joined = ConcatSource(
            [(d.source, list(d.indices)) for d in every if len(d)], self.drop_columns
        )
        facts = {**data.metadata, "path": ", ".join(str(d.metadata.get("path", "data set")) for d in every)}
        for key in ("fps", "robot_type"):
            said = {d.metadata.get(key) for d in every}
            facts[key] = said.pop() if len(said) == 1 else None
        facts["warnings"] = [f"{d.metadata.get('path', 'data set')}: {w}" for d in every
                             for w in d.metadata.get("warnings", ())]
        return Dataset(joined, facts)


# -- which columns -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rename(Operation):
    """Column `of` under the name `into`."""

    column: str
    into: str

    def apply(self, data: Dataset) -> Dataset:
        _check_column(self.column, data.source, "rename")
        if self.into in data.source.schema or not self.into or "/" in self.into:
            raise UserError(f"the new name {self.into!r} is taken, empty, or has a slash",
                            where=f"rename, {self.column}", hint="choose another, or drop the column that has it first")
        names = {self.into if n == self.column else n: n for n in data.source.schema}
        return Dataset(RenamedSource(data.source, names), data.metadata, data.indices)


@dataclass(frozen=True)
class Drop(Operation):
    """All but these columns."""

    columns: tuple[str, ...]

    def apply(self, data: Dataset) -> Dataset:
        for name in self.columns:
            _check_column(name, data.source, "drop")
        kept = [n for n in data.source.schema if n not in self.columns]
        if not kept:
            raise UserError("no column would be left", where="drop, columns", hint="drop fewer")
        return Dataset(RenamedSource(data.source, {n: n for n in kept}), data.metadata, data.indices)


# -- which steps -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crop(Operation):
    """Steps `start` up to `stop`, as Python slices count, of all episodes or of those named. A column with a row after
    the last action keeps one: what was seen after the last step that is left. `timestamp` counts from the first
    step that is left; everything else is as it was recorded."""

    start: int = 0
    stop: int | None = None
    episodes: tuple[int, ...] | None = None

    def apply(self, data: Dataset) -> Dataset:
        had = _narrow(data, self.episodes is not None)
        _check_indices(self.episodes or (), data, self)
        if (had.source.lengths <= abs(self.start) + abs(self.stop or 0)).any():
            had = _narrow(data)  # nothing may be left of some that are not meant
        lengths = had.source.lengths
        ends = np.array([slice(self.start, self.stop).indices(int(n))[:2] for n in lengths], np.int64).reshape(-1, 2)
        if self.episodes is not None:
            others = np.setdiff1d(np.arange(len(lengths)), self.episodes)
            ends[others] = np.stack([np.zeros(len(others), np.int64), lengths[others]], 1)
        for i, e in enumerate(had.indices):  # all there are, or none of them is left empty
            if ends[e, 0] >= ends[e, 1]:
                raise UserError(f"leaves nothing of its {lengths[e]} steps", where=f"crop, episode {i}",
                                hint="crop less, or leave out such episodes first, by their length")
        return Dataset(SlicedSource(had.source, ends[:, 0], ends[:, 1]), data.metadata, had.indices)


@dataclass(frozen=True)
class Resample(Operation):
    """At `fps` steps a second. New step k is at k / fps seconds from the first; T' steps cover the time of the T.

    Rows are at their `timestamp`, where there is such a column, else at t / (the data's fps). rule: "last", the last
    row that was there by then; "nearest", the nearest of the T; "linear", between the two about it, for columns of
    floats that are observations or actions ("last" for the others; not for rotations, which have no straight line
    between them). Whatever the rule, `next.reward` is the sum and `next.terminated` and the like say "any" of the
    steps that the new one covers. A row after the last action stays the last row. Actions that are differences per
    step mean another speed afterwards: this does not scale them."""

    fps: float
    rule: Literal["last", "nearest", "linear"] = "last"

    def apply(self, data: Dataset) -> Dataset:
        if not 0 < self.fps < 1e6:
            raise UserError(f"fps is {self.fps}, but must be above 0 and below 1,000,000", where="resample, fps",
                            hint="such as 10")
        if data.fps is None and _TIMESTAMP not in data.source.schema:
            raise UserError(
                "the data have neither a known fps nor a column timestamp",
                where=data.metadata.get("path", "data set"),
                hint="add fps or timestamps where it was recorded",
            )
        had = _narrow(data, _TIMESTAMP in data.source.schema)  # times of those that are not shown may be anything
        return Dataset(ResampledSource(had.source, data.fps, float(self.fps), self.rule),
                       {**data.metadata, "fps": float(self.fps)}, had.indices)


# -- what is said of them ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Label(Operation):
    """The fact `field` of all episodes, or of those named, is `value`. "task" is also the column `task`, at every step;
    "success" (true or false) also the column `next.success`, where there is one: nowhere if false, and if true at
    the last step unless it is somewhere already."""

    field: str
    value: Scalar
    episodes: tuple[int, ...] | None = None

    def apply(self, data: Dataset) -> Dataset:
        kind = {"success": bool, "task": str}.get(self.field, object)
        if self.field in ("length", "episode", "") or not isinstance(self.value, kind):
            raise UserError(f"{self.field!r} = {self.value!r} cannot be set: success is true or false, task is "
                            "text, and length and episode are fixed", where="label",
                            hint="any other name is free: operator, scene, ...")
        _check_indices(self.episodes or (), data, self)
        had = _narrow(data, self.episodes is not None)
        return Dataset(LabeledSource(had.source, self), data.metadata, had.indices)


# -- fields ------------------------------------------------------------------------------------------------------------


def episode_values(data: Dataset, field: str) -> list[Any]:
    """One plain value an episode, None where it has none: "length" (steps), "episode" (its number), a fact of the
    episode ("a.b" for one within another), "success" or "task" also from their columns, or a column that has one
    value throughout an episode (several tasks are one text, "a; b")."""
    if field == "length":
        return data.lengths.tolist()
    if field == "episode":
        return list(range(len(data)))
    found = [_episode_value(e, field, i) for i, e in enumerate(data)]
    if found and all(v is None for v in found):
        have = sorted({"length", "episode", *(k for e in data for k in e.metadata),
                       *(n for n, f in data.source.schema.items() if f.size == 1),
                       *(["success"] if _SUCCESS in data.source.schema else [])})
        near = difflib.get_close_matches(field, have, 1)
        raise UserError(f"no episode has a field {field!r}; there are {', '.join(have)}",
                        where=data.metadata.get("path", "data set"),
                        hint=f"did you mean {near[0]}?" if near else "name one of these")
    return found


def _episode_value(episode: Episode, field: str, number: int):
    value: Any = episode.metadata
    for key in [field] if field in episode.metadata else field.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None and field == "success" and _SUCCESS in episode.steps:
        return bool(np.any(episode.steps[_SUCCESS]))
    if field == "task" and "task" in episode.steps:  # what is said at the steps counts for more
        return "; ".join(dict.fromkeys(map(str, task_texts(episode)))) or value
    if value is None and field in episode.steps and (column := np.asarray(episode.steps[field])).size == len(column):
        one = np.unique(column)
        if len(one) > 1:
            raise UserError(
                f"the column has more than one value: {one[0]}, {one[1]}{', ...' * (len(one) > 2)}",
                where=f"episode {number}, column {field!r}",
                hint="choose a field with one value per episode",
            )
        return one[0].item() if len(one) else None
    return value.item() if isinstance(value, np.generic) else value


# -- sources over sources ----------------------------------------------------------------------------------------------


class RenamedSource(WrapperSource):
    """Some columns, under other names. names: as they are called now -> as they were."""

    def __init__(self, inner: ColumnSource, names: Mapping[str, str]):
        super().__init__(inner, names)
        self._names = names
        self.schema = {new: inner.schema[old] for new, old in names.items()}

    def rows(self, name):
        return self.inner.rows(self._names[name])

    def column(self, name, episode):
        return self.inner.column(self._names[name], episode)

    def frames(self, name, episode):
        return self.inner.frames(self._names[name], episode)

    def packed_column(self, name):
        return self.inner.packed_column(self._names[name])


class ConcatSource(WrapperSource):
    """Episodes of several sources, one after the other."""

    def __init__(self, parts: Sequence[tuple[ColumnSource, Sequence[int]]], leave_out: Sequence[str] = ()):
        self._parts = parts
        self._locate = [(p, int(e)) for p, (_, numbers) in enumerate(parts) for e in numbers]
        self.lengths = self._concat(lambda source: source.lengths)
        schemas = [dict(source.schema) for source, _ in parts]
        self.schema = {n: _common_feature(n, [s.get(n) for s in schemas]) for n in (schemas[0] if parts else ())
                       if n not in leave_out}
        sources = [source.key for source, _ in parts]
        self.key = cache.json_digest("joined", sources, [list(map(int, n)) for _, n in parts]) if all(sources) else ""

    def _concat(self, what) -> np.ndarray:
        return np.concatenate([np.asarray(what(s))[np.asarray(n, np.int64)] for s, n in self._parts]
                              or [np.empty(0, np.int64)])

    def rows(self, name):
        return self._concat(lambda source: source.rows(name))

    def column(self, name, episode):
        part, number = self._locate[episode]
        column, f = self._parts[part][0].column(name, number), self.schema[name]
        return column if f.kind == "string" or column.dtype == f.dtype else np.asarray(column).astype(f.dtype)

    def frames(self, name, episode):
        part, number = self._locate[episode]
        return self._parts[part][0].frames(name, number)

    def episode_metadata(self, episode):
        part, number = self._locate[episode]
        return self._parts[part][0].episode_metadata(number)

    def packed_column(self, name):
        """None if all parts are already in one array. Gathering finds that array without a copy."""
        lie = [source.packed_column(name) for source, _ in self._parts]
        same = lie and lie[0] is not None and all(a is lie[0] for a in lie)
        return None if same and lie[0].dtype == self.schema[name].dtype else self.gather_rows(name)


class SlicedSource(WrapperSource):
    """Steps start[e] up to stop[e] of every episode e of the source."""

    def __init__(self, inner: ColumnSource, start: np.ndarray, stop: np.ndarray):
        super().__init__(inner, start.tolist(), stop.tolist())
        self._start, self.lengths = start, stop - start
        self._has_last_row = inner.lengths

    def rows(self, name):
        return self.lengths + (self.inner.rows(name) > self._has_last_row)

    def column(self, name, episode):
        column, start = self.inner.column(name, episode), self._start[episode]
        column = column[start: start + self.lengths[episode] + (len(column) > self._has_last_row[episode])]
        if name != _TIMESTAMP or not start or not len(column):
            return column
        return (column.astype(np.float64) - np.float64(column[0])).astype(column.dtype)

    def frames(self, name, episode):
        start, rows = self._start[episode], self.rows(name)[episode]
        for row, image in self.inner.frames(name, episode):
            here = np.atleast_1d(row) - start
            here = here[(here >= 0) & (here < rows)]
            if len(here):
                yield here, image

    def packed_column(self, name):
        """Rows of an array are gathered where they lie, without a copy."""
        return self.gather_rows(name) if name == _TIMESTAMP or self.inner.packed_column(name) is None else None


class ResampledSource(WrapperSource):
    def __init__(self, inner: ColumnSource, old: float | None, fps: float, rule: str):
        super().__init__(inner, old, fps, rule)
        self._old, self._fps, self._rule = old, fps, rule
        self._plans: dict[int, tuple] = {}
        if _TIMESTAMP in inner.schema:
            self.lengths = np.array([len(self._resample_plan(e)[0]) for e in range(len(inner.lengths))], np.int64)
        else:
            self.lengths = np.array([self._steps(n / old) for n in inner.lengths], np.int64)

    def _steps(self, seconds: float) -> int:
        return max(1, int(np.ceil(seconds * self._fps - 0.01)))  # float32 times of long episodes are 0.01 steps off

    def _step_times(self, episode) -> np.ndarray:
        """(T+1,) s from the first step; the last is when the last step ends."""
        n = int(self.inner.lengths[episode])
        if _TIMESTAMP not in self.inner.schema:
            assert self._old is not None  # without times there is a rate
            return np.arange(n + 1) / self._old
        times = np.asarray(self.inner.column(_TIMESTAMP, episode), np.float64).reshape(-1)[:n]
        gaps = np.diff(times)
        if not np.isfinite(times).all() or (gaps < 0).any():
            at = int(np.argmax(~(gaps >= 0))) + 1 if n > 1 else 0
            raise UserError(
                f"timestamps must be finite and not decrease, but {times[at]} comes after {times[max(at - 1, 0)]}",
                where=f"episode {episode}, step {at}, timestamp",
                hint="understudy audit says what is wrong",
            )
        last = 1 / self._old if self._old else float(np.median(gaps)) if n > 1 else 0.0
        return np.append(times, times[-1] + last) - times[0]

    def _resample_plan(self, episode) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each new step: the row that was there by then, its time (s), and (T+1,) the times of the rows."""
        if episode not in self._plans:
            times = self._step_times(episode)
            at = np.arange(self._steps(times[-1])) / self._fps
            last = np.searchsorted(times[:-1], at + 0.01 / self._fps, "right") - 1
            self._plans = {episode: (last, at, times)}  # columns of one episode are read together
        return self._plans[episode]

    def rows(self, name):
        return self.lengths + (self.inner.rows(name) > self.inner.lengths)

    def _source_rows(self, episode) -> np.ndarray:
        """Of each new step, the row it shows."""
        last, at, times = self._resample_plan(episode)
        if self._rule != "nearest":
            return last
        after = np.minimum(last + 1, len(times) - 2)
        return np.where(times[after] - at < at - times[last] - 1e-9, after, last)

    def column(self, name, episode):
        column = np.asarray(self.inner.column(name, episode))
        (last, at, times), n = self._resample_plan(episode), int(self.inner.lengths[episode])
        if name == _TIMESTAMP:
            found = at.reshape(-1, *(1,) * (column.ndim - 1)).astype(column.dtype)
        elif name == "next.reward" or (role(name) == "outcome" and column.dtype == bool):
            found = self._aggregate_rows(column[:n], last)
            if name == _SUCCESS:
                found |= column[last]
        elif self._rule == "linear" and role(name) in ("observation", "action") and column.dtype.kind == "f":
            found = _interpolate(column, last, at, times)
        else:
            found = column[self._source_rows(episode)]
        ends = column[n:n + 1] if name != _TIMESTAMP else np.full_like(column[n:n + 1], len(at) / self._fps)
        return np.concatenate([found, ends]) if len(column) > n else found

    def _aggregate_rows(self, column, last):
        """Of each new step, the sum (or any) over the rows from its own up to that of the next."""
        into = np.searchsorted(last, np.arange(len(column)), "right") - 1
        out = np.zeros((len(last), *column.shape[1:]), np.float64 if column.dtype.kind == "f" else np.int64)
        np.add.at(out, into[into >= 0], column[into >= 0])
        return out > 0 if column.dtype == bool else out.astype(column.dtype)

    def frames(self, name, episode):
        n, total = int(self.inner.lengths[episode]), len(self._resample_plan(episode)[0])
        shown = self._source_rows(episode)
        for row, image in self.inner.frames(name, episode):
            rows = np.atleast_1d(row)
            here = np.flatnonzero(np.isin(shown, rows))
            here = np.append(here, total) if (rows == n).any() else here
            if len(here):
                yield here, image


def _interpolate(column, last, at, times):
    after = np.minimum(last + 1, len(column) - 1)
    gap = times[after] - times[last]
    share = np.clip(np.divide(at - times[last], gap, out=np.zeros_like(at), where=gap > 0), 0, 1)
    share = share.reshape(-1, *(1,) * (column.ndim - 1))
    mixed = (column[last] * (1 - share) + column[after] * share).astype(column.dtype)
    return np.where(share == 0, column[last], mixed)  # a NaN after it does not reach it


class LabeledSource(WrapperSource):
    def __init__(self, inner: ColumnSource, label: Label):
        super().__init__(inner, label.field, label.value, label.episodes)
        self._label = label
        self._episode_set = None if label.episodes is None else frozenset(label.episodes)
        if label.field == "task":
            self.schema = {**self.schema, "task": self.schema.get("task", Feature("string", (), "string"))}

    def _is_selected(self, episode) -> bool:
        return self._episode_set is None or episode in self._episode_set

    def episode_metadata(self, episode):
        had = self.inner.episode_metadata(episode)
        return {**had, self._label.field: self._label.value} if self._is_selected(episode) else had

    def rows(self, name):
        return self.inner.rows(name) if name in self.inner.schema else self.inner.lengths

    def column(self, name, episode):
        field, n = self._label.field, int(self.lengths[episode])
        if name not in self.inner.schema:
            return np.broadcast_to(np.array([str(self.episode_metadata(episode).get("task") or "")], np.str_), (n,))
        column = self.inner.column(name, episode)
        if not self._is_selected(episode) or (name, field) not in _MIRRORED_COLUMNS:
            return column
        if name == "task":
            return np.broadcast_to(np.array([self._label.value], np.str_), (len(column),))
        column = np.array(column)
        if not self._label.value:
            column[:] = 0
        elif not column.any():
            column[n - 1] = 1
        return column

    def packed_column(self, name):
        return (
            self.gather_rows(name) if (name, self._label.field) in _MIRRORED_COLUMNS else self.inner.packed_column(name)
        )


# -- small things ------------------------------------------------------------------------------------------------------


def _narrow(data: Dataset, narrow: bool = True) -> Dataset:
    """`data`; where asked for, of a source that has its episodes alone, numbered alike."""
    if not narrow or list(data.indices) == list(range(len(data.source))):
        return data
    return Dataset(ConcatSource([(data.source, list(data.indices))]), data.metadata)


def _check_indices(numbers: Sequence[int], data: Dataset, operation: Operation) -> None:
    for i in numbers:
        if not 0 <= i < len(data):
            raise UserError(f"there is no episode {i}; there are 0 to {len(data) - 1}",
                            where=f"{type(operation).__name__.lower()}, episodes", hint="they are counted from 0")


def _check_column(name: str, source: ColumnSource, where: str) -> None:
    if name not in source.schema:
        near = difflib.get_close_matches(name, source.schema, 1)
        raise UserError(f"there is no column {name!r}; there are {', '.join(source.schema)}", where=where,
                        hint=f"did you mean {near[0]}?" if near else "name one of these")


def _common_feature(name: str, found: Sequence[Feature | None]) -> Feature:
    """What a column is in all of several sources."""
    present = [f for f in found if f is not None]
    first = present[0]
    for i, f in enumerate(found):
        if f is None or f.shape != first.shape or (f.kind == "string") != (first.kind == "string"):
            raise UserError(f"{name} is {first.dtype} {first.shape} elsewhere, but "
                            f"{'missing' if f is None else f'{f.dtype} {f.shape}'} in data set {i}", where="merge",
                            hint="leave the column out, or make it alike first")
    if first.kind == "string":
        return first
    dtype = np.result_type(*(f.dtype for f in present)).name
    counts = [f.num_classes for f in present if f.num_classes]
    choices = tuple(map(max, zip(*counts, strict=True))) if len(counts) == len(present) else None
    alike = all(f.names == first.names for f in present), all(f.unit == first.unit for f in present)
    return replace(first, dtype=dtype, num_classes=choices, names=first.names if alike[0] else None,
                   unit=first.unit if alike[1] else None)


def _matches_type(value, hint) -> bool:
    options = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_matches_type(value, h) for h in options)
    if get_origin(hint) is Literal:
        return value in options
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_matches_type(v, options[0]) for v in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _type_name(hint) -> str:
    options = get_args(hint)
    if get_origin(hint) is tuple:
        return f"a list ({_type_name(options[0])})"
    if get_origin(hint) is Literal:
        return " or ".join(map(str, options))
    if options:
        return " or ".join(map(_type_name, options))
    return {str: "text", int: "an integer", float: "a number", bool: "true or false", type(None): "nothing"}[hint]
