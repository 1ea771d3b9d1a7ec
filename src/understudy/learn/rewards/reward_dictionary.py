"""Lifelong inverse reinforcement learning (ELIRL): rewards of several tasks that share a dictionary."""

from __future__ import annotations

import numpy as np

from ...core import UserError
from .maxent_irl import expected_features


class RewardDictionary:
    """Linear rewards of tasks as sparse combinations of a few shared columns, learned task by task.

    With few demonstrations of each task, `fit_reward` finds a poor reward. ``columns @ add(weights, metric)`` is one
    that knows what earlier tasks have in common.

    The columns L minimize the mean of ``(w - L s)' H (w - L s)`` over all tasks so far, plus ``decay * |L|^2``. The
    code s of a task stays as it was when the task came. `encode` gives its code in the present columns, with which
    later tasks improve earlier ones.

    Args:
        n_features: Number of features, F.
        n_columns: Number of columns, K. The first K tasks are columns themselves.
        sparsity: Penalty of the absolute values of a code.
        decay: Penalty of the squared columns, above 0.

    Attributes:
        columns: L, (F, K).

    References:
        Mendez, Shivkumar and Eaton (2018), Lifelong Inverse Reinforcement Learning.

    Example:
        >>> weights = fit_reward(transitions, features, counts, 0.9, ridge=1.0)
        >>> policy = soft_policy(transitions, features @ weights, 0.9)
        >>> code = dictionary.add(weights, feature_covariance(transitions, features, policy, 0.9))
        >>> reward = features @ dictionary.columns @ code
    """

    def __init__(self, n_features: int, n_columns: int = 5, sparsity: float = 1.0, decay: float = 0.01):
        if not (n_features > 0 and n_columns > 0 and sparsity >= 0 and decay > 0):
            raise UserError(f"there are {n_features} features and {n_columns} columns, with sparsity={sparsity:g} and "
                            f"decay={decay:g}", where="RewardDictionary",
                            hint="use at least one of each, a sparsity of at least 0, and a decay above 0")
        size = n_features * n_columns
        self.sparsity, self.decay, self.n_tasks = sparsity, decay, 0
        self.columns, self._quadratic, self._linear = np.zeros((n_features, n_columns)), np.zeros((size, size)), 0.0

    def encode(self, weights: np.ndarray, metric: np.ndarray) -> np.ndarray:
        """Computes the sparse code s (K,) of a task's reward, by coordinate descent.

        It minimizes ``(w - L s)' H (w - L s) + sparsity * |s|_1``.

        Args:
            weights: Reward w of each feature, (F,).
            metric: H, (F, F), how much errors of the features matter, such as `feature_covariance`.
        """
        n = len(self.columns)
        if weights.shape != (n,) or metric.shape != (n, n):
            raise UserError(f"the shapes of weights and metric are {weights.shape} and {metric.shape}, and there are "
                            f"{n} features", where="RewardDictionary", hint=f"give shapes ({n},) and ({n}, {n})")
        if not (np.isfinite(weights).all() and np.isfinite(metric).all()):
            raise UserError("the weights or the metric have a number that is not finite", where="RewardDictionary",
                            hint="leave this task out, or its feature")
        gram, target = self.columns.T @ metric @ self.columns, self.columns.T @ metric @ weights
        code, change = np.zeros(len(gram)), 1.0
        while change > 1e-9:
            change = 0.0
            for j in np.flatnonzero(gram.diagonal() > 1e-9):
                residual = target[j] - gram[j] @ code + gram[j, j] * code[j]
                value = np.sign(residual) * max(abs(residual) - self.sparsity / 2, 0) / gram[j, j]
                change, code[j] = max(change, abs(value - code[j])), value
        return code

    def add(self, weights: np.ndarray, metric: np.ndarray) -> np.ndarray:
        """Learns from a further task, and returns its code: see `encode`."""
        code, k = self.encode(weights, metric), self.columns.shape[1]
        if self.n_tasks < k:
            code = np.eye(k)[self.n_tasks]
        self.n_tasks += 1
        self._quadratic += np.kron(np.outer(code, code), metric)
        self._linear += np.kron(code, metric @ weights)
        system = self._quadratic / self.n_tasks + self.decay * np.eye(len(self._quadratic))
        self.columns = np.linalg.solve(system, self._linear / self.n_tasks).reshape(k, -1).T
        return code


def feature_covariance(transitions: np.ndarray, features: np.ndarray, policy: np.ndarray,
                       discount: float) -> np.ndarray:
    """Computes the covariance (F, F) of discounted sums of features over endless episodes of a policy.

    Args:
        transitions: Probability of the next state, (S, A, S).
        features: Features of each state, (S, F).
        policy: Probability of each action, (S, A), such as `soft_policy`.
        discount: Factor per step, below 1.
    """
    sums = expected_features(transitions, features, policy, discount)
    visits = expected_features(transitions, np.eye(len(policy)), policy, discount**2).mean(0)[:, None]
    cross = features.T @ (visits * sums)
    return cross + cross.T - features.T @ (visits * features) - np.outer(sums.mean(0), sums.mean(0))
