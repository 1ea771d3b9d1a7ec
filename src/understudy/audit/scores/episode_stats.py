"""What one episode says of itself: how long, how smooth, how much it moves, what it earned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...core import UserError
from ...data.episode import Dataset, Episode
from ..base import Score, StepScore
from .step_table import StepTable, action_columns


@dataclass(frozen=True)
class Brevity(Score):
    """Minus the number of steps: of two that get there, the shorter is the better. (Of Mandlekar et al. 2021, where
    better operators are the quicker.) Mind episodes that were broken off."""

    def __call__(self, data):
        return -np.array([len(e) for e in data], float)


@dataclass(frozen=True)
class Smoothness(Score):
    """Minus the log of the mean squared third difference of the actions, in units of their standard deviation over
    the data: jerk, where actions are positions (Flash and Hogan 1985). NaN for fewer than four steps."""

    def __call__(self, data):
        actions, unit = _actions(data)
        return np.array([-np.log(np.mean((np.diff(a, n=3, axis=0) / unit) ** 2) + 1e-12) if len(a) > 3 else np.nan
                         for a in actions])


def _rows(episode: Episode, name: str) -> np.ndarray:
    """(T, components)"""
    column = np.asarray(episode.steps[name])[: len(episode)]
    return column.reshape(len(column), int(np.prod(column.shape[1:])))


def _actions(data: Dataset) -> tuple[list[np.ndarray], np.ndarray]:
    """(T, A) of each episode, and the standard deviation of each component (inf if it is constant)."""
    names = action_columns(data.features(), str(data.metadata.get("path", "data set")))
    actions = [np.concatenate([_rows(e, name).astype(float) for name in names], 1) for e in data]
    whole = np.concatenate(actions)
    spread = whole[np.isfinite(whole).all(1)].std(0) if np.isfinite(whole).all(1).any() else np.zeros(whole.shape[1])
    return actions, np.where(spread > 0, spread, np.inf)


@dataclass(frozen=True)
class Motion(StepScore):
    """1 where the state changes by more than `still` standard deviations in this step, 0 where it does not: an
    episode's share of steps in which something happens."""

    min_change: float = 1e-3
    inputs: tuple[str, ...] = ()

    def steps(self, data):
        table = StepTable.from_data(data, self.inputs)
        moved = np.abs(table.next_state - table.state).max(1, initial=0) > self.min_change
        return table.split(np.where(table.has_next, moved, np.nan))


# -- TQ and SACo: two figures of a data set -----------------------------------------------------------------------


@dataclass(frozen=True)
class Return(Score):
    """The sum of the rewards between that of `random`, which is 0, and that of `best`, which is 1; without `best`, the
    sum itself. Their mean is the TQ of Schweighofer et al. 2022, A Dataset Perspective on Offline Reinforcement
    Learning."""

    random_return: float = 0.0
    best_return: float | None = None

    def __call__(self, data):
        scale = 1.0 if self.best_return is None else self.best_return - self.random_return
        if not scale > 0:
            raise UserError(
                f"expected a best return above {self.random_return}, found {self.best_return}",
                where="Return",
                hint="give as `random` what chance gets and as `best` what the best get",
            )
        return (
            np.array([_return(e) for e in data]) - (0.0 if self.best_return is None else self.random_return)
        ) / scale


def _return(episode: Episode) -> float:
    return float(np.sum(episode.steps["next.reward"], dtype=float)) if "next.reward" in episode.steps else np.nan


def trajectory_quality(data: Dataset, random: float, best: float) -> float:
    """TQ: the mean return, 0 for that of a random policy and 1 for the best known one; above 1 where that was no good
    one (Schweighofer et al. 2022)."""
    return float(np.mean(Return(random, best)(data)))


def state_action_coverage(data: Dataset, reference: Dataset, bins: int = 100, inputs: tuple[str, ...] = ()) -> float:
    """SACo: how many different pairs of state and action, over how many there are in as many steps of `reference`, the
    whole experience of an agent that learned the task (Schweighofer et al. 2022). Numbers fall in `bins` equal parts
    of the reference's range; choices count as they are. Of unequal sizes the first steps are compared. For
    deterministic worlds: noise makes every pair a new one."""
    a, b = discretize(data, reference, bins, inputs), discretize(reference, reference, bins, inputs)
    n = min(len(a), len(b))
    return len(set(a[:n].tolist())) / len(set(b[:n].tolist()))


def discretize(data: Dataset, reference: Dataset, bins: int = 100, inputs: tuple[str, ...] = ()) -> np.ndarray:
    """(N,) equal numbers where steps of `data` fall in the same cell of state and action."""
    features = reference.features()
    inputs = inputs or tuple(sorted(k for k, f in features.items() if k.startswith("observation.")
                                    and f.kind in ("vector", "discrete")))
    columns = []
    for name in (*inputs, *action_columns(features, str(reference.metadata.get("path", "data set")))):
        mine, theirs = (np.concatenate([_rows(e, name) for e in d])
                        for d in (data, reference))
        if features[name].kind == "discrete":
            columns.append(mine.astype(np.int64))
            continue
        theirs = theirs[np.isfinite(theirs).all(1)]
        low, high = (theirs.min(0), theirs.max(0)) if len(theirs) else np.zeros((2, mine.shape[1]))
        share = np.nan_to_num((mine - low) / np.where(high > low, high - low, 1), nan=-1, posinf=2, neginf=-1)
        columns.append(np.clip(share * bins, 0, bins - 1).astype(np.int64))
    return np.unique(np.concatenate(columns, 1), axis=0, return_inverse=True)[1].reshape(-1)


@dataclass(frozen=True)
class Novelty(Score):
    """The share of an episode's different pairs of state and action that no other episode has: what SACo would lose
    without it (after Schweighofer et al. 2022)."""

    n_bins: int = 20
    inputs: tuple[str, ...] = ()

    def __call__(self, data):
        which = discretize(data, data, self.n_bins, self.inputs)
        mine = [np.unique(w) for w in np.split(which, np.cumsum([len(e) for e in data])[:-1])]
        owners = np.bincount(np.concatenate(mine)) if mine else np.zeros(0, int)
        return np.array([(owners[m] == 1).mean() if len(m) else np.nan for m in mine])


# -- which steps decide -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Criticality(StepScore):
    """How much what is done changes at this step, in standard deviations of the actions: where a plan begins, turns or
    is mended. It stands in for the language model that marks critical steps in ATLaS (Chen et al. 2025), and is no
    judgement of episodes. The first step counts as its own change from rest, 0 action."""

    def steps(self, data: Dataset) -> Sequence[np.ndarray]:
        actions, unit = _actions(data)
        return [np.linalg.norm(np.diff(a, axis=0, prepend=np.zeros((1, a.shape[1]))) / unit, axis=1) for a in actions]

    def critical_steps(self, data: Dataset, fraction: float = 0.3) -> Sequence[np.ndarray]:
        """For each episode (T,) bool: the `share` of all steps that are the most critical."""
        steps = self.steps(data)
        least = np.nanquantile(np.concatenate(steps), 1 - fraction)
        return [s >= least for s in steps]
