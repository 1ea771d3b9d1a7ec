"""Metrics of continual learning: a policy learns one task after another, and is tested in all after each training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class LifelongMetrics:
    """The result of `lifelong_metrics`, such as final performance, transfer and forgetting.

    Args:
        final: Mean performance in all tasks after the last training.
        maintenance: Mean change since a task was trained, over later evaluations and then tasks. Below 0: forgetting.
            A policy that learns nothing has 0, so read it with `final`.
        forward: Mean change in a task that is not trained yet, by the training of another task, over pairs of tasks.
        forward_contrast: Like `forward`, with each change divided by the sum of performance before and after.
        n_undefined: Number of pairs with a sum of 0. They have no contrast.
    """

    final: float
    maintenance: float
    forward: float
    forward_contrast: float
    n_undefined: int


def lifelong_metrics(performance: ArrayLike) -> LifelongMetrics:
    """Summarizes the matrix of performance after each training in each task.

    Args:
        performance: Row i is after the training of i tasks, so that row 0 is before any, and columns are tasks in the
            order of their training: (tasks + 1, tasks), at least two tasks. From 0 to 1 between ends that are the same
            for all methods that are compared, such as a random policy and the expert.

    References:
        New et al. (2022), Lifelong Learning Metrics, arXiv:2201.08278 (maintenance, and transfer as a contrast).
    """
    p = np.asarray(performance, float)
    n = p.shape[1]
    if n < 2 or len(p) != n + 1:
        raise ValueError(f"the matrix is {p.shape}, and must be (tasks + 1, tasks) of at least two tasks")
    maintenance = np.mean([(p[j + 2:, j] - p[j + 1, j]).mean() for j in range(n - 1)])
    before, after = (np.array([p[i + k, j] for i in range(n) for j in range(i + 1, n)]) for k in (0, 1))
    total = before + after
    contrast = (after - before)[total != 0] / total[total != 0]
    return LifelongMetrics(float(p[-1].mean()), float(maintenance), float((after - before).mean()),
                           float(contrast.mean()) if len(contrast) else float("nan"), int((total == 0).sum()))
