"""Reads the tasks of episodes in words."""

from __future__ import annotations

import numpy as np

from .episode import Episode

SHOWN_TASK = "observation.task"  # where an environment shows the task of an episode


def task_texts(episode: Episode) -> np.ndarray:
    """Returns the task of each step, (T,) or (T+1,), or of the whole episode, (1,). Empty text without a task."""
    if "task" in episode.steps and (column := np.asarray(episode.steps["task"])).size == len(column):
        column = column.reshape(len(column))
        return (column[:1] if column.strides == (0,) else column).astype(str)  # the same text in all rows
    if task := episode.metadata.get("task"):
        return np.array([str(task)])
    return np.array(shown_texts(episode) or [""], dtype=str)


def shown_texts(episode: Episode) -> list[str]:
    """Returns the task text that the environment showed with each observation. Empty if it showed no text."""
    feature = episode.features().get(SHOWN_TASK)
    if feature is None or feature.kind != "text":
        return []
    rows = np.asarray(episode.steps[SHOWN_TASK])
    if len(rows) and (rows == rows[0]).all():  # most tasks stay the same
        return [decode_text(rows[0])] * len(rows)
    return [decode_text(row) for row in rows]


def decode_text(row: np.ndarray) -> str:
    """Returns the text of UTF-8 bytes that are padded with 0."""
    return bytes(row).rstrip(b"\0").decode(errors="replace")
