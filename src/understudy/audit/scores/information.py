"""Mutual information of states and actions, and the contribution of each step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import digamma

from ..base import StepScore
from .step_table import StepTable, principal_components


def mutual_information_terms(x: np.ndarray, y: np.ndarray, counts: tuple[int, ...] = (5, 6, 7)) -> np.ndarray:
    """Returns the contribution of each point to an estimate of the mutual information of x and y.

    This is the first estimator of Kraskov et al., with the maximum norm, averaged over several numbers of neighbors.

    Args:
        x: Points, (n, X).
        y: Points, (n, Y).

    Returns:
        Terms in nats, (n,). Their mean is the estimate.

    References:
        Kraskov, Stoegbauer and Grassberger (2004), Estimating Mutual Information.
    """
    n = len(x)
    far_x, far_y = _max_norm_distance(x), _max_norm_distance(y)
    np.fill_diagonal(far_x, np.inf)  # a point is not its own neighbor
    np.fill_diagonal(far_y, np.inf)
    both = np.partition(np.maximum(far_x, far_y), max(counts) - 1, axis=1)
    both.sort(1) if both.shape[1] <= 64 else both[:, : max(counts)].sort(1)
    total = np.zeros(n)
    for k in counts:
        reach = both[:, k - 1: k]
        near_x, near_y = (far_x < reach).sum(1), (far_y < reach).sum(1)
        total += digamma(k) - digamma(near_x + 1) - digamma(near_y + 1) + digamma(n)
    return total / len(counts)


def _max_norm_distance(x: np.ndarray) -> np.ndarray:
    out = np.zeros((len(x), len(x)), x.dtype)
    for column in x.T:
        np.maximum(out, np.abs(column[:, None] - column), out=out)
    return out


@dataclass(frozen=True)
class MutualInformation(StepScore):
    """Score of each step: its contribution to the mutual information of states and actions.

    Episodes that are varied and predictable score high. The paper uses variational autoencoders. Here states and
    actions are scaled, and replaced by their principal components if they have many components. Steps are compared in
    random groups. Contributions are clipped to the 1st and 99th percentile.

    Args:
        n_neighbors: Numbers of neighbors, over which the estimate is averaged.
        n_components: Largest number of components of states and of actions.
        group_size: Number of steps per group.
        n_rounds: Number of random divisions into groups, over which contributions are averaged.
        inputs: Columns of the state. By default all numeric "observation." columns.

    References:
        Hejna et al. (2025), Robot Data Curation with Mutual Information Estimators (DemInf).
    """

    n_neighbors: tuple[int, ...] = (5, 6, 7)
    n_components: int = 8
    group_size: int = 1024
    n_rounds: int = 1
    seed: int = 0
    inputs: tuple[str, ...] = ()

    def score_steps(self, data):
        table = StepTable.from_data(data, self.inputs)
        rng = np.random.default_rng(self.seed)
        # The estimator is for continuous values, so equal values must be separated.
        x, y = (
            principal_components(v, self.n_components)
            + 1e-6 * rng.standard_normal((len(v), min(self.n_components, v.shape[1])))
            for v in (table.state, table.action)
        )
        x, y = x.astype(np.float32), y.astype(np.float32)
        some = np.flatnonzero(table.is_complete)
        if len(some) <= max(self.n_neighbors):
            return table.split(np.full(len(table), np.nan))
        total = np.zeros(len(table))
        for _ in range(self.n_rounds):
            rng.shuffle(some)
            for part in np.array_split(some, -(-len(some) // self.group_size)):
                total[part] += mutual_information_terms(x[part], y[part], self.n_neighbors) / self.n_rounds
        return table.split(np.clip(total, *np.percentile(total[some], [1, 99])))
