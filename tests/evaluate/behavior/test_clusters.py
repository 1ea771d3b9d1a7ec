"""Clusters that were planted."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from understudy.evaluate.behavior.clusters import find_clusters, silhouette


def test_planted_clusters_are_found():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10]])
    which = rng.permutation(np.repeat([0, 1, 2], [20, 12, 5]))
    points = centres[which] + rng.normal(size=(37, 2))
    clusters = find_clusters(points)
    assert np.array_equal(clusters.labels, which) and clusters.silhouette > 0.7  # numbered by size
    assert np.allclose(clusters.centers, centres, atol=1.2) and clusters.assign([[9, 1], [1, 9]]).tolist() == [1, 2]
    assert len(find_clusters(rng.normal(size=(60, 3)))) == 1
    assert len(find_clusters(points[:1])) == len(find_clusters(points[:3])) == 1
    assert len(find_clusters(np.ones((9, 2)))) == 1


def test_outliers_are_no_groups():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(12, 2)), [[30, 0]], rng.normal(size=(9, 2)) + [0, 12]])
    clusters = find_clusters(points)
    assert len(clusters) == 3 and len(two := clusters.without_small(2)) == 2
    assert two.labels.tolist() == [0] * 13 + [1] * 9 and np.allclose(two.centers, clusters.centers[:2])
    assert len(find_clusters(points[:13]).without_small(2)) == 1 and clusters.without_small(1) is clusters


def test_silhouette_is_its_definition():
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(12, 2)), np.array([0] * 5 + [1] * 6 + [2])
    d = cdist(x, x)
    for i, own_label in enumerate(labels):
        a = np.mean([d[i, j] for j in range(12) if labels[j] == own_label and j != i]) if own_label != 2 else None
        b = min(np.mean(d[i, labels == k]) for k in {0, 1, 2} - {own_label})
        assert silhouette(d, labels)[i] == pytest.approx(0 if a is None else (b - a) / max(a, b))
