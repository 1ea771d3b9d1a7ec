"""Summaries of a data set for `understudy inspect`. The checks of its contents are in `audit.checks`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...core import Feature, UserError, role
from ..episode import Dataset, Episode
from ..segments import SEGMENTS
from ..tasks import task_texts


def describe(data: Dataset) -> dict[str, Any]:
    """Returns the document of `understudy inspect --json`.

    Returns:
        {"format", "version", "episodes", "steps", "fps", "features": {name: {"dtype", "shape", "names"}}, "tasks",
        "warnings"}. Columns of classes also have "classes", their number by component. "warnings" are the warnings of
        the reader.
    """
    features = dataset_features(data)
    return {
        "format": data.metadata.get("format", "memory"), "version": data.metadata.get("version", ""),
        "episodes": len(data), "steps": data.steps, "fps": data.fps,
        "features": {name: {"dtype": f.dtype, "shape": list(f.shape), "names": list(f.names) if f.names else None,
                            **({"classes": list(f.num_classes)} if f.num_classes else {})}
                     for name, f in features.items()},
        "tasks": list(task_counts(data)),
        "warnings": list(data.metadata.get("warnings", ())),
        **{key: data.metadata[key] for key in ("mapping", "topics") if key in data.metadata},
    }


def dataset_features(data: Dataset) -> dict[str, Feature]:
    """Returns the features of a data set. Without episodes, they are the features in the schema of the recording."""
    return data.features() if len(data) else dict(data.source.schema)


def value_ranges(data: Dataset) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns the range of the values of each numeric observation and action.

    Returns:
        Minimum, mean and maximum of the finite values of each component, (size,) each, by column. The mean is NaN
        without finite values.
    """
    ranges = {}
    for name, f in data.features().items():
        if f.kind in ("vector", "discrete") and role(name) in ("observation", "action"):
            low, high = np.full(f.size, np.inf), np.full(f.size, -np.inf)
            total, count = np.zeros(f.size), np.zeros(f.size)
            for episode in data:
                column = np.asarray(episode.steps[name], np.float64)
                values = column.reshape(len(column), f.size)
                is_finite = np.isfinite(values)
                low = np.minimum(low, values.min(0, initial=np.inf, where=is_finite))
                high = np.maximum(high, values.max(0, initial=-np.inf, where=is_finite))
                total, count = total + values.sum(0, where=is_finite), count + is_finite.sum(0)
            ranges[name] = low, np.divide(total, count, out=np.full(f.size, np.nan), where=count > 0), high
    return ranges


def component_ranges(data: Dataset, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the smallest and the largest finite value of each component of a column where it was observed, (size,).

    They are infinite for a component without finite values.
    """
    size = data.features()[column].size
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    for episode in data:
        values = np.asarray(episode.steps[column])
        if column + "?" in episode.steps:
            values = values[np.asarray(episode.steps[column + "?"])]
        values = values.reshape(len(values), size)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            values = np.where(np.isfinite(values), values, np.nan)
        if len(values):
            low, high = np.fmin(low, np.fmin.reduce(values, 0)), np.fmax(high, np.fmax.reduce(values, 0))
    return low, high


def check_finite(data: Dataset, columns: Iterable[str] = ("action",)) -> None:
    """Checks that columns are finite.

    Raises:
        UserError: A value is NaN or infinite. The message names file, episode, step and component of the first one.
    """
    for name in columns:
        for e, episode in enumerate(data):
            values = episode.steps[name]
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                at = np.argwhere(~np.isfinite(values))[0]
                component = name + "".join(f"[{i}]" for i in at[1:])
                raise UserError(
                    f"the value is not finite: {values[tuple(at)]}",
                    where=f"{data.metadata.get('path', 'data set')}, episode {e}, step {at[0]}, {component}",
                    hint="correct the value, or leave the episode out")


def task_counts(data: Dataset) -> dict[str, int]:
    """Returns the number of episodes with each task, in the order in which the tasks first appear."""
    return dict(Counter(task for episode in data for task in episode_tasks(episode)))


def episode_tasks(episode: Episode) -> list[str]:
    """Returns the different tasks of an episode in words, in their order.

    They are read from the first place that has words: the column or the metadata "task" (see
    `data.text_columns.TaskText`), the column "observation.task" of UTF-8 bytes, which some environments show, or the
    metadata "segments" (see `data.segments.StoredSegments`).
    """
    for texts in (task_texts(episode), _segment_tasks(episode)):
        if tasks := [text for text in dict.fromkeys(map(str, texts)) if text.strip()]:
            return tasks
    return []


def _segment_tasks(episode: Episode) -> list[str]:
    segments = episode.metadata.get(SEGMENTS)
    if not isinstance(segments, (list, tuple)):
        return []
    return [str(s[2]) for s in segments if isinstance(s, (list, tuple)) and len(s) == 3]


def lerobot_source(data: Dataset):
    """Returns the LeRobot source of a dataset. None if it has another source, or not all episodes of the source."""
    from .lerobot_read import LeRobotSource

    return data.source if isinstance(data.source, LeRobotSource) and len(data) == len(data.source) else None
