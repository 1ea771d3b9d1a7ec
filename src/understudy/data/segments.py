"""Labeled segments: parts of long episodes, which may overlap, with what was done in each of them in words.

Long recordings without tasks and resets become episodes of single tasks, after they were made (hindsight labels).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import index

import numpy as np

from ..core import DataError
from .episode import Dataset, Episode
from .operations import ConcatSource, Operation, SlicedSource
from .sources import LabeledSource

SEGMENTS = "segments"  # metadata of an episode: its segments, a list of [start, stop, task]
_FIELD = f"metadata {SEGMENTS!r}"


@dataclass(frozen=True)
class LabeledSegment:
    """A part of an episode, and what was done in it.

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
    stop of each segment. All else stays as it was recorded: `success`, for example, is that of the whole episode. As in
    `Crop`, a column with a row after the last action keeps one.

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
    inner = ConcatSource([(data.source, [data.indices[episode] for episode, _ in numbered_segments])])
    start = np.array([one.start for _, one in numbered_segments], np.int64)
    stop = np.array([min(one.stop + extra_steps, lengths[episode]) for episode, one in numbered_segments], np.int64)
    labels = {i: {SEGMENTS: None, "task": one.task,
                  "segment": {"episode": episode, "start": int(one.start), "stop": int(one.stop)}}
              for i, (episode, one) in enumerate(numbered_segments)}
    return Dataset(LabeledSource(SlicedSource(inner, start, stop), labels), data.metadata)


class SegmentDetector(ABC):
    """Finds the segments of an episode. Subclasses are frozen dataclasses."""

    @abstractmethod
    def detect(self, episode: Episode) -> Sequence[LabeledSegment]:
        """Returns the segments of an episode. They may overlap, and there may be none."""


@dataclass(frozen=True)
class StoredSegments(SegmentDetector):
    """The segments in the metadata of each episode, as people or another program labeled them.

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
    """One segment for each run of steps with the same text in a column, such as the subtask. Empty text gives none."""

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
    """Raises DataError if a segment is no part of an episode of this length, or says nothing."""
    try:
        start, stop = index(one.start), index(one.stop)
    except TypeError:
        raise DataError(f"start={one.start!r} and stop={one.stop!r} are not numbers of steps", where=where,
                        hint="use whole numbers, counted from 0") from None
    if not 0 <= start < stop <= length:
        raise DataError(f"start={start} and stop={stop} are no part of its {length} steps", where=where,
                        hint="start counts from 0, and stop is the step after the last")
    if not isinstance(one.task, str) or not one.task.strip():
        raise DataError(f"task={one.task!r} says nothing", where=where, hint="say in words what was done")
