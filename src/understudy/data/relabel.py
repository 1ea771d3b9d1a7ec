"""Conditioning is relabeling: functions Episode -> Episode that only add or change columns.

What a relabeling adds in training has a twin at run time: `execute.actor.Given` for constants (a goal, the task's
words), a small actor for what changes (the last action, the return still wanted).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..core import Feature, UserError
from .episode import Episode

Relabel = Callable[[Episode], Episode]  # a frozen dataclass, or a function at the top of a module


@dataclass(frozen=True)
class Hindsight:
    """The goal is what this episode reached in the end (GCSL, Ghosh et al. 2021; BESO, Reuss et al. 2023)."""

    column: str = "observation.state"
    into: str = "observation.goal"

    def __call__(self, episode: Episode) -> Episode:
        column = _get_column(episode, self.column)
        return _with_column(
            episode, self.into, np.broadcast_to(column[-1], column.shape), episode.schema.get(self.column)
        )


@dataclass(frozen=True)
class TaskText:
    """The task in words as UTF-8 bytes, padded with 0: of the column "task", where the words may change on the way,
    else of the fact "task"; no words are an empty text. Longer text is cut at a whole character."""

    max_bytes: int = 64
    into: str = "observation.task"

    def __call__(self, episode: Episode) -> Episode:
        said, which = np.unique(task_texts(episode), return_inverse=True)
        rows = np.stack([self.encode(str(text)) for text in said])
        column = (np.broadcast_to(rows[0], (len(episode) + 1, self.max_bytes)) if len(said) == 1 else rows[which])
        return _with_column(episode, self.into, column, Feature("uint8", (self.max_bytes,), "text"))

    def encode(self, text: str) -> np.ndarray:
        """(length,) uint8: what to give at run time."""
        raw = text.encode()[: self.max_bytes].decode(errors="ignore").encode()
        return np.frombuffer(raw.ljust(self.max_bytes, b"\0"), np.uint8)


def task_texts(episode: Episode) -> np.ndarray:
    """The task of each step, or, where it is one for all of the episode, of it: text (T,) or (1,)."""
    found = episode.steps["task"] if "task" in episode.steps else [episode.metadata.get("task") or ""]
    return np.asarray(found, dtype=str).reshape(len(found))


@dataclass(frozen=True)
class ReturnToGo:
    """(T+1, 1): the sum of this and all later rewards of the episode, each weighted by `discount` to the power of
    its distance (Chen et al. 2021, Decision Transformer, without discount). After the last step it is 0."""

    discount: float = 1.0
    column: str = "next.reward"
    into: str = "observation.return_to_go"

    def __call__(self, episode: Episode) -> Episode:
        reward = np.asarray(_get_column(episode, self.column)[: len(episode)], np.float64).reshape(len(episode))
        total = np.zeros(len(episode) + 1)
        for t in reversed(range(len(episode))):
            total[t] = reward[t] + self.discount * total[t + 1]
        return _with_column(episode, self.into, total.astype(np.float32)[:, None])


@dataclass(frozen=True)
class TimeLeft:
    """(T+1, 1): steps until the episode ends, T at its first and 0 after its last."""

    into: str = "observation.time_left"

    def __call__(self, episode: Episode) -> Episode:
        return _with_column(episode, self.into, np.arange(len(episode), -1, -1, dtype=np.float32)[:, None])


@dataclass(frozen=True)
class Progress:
    """(T+1, 1): the share of the episode that is over, 0 at its first step and 1 after its last."""

    into: str = "observation.progress"

    def __call__(self, episode: Episode) -> Episode:
        n = len(episode)
        return _with_column(episode, self.into, (np.arange(n + 1) / max(n, 1)).astype(np.float32)[:, None])


@dataclass(frozen=True)
class LastAction:
    """(T+1, ...): the action before this step, which is what a robot knows; the action of this very step would be
    the answer. Before the first: zeros; for choices each value is one higher and 0 says that none was taken yet."""

    column: str = "action"
    into: str = "observation.last_action"

    def __call__(self, episode: Episode) -> Episode:
        action = _get_column(episode, self.column)[: len(episode)]
        feature = episode.features()[self.column]
        if feature.kind == "discrete":
            action = action + 1
            feature = replace(feature, num_classes=feature.num_classes and tuple(n + 1 for n in feature.num_classes))
        return _with_column(episode, self.into, np.concatenate([np.zeros_like(action[:1]), action]), feature)


@dataclass(frozen=True)
class InterventionPenalty:
    """Reward -1 at the last step before a person takes over, which is what made them, else 0 (RLIF, Luo et al. 2024):
    any offline learner does the rest. What was taken over from the start had no such step."""

    column: str = "intervention"
    into: str = "next.reward"

    def __call__(self, episode: Episode) -> Episode:
        taken = np.asarray(_get_column(episode, self.column)[: len(episode)]).reshape(-1) > 0
        return _with_column(episode, self.into, -np.append(taken[1:] & ~taken[:-1], False).astype(np.float32))


@dataclass(frozen=True)
class ConstantColumn:
    """The same number at every step: which data set it came from (an expert's, SQIL), which robot, which operator."""

    into: str
    value: float

    def __call__(self, episode: Episode) -> Episode:
        value = np.array([self.value], np.float32)
        return _with_column(episode, self.into, np.broadcast_to(value, (len(episode) + 1, 1)))


@dataclass(frozen=True)
class SelectColumns:
    """Only these columns."""

    columns: tuple[str, ...]

    def __call__(self, episode: Episode) -> Episode:
        for name in self.columns:
            _check_column(episode, name)
        return episode.replace({k: None for k in episode.steps if k not in self.columns})


@dataclass(frozen=True)
class ColumnPadding:
    """Pads a vector column with zeros, so that robots of different widths share one policy.

    With ``Normalizer(group_by=...)`` the padded components are constant for each robot. They are coded as 0 and decoded
    as 0.

    Args:
        column: Name of the column.
        size: Number of components after padding.
    """

    column: str
    size: int

    def __call__(self, episode: Episode) -> Episode:
        values, feature = _get_column(episode, self.column), episode.features()[self.column]
        where = f"column {self.column!r}"
        if feature.kind != "vector" or len(feature.shape) != 1:
            raise UserError(f"Only vectors can be padded, and this column has kind {feature.kind!r} and shape "
                            f"{feature.shape}.", where=where, hint="Remove it from the ColumnPadding relabelings.")
        missing = self.size - feature.size
        if missing < 0:
            raise UserError(f"The column has {feature.size} components, more than size={self.size}.", where=where,
                            hint=f"Use ColumnPadding({self.column!r}, {feature.size}) or larger.")
        if not missing:
            return episode
        names = feature.names and (*feature.names, *(f"padding.{i}" for i in range(feature.size, self.size)))
        wide = np.concatenate([values, np.zeros((len(values), missing), values.dtype)], 1)
        return _with_column(episode, self.column, wide, replace(feature, shape=(self.size,), names=names))


@dataclass(frozen=True)
class Rename:
    """The column `of` under the name `into`."""

    column: str
    into: str

    def __call__(self, episode: Episode) -> Episode:
        column, feature = _get_column(episode, self.column), episode.schema.get(self.column)
        return _with_column(episode.replace({self.column: None}), self.into, column, feature)


@dataclass(frozen=True)
class ConcatColumns:
    """Joins columns of numbers into one, so that one target holds actions and later observations.

    Row t of the new column has the first column at step t, the other columns at step ``t + offset`` (or their last
    row), and a last component that is 1 where the first column is known and 0 where it is not.

    Args:
        columns: Columns to join. The new column has as many rows as the first of them.
        offset: Steps by which the columns after the first are later.
        into: Name of the new column.
        known: Column that is not 0 at the steps where the first column is known. None if it is known everywhere.

    Raises:
        UserError: If a column is missing or is not a vector of numbers.

    Example:
        >>> relabel = ConcatColumns(("action", "observation.state"), offset=8)
    """

    columns: tuple[str, ...]
    offset: int = 1
    into: str = "joint"
    known: str | None = None

    def __call__(self, episode: Episode) -> Episode:
        features = episode.features()
        for name in self.columns:
            _check_column(episode, name)
            if features[name].kind != "vector" or len(features[name].shape) != 1:
                raise UserError(f"column {name!r} is not a vector of numbers, so that it cannot be joined",
                                where="ConcatColumns.columns", hint="join actions, states and poses")
        first, *others = (_get_column(episode, name) for name in self.columns)
        rows = np.arange(len(first))
        later = [column[np.minimum(rows + self.offset, len(column) - 1)] for column in others]
        known = (np.ones(len(first)) if self.known is None
                 else np.asarray(_get_column(episode, self.known))[rows].reshape(len(first)) != 0)
        joined = np.concatenate([first, *later, known[:, None]], 1).astype(np.float32)
        return _with_column(episode, self.into, joined, Feature("float32", joined.shape[1:]))


def _with_column(episode: Episode, name: str, column: np.ndarray, feature: Feature | None = None) -> Episode:
    episode = episode.replace({name: column})
    return episode if feature is None else replace(episode, schema={**episode.schema, name: feature})


def _check_column(episode: Episode, name: str) -> None:
    if name not in episode.steps:
        raise UserError(f"expected a column {name!r}, found {', '.join(sorted(episode.steps))}",
                        where=f"episode {episode.metadata.get('number', '')}".strip(),
                        hint="name one that is there")


def _get_column(episode: Episode, name: str) -> np.ndarray:
    _check_column(episode, name)
    return np.asarray(episode.steps[name])
