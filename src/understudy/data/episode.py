"""Episodes, the sources that their columns come from, and datasets."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import numpy as np

from ..core import DataError, Feature, role, tensor_dtype
from ..hints import pluralize

Indices = Sequence[int] | np.ndarray  # numbers of episodes


@dataclass(frozen=True)
class Episode:
    """One demonstration or rollout: columns over time.

    A column may have one row more than there are steps: the observation after the last action. No method reads a column
    that is not asked for.

    Args:
        steps: The columns, ``{name: (T, *shape)}`` or (T + 1, *shape), numbers, flags or text. A lazy mapping is not
            checked here.
        metadata: Metadata of the whole episode ("seed", "number", "success", ...), plain JSON values.
        rows: Number of steps, if it is known without reading. By default the length of the shortest column.
        schema: Features of the columns that are known without reading.
    """

    steps: Mapping[str, np.ndarray]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    rows: int | None = None
    schema: Mapping[str, Feature] = field(default_factory=dict)

    def __post_init__(self):
        if type(self.steps) is not dict or not self.steps:
            return
        for name, column in self.steps.items():
            if not isinstance(column, np.ndarray) or not column.ndim or column.dtype.kind not in "biufUOS" or \
                    column.dtype.str != tensor_dtype(column.dtype):
                raise DataError(f"the column {name!r} is {_describe_column(column)}, but must be an array of numbers, "
                                "flags or text with one row per step", where="Episode", hint=_array_hint(column))
            if isinstance(column, np.ma.MaskedArray):  # what is masked would be read as numbers
                raise DataError(f"the column {name!r} is a masked array, and a missing value cannot be learned",
                                where="Episode", hint="fill it: column.filled(value), or leave these steps out")
        n = len(self)
        _, shortest = min((len(column), name) for name, column in self.steps.items())
        for name, column in self.steps.items():
            if not n <= len(column) <= n + 1:
                other = f"the column {shortest!r} has {n}" if self.rows is None else f"the episode has {n} steps"
                raise DataError(f"the column {name!r} has {len(column)} rows, but {other}", where="Episode",
                                hint="a column has one row per step, or one more: the observation after the last "
                                     "action")

    def __repr__(self) -> str:
        columns = ", ".join(f"{n} {f.dtype} {f.shape}" for n, f in self.features().items()) or "none"
        meta = ", ".join(f"{k}={v!r}" for k, v in self.metadata.items())
        return f"Episode({pluralize(len(self), 'step')}, columns: {columns}{'; meta: ' + meta if meta else ''})"

    def __len__(self) -> int:
        """Number of steps: the rows that all columns have."""
        return min(len(column) for column in self.steps.values()) if self.rows is None else self.rows

    def replace(self, columns: Mapping[str, np.ndarray | None]) -> Episode:
        """Returns a copy with columns added, replaced, or removed (None). Other columns stay lazy."""
        columns = dict(columns)
        names = dict.fromkeys(n for n in (*self.steps, *columns) if columns.get(n, ()) is not None)
        return replace(
            self,
            steps=LazyColumns(names, partial(_read_override, columns, self.steps)),
            rows=None if self.rows is None else _common_length(self.rows, columns),
            schema={k: f for k, f in self.schema.items() if k not in columns},
        )

    def features(self) -> dict[str, Feature]:
        """Returns the feature of each column. A column that is not in `schema` is read."""
        return {k: self.schema.get(k) or Feature.from_array(self.steps[k]) for k in self.steps}


def _read_override(columns: Mapping[str, Any], others: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return columns[name] if name in columns else others[name]


def _describe_column(column: object) -> str:
    if isinstance(column, np.ndarray):
        return f"an array of {column.dtype}" if column.ndim else "an array without rows"
    return f"a {type(column).__name__}"


def _array_hint(column: object) -> str:
    if isinstance(column, np.ndarray) and column.ndim:
        return "store the real and the imaginary parts as components" if column.dtype.kind == "c" else (
            "convert it to float32")
    if type(column).__module__ == "torch":
        return "column.numpy() makes an array of a tensor"
    return "np.asarray(values) makes an array of a list. A number that is the same at all steps belongs in the metadata"


def _common_length(rows, columns):
    return min([rows, *(len(c) for c in columns.values() if c is not None)])


class LazyColumns(Mapping):
    """Mapping of columns that are read when they are asked for.

    Args:
        read: Returns a column by its name.
    """

    def __init__(self, names: Collection[str], read: Callable[[str], Any]):
        self._names, self._read = names, read

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class ColumnSource(ABC):
    """A source of episodes, such as a file. Only `column`, `frames` and `stream_episodes` read data.

    Attributes:
        key: Digest of the content, which names its cache entry. Empty for episodes in memory.
        lengths: Number of steps of each episode, (E,) int64.
    """

    key: str = ""
    schema: Mapping[str, Feature]
    lengths: np.ndarray
    metadata: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def rows(self, name: str) -> np.ndarray:
        """Returns the number of rows of a column in each episode, (E,): its steps, or one more."""

    @abstractmethod
    def column(self, name: str, episode: int) -> np.ndarray:
        """Returns one column of one episode, (rows, *shape)."""

    def packed_column(self, name: str) -> np.ndarray | None:
        """Returns the rows of a column with all episodes end to end. None if they are not in one array."""
        return None

    def frames(self, name: str, episode: int) -> Iterator[tuple[Any, np.ndarray]]:
        """Yields the images of a camera one at a time, so that an episode need not fit in memory.

        Yields:
            A row or several rows of the episode, and the image that they have, uint8 (H, W, C). The order is arbitrary.
        """
        return enumerate(self.column(name, episode))

    def stream_episodes(self, first: int, stop: int) -> Iterator[Mapping[str, np.ndarray]]:
        """Yields ``{name: (rows, *shape)}`` for each of the episodes `first` to `stop` - 1 in turn.

        These are columns that are cheaper to read once than to copy into the cache.
        """
        return ({} for _ in range(first, stop))

    def episode_metadata(self, episode: int) -> Mapping[str, Any]:
        """Returns the metadata of one episode."""
        return {}

    def __len__(self) -> int:
        return len(self.lengths)

    def episode(self, number: int, read: Mapping[str, np.ndarray] | None = None) -> Episode:
        """Returns one episode. Columns in `read` are read already. All other columns are read when asked for."""
        columns = LazyColumns(self.schema, partial(self._read_column, number, read or {}))
        return Episode(columns, self.episode_metadata(number), int(self.lengths[number]), self.schema)

    def _read_column(self, number: int, read: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        return read[name] if name in read else self.column(name, number)

    def lengths_of(self, indices: Indices) -> np.ndarray:
        """Returns the number of steps of some episodes, (n,)."""
        return self.lengths[np.asarray(indices, np.int64)]

    def rows_of(self, name: str, indices: Indices) -> np.ndarray:
        """Returns the number of rows of a column in the episodes `indices`, (n,)."""
        return self.rows(name)[np.asarray(indices, np.int64)]

    def contiguous(self, name: str, indices: Indices) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Locates a column of some episodes in one array that has the episodes end to end.

        Returns:
            The array, (N, *shape); the row at which each episode begins, (n,); and the number of rows of each episode,
            (n,). None if the column is not in one array.
        """
        array = self.packed_column(name) if name in self.schema else None
        if array is None:
            return None
        rows, numbers = self.rows(name), np.asarray(indices, np.int64)
        return array, episode_starts(rows)[numbers], rows[numbers]

    def select(self, indices: Indices) -> tuple[ColumnSource, Indices]:
        """Returns a source that has some episodes, and their numbers in it."""
        return self, indices

    def iterate_once(self, indices: Indices) -> Iterator[Episode]:
        """Yields some episodes. The cache is not filled, because data that are read only once need no copy."""
        first, n = (indices[0], len(indices)) if len(indices) else (0, 0)
        if list(indices) != list(range(first, first + n)):
            yield from map(self.episode, indices)
            return
        for number, read in zip(indices, self.stream_episodes(first, first + n), strict=True):
            yield self.episode(number, read)


class EpisodeList(ColumnSource):
    """A source of episodes in memory. Their columns may differ; the source has the schema of the first episode."""

    def __init__(self, episodes: Iterable[Episode]):
        self._episodes = episodes if isinstance(episodes, Sequence) else tuple(episodes)

    def __len__(self):
        return len(self._episodes)

    def episode(self, number, read=None):
        return self._episodes[number]

    @cached_property
    def schema(self):
        return self.episode(0).features() if len(self) else {}

    @cached_property
    def lengths(self):
        return self.lengths_of(range(len(self)))

    def lengths_of(self, indices):
        return np.array([len(self.episode(i)) for i in indices], np.int64)

    def rows(self, name):
        return self.rows_of(name, range(len(self)))

    def rows_of(self, name, indices):
        return np.array([len(self.episode(i).steps[name]) for i in indices], np.int64)

    def column(self, name, episode):
        return np.asarray(self.episode(episode).steps[name])

    def episode_metadata(self, episode):
        return self.episode(episode).metadata

    def contiguous(self, name, indices):
        return None

    def select(self, indices):
        return EpisodeList([self.episode(i) for i in indices]), range(len(indices))

    def iterate_once(self, indices):
        return map(self.episode, indices)


class LabeledEpisodes(EpisodeList):
    """Wraps the episodes of a data set so that further columns are added to each.

    Args:
        columns: Returns the further columns of an episode by its number in the data set. Each has a row for each step.
    """

    def __init__(self, data: Dataset, features: Mapping[str, Feature],
                 columns: Callable[[int], Mapping[str, np.ndarray]]):
        self._data, self._features, self._columns = data, features, columns
        self.metadata = data.metadata

    def __len__(self):
        return len(self._data)

    def episode(self, number, read=None):
        episode = self._data[number].replace(self._columns(number))
        return replace(episode, schema={**episode.schema, **self._features})

    def lengths_of(self, indices):
        return self._data.source.lengths_of(self._numbers_in_source(indices))

    def select(self, indices):
        return self, indices

    def contiguous(self, name, indices):
        return None if name in self._features else self._data.source.contiguous(name, self._numbers_in_source(indices))

    def frames(self, name, episode):
        return self._data.frames(name, episode)

    def _numbers_in_source(self, indices: Indices) -> list[int]:
        return [self._data.indices[i] for i in indices]


class _LazyMap(EpisodeList):
    """Wraps a source so that a function is applied to each episode when it is asked for."""

    def __init__(self, source: ColumnSource, function: Callable[[Episode], Episode]):
        self._source, self._function = source, function

    def __len__(self):
        return len(self._source)

    def episode(self, number, read=None):
        return self._function(self._source.episode(number))

    def iterate_once(self, indices):
        return map(self._function, self._source.iterate_once(indices))


class Dataset(Sequence[Episode]):
    """A sequence of episodes from a source, the form in which all commands get data.

    Args:
        metadata: Metadata of the data set: "format", "version", "path", "fps", "robot_type", "warnings". By default the
            metadata of the source.
        indices: Numbers of the episodes in the source, in order. By default all of them.

    Example:
        >>> data = Dataset([Episode({"observation.state": states, "action": actions})])
        >>> data[0].steps["action"].shape
        (200, 7)
    """

    def __init__(self, source: ColumnSource | Iterable[Episode], metadata: Mapping[str, Any] | None = None,
                 indices: Indices | None = None):
        self.source = source if isinstance(source, ColumnSource) else EpisodeList(source)
        self.metadata: Mapping[str, Any] = dict(self.source.metadata if metadata is None else metadata)
        self.indices = range(len(self.source)) if indices is None else indices

    def __repr__(self) -> str:
        parts = [pluralize(len(self), "episode")]
        if len(self) and not isinstance(self.source, _LazyMap):  # its episodes would be computed for this
            rate = [f"{self.fps:g} steps a second"] if self.fps else []
            parts += [pluralize(self.steps, "step"), *rate, f"columns: {', '.join(self[0].steps)}"]
        return f"Dataset({', '.join(parts)}{'; ' + str(path) if (path := self.metadata.get('path')) else ''})"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return Dataset(self.source, self.metadata, self.indices[i])
        return self.source.episode(self.indices[i])

    def __add__(self, other: Dataset) -> Dataset:
        return Dataset((*self, *other), self.metadata)

    def filter(self, predicate: Callable[[Episode], bool]) -> Dataset:
        """Returns the episodes for which `predicate` is true."""
        return self.select([i for i, episode in enumerate(self) if predicate(episode)])

    def select(self, indices: Iterable[int]) -> Dataset:
        """Returns some episodes by their numbers, in the given order."""
        source, numbers = self.source.select([self.indices[int(i)] for i in indices])
        return Dataset(source, self.metadata, numbers)

    def map(self, function: Callable[[Episode], Episode]) -> Dataset:
        """Returns a dataset in which a function is applied to each episode when it is read."""
        return Dataset(_LazyMap(self.source, function), self.metadata, self.indices)

    def iterate_once(self) -> Iterator[Episode]:
        """Yields each episode without filling the cache, for code that reads the data a single time."""
        return self.source.iterate_once(self.indices)

    @property
    def lengths(self) -> np.ndarray:
        """Number of steps of each episode, (E,) int64."""
        return self.source.lengths_of(self.indices)

    def rows(self, name: str) -> np.ndarray:
        """Returns the number of rows of a column in each episode, (E,): its steps, or one more."""
        return self.source.rows_of(name, self.indices)

    def frames(self, name: str, episode: int) -> Iterator[tuple[Any, np.ndarray]]:
        """Yields the images of a camera as they are decoded: see `ColumnSource.frames`."""
        return self.source.frames(name, self.indices[episode])

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Locates a column of all episodes in one array, so that a batch can be gathered without opening each episode.

        Returns:
            The array, (N, *shape); the row at which each episode begins, (E,); and the number of rows of each episode,
            (E,). None if the column is not in one array.
        """
        return self.source.contiguous(name, self.indices)

    @property
    def steps(self) -> int:
        """Number of steps of all episodes together."""
        return int(self.lengths.sum())

    @property
    def fps(self) -> float | None:
        """Steps per second. None if it is not known."""
        return self.metadata.get("fps")

    def features(self) -> dict[str, Feature]:
        """Returns the features of the first episode by column.

        If the source does not give the number of classes of a discrete column, it is counted over all episodes.
        """
        if not len(self):
            raise DataError("there are no episodes", where=self.metadata.get("path", "data set"),
                            hint="record some (understudy record ENV --out DATA --episodes 20)")
        features = self[0].features()
        for name, f in features.items():
            if role(name) in ("action", "observation") and f.kind == "discrete" and f.num_classes is None:
                columns = [np.asarray(e.steps[name]) for e in self if name in e.steps]
                most = np.max([c.reshape(len(c), f.size).max(0, initial=0) for c in columns
                               if c.shape[1:] == f.shape], axis=0)  # training refuses other shapes
                features[name] = replace(f, num_classes=tuple(int(m) + 1 for m in most))
        return features

    def fingerprint(self) -> str:
        """Returns 16 hex digits that identify all values, names, dtypes and metadata, whatever the format."""
        digest = hashlib.sha256()
        for episode in self:
            digest.update(json.dumps(dict(episode.metadata), sort_keys=True, default=str).encode())
            for key in sorted(episode.steps):
                column = np.ascontiguousarray(episode.steps[key])
                text = column.dtype.kind in "UO"  # neither the width of the array nor addresses count
                digest.update(f"{key}{'U' if text else column.dtype}{column.shape}".encode())
                digest.update(json.dumps(column.tolist()).encode() if text else column.data)
        return digest.hexdigest()[:16]


def episode_fingerprints(data: Dataset, columns: Sequence[str] | None = None) -> dict[str, Any]:
    """Computes digests of single episodes, to recognize copies in another format, order or selection.

    They depend on the numbers of the observations and actions, rounded to float32, at the steps of the episode. Camera
    frames and metadata are not read.

    Args:
        columns: The columns to read. By default all numeric observations and actions.

    Returns:
        JSON values: "columns", the columns, sorted; "digests", 16 hex digits for each episode.
    """
    if columns is None:
        columns = [name for name, f in (data[0].features() if len(data) else {}).items()
                   if f.kind in ("vector", "discrete") and role(name) in ("observation", "action")]
    digests = []
    for episode in data:
        digest = hashlib.sha256()
        for name in sorted(columns):
            if name not in episode.steps:
                digest.update(f"no {name}".encode())
                continue
            column = np.asarray(episode.steps[name])[:len(episode)]
            with np.errstate(over="ignore"):
                numbers = np.ascontiguousarray(column.reshape(len(column), math.prod(column.shape[1:])), np.float32)
            digest.update(f"{name}{numbers.shape}".encode())
            digest.update(numbers.data)
        digests.append(digest.hexdigest()[:16])
    return {"columns": sorted(columns), "digests": digests}


def interrupted_episodes(data: Dataset) -> list[int]:
    """Returns the numbers of the episodes whose recording was interrupted."""
    return [e for e, episode in enumerate(data) if episode.metadata.get("interrupted")]


def terminate_together(data: Dataset) -> bool:
    """Returns whether all episodes terminate after the same number of steps, as if a time limit were an end."""
    return bool(len(data) > 2 and data.lengths.min() == data.lengths.max() >= 10
                and all(np.any(e.steps["next.terminated"][:len(e)]) for e in data))


def episode_starts(rows: np.ndarray) -> np.ndarray:
    """Returns the row at which each episode begins when they lie end to end, (E,), from their numbers of rows, (E,)."""
    return np.cumsum(rows) - rows


def concat_columns(episode: Episode, columns: Sequence[str]) -> np.ndarray:
    """Joins columns of an episode side by side, (rows, D) float64. The result has as many rows as the shortest."""
    parts = [np.asarray(episode.steps[k], float) for k in columns]
    rows = min((len(p) for p in parts), default=len(episode))
    return np.concatenate([np.zeros((rows, 0)), *(p[:rows].reshape(rows, math.prod(p.shape[1:])) for p in parts)], 1)
