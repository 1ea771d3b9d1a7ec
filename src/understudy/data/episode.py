"""An episode is named columns and some facts; a dataset is a sequence of episodes."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core import DataError, Feature, role


@dataclass(frozen=True)
class Episode:
    """Columns over time: name -> array (T, *shape). A column may have one row more than the others: what was seen
    last, after the last action.

    `steps` may load lazily (any Mapping); nothing here touches a column that was not asked for. `rows` and
    `schema` are what a lazy source knows without loading. `meta` holds facts of the whole episode ("seed",
    "number", "success", ...) as plain JSON values.
    """

    steps: Mapping[str, np.ndarray]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    rows: int | None = None
    schema: Mapping[str, Feature] = field(default_factory=dict)

    def __repr__(self) -> str:
        columns = ", ".join(f"{n} {f.dtype} {f.shape}" for n, f in self.features().items()) or "none"
        meta = ", ".join(f"{k}={v!r}" for k, v in self.metadata.items())
        return f"Episode({_many(len(self), 'step')}, columns: {columns}{'; meta: ' + meta if meta else ''})"

    def __len__(self) -> int:
        """The number of steps: of rows that all columns have."""
        return min(len(column) for column in self.steps.values()) if self.rows is None else self.rows

    def replace(self, columns: Mapping[str, np.ndarray | None]) -> Episode:
        """A copy with columns added or replaced; None removes one. Other columns stay lazy."""
        return replace(
            self,
            steps=_ColumnOverrides(self.steps, columns),
            rows=None if self.rows is None else _common_length(self.rows, columns),
            schema={k: f for k, f in self.schema.items() if k not in columns},
        )

    def features(self) -> dict[str, Feature]:
        return {k: self.schema.get(k) or Feature.from_array(self.steps[k]) for k in self.steps}


def _many(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _common_length(rows, columns):
    return min([rows, *(len(c) for c in columns.values() if c is not None)])


class _ColumnOverrides(Mapping):
    def __init__(self, source, columns):
        self.source, self.overrides = source, dict(columns)

    def __getitem__(self, key):
        if key in self.overrides:
            if self.overrides[key] is None:
                raise KeyError(key)
            return self.overrides[key]
        return self.source[key]

    def __iter__(self):
        yield from (k for k in self.source if self.overrides.get(k, 0) is not None)
        yield from (k for k, v in self.overrides.items() if v is not None and k not in self.source)

    def __len__(self):
        return sum(1 for _ in self)


class PackedEpisodes(Sequence[Episode]):
    """Episodes that know where their columns lie, so that batches can be gathered from a million of them without
    touching each."""

    @property
    @abstractmethod
    def lengths(self) -> np.ndarray:
        """(E,) int64, steps."""

    @abstractmethod
    def column(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """One array of the rows of all episodes, where each begins in it (E,), and how many rows it has (E,); None for
        a column that does not lie in one array."""

    @abstractmethod
    def select(self, indices: Iterable[int]) -> PackedEpisodes: ...


class Dataset(Sequence[Episode]):
    """Episodes in order, and `facts` of them all: "format", "version", "path", "fps", "robot_type", "warnings"."""

    def __init__(self, episodes: Iterable[Episode], metadata: Mapping[str, Any] | None = None):
        self._episodes = episodes if isinstance(episodes, Sequence) else tuple(episodes)
        self.metadata: Mapping[str, Any] = dict(metadata or {})

    @staticmethod
    def open(path: str | Path, **options) -> Dataset:
        """Whatever format it is in. Options are the format's (`image_size` for those with cameras)."""
        from .formats import open_dataset

        return open_dataset(path, **options)

    def __repr__(self) -> str:
        parts = [_many(len(self), "episode")]
        if len(self) and not isinstance(self._episodes, _LazyMap):  # whose episodes would be made for this
            rate = [f"{self.fps:g} steps a second"] if self.fps else []
            parts += [_many(self.steps, "step"), *rate, f"columns: {', '.join(self[0].steps)}"]
        return f"Dataset({', '.join(parts)}{'; ' + str(path) if (path := self.metadata.get('path')) else ''})"

    def __len__(self) -> int:
        return len(self._episodes)

    def __getitem__(self, i):
        return Dataset(self._episodes[i], self.metadata) if isinstance(i, slice) else self._episodes[i]

    def __add__(self, other: Dataset) -> Dataset:
        return Dataset((*self, *other), self.metadata)

    def filter(self, predicate: Callable[[Episode], bool]) -> Dataset:
        return Dataset((e for e in self if predicate(e)), self.metadata)

    def select(self, indices: Iterable[int]) -> Dataset:
        if isinstance(self._episodes, PackedEpisodes):
            return Dataset(self._episodes.select(indices), self.metadata)
        return Dataset((self[int(i)] for i in indices), self.metadata)

    def map(self, function: Callable[[Episode], Episode]) -> Dataset:
        """Lazy, so that relabeling a dataset larger than memory costs nothing until it is read."""
        return Dataset(_LazyMap(self, function), self.metadata)

    @property
    def steps(self) -> int:
        return sum(len(e) for e in self)

    @property
    def fps(self) -> float | None:
        return self.metadata.get("fps")

    def features(self) -> dict[str, Feature]:
        """Of the first episode; choices are counted over all of them where the source does not say."""
        if not len(self):
            raise DataError("expected at least one episode, found none", where=self.metadata.get("path", "data set"),
                            hint="record some (understudy record ENV --out DATA --episodes 20)")
        features = self[0].features()
        for name, f in features.items():
            if role(name) in ("action", "observation") and f.kind == "discrete" and f.num_classes is None:
                columns = [np.asarray(e.steps[name]) for e in self]
                most = np.max([c.reshape(len(c), -1).max(0) for c in columns], axis=0)
                features[name] = replace(f, num_classes=tuple(int(m) + 1 for m in most))
        return features

    def fingerprint(self) -> str:
        """16 hex digits of every value, name, dtype and fact in it, whatever format it was stored in."""
        digest = hashlib.sha256()
        for episode in self:
            digest.update(json.dumps(dict(episode.metadata), sort_keys=True, default=str).encode())
            for key in sorted(episode.steps):
                column = np.ascontiguousarray(episode.steps[key])
                text = column.dtype.kind in "UO"  # its room in the array and its address are no part of it
                digest.update(f"{key}{'U' if text else column.dtype}{column.shape}".encode())
                digest.update(json.dumps(column.tolist()).encode() if text else column.data)
        return digest.hexdigest()[:16]


def episode_fingerprints(data: Dataset, columns: Sequence[str] | None = None) -> dict[str, Any]:
    """Digests of single episodes, to recognize copies in another format, order or selection.

    They depend on the numbers of the observations and actions, rounded to float32, at the steps of the episode.
    Camera frames and metadata are not read.

    Args:
        data: The episodes.
        columns: The columns to read. By default all numeric observations and actions.

    Returns:
        "columns": The columns, sorted. "digests": 16 hex digits for each episode. JSON values.
    """
    if columns is None:
        columns = [name for name, f in (data[0].features() if len(data) else {}).items()
                   if f.kind in ("vector", "discrete") and role(name) in ("observation", "action")]
    digests = []
    for episode in data:
        digest = hashlib.sha256()
        for name in sorted(columns):
            column = np.asarray(episode.steps[name])[:len(episode)]
            with np.errstate(over="ignore"):
                numbers = np.ascontiguousarray(column.reshape(len(column), -1), np.float32)
            digest.update(f"{name}{numbers.shape}".encode())
            digest.update(numbers.data)
        digests.append(digest.hexdigest()[:16])
    return {"columns": sorted(columns), "digests": digests}


def interrupted_episodes(data: Dataset) -> list[int]:
    """The numbers of the episodes whose recording was interrupted, so that they end before they were finished."""
    return [e for e, episode in enumerate(data) if episode.metadata.get("interrupted")]


class _LazyMap(Sequence[Episode]):
    def __init__(self, source, change):
        self.source, self.function = source, change

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return _LazyMap(self.source[i], self.function)
        return self.function(self.source[i])
