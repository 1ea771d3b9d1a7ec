"""Replay buffer: episodes in growing arrays, so that windows over them copy nothing."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..core import Feature, UserError
from .episode import ColumnSource, Dataset, Episode, EpisodeList
from .packed_columns import cast_exactly, common_dtype

MIN_CAPACITY = 1024  # rows of a new array


class ReplayBuffer(Dataset):
    """A dataset that grows, in memory. Each extension is a new buffer that shares the arrays.

    The steps of all episodes are in one array for each column. `extend` copies the new episodes to the ends of these
    arrays and returns a buffer that has them as well. Arrays double when they are full, so that a step is copied a
    constant number of times on average. Buffers that come from one another share their arrays: a window of rows, a
    selection of episodes or a buffer before it was extended costs no memory.

    A column that some episodes lack can be read from the episodes that have it. The type of a column holds the numbers
    of all episodes: adding an integer of 64 bits that changes in it is an error.

    Example:
        >>> buffer = ReplayBuffer(demonstrations).extend(rollout(actor, env, 10))
        >>> sampler = policy.windows(buffer)
    """

    def __init__(self, episodes: Iterable[Episode] = ()):
        arrays = _GrowingArrays()
        super().__init__(arrays, indices=arrays.append(episodes))

    @staticmethod
    def of(data: Dataset) -> ReplayBuffer:
        """Returns a buffer with the episodes of a dataset. Nothing is copied if they are from a buffer."""
        if isinstance(data.source, _GrowingArrays):
            return _buffer(data.source, np.asarray(data.indices, np.int64))
        return ReplayBuffer(data)

    def extend(self, episodes: Iterable[Episode]) -> ReplayBuffer:
        """Returns a buffer with further episodes. The present one stays as it is."""
        arrays = self.source
        assert isinstance(arrays, _GrowingArrays)
        return _buffer(arrays, np.concatenate([self.indices, arrays.append(episodes)]))

    def union(self, other: ReplayBuffer) -> ReplayBuffer:
        """Returns a buffer with the episodes of two related buffers, each once and in order."""
        assert isinstance(self.source, _GrowingArrays) and other.source is self.source
        return _buffer(self.source, np.union1d(self.indices, other.indices))


def _buffer(arrays: _GrowingArrays, indices: np.ndarray) -> ReplayBuffer:
    out = object.__new__(ReplayBuffer)
    Dataset.__init__(out, arrays, indices=indices)
    return out


class _Column:
    """One growing array with a column of all episodes, and the position of each episode in it."""

    def __init__(self, values: np.ndarray, n_before: int):
        self.array = np.empty((0, *values.shape[1:]), values.dtype)
        self.used = 0
        self.starts, self.rows = [-1] * n_before, [0] * n_before  # -1: the episode lacks the column

    def check(self, values: np.ndarray, where: str) -> None:
        kinds = {"f" if d.kind in "iu" else d.kind for d in (self.array.dtype, values.dtype)}
        if values.shape[1:] != self.array.shape[1:] or len(kinds) > 1:
            raise UserError(f"it is {values.dtype} of shape {values.shape[1:]} in each step, and {self.array.dtype} of "
                            f"shape {self.array.shape[1:]} in the episodes before", where=where,
                            hint="bring all episodes to the same shapes and types, with a column change for example")
        dtype = common_dtype((self.array.dtype, values.dtype))
        for numbers in (values, self.array[:self.used]) if values.dtype != self.array.dtype else ():
            cast_exactly(numbers, dtype, where)

    def append(self, values: np.ndarray) -> None:
        dtype, end = common_dtype((self.array.dtype, values.dtype)), self.used + len(values)
        if end > len(self.array) or dtype != self.array.dtype:
            array = np.empty((max(end, 2 * len(self.array), MIN_CAPACITY), *values.shape[1:]), dtype)
            array[:self.used] = self.array[:self.used]
            self.array = array
        self.array[self.used:end] = values
        self.starts.append(self.used)
        self.rows.append(len(values))
        self.used = end


class _GrowingArrays(EpisodeList):
    """The growing columns that several replay buffers share. Episodes are added and never changed."""

    def __init__(self):
        self._columns: dict[str, _Column] = {}
        self._lengths: list[int] = []
        self._metadata: list[dict] = []
        self._schemas: list[dict[str, Feature]] = []

    def append(self, episodes: Iterable[Episode]) -> np.ndarray:
        """Copies the episodes and returns their numbers."""
        first = len(self._lengths)
        for episode in episodes:
            number, length = len(self._lengths), len(episode)
            columns = {name: np.asarray(episode.steps[name])[:length + 1] for name in episode.steps}
            features = episode.features()
            for name, values in columns.items():  # all of them before any is added
                if name in self._columns:
                    self._columns[name].check(values, f"episode {number}, column {name!r}")
            for name, values in columns.items():
                self._columns.setdefault(name, _Column(values, number)).append(values)
            for column in self._columns.values():
                if len(column.starts) == number:
                    column.starts.append(-1)
                    column.rows.append(0)
            self._lengths.append(length)
            self._metadata.append(dict(episode.metadata))
            self._schemas.append(features)
        return np.arange(first, len(self._lengths))

    def __len__(self):
        return len(self._lengths)

    @property
    def schema(self):
        return self._schemas[0] if self._schemas else {}

    @property
    def lengths(self):
        return np.array(self._lengths, np.int64)

    lengths_of = ColumnSource.lengths_of

    def contiguous(self, name, indices):
        if name not in self._columns:
            return None
        column, indices = self._columns[name], np.asarray(indices, np.int64)
        starts = np.array(column.starts, np.int64)[indices]
        if (starts < 0).any():
            return None
        return _read_only(column.array[:column.used]), starts, np.array(column.rows, np.int64)[indices]

    def select(self, indices):
        return self, np.asarray(indices, np.int64)

    def episode(self, number, read=None):
        steps = {}
        for name, column in self._columns.items():
            if (start := column.starts[number]) >= 0:
                steps[name] = _read_only(column.array[start:start + column.rows[number]])
        return Episode(steps, self._metadata[number], rows=self._lengths[number], schema=self._schemas[number])


def _read_only(view: np.ndarray) -> np.ndarray:
    view.flags.writeable = False
    return view
