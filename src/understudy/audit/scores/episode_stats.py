"""Scores of single episodes: length, smoothness, motion, reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...core import UserError
from ...data.episode import Dataset, Episode, concat_columns
from ..base import Score, StepScore
from .step_table import StepTable, action_columns, state_columns


@dataclass(frozen=True)
class Brevity(Score):
    """Score that prefers short episodes: minus the number of steps.

    Of two successful episodes, the shorter one is better, because better operators are faster. Episodes that were cut
    off look good too.

    References:
        Mandlekar et al. (2021), What Matters in Learning from Offline Human Demonstrations for Robot Manipulation.
    """

    def __call__(self, data):
        return -data.lengths.astype(float)


@dataclass(frozen=True)
class Smoothness(Score):
    """Minus the log of the mean squared third difference of the actions, in units of their standard deviation over the
    data.

    This is the jerk if actions are positions. NaN for fewer than four steps.

    References:
        Flash and Hogan (1985), The Coordination of Arm Movements.
    """

    def __call__(self, data):
        actions, unit = _actions(data)
        return np.array([-np.log(np.mean((np.diff(a, n=3, axis=0) / unit) ** 2) + 1e-12) if len(a) > 3 else np.nan
                         for a in actions])


def _rows(episode: Episode, name: str) -> np.ndarray:
    """Returns one column of an episode as numbers, (T, components)."""
    column = np.asarray(episode.steps[name])[: len(episode)]
    column = column.astype(np.float32) if column.dtype == bool else column
    return column.reshape(len(column), int(np.prod(column.shape[1:])))


def _actions(data: Dataset) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns the actions of each episode, (T, A), and the standard deviation of each component, (A,)."""
    names = action_columns(data.features(), str(data.metadata.get("path", "data set")))
    actions = [concat_columns(e, names)[: len(e)] for e in data]
    whole = np.concatenate(actions)
    spread = whole[np.isfinite(whole).all(1)].std(0) if np.isfinite(whole).all(1).any() else np.zeros(whole.shape[1])
    return actions, np.where(spread > 0, spread, np.inf)


@dataclass(frozen=True)
class Motion(StepScore):
    """1 for steps in which the state changes, otherwise 0. The score of an episode is the fraction of steps with
    motion.

    Args:
        min_change: Smallest change of a component that counts, in standard deviations of the component.
        inputs: Columns of the state. By default all numeric "observation." columns.
    """

    min_change: float = 1e-3
    inputs: tuple[str, ...] = ()

    def score_steps(self, data):
        table = StepTable.from_data(data, self.inputs)
        moved = np.abs(table.next_state - table.state).max(1, initial=0) > self.min_change
        return table.split(np.where(table.has_next, moved, np.nan))


# -- TQ and SACo: two measures of a data set -----------------------------------------------------------------------


@dataclass(frozen=True)
class Return(Score):
    """The sum of rewards, scaled so that `random_return` is 0 and `best_return` is 1.

    Args:
        best_return: Mean return of the best known policy. None for no scaling.

    References:
        Schweighofer et al. (2022), A Dataset Perspective on Offline Reinforcement Learning. The mean of this score is
        their TQ.
    """

    random_return: float = 0.0
    best_return: float | None = None

    def __call__(self, data):
        returns = np.array([_return(e) for e in data])
        if self.best_return is None:
            return returns
        if not self.best_return > self.random_return:
            raise UserError(f"the best return must be above {self.random_return}, not {self.best_return}",
                            where="Return", hint="give what chance gets, and then what the best known policy gets")
        return (returns - self.random_return) / (self.best_return - self.random_return)


def _return(episode: Episode) -> float:
    return float(np.sum(episode.steps["next.reward"], dtype=float)) if "next.reward" in episode.steps else np.nan


def trajectory_quality(data: Dataset, random: float, best: float) -> float:
    """Computes trajectory quality (TQ): the mean return, scaled so that a random policy has 0 and the best known 1.

    It exceeds 1 if the data are better than the best known policy.

    References:
        Schweighofer et al. (2022), A Dataset Perspective on Offline Reinforcement Learning.
    """
    return float(np.mean(Return(random, best)(data)))


def state_action_coverage(data: Dataset, reference: Dataset, bins: int = 100, inputs: tuple[str, ...] = ()) -> float:
    """Computes state-action coverage (SACo): the number of distinct state-action pairs, relative to a reference.

    Values that are not discrete are divided into bins. If sizes differ, the first steps are compared. It is meant for
    deterministic environments, because noise makes every pair different.

    Args:
        reference: The complete experience of an agent that learned the task.
        bins: Number of bins of each component, of equal width in the range of the reference.
        inputs: Columns of the state. By default all numeric "observation." columns.

    References:
        Schweighofer et al. (2022), A Dataset Perspective on Offline Reinforcement Learning.
    """
    a, b = discretize(data, reference, bins, inputs), discretize(reference, reference, bins, inputs)
    n = min(len(a), len(b))
    return len(set(a[:n].tolist())) / len(set(b[:n].tolist()))


def discretize(data: Dataset, reference: Dataset, bins: int = 100, inputs: tuple[str, ...] = ()) -> np.ndarray:
    """Divides states and actions into cells, and returns the number of the cell of each step.

    Args:
        reference: Data. Their range is divided into bins.
        bins: Number of bins of each component that is not discrete.
        inputs: Columns of the state. By default all numeric "observation." columns.

    Returns:
        One integer per step of `data`, equal for steps in the same cell, (N,).
    """
    features = reference.features()
    actions = action_columns(features, str(reference.metadata.get("path", "data set")))
    columns = []
    for name in (*(inputs or state_columns(features)), *actions):
        rows, reference_rows = (np.concatenate([_rows(e, name) for e in d])
                                for d in (data, reference))
        if features[name].kind == "discrete":
            columns.append(rows.astype(np.int64))
            continue
        reference_rows = reference_rows[np.isfinite(reference_rows).all(1)]
        low, high = ((reference_rows.min(0), reference_rows.max(0)) if len(reference_rows)
                     else np.zeros((2, rows.shape[1])))
        share = np.nan_to_num((rows - low) / np.where(high > low, high - low, 1), nan=-1, posinf=2, neginf=-1)
        columns.append(np.clip(share * bins, 0, bins - 1).astype(np.int64))
    return np.unique(np.concatenate(columns, 1), axis=0, return_inverse=True)[1].reshape(-1)


@dataclass(frozen=True)
class Novelty(Score):
    """Fraction of an episode's pairs of state and action that no other episode has. It is what SACo would lose without
    the episode.

    Args:
        n_bins: Number of bins of each component that is not discrete.
        inputs: Columns of the state. By default all numeric "observation." columns.

    References:
        Based on Schweighofer et al. (2022), A Dataset Perspective on Offline Reinforcement Learning.
    """

    n_bins: int = 20
    inputs: tuple[str, ...] = ()

    def __call__(self, data):
        which = discretize(data, data, self.n_bins, self.inputs)
        episode_cells = [np.unique(w) for w in np.split(which, np.cumsum(data.lengths)[:-1])]
        owners = np.bincount(np.concatenate(episode_cells)) if episode_cells else np.zeros(0, int)
        return np.array([(owners[m] == 1).mean() if len(m) else np.nan for m in episode_cells])


# -- critical steps -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Criticality(StepScore):
    """Change of the action at each step, in standard deviations of the actions. It is large where a motion starts,
    turns or is corrected.

    It does not rate episodes. The change of the first step is measured from the action 0. `MarkCriticalSteps` marks
    steps by what is intended and by what happens.
    """

    def score_steps(self, data: Dataset) -> Sequence[np.ndarray]:
        actions, unit = _actions(data)
        return [np.linalg.norm(np.diff(a, axis=0, prepend=np.zeros((1, a.shape[1]))) / unit, axis=1) for a in actions]

    def critical_steps(self, data: Dataset, fraction: float = 0.3) -> Sequence[np.ndarray]:
        """Returns, per episode, at which steps the action changes most, (T,) bool: `fraction` of all steps."""
        step_scores = self.score_steps(data)
        least = np.nanquantile(np.concatenate(step_scores), 1 - fraction)
        return [scores >= least for scores in step_scores]
