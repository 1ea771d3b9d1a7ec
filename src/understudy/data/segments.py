"""Parts of long episodes: pieces between cuts, and labeled segments with a text of what was done.

Long recordings without tasks and resets become episodes of single tasks, after they were made (hindsight labels).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any

import numpy as np

from ..core import DataError
from .episode import Dataset, Episode
from .operations import ConcatSource, Operation, SlicedSource, check_indices
from .sources import LabeledSource

SEGMENTS = "segments"  # metadata of an episode: its segments, a list of [start, stop, task]
_FIELD = f"metadata {SEGMENTS!r}"


@dataclass(frozen=True)
class LabeledSegment:
    """A part of an episode, and a text of what was done in it.

    Args:
        stop: The step after its last step.
    """

    start: int
    stop: int
    task: str


def cut_segments(data: Dataset, segments: Sequence[Sequence[LabeledSegment]], extra_steps: int = 0) -> Dataset:
    """Makes an episode of each segment, ordered by episode and in the given order. There must be at least one.

    Segments may overlap, and steps in no segment are left out. Columns stay lazy. The words are the column and the
    metadata `task`, which `TaskText` reads. The metadata `segment` tells the number of the episode, the start and the
    stop of each segment. All else stays as it was recorded: `success`, for example, is the success of the whole
    episode. As in `Crop`, a column with a row after the last action keeps one.

    Args:
        extra_steps: Number of steps to keep after the end of each segment, where the episode has them. They show the
            policy what to do when it is done. Where another task begins at once, they show the wrong thing.

    Example:
        >>> pushes = cut_segments(play, [[LabeledSegment(0, 40, "push red left"), LabeledSegment(25, 90, "go up")]])
        >>> [len(e) for e in pushes]
        [40, 65]
    """
    if len(segments) != len(data):
        raise DataError(f"there are segments of {len(segments)} episodes, and {len(data)} episodes",
                        where=data.metadata.get("path", "data set"),
                        hint="give a list for each episode, which is empty where nothing was done")
    lengths, numbered_segments = data.lengths.tolist(), []
    for episode, (inside, length) in enumerate(zip(segments, lengths, strict=True)):
        for number, one in enumerate(inside):
            check_segment(one, length, f"episode {episode}, segment {number}")
            numbered_segments.append((episode, one))
    if not numbered_segments:
        raise DataError("no episode has a segment", where=data.metadata.get("path", "data set"),
                        hint="label some, or use a detector that finds what was done in these data")
    parts = [(episode, int(one.start), min(int(one.stop) + extra_steps, lengths[episode]))
             for episode, one in numbered_segments]
    labels = [{"task": one.task, "segment": {"episode": episode, "start": int(one.start), "stop": int(one.stop)}}
              for episode, one in numbered_segments]
    return _slice_episodes(data, parts, labels)


def _slice_episodes(data: Dataset, parts: Sequence[tuple[int, int, int]], labels: Sequence[Mapping[str, Any]],
                    last_row: bool = True) -> Dataset:
    """Builds a dataset of parts (episode, start, stop) of episodes, with their metadata but without segments."""
    inner = ConcatSource([(data.source, [data.indices[episode] for episode, _, _ in parts])])
    start, stop = (np.array([part[i] for part in parts], np.int64) for i in (1, 2))
    sliced = SlicedSource(inner, start, stop, last_row=last_row)
    return Dataset(LabeledSource(sliced, {i: {SEGMENTS: None, **label} for i, label in enumerate(labels) if label}),
                   data.metadata)


@dataclass(frozen=True)
class Cut(Operation):
    """Cut episodes into pieces, such as rollouts that were written as one episode.

    Each row is the first of a new piece. All steps are kept. A piece has the metadata of its episode, and `segment`
    tells the number of that episode and the start and stop of the piece.

    The observation after the last action of a piece is not kept, because the row after a cut may belong to another
    rollout. If any column has a row after the last action, the last pieces lose it, too, so that all pieces are alike.

    Args:
        rows: The rows at which to cut. Without `episodes`, each episode that is long enough is cut at all of them.
        episodes: For each of `rows`, the number of the episode that is cut there.
        every: Cut each episode every so many rows.
    """

    rows: tuple[int, ...] = ()
    episodes: tuple[int, ...] | None = None
    every: int | None = None

    def apply(self, data: Dataset) -> Dataset:
        lengths = data.lengths.tolist()
        cuts = [{0, length, *inside} for length, inside in zip(lengths, self._cuts(lengths), strict=True)]
        if all(len(rows) <= 2 for rows in cuts):
            raise DataError("no episode is cut: they have at most "
                            f"{max(lengths, default=0)} steps", where="cut", hint="cut at earlier rows")
        parts, labels = [], []
        for episode, rows in enumerate(map(sorted, cuts)):
            for start, stop in zip(rows, rows[1:], strict=False):
                parts.append((episode, start, stop))
                labels.append({"segment": {"episode": episode, "start": start, "stop": stop}} if len(rows) > 2 else {})
        return _slice_episodes(data, parts, labels, last_row=False)

    def _cuts(self, lengths: list[int]) -> list[list[int]]:
        """Returns the rows at which each episode is cut."""
        if self.every is not None and self.every < 1 or min(self.rows, default=1) < 1:
            raise DataError("the first row at which an episode can be cut is 1", where="cut",
                            hint="rows are counted from 0, and each is the first of a new piece")
        if self.episodes is None:
            regular = [range(self.every, n, self.every) if self.every else () for n in lengths]
            return [[*(r for r in self.rows if r < n), *every] for n, every in zip(lengths, regular, strict=True)]
        if self.every is not None or len(self.episodes) != len(self.rows):
            raise DataError(f"there are {len(self.episodes)} episodes for {len(self.rows)} rows", where="cut, episodes",
                            hint="give one for each row, and no every")
        cuts: list[list[int]] = [[] for _ in lengths]
        check_indices(self.episodes, len(lengths), self)
        for episode, row in zip(self.episodes, self.rows, strict=True):
            if row >= lengths[episode]:
                raise DataError(f"there is no row {row} to cut at; the episode has {lengths[episode]} steps",
                                where=f"cut, episode {episode}", hint="rows are counted from 0")
            cuts[episode].append(row)
        return cuts


class SegmentDetector(ABC):
    """Rule that finds the segments of an episode. Subclasses are frozen dataclasses."""

    @abstractmethod
    def detect(self, episode: Episode) -> Sequence[LabeledSegment]:
        """Returns the segments of an episode. They may overlap, and there may be none."""


@dataclass(frozen=True)
class StoredSegments(SegmentDetector):
    """Segments from the metadata of each episode, as people or another program labeled them.

    The field `segments` is a list of ``[start, stop, task]``. An empty list says that nothing was done.
    """

    def detect(self, episode):
        if SEGMENTS not in episode.metadata:
            raise DataError(f"it is missing; there are {', '.join(sorted(episode.metadata)) or 'none'}", where=_FIELD,
                            hint='store a list such as [[0, 40, "push red left"]], or name a detector of segments')
        segments = episode.metadata[SEGMENTS]
        if not isinstance(segments, Sequence) or isinstance(segments, str):
            raise DataError(f"it is {segments!r} and not a list", where=_FIELD,
                            hint='such as [[0, 40, "push red left"]]')
        for number, segment in enumerate(segments):
            if not isinstance(segment, Sequence) or isinstance(segment, str) or len(segment) != 3:
                raise DataError(f"{segment!r} is not a start, a stop and a task", where=f"{_FIELD}, segment {number}",
                                hint='such as [0, 40, "push red left"]')
        return [LabeledSegment(*segment) for segment in segments]


@dataclass(frozen=True)
class ColumnSegments(SegmentDetector):
    """Segments from a text column such as the subtask: one for each run of steps with equal text."""

    column: str = "subtask"

    def detect(self, episode):
        if self.column not in episode.steps:
            raise DataError(f"it is missing; there are {', '.join(sorted(episode.steps))}",
                            where=f"column {self.column!r}",
                            hint="name a column of text that says what is done at each step")
        text = np.asarray(episode.steps[self.column])[: len(episode)]
        if text.dtype.kind not in "UO" or text.size != len(text):
            raise DataError(f"it has {text.dtype} of shape {text.shape[1:]} and not a text at each step",
                            where=f"column {self.column!r}", hint="name a column of text")
        text = text.reshape(len(text)).astype(str)
        changes = [0, *(np.flatnonzero(text[1:] != text[:-1]) + 1).tolist(), len(text)]
        return [LabeledSegment(a, b, str(text[a])) for a, b in zip(changes, changes[1:], strict=False)
                if b > a and text[a].strip()]


def detect_segments(data: Dataset, detector: SegmentDetector) -> list[Sequence[LabeledSegment]]:
    """Returns the segments of each episode. Errors name the episode by its number in the source of the data."""
    segments = []
    for number, episode in zip(data.indices, data.iterate_once(), strict=True):
        try:
            segments.append(detector.detect(episode))
        except DataError as error:
            place = f"episode {number}" + (f", {error.where}" if error.where else "")
            raise DataError(error.problem, where=place, hint=error.hint) from None
    return segments


@dataclass(frozen=True)
class CutSegments(Operation):
    """Make an episode of each segment that a detector finds: see `cut_segments`.

    Args:
        extra_steps: Number of steps to keep after the end of each segment.

    References:
        Lynch et al. (2022), Interactive Language: Talking to Robots in Real Time, arXiv:2210.06407: annotators choose
        where a segment starts and ends.
    """

    detector: SegmentDetector = field(default_factory=StoredSegments)
    extra_steps: int = 0

    def apply(self, data: Dataset) -> Dataset:
        if self.extra_steps < 0:
            raise DataError(f"extra_steps is {self.extra_steps}", where="CutSegments", hint="use 0 or more steps")
        return cut_segments(data, detect_segments(data, self.detector), self.extra_steps)


def check_segment(one: LabeledSegment, length: int, where: str) -> None:
    """Raises DataError if a segment is not a part of an episode of this length, or says nothing."""
    try:
        start, stop = index(one.start), index(one.stop)
    except TypeError:
        raise DataError(f"start={one.start!r} and stop={one.stop!r} are not numbers of steps", where=where,
                        hint="use whole numbers, counted from 0") from None
    if not 0 <= start < stop <= length:
        raise DataError(f"start={start} and stop={stop} are not part of its {length} steps", where=where,
                        hint="start counts from 0, and stop is the step after the last")
    if not isinstance(one.task, str) or not one.task.strip():
        raise DataError(f"task={one.task!r} says nothing", where=where, hint="say in words what was done")
