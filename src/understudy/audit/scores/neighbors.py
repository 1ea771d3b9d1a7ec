"""Scores that compare a step with the nearest steps of other episodes.

Steps of the same episode are excluded, because the steps before and after are always near and always similar.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ...data.episode import Dataset
from ..base import StepScore
from .step_table import StepTable, principal_components


def nearest_neighbors(points: np.ndarray, episode: np.ndarray, count: int, candidates: np.ndarray
                      ) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest candidates from other episodes.

    Args:
        points: Points, (N, D).
        episode: Episode of each point, (N,).
        candidates: Indices of the points that may be neighbors, (C,).

    Returns:
        Distances (N, count), nearest first and infinite if there are too few, and indices of points (N, count).
    """
    tree = cKDTree(points[candidates])
    candidate_episode = episode[candidates]
    distances = np.full((len(points), count), np.inf)
    indices = np.zeros((len(points), count), np.int64)
    pending, ask = np.arange(len(points)), min(2 * count + 2, len(candidates))
    while len(pending):
        distance, candidate = tree.query(points[pending], np.arange(1, ask + 1), workers=-1)
        is_other = candidate_episode[candidate] != episode[pending][:, None]
        order = np.argsort(~is_other, axis=1, kind="stable")[:, :count]
        is_other, distance, candidate = (np.take_along_axis(x, order, 1) for x in (is_other, distance, candidate))
        full = is_other.all(1) & (is_other.shape[1] == count) | (ask == len(candidates))
        n = is_other.shape[1]
        distances[pending[full], :n] = np.where(is_other, distance, np.inf)[full]
        indices[pending[full], :n] = candidates[candidate][full]
        pending, ask = pending[~full], min(4 * ask, len(candidates))
    return distances, indices


@dataclass(frozen=True)
class NeighborScore(StepScore):
    """A score that compares each step with the nearest steps of other episodes.

    Args:
        inputs: Columns of the state. By default all numeric "observation." columns.
        max_steps: Largest number of steps that can be neighbors, drawn at random from all steps. Every step is rated.
    """

    n_neighbors: int = 10
    inputs: tuple[str, ...] = ()
    max_steps: int = 20_000
    seed: int = 0

    def score_steps(self, data: Dataset):
        table = StepTable.from_data(data, self.inputs)
        among = np.flatnonzero(table.is_complete)
        if len(among) > self.max_steps:
            among = np.sort(np.random.default_rng(self.seed).choice(among, self.max_steps, replace=False))
        if len(set(table.episode[among].tolist())) < 2:  # no other episode
            return table.split(np.full(len(table), np.nan))
        points = principal_components(self.search_space(table))
        distances, indices = nearest_neighbors(points, table.episode, self.n_neighbors, among)
        is_valid = np.isfinite(distances)
        indices = np.where(is_valid, indices, indices[:, :1])
        return table.split(self.score_neighbors(table, distances, indices, is_valid))

    def search_space(self, table: StepTable) -> np.ndarray:
        """Returns the points in which neighbors are searched, (N, D). By default these are the states."""
        return table.state

    @abstractmethod
    def score_neighbors(
        self, table: StepTable, distances: np.ndarray, indices: np.ndarray, is_valid: np.ndarray
    ) -> np.ndarray:
        """Rates each step by its neighbors.

        Args:
            distances: Distances of the neighbors, nearest first, (N, n_neighbors). Infinite where there is none.
            indices: Rows of the neighbors in `table`, (N, n_neighbors).
            is_valid: Whether there is such a neighbor, (N, n_neighbors).

        Returns:
            The scores, (N,).
        """


def _variance(values: np.ndarray, is_neighbor: np.ndarray) -> np.ndarray:
    """Returns the unbiased variance of the found values, averaged over components: (N, count, D) -> (N,)."""
    weight = is_neighbor[..., None] / np.maximum(is_neighbor.sum(1), 1)[:, None, None]
    mean = (weight * values).sum(1, keepdims=True)
    spread = (weight * (values - mean) ** 2).sum(1).mean(1)
    n = is_neighbor.sum(1)
    return np.where(n > 1, spread * n / np.maximum(n - 1, 1), np.nan)


@dataclass(frozen=True)
class ActionVariance(NeighborScore):
    """Minus the variance of the actions in this state and its neighbors.

    It is 0 if all act alike, and -1 if actions differ as much as in the whole data. Sparse data score worse, because
    neighbors are farther away. Two good ways of acting also count as variance. This harms a regression, but not a
    mixture or a flow.

    References:
        Belkhale et al. (2023), Data Quality in Imitation Learning, which uses clusters of states.
    """

    def score_neighbors(self, table, distances, indices, is_valid):
        own = table.action[:, None]
        return -_variance(np.concatenate([own, table.action[indices]], 1), np.c_[np.ones(len(own), bool), is_valid])


@dataclass(frozen=True)
class ActionConsistency(NeighborScore):
    """Minus the squared distance of the action from the mean action of its neighbors, mean over components.

    It rates the episode that acts differently, whereas `ActionVariance` rates the state.

    References:
        Based on Belkhale et al. (2023), Data Quality in Imitation Learning.
    """

    def score_neighbors(self, table, distances, indices, is_valid):
        weight = is_valid[..., None] / np.maximum(is_valid.sum(1), 1)[:, None, None]
        return -((table.action - (weight * table.action[indices]).sum(1)) ** 2).mean(1)


@dataclass(frozen=True)
class StateDiversity(NeighborScore):
    """Score of states: mean distance to the nearest states of other episodes. High where no other episode was.

    Rare states are not always good. `StateSimilarity` rates the opposite.

    References:
        Belkhale et al. (2023), Data Quality in Imitation Learning.
    """

    def score_neighbors(self, table, distances, indices, is_valid):
        return np.where(is_valid, distances, 0).sum(1) / is_valid.sum(1)


@dataclass(frozen=True)
class StateSimilarity(NeighborScore):
    """Score of states: minus the mean distance to the nearest states of other episodes.

    It is high if many episodes were there, so that the right action is well known.

    References:
        Belkhale et al. (2023), Data Quality in Imitation Learning. Its state similarity counts states instead of
        measuring distances.
    """

    def score_neighbors(self, table, distances, indices, is_valid):
        return -np.where(is_valid, distances, 0).sum(1) / is_valid.sum(1)


@dataclass(frozen=True)
class TransitionDiversity(NeighborScore):
    """Variance of the changes that follow almost the same state and action, relative to the variance of all changes.

    This is the noise of the system. With many data, noise teaches recovery. With few data, it makes learning harder.

    References:
        Belkhale et al. (2023), Data Quality in Imitation Learning.
    """

    def search_space(self, table):
        return table.state_action

    def score_neighbors(self, table, distances, indices, is_valid):
        change = table.next_state - table.state
        has_next = table.has_next
        spread = change[has_next].std(0) if has_next.any() else np.ones(change.shape[1])
        change = np.where(spread > 1e-6, change / np.maximum(spread, 1e-6), 0)
        changes = np.concatenate([change[:, None], change[indices]], 1)
        return _variance(changes, np.c_[has_next, is_valid & has_next[indices]])


@dataclass(frozen=True)
class Typicality(NeighborScore):
    """Score that is low for outliers: minus the distance to the farthest of the nearest steps of other episodes.

    References:
        Ramaswamy et al. (2000), Efficient Algorithms for Mining Outliers from Large Data Sets.
    """

    def search_space(self, table):
        return table.state_action

    def score_neighbors(self, table, distances, indices, is_valid):
        return -np.where(is_valid, distances, 0).max(1)


@dataclass(frozen=True)
class Unimodality(NeighborScore):
    """Score that is low where the actions in the nearest states form two groups.

    The best split in two explains a fraction of the variance along the main direction. The measure goes from 0 (3/4, as
    for a uniform distribution) to 1 (two points), times the variance, so that small noise does not count as two ways.

    References:
        Fisher (1958), On Grouping for Maximum Homogeneity.
    """

    n_neighbors: int = 20

    def score_neighbors(self, table, distances, indices, is_valid):
        actions = np.concatenate([table.action[:, None], table.action[indices]], 1).astype(np.float64)
        return np.where(is_valid.all(1), -_two_groups(actions), np.nan)


@dataclass(frozen=True)
class LocalUnimodality(NeighborScore):
    """Score like `Unimodality`, after a local linear function of the state is subtracted from the actions.

    A regression can follow actions that change with the state, such as actions towards a goal that differs between
    episodes. What remains after the subtraction shows whether there are two ways of acting in the same state. The
    function is fitted to each step and its neighbors (ridge regression).
    """

    n_neighbors: int = 30

    def score_neighbors(self, table, distances, indices, is_valid):
        state = principal_components(table.state).astype(np.float64)
        group = np.concatenate([np.arange(len(indices))[:, None], indices], 1)
        scores = [_two_groups(_residuals(state, table.action, group[i:i + BLOCK])) for i in range(0, len(group), BLOCK)]
        return np.where(is_valid.all(1), -np.concatenate(scores), np.nan)


BLOCK = 8192  # the neighbors of so many steps are in memory at once


def _residuals(state: np.ndarray, action: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Returns actions minus the linear function of the state that ridge regression fits to each group, (n, k, A)."""
    target, offset = action[group].astype(np.float64), state[group] - state[group[:, :1]]
    inputs = np.concatenate([offset, np.ones_like(offset[..., :1])], 2)
    square = np.einsum("nki,nkj->nij", inputs, inputs)
    ridge = 1e-3 * np.einsum("nii->n", square) / square.shape[1]
    square = square + ridge[:, None, None] * np.eye(square.shape[1])
    return target - inputs @ np.linalg.solve(square, np.einsum("nki,nkj->nij", inputs, target))


def _two_groups(actions: np.ndarray) -> np.ndarray:
    """Returns how clearly actions form two groups, (N, k, A) -> (N,), as used by `Unimodality`."""
    k = actions.shape[1]
    a = actions - actions.mean(1, keepdims=True)
    spread = np.einsum("nki,nkj->nij", a, a) / k
    values, axes = np.linalg.eigh(spread)
    along = np.sort(np.einsum("nki,ni->nk", a, axes[:, :, -1]), 1)
    sums = np.cumsum(along, 1)[:, :-1]
    n = np.arange(1, k)
    between = (sums**2 * (1 / n + 1 / (k - n)) / k).max(1)  # the mean is 0
    share = between / np.maximum(values[:, -1], 1e-12)
    return np.clip((share - 0.75) / 0.25, 0, 1) * np.minimum(values[:, -1], 1)
