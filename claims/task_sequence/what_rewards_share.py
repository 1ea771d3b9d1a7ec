"""Row 105: one reward after the other is learned from a few demonstrations. What do later rewards gain from earlier?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from understudy.claims.base import DemonstrationSource, smaller
from understudy.claims.memo import Memo
from understudy.data.episode import Dataset, Episode
from understudy.envs.toys.mdp import object_world
from understudy.learn.maxent_irl import expected_features, fit_reward, soft_policy

SIZE, N_COLORS, N_OBJECTS, DISCOUNT = 16, 5, 30, 0.9
NEAR = slice(2 * N_COLORS, 3 * N_COLORS)  # features on which rewards depend: a color is closer than 3 cells
N_STEPS, N_COLUMNS, SPARSITY, DECAY = 16, 5, 1.0, 0.01
GREEDY = 1e4  # factor of a reward whose soft policy is the best one
TRANSITIONS = object_world(SIZE, N_COLORS, N_OBJECTS).transitions  # the same in all worlds
FITS = Memo(8)


class Task:
    """A reward for being near two to four colors, and two worlds: one to demonstrate it in, one to judge in.

    Attributes:
        weights: The true reward of each feature, (F,).
        features: Whether the nearest object of a color is closer than a distance, for 15 distances, and 1, (S, F).
        new_features: The same in the other world, with other objects.
    """

    def __init__(self, seed: int, number: int):
        rng = np.random.default_rng([seed, number])
        self.features, self.new_features = (features_of(10_000 * seed + 2 * number + i) for i in range(2))
        colors = rng.choice(N_COLORS, rng.integers(2, 5), replace=False)
        self.weights = np.zeros(self.features.shape[1])
        self.weights[NEAR][colors] = 5 * rng.uniform(-2, 1, len(colors))

    def value(self, weights: np.ndarray, features: np.ndarray) -> float:
        """Mean expected discounted return, over all states, of the best policy for another reward."""
        policy = soft_policy(TRANSITIONS, GREEDY * (features @ weights), DISCOUNT)
        return float(expected_features(TRANSITIONS, (features @ self.weights)[:, None], policy, DISCOUNT).mean())

    def loss(self, weights: np.ndarray, features: np.ndarray) -> float:
        """What the best policy for another reward lacks to the optimum, where random steps lack 1."""
        best, random = self.value(self.weights, features), self.value(0 * weights, features)
        return (best - self.value(weights, features)) / (best - random)


def features_of(world: int) -> np.ndarray:
    distance = object_world(SIZE, N_COLORS, N_OBJECTS, seed=world).visible_numbers
    return np.concatenate([*(distance < d for d in range(1, SIZE)), np.ones((len(distance), 1))], 1).astype(float)


@dataclass(frozen=True)
class TaskDemonstrations(DemonstrationSource):
    """Walks of the soft policy of each task, one task after the other, from any states."""

    n_tasks: int = 60
    per_task: int = 32

    def load(self, seed):
        episodes = []
        for number in range(self.n_tasks):
            rng, task = np.random.default_rng([seed, number, 1]), Task(seed, number)
            policy = soft_policy(TRANSITIONS, task.features @ task.weights, DISCOUNT)
            for _ in range(self.per_task):
                states, actions = [rng.integers(len(policy))], []
                for _ in range(N_STEPS):
                    actions.append(rng.choice(policy.shape[1], p=policy[states[-1]]))
                    states.append(rng.choice(len(policy), p=TRANSITIONS[states[-1], actions[-1]]))
                episodes.append(Episode({"observation.state": np.array(states), "action": np.array(actions)},
                                        {"task": number}))
        return Dataset(episodes)

    def for_probe(self):
        return smaller(self, n_tasks=8, per_task=8)


def counts_of(data: Dataset, number: int, n: int) -> np.ndarray:
    """How often the first `n` demonstrations of a task took each action in each state, (S, A)."""
    counts = np.zeros(TRANSITIONS.shape[:2])
    for episode in [e for e in data if e.metadata["task"] == number][:n]:
        np.add.at(counts, (episode.steps["observation.state"][:-1], episode.steps["action"]), 1)
    return counts


def covariance(features: np.ndarray, policy: np.ndarray) -> np.ndarray:
    """Covariance (F, F) of the discounted sums of features over endless walks of a policy from any state."""
    sums = expected_features(TRANSITIONS, features, policy, DISCOUNT)
    visits = expected_features(TRANSITIONS, np.eye(len(policy)), policy, DISCOUNT**2).mean(0)[:, None]
    cross = features.T @ (visits * sums)
    return cross + cross.T - features.T @ (visits * features) - np.outer(sums.mean(0), sums.mean(0))


class Dictionary:
    """Columns (F, k) whose sparse combinations are the rewards of all tasks, learned from one task after the other.

    They minimize the mean of (w - L s)' H (w - L s) over tasks, plus DECAY |L|^2. The code s of a task stays as it was
    when the task came.
    """

    def __init__(self, n_features: int, n_columns: int = N_COLUMNS):
        size = n_features * n_columns
        self.columns, self.n_tasks = np.zeros((n_features, n_columns)), 0
        self.quadratic, self.linear = np.zeros((size, size)), np.zeros(size)

    def encode(self, weights: np.ndarray, metric: np.ndarray) -> np.ndarray:
        """The code s (k,) that minimizes (w - L s)' H (w - L s) + SPARSITY |s|_1, by coordinate descent."""
        gram, target = self.columns.T @ metric @ self.columns, self.columns.T @ metric @ weights
        code, change = np.zeros(len(gram)), 1.0
        while change > 1e-9:
            change = 0.0
            for j in np.flatnonzero(gram.diagonal() > 1e-9):
                residual = target[j] - gram[j] @ code + gram[j, j] * code[j]
                new = np.sign(residual) * max(abs(residual) - SPARSITY / 2, 0) / gram[j, j]
                change, code[j] = max(change, abs(new - code[j])), new
        return code

    def add(self, weights: np.ndarray, metric: np.ndarray) -> np.ndarray:
        """Learns from a task, and returns its code. The first k tasks are columns themselves."""
        k = self.columns.shape[1]
        code = np.eye(k)[self.n_tasks] if self.n_tasks < k else self.encode(weights, metric)
        self.n_tasks += 1
        self.quadratic += np.kron(np.outer(code, code), metric)
        self.linear += np.kron(code, metric @ weights)
        system = self.quadratic / self.n_tasks + DECAY * np.eye(len(self.linear))
        self.columns = np.linalg.solve(system, self.linear / self.n_tasks).reshape(k, -1).T
        return code


@dataclass(frozen=True)
class Learned:
    """Rewards that are learned from the first demonstrations of each task.

    Args:
        by: "each": of each task alone. "all": one reward for all tasks. "near": alone, and those features are known on
            which rewards depend. "true": the reward is known.
        metric: The weight of errors in a dictionary of the rewards. None for no dictionary.
        shuffled: In each task the features are in another order.
    """

    by: Literal["each", "all", "near", "true"] = "each"
    metric: Literal["covariance", "identity"] | None = None
    n: int = 8
    ridge: float = 1.0
    shuffled: bool = False

    def fit(self, data: Dataset, tasks: list[Task]) -> np.ndarray:
        """Rewards of features without a dictionary, (tasks, F)."""
        weights = np.stack([t.weights for t in tasks])
        counts = np.stack([counts_of(data, number, self.n) for number in range(len(tasks))])
        if self.by == "all":
            return weights * 0 + fit_reward(TRANSITIONS, np.stack([t.features for t in tasks]), counts, DISCOUNT, self.ridge)
        used = NEAR if self.by == "near" else slice(None)
        for w, t, c in zip(weights, tasks, counts, strict=True) if self.by != "true" else ():
            w[used] = fit_reward(TRANSITIONS, t.features[:, used], c, DISCOUNT, self.ridge)
        return weights

    def rewards(self, data: Dataset, tasks: list[Task], seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Rewards of features of each task when it came, and after the last task, (tasks, F) each."""
        weights = FITS.get((seed, len(tasks), self.by, self.n, self.ridge), lambda: self.fit(data, tasks))
        if self.metric is None:
            return weights, weights
        rng, dictionary = np.random.default_rng([seed, 2]), Dictionary(weights.shape[1])
        order = np.array([rng.permutation(len(w)) if self.shuffled else np.arange(len(w)) for w in weights])
        first, last, metrics = weights.copy(), weights.copy(), []
        for number, (w, task) in enumerate(zip(weights, tasks, strict=True)):
            policy, o = soft_policy(TRANSITIONS, task.features @ w, DISCOUNT), order[number]
            metrics.append(covariance(task.features[:, o], policy) if self.metric == "covariance" else np.eye(len(w)))
            code = dictionary.add(w[o], metrics[-1])
            first[number, o] = dictionary.columns @ code
        for number, (w, o) in enumerate(zip(weights, order, strict=True)):
            last[number, o] = dictionary.columns @ dictionary.encode(w[o], metrics[number])
        return first, last
