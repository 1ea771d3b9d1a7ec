"""Operations of views: functions from a dataset to a dataset, as frozen dataclasses of plain values.

No operation reads a column before it is asked for, or copies data that can be used where they are. Episodes are
numbered from 0 in the dataset that an operation is applied to. T is the number of steps of an episode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import numpy as np

from ..core import AtLeast, Feature, UserError, is_of_kind, keys, part, role, unknown_name
from . import cache
from .episode import ColumnSource, Dataset, Episode
from .packed_columns import cast_exactly, common_dtype, may_change
from .resampling import ResampledSource
from .sources import FLAGS, LabeledSource, WrapperSource, collect_frames, select_frames
from .tasks import task_texts

Scalar = str | bool | int | float
_TIMESTAMP, _SUCCESS = "timestamp", "next.success"


class Operation(ABC):
    """Operation on a dataset. Subclasses are frozen dataclasses. The dataset is not changed.

    Attributes:
        makes_episodes: Whether episodes are made of the recorded ones. A policy learns from them, and its errors are
            measured on recorded episodes alone.
    """

    makes_episodes: ClassVar[bool] = False
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __post_init__(self):
        """Checks the types of the fields, because operations are read from files."""
        hints = get_type_hints(type(self))
        for f in fields(self):
            if not is_of_kind(value := getattr(self, f.name), hints[f.name]):
                raise UserError(f"{value!r} is not {_type_name(hints[f.name])}",
                                where=f"{type(self).__name__.lower()}, {f.name}", hint="correct it where it is written")

    @abstractmethod
    def apply(self, data: Dataset) -> Dataset:
        """Returns the dataset after the operation, or raises UserError if it does not fit the data."""


# -- episodes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Select(Operation):
    """Select some episodes, in the given order. An episode may be selected twice."""

    episodes: tuple[int, ...]

    def apply(self, data: Dataset) -> Dataset:
        check_indices(self.episodes, len(data), self)
        return data.select(self.episodes)


@dataclass(frozen=True)
class Delete(Operation):
    """Remove some episodes."""

    episodes: tuple[int, ...]

    def apply(self, data: Dataset) -> Dataset:
        check_indices(self.episodes, len(data), self)
        deleted = set(self.episodes)
        return data.select(i for i in range(len(data)) if i not in deleted)


@dataclass(frozen=True)
class Filter(Operation):
    """Select the episodes in which a field (see `episode_values`) satisfies all given conditions.

    An episode without the field does not satisfy them. A field that is a list satisfies them if one of its items does.
    A float32 number equals the decimal that it was rounded from, and true equals 1.

    Args:
        equals: The value must be one of these.
        negate: Select the episodes that fail at least one condition.

    Example:
        >>> good = Filter("success", equals=(True,)).apply(data)
    """

    field: str
    equals: tuple[Scalar, ...] | None = None
    at_least: float | None = None
    at_most: float | None = None
    negate: bool = False

    def apply(self, data: Dataset) -> Dataset:
        values = episode_values(data, self.field)
        kept = [i for i, v in enumerate(values) if self._matches(v) is not self.negate]
        return data.select(kept)

    def _matches(self, value) -> bool:
        if isinstance(value, (list, tuple)):
            return any(self._matches(v) for v in value)
        if value is None or (self.equals is not None and not any(_is_equal(value, v) for v in self.equals)):
            return False
        if self.at_least is None and self.at_most is None:
            return True
        if not isinstance(value, (int, float)):
            raise UserError(f"{value!r} is not a number", where=f"filter, {self.field}",
                            hint="compare text with equals")
        return ((self.at_least is None or value >= self.at_least or _is_equal(value, self.at_least))
                and (self.at_most is None or value <= self.at_most or _is_equal(value, self.at_most)))


def _is_equal(value: Any, other: Scalar) -> bool:
    """Returns whether a value equals another, also after rounding to float32: 0.1 is 0.10000000149 in float32."""
    if not isinstance(value, float) or value.is_integer() or not isinstance(other, (int, float)):
        return value == other
    return value == other or value == float(np.float32(value)) == float(np.float32(other))


@dataclass(frozen=True)
class Sort(Operation):
    """Sort the episodes by a field (see `episode_values`).

    Episodes with equal values keep their order. Episodes without a value come last.
    """

    by: str
    descending: bool = False

    def apply(self, data: Dataset) -> Dataset:
        values = episode_values(data, self.by)
        episodes_with_value = [i for i, v in enumerate(values) if v is not None]
        try:
            order = sorted(episodes_with_value, key=lambda i: values[i], reverse=self.descending)
        except (TypeError, ValueError):  # arrays are compared entry by entry
            raise UserError("the values cannot be compared: they are not all numbers, and not all text",
                            where=f"order, {self.by}", hint="order by another field") from None
        return data.select([*order, *(i for i, v in enumerate(values) if v is None)])


@dataclass(frozen=True)
class Sample(Operation):
    """Draw episodes without replacement, and keep their order."""

    count: int
    seed: int = 0

    def apply(self, data: Dataset) -> Dataset:
        if not 0 < self.count <= len(data):
            raise UserError(f"cannot draw {self.count} of {len(data)} episodes", where="--sample",
                            hint="draw at least 1, and no more than there are")
        return data.select(sorted(permutation(len(data), self.seed)[: self.count]))


def permutation(n: int, seed: int) -> list[int]:
    """Returns 0 to n - 1 in random order. It is the same on every machine and with every version of NumPy."""
    return np.argsort(keys(seed, np.arange(n)).numpy(), kind="stable").tolist()


def assign_groups(sizes: Sequence[int], fractions: Sequence[float]) -> list[int]:
    """Returns the part that each whole group of episodes is assigned to, as close to `fractions` as possible.

    The distance is the sum over parts of (episodes - fraction * all episodes) squared. Every part gets a group. The
    result is optimal if all groups have one size, or if the search takes at most `_MAX_PARTIAL_SUMS` partial sums.
    Otherwise the largest groups are assigned first, each to the part that lacks most episodes. The order of `sizes`
    decides among equally close assignments.

    Args:
        sizes: Episodes of each group. There are at least as many groups as parts.
        fractions: Fraction of each part. They sum to 1.
    """
    target_sizes = [f * sum(sizes) for f in fractions]

    def distance(totals: Sequence[int]) -> float:
        return sum((t - w) ** 2 for t, w in zip(totals, target_sizes, strict=True))

    def totals(parts: Sequence[int]) -> list[int]:
        return np.bincount(parts, sizes, len(target_sizes)).astype(int).tolist()

    simple = _assign_greedily(sizes, range(len(sizes)), target_sizes)
    if len(set(sizes)) == 1:
        return simple
    best = _assign_exactly(sizes, len(target_sizes), distance)
    if best is None:  # too many groups of different sizes
        best = _assign_greedily(sizes, sorted(range(len(sizes)), key=lambda g: -sizes[g]), target_sizes)
    return best if distance(totals(best)) < distance(totals(simple)) - 1e-9 else simple


_MAX_PARTIAL_SUMS = 2_000_000  # a few seconds of work


def _assign_greedily(sizes: Sequence[int], order: Sequence[int], part_sizes: Sequence[float]) -> list[int]:
    """Assigns each group, in the given order, to the part that lacks most episodes."""
    parts, missing, empty = [0] * len(sizes), list(part_sizes), set(range(len(part_sizes)))
    for n, group in enumerate(order):
        p = max(sorted(empty) if len(order) - n <= len(empty) else range(len(missing)), key=lambda p: missing[p])
        parts[group] = p
        missing[p] -= sizes[group]
        empty.discard(p)
    return parts


def _assign_exactly(sizes: Sequence[int], parts: int, distance: Callable[[Sequence[int]], float]) -> list[int] | None:
    """Finds the closest assignment of groups to parts by dynamic programming. None if there are too many groups."""
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
    assignment = []
    for size, layer in zip(reversed(sizes), reversed(layers[1:]), strict=True):
        p = layer[totals]
        assignment.append(p)
        totals = (*totals[:p], totals[p] - size, *totals[p + 1:])
    return assignment[::-1]


@dataclass(frozen=True)
class Merge(Operation):
    """Join the episodes of several datasets, in the order of the datasets.

    The result has the columns of the first dataset without `drop_columns`. All datasets must have these columns with
    the same shapes. Numbers of different types are converted to one that holds them all. An integer of 64 bits that it
    does not hold (above 2**53 next to floats) is an error when it is read. fps and robot_type become None if they
    differ. `audit.compatibility` checks in more detail whether datasets go together.

    A dataset without the column `task` gets it from the metadata of its episodes. If `next.success` is dropped, the
    metadata say which episodes succeeded.
    """

    drop_columns: tuple[str, ...] = ()

    def apply(self, data: Dataset, *others: Dataset) -> Dataset:
        """Returns the joined dataset."""
        every = [data, *others]
        if "task" not in self.drop_columns and any("task" in d.source.schema for d in every):
            every = [d if "task" in d.source.schema else _labeled(d, "task") for d in every]
        if _SUCCESS in self.drop_columns:
            every = [_labeled(d, "success") if _SUCCESS in d.source.schema else d for d in every]
        joined = ConcatSource([(d.source, list(d.indices)) for d in every if len(d)], self.drop_columns)
        metadata = {**data.metadata, "path": ", ".join(str(d.metadata.get("path", "data set")) for d in every)}
        for key in ("fps", "robot_type"):
            distinct_values = {d.metadata.get(key) for d in every}
            metadata[key] = distinct_values.pop() if len(distinct_values) == 1 else None
        metadata["warnings"] = [type(w)(f"{d.metadata.get('path', 'data set')}: {w}") for d in every
                                for w in d.metadata.get("warnings", ())]
        return Dataset(joined, metadata)


def _labeled(data: Dataset, field: str) -> Dataset:
    """Returns the dataset with a field of its episodes stored as metadata of each."""
    labels: dict[int, dict[str, Any]] = {n: {field: _episode_value(e, field, n)}
                                         for n, e in zip(data.indices, data, strict=True)}
    return Dataset(LabeledSource(data.source, labels), data.metadata, data.indices)


# -- columns -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rename(Operation):
    """Rename a column."""

    column: str
    into: str

    def apply(self, data: Dataset) -> Dataset:
        check_column(self.column, data.source, "rename")
        if self.into in data.source.schema or not self.into or "/" in self.into:
            raise UserError(f"the new name {self.into!r} is taken, empty, or has a slash",
                            where=f"rename, {self.column}", hint="choose another, or drop the column that has it first")
        names = {self.into if n == self.column else n: n for n in data.source.schema}
        return Dataset(RenamedSource(data.source, names), data.metadata, data.indices)


@dataclass(frozen=True)
class Drop(Operation):
    """Remove some columns of the data."""

    columns: tuple[str, ...]

    def apply(self, data: Dataset) -> Dataset:
        for name in self.columns:
            check_column(name, data.source, "drop")
        kept = [n for n in data.source.schema if n not in self.columns]
        if not kept:
            raise UserError("no column would be left", where="drop, columns", hint="drop fewer")
        return Dataset(RenamedSource(data.source, {n: n for n in kept}), data.metadata, data.indices)


# -- steps -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crop(Operation):
    """Keep the steps from `start` to `stop` - 1, counted as in Python slices.

    A column with a row after the last action keeps one: the observation after the last step that is left. `timestamp`
    counts from the first step that is left. All other values stay as they were recorded.

    Args:
        start: First step that is kept. A negative number counts from the end.
        stop: Step after the last that is kept. None for the end of the episode.
        episodes: Numbers of the episodes to crop. By default all.
    """

    start: int = 0
    stop: int | None = None
    episodes: tuple[int, ...] | None = None

    def apply(self, data: Dataset) -> Dataset:
        narrowed = _narrow(data, self.episodes is not None)
        check_indices(self.episodes or (), len(data), self)
        if (narrowed.source.lengths <= abs(self.start) + abs(self.stop or 0)).any():
            narrowed = _narrow(data)  # an episode that is not selected may be too short
        lengths = narrowed.source.lengths
        ends = np.array([slice(self.start, self.stop).indices(int(n))[:2] for n in lengths], np.int64).reshape(-1, 2)
        if self.episodes is not None:
            others = np.setdiff1d(np.arange(len(lengths)), self.episodes)
            ends[others] = np.stack([np.zeros(len(others), np.int64), lengths[others]], 1)
        for i, e in enumerate(narrowed.indices):  # checked before anything is returned
            if ends[e, 0] >= ends[e, 1]:
                raise UserError(f"leaves nothing of its {lengths[e]} steps", where=f"crop, episode {i}",
                                hint="crop less, or leave out such episodes first, by their length")
        return Dataset(SlicedSource(narrowed.source, ends[:, 0], ends[:, 1]), data.metadata, narrowed.indices)


@part
class ShiftedStarts(Operation):
    """Adds copies of each episode that begin 1, 2, ... steps later.

    A policy that acts at every n-th step, such as the high-level policy behind a `SkillWrapper`, then learns from all
    steps of the data, and not from every n-th alone.

    Args:
        n: Number of starts of each episode, which has itself as the first. Episodes of fewer steps have fewer.
    """

    n: Annotated[int, AtLeast(1)]
    makes_episodes = True

    def apply(self, data: Dataset) -> Dataset:
        shifted = data
        for start in range(1, self.n):
            if len(longer := np.flatnonzero(np.asarray(data.lengths) > start)):
                shifted = shifted + Crop(start).apply(data.select(longer))
        return shifted


@dataclass(frozen=True)
class Resample(Operation):
    """Change the number of steps per second.

    New step k is at k / fps seconds after the first step. The new steps cover the time of all old steps. The time of an
    old row is its `timestamp`, in seconds. Without that column, row t is at t / (fps of the data). Times that are
    mostly equal or can hardly be seconds are refused.

    Whatever the rule, `next.reward` is the sum over the old steps that a new step covers, and other outcomes that are
    flags (`next.terminated`) are true if they are true at any of these steps. A row after the last action stays the
    last row. Actions that are differences per step mean another speed afterwards: they are not scaled.

    Args:
        rule: Values of a new step. ``"last"``: values of the last row before it. ``"nearest"``: values of the nearest
            row. ``"linear"``: linear interpolation between the rows before and after it, for observations and actions
            that are floating-point numbers, and ``"last"`` for all other columns. Quaternions and angles that are known
            as such take the shortest way: see `resampling.find_rotations`.
    """

    fps: float
    rule: Literal["last", "nearest", "linear"] = "last"

    def apply(self, data: Dataset) -> Dataset:
        if not 0 < self.fps < 1e6:
            raise UserError(f"fps is {self.fps}, but must be above 0 and below 1,000,000", where="resample, fps",
                            hint="such as 10")
        if data.fps is None and _TIMESTAMP not in data.source.schema:
            raise UserError("the data have neither a known fps nor a column timestamp",
                            where=data.metadata.get("path", "data set"),
                            hint="add fps or timestamps where it was recorded")
        narrowed = _narrow(data, _TIMESTAMP in data.source.schema)  # other episodes may have invalid times
        path = str(data.metadata.get("path") or "data set")
        return Dataset(ResampledSource(narrowed.source, data.fps, float(self.fps), self.rule, path),
                       {**data.metadata, "fps": float(self.fps)}, narrowed.indices)


# -- metadata ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Label(Operation):
    """Set a metadata field of episodes.

    "task" also sets the column `task` at every step. "terminated" also sets the column `next.terminated`, and "success"
    the column `next.success` if there is one: for False, it is False at every step; for True, the last step becomes
    True unless another step already is.

    Args:
        value: Its value: text for "task", True or False for "success" and "terminated".
        episodes: Numbers of the episodes to label. By default all.
    """

    field: str
    value: Scalar
    episodes: tuple[int, ...] | None = None

    def apply(self, data: Dataset) -> Dataset:
        kind = {**dict.fromkeys(FLAGS, bool), "task": str}.get(self.field, object)
        if self.field in ("length", "episode", "") or not isinstance(self.value, kind):
            raise UserError(f"{self.field!r} = {self.value!r} cannot be set: success and terminated are true or false, "
                            "task is text, and length and episode are fixed", where="label",
                            hint="any other name is free: operator, scene, ...")
        if role(self.field) != "other" and self.field != "task":
            raise UserError(f"{self.field!r} is the name of a column, and a label is a value of a whole episode",
                            where="label", hint="terminated and success also set next.terminated and next.success")
        if self.field == "terminated" and self.episodes is not None and FLAGS["terminated"] not in data.source.schema:
            raise UserError("there is no column next.terminated that other episodes have", where="label",
                            hint="label all episodes first, and then these")
        check_indices(self.episodes or (), len(data), self)
        narrowed = _narrow(data, self.episodes is not None)
        numbers = range(len(narrowed.source)) if self.episodes is None else self.episodes
        labels = dict.fromkeys(numbers, {self.field: self.value})
        return Dataset(LabeledSource(narrowed.source, labels), data.metadata, narrowed.indices)


# -- fields ------------------------------------------------------------------------------------------------------------


def episode_values(data: Dataset, field: str) -> list[Any]:
    """Returns the value of a field for each episode. None for an episode without the field, and for NaN.

    A field is one of these: "length", the number of steps; "episode", the number of the episode; a key of the metadata
    ("a.b" for a key in another one); "success" or "task", which are also read from their columns; a column with the
    same value at all steps of an episode. Several tasks of an episode become one text, "a; b". At least one
    episode must have a value.
    """
    if field == "length":
        return data.lengths.tolist()
    if field == "episode":
        return list(range(len(data)))
    values = [_episode_value(e, field, i) for i, e in enumerate(data)]
    if values and all(v is None for v in values):
        field_names = sorted({"length", "episode", *(k for e in data for k in e.metadata),
                              *(n for n, f in data.source.schema.items() if f.size == 1),
                              *(["success"] if _SUCCESS in data.source.schema else [])})
        raise unknown_name("field", field, field_names, data.metadata.get("path", "data set"))
    if values and all(v is None or _is_nan(v) for v in values):
        raise UserError(f"no episode has a value of {field!r}: all are NaN",
                        where=data.metadata.get("path", "data set"), hint="choose another field")
    return [None if _is_nan(v) else v for v in values]


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and value != value


def _episode_value(episode: Episode, field: str, number: int):
    value: Any = episode.metadata
    for key in [field] if field in episode.metadata else field.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None and field == "success" and _SUCCESS in episode.steps:
        return bool(np.any(episode.steps[_SUCCESS]))
    if field == "task" and "task" in episode.steps:  # the column has priority over the metadata
        return "; ".join(dict.fromkeys(map(str, task_texts(episode)))) or value
    if value is None and field in episode.steps and (column := np.asarray(episode.steps[field])).size == len(column):
        one = np.unique(column)
        if len(one) > 1:
            raise UserError(f"the column has more than one value: {one[0]}, {one[1]}{', ...' * (len(one) > 2)}",
                            where=f"episode {number}, column {field!r}",
                            hint="choose a field with one value per episode")
        return one[0].item() if len(one) else None
    return value.item() if isinstance(value, np.generic) else value


# -- sources over sources ----------------------------------------------------------------------------------------------


class RenamedSource(WrapperSource):
    """Wraps a source so that some columns have other names.

    Args:
        names: The old name of each column by its new name. Other columns are left out.
    """

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
    """Source that joins the episodes of several sources, in the order of the sources.

    Args:
        parts: The sources, each with the numbers of its episodes.
    """

    def __init__(self, parts: Sequence[tuple[ColumnSource, Sequence[int]]], leave_out: Sequence[str] = ()):
        self._parts = parts
        self._locate = [(p, int(e)) for p, (_, numbers) in enumerate(parts) for e in numbers]
        self.lengths = self._concat(lambda source: source.lengths)
        schemas = [dict(source.schema) for source, _ in parts]
        self.schema = {n: _common_feature(n, [s.get(n) for s in schemas]) for n in (schemas[0] if parts else ())
                       if n not in leave_out}
        sources = [source.key for source, _ in parts]
        checked = [n for n, f in self.schema.items() if f.kind != "string"
                   and any(may_change(s[n].dtype, f.dtype) for s in schemas)]
        exact = [checked] if checked else []  # the cache may have their rounded numbers of an older version
        numbers = [list(map(int, n)) for _, n in parts]
        self.key = cache.json_digest("joined", sources, numbers, *exact) if all(sources) else ""

    def _concat(self, what) -> np.ndarray:
        return np.concatenate([np.asarray(what(s))[np.asarray(n, np.int64)] for s, n in self._parts]
                              or [np.empty(0, np.int64)])

    def rows(self, name):
        return self._concat(lambda source: source.rows(name))

    def column(self, name, episode):
        part, number = self._locate[episode]
        column, f = self._parts[part][0].column(name, number), self.schema[name]
        if f.kind == "string" or column.dtype == f.dtype:
            return column
        return cast_exactly(np.asarray(column), f.dtype, f"merge, data set {part}, episode {number}, column {name!r}")

    def frames(self, name, episode):
        part, number = self._locate[episode]
        return self._parts[part][0].frames(name, number)

    def episode_metadata(self, episode):
        part, number = self._locate[episode]
        return self._parts[part][0].episode_metadata(number)

    def packed_column(self, name):
        """Returns None if all parts are in one array already, which is then gathered from without a copy."""
        arrays = [source.packed_column(name) for source, _ in self._parts]
        same = arrays and arrays[0] is not None and all(a is arrays[0] for a in arrays)
        return None if same and arrays[0].dtype == self.schema[name].dtype else self.gather_rows(name)


class SlicedSource(WrapperSource):
    """Wraps a source so that each episode is cut to some of its steps.

    Args:
        start: First step of each episode, (E,).
        stop: Step after the last of each episode, (E,).
        from_zero: Whether timestamps also count from the first step of an episode that keeps its start.
        last_row: Whether a column with a row after the last action keeps one.
    """

    def __init__(self, inner: ColumnSource, start: np.ndarray, stop: np.ndarray, from_zero: bool = False,
                 last_row: bool = True):
        super().__init__(inner, start.tolist(), stop.tolist(), *([from_zero] if from_zero or not last_row else []),
                         *([] if last_row else [last_row]))
        self._start, self.lengths, self._from_zero = start, stop - start, from_zero
        self._has_last_row = inner.lengths if last_row else np.full_like(inner.lengths, np.iinfo(np.int64).max)

    def first_row(self, name: str, episode: int) -> int:
        """Returns the row of `inner` that becomes the first row of an episode."""
        return int(self._start[episode])

    def rows(self, name):
        return self.lengths + (self.inner.rows(name) > self._has_last_row)

    def column(self, name, episode):
        if self.reads_frames(name):
            return collect_frames(self, name, episode)
        column, start = self.inner.column(name, episode), self.first_row(name, episode)
        column = column[start: start + self.lengths[episode] + (len(column) > self._has_last_row[episode])]
        if name != _TIMESTAMP or not (start or self._from_zero) or not len(column):
            return column
        return (column.astype(np.float64) - np.float64(column[0])).astype(column.dtype)

    def frames(self, name, episode):
        start, n = self.first_row(name, episode), self.rows(name)[episode]
        yield from select_frames(self.inner.frames(name, episode),
                                 lambda rows: rows[(rows >= start) & (rows < start + n)] - start, n)

    def packed_column(self, name):
        """Returns None if the rows are in one array already, which is then gathered from without a copy."""
        return self.gather_rows(name) if name == _TIMESTAMP or self.inner.packed_column(name) is None else None


# -- small things ------------------------------------------------------------------------------------------------------


def _narrow(data: Dataset, narrow: bool = True) -> Dataset:
    """If `narrow`, replaces the source by one that has only the dataset's episodes, numbered from 0."""
    if not narrow or list(data.indices) == list(range(len(data.source))):
        return data
    return Dataset(ConcatSource([(data.source, list(data.indices))]), data.metadata)


def check_indices(numbers: Sequence[int], episodes: int, operation: Operation) -> None:
    """Raises UserError for the first episode number that does not exist."""
    for i in numbers:
        if not 0 <= i < episodes:
            raise UserError(f"there is no episode {i}; there are 0 to {episodes - 1}",
                            where=f"{type(operation).__name__.lower()}, episodes", hint="they are counted from 0")


def check_column(name: str, source: ColumnSource, where: str) -> None:
    """Raises UserError if the data have no such column."""
    if name not in source.schema:
        raise unknown_name("column", name, source.schema, where)


def _common_feature(name: str, features: Sequence[Feature | None]) -> Feature:
    """Returns the feature of a column that several sources have."""
    present = [f for f in features if f is not None]
    first = present[0]
    for i, f in enumerate(features):
        if f is None or f.shape != first.shape or (f.kind == "string") != (first.kind == "string"):
            raise UserError(f"{name} is {first.dtype} {first.shape} elsewhere, but "
                            f"{'missing' if f is None else f'{f.dtype} {f.shape}'} in data set {i}", where="merge",
                            hint="leave the column out, or make it alike first")
    if first.kind == "string":
        return first
    dtype = common_dtype(f.dtype for f in present).name
    kind = first.kind if len({f.kind for f in present}) == 1 else "vector"
    counts = [f.num_classes for f in present if f.num_classes and kind == "discrete"]
    choices = tuple(map(max, zip(*counts, strict=True))) if len(counts) == len(present) else None
    alike = all(f.names == first.names for f in present), all(f.unit == first.unit for f in present)
    return replace(first, dtype=dtype, kind=kind, num_classes=choices, names=first.names if alike[0] else None,
                   unit=first.unit if alike[1] else None)


def _type_name(hint) -> str:
    options = get_args(hint)
    if get_origin(hint) is tuple:
        return f"a list ({_type_name(options[0])})"
    if get_origin(hint) is Literal:
        return " or ".join(map(str, options))
    if options:
        return " or ".join(map(_type_name, options))
    words = {str: "text", int: "an integer", float: "a number", bool: "true or false", type(None): "nothing"}
    return words.get(hint) or f"a {hint.__name__}"
