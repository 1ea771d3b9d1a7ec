"""Clusters points, and tests whether there are clusters at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist, pdist, squareform

MIN_SILHOUETTE = 0.5  # Kaufman and Rousseeuw (1990) call a structure reasonable from this mean silhouette on


@dataclass(frozen=True)
class Clusters:
    """Clusters of points, numbered from the largest. `silhouette` is NaN if there is only one."""

    labels: np.ndarray  # (n,) int
    centers: np.ndarray  # (k, D)
    silhouette: float

    def __len__(self) -> int:
        return len(self.centers)

    def without_small(self, min_size: int) -> Clusters:
        """Removes clusters with fewer than `min_size` points, which are outliers. Their points go to the nearest
        remaining cluster."""
        kept = np.bincount(self.labels, minlength=len(self)) >= min_size
        if kept.all() or not kept.any():
            return self
        centres, new = self.centers[kept], np.cumsum(kept) - 1
        nearest = cdist(self.centers, centres).argmin(1)
        return Clusters(np.where(kept, new, nearest)[self.labels], centres,
                        self.silhouette if len(centres) > 1 else np.nan)

    def assign(self, points: np.ndarray) -> np.ndarray:
        """Returns the index of the cluster with the nearest center, (m, D) -> (m,)."""
        return cdist(points, self.centers).argmin(1)


def silhouette(distances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Computes the silhouette of each point: how much nearer its own cluster is than the next one.

    Args:
        distances: Distances between all points, (n, n).
        labels: Cluster of each point, (n,).

    Returns:
        (n,), from -1 to 1. 0 for a cluster of one point.

    References:
        Rousseeuw (1987), Silhouettes: A Graphical Aid to the Interpretation and Validation of Cluster Analysis.
    """
    kinds, which = np.unique(labels, return_inverse=True)
    member = np.eye(len(kinds))[which]
    total, count, own = distances @ member, member.sum(0), member.astype(bool)
    within = total[own] / np.maximum(count[which] - 1, 1)
    other = np.where(own, np.inf, total / count).min(1)
    larger = np.maximum(within, other)
    coefficients = np.where(larger > 0, (other - within) / np.where(larger > 0, larger, 1), 0.0)
    return np.where(count[which] > 1, coefficients, 0.0)


def find_clusters(points: np.ndarray, max_clusters: int = 8, min_silhouette: float = MIN_SILHOUETTE) -> Clusters:
    """Clusters points with Ward's method. The result is deterministic.

    Args:
        points: The points, (n, D).
        max_clusters: Largest number of clusters. The number from 2 up that maximizes the mean silhouette is used.
        min_silhouette: There is one cluster if the mean silhouette is below this, or with fewer than four points.

    References:
        Ward (1963), Hierarchical Grouping to Optimize an Objective Function.
    """
    points = np.asarray(points, float)
    if not len(points):
        raise ValueError("there are no points to cluster")
    labels, best = np.zeros(len(points), int), np.nan
    if len(points) >= 4 and points.shape[1] and (apart := pdist(points)).max() > 0:
        tree, distances, top = linkage(points, "ward"), squareform(apart), min_silhouette
        for k in range(2, min(max_clusters, len(points) - 1) + 1):
            cut = fcluster(tree, k, "maxclust")
            if len(np.unique(cut)) == k and (mean := float(silhouette(distances, cut).mean())) >= top + 1e-9:
                labels, best, top = cut, mean, mean
    kinds, count = np.unique(labels, return_counts=True)
    order = kinds[np.argsort(-count, kind="stable")]
    labels = np.argmax(labels[:, None] == order, 1)
    return Clusters(labels, np.stack([points[labels == i].mean(0) for i in range(len(order))]), best)
