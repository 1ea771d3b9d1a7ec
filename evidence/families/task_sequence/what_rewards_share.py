"""Row 105: one reward after the other is learned from a few demonstrations. What do later rewards gain from earlier?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from evidence.experiment import DemonstrationSource, Experiment
from evidence.memo import Memo
from understudy.data.episode import Dataset, Episode
from understudy.envs.toys.mdp import object_world
from understudy.learn.rewards.maxent_irl import expected_features, fit_reward, soft_policy

SIZE, N_COLORS, N_OBJECTS, DISCOUNT = 16, 5, 30, 0.9
NEAR = slice(2 * N_COLORS, 3 * N_COLORS)  # features on which rewards depend: a color is closer than 3 cells
N_STEPS, N_ORDERS, N_COLUMNS, SPARSITY, DECAY = 16, 3, 5, 1.0, 0.01
GREEDY = 1e4  # factor of a reward whose soft policy is the best one
TRANSITIONS = object_world(SIZE, N_COLORS, N_OBJECTS).transitions  # the same in all worlds
TASKS, FITS = Memo(2), Memo(8)


class Task:
    """A reward for being near two to four colors, and two worlds: one to demonstrate it in, and a new one to judge in.

    Attributes:
        weights: The true reward of each feature, (F,).
        features: Whether the nearest object of a color is closer than a distance, for 15 distances, and 1, (S, F).
        new_features: The same in the new world, with other objects.
    """

    def __init__(self, seed: int, number: int):
        rng = np.random.default_rng([seed, number])
        self.features, self.new_features = (features_of(10_000 * seed + 2 * number + i) for i in range(2))
        colors = rng.choice(N_COLORS, rng.integers(2, 5), replace=False)
        self.weights = np.zeros(self.features.shape[1])
        self.weights[NEAR][colors] = 5 * rng.uniform(-2, 1, len(colors))
        self.best, self.random = self.expected_return(self.weights), self.expected_return(0 * self.weights)

    def expected_return(self, weights: np.ndarray) -> float:
        """Mean discounted return in the new world, over all states, of the best policy for another reward."""
        policy = soft_policy(TRANSITIONS, GREEDY * (self.new_features @ weights), DISCOUNT)
        reward = self.new_features @ self.weights
        return float(expected_features(TRANSITIONS, reward[:, None], policy, DISCOUNT).mean())

    def loss(self, weights: np.ndarray) -> float:
        """What the best policy for another reward lacks to the optimum, where random steps lack 1."""
        return (self.best - self.expected_return(weights)) / (self.best - self.random)


def features_of(world: int) -> np.ndarray:
    distance = object_world(SIZE, N_COLORS, N_OBJECTS, seed=world).visible_numbers
    return np.concatenate([*(distance < d for d in range(1, SIZE)), np.ones((len(distance), 1))], 1).astype(float)


def tasks_of(seed: int, n: int) -> list[Task]:
    return TASKS.get((seed, n), lambda: [Task(seed, number) for number in range(n)])


@dataclass(frozen=True)
class TaskDemonstrations(DemonstrationSource):
    """Walks of the soft policy of each task, one task after the other, from any states."""

    n_tasks: int = 60
    per_task: int = 32

    def load(self, seed):
        episodes = []
        for number, task in enumerate(tasks_of(seed, self.n_tasks)):
            rng = np.random.default_rng([seed, number, 1])
            policy = soft_policy(TRANSITIONS, task.features @ task.weights, DISCOUNT)
            for _ in range(self.per_task):
                states, actions = [int(rng.integers(len(policy)))], []
                for _ in range(N_STEPS):
                    actions.append(int(rng.choice(policy.shape[1], p=policy[states[-1]])))
                    states.append(int(rng.choice(len(policy), p=TRANSITIONS[states[-1], actions[-1]])))
                episodes.append(Episode({"observation.state": np.array(states), "action": np.array(actions)},
                                        {"task": number}))
        return Dataset(episodes)


def counts_of(data: Dataset, number: int, n: int) -> np.ndarray:
    """Number of times that the first `n` demonstrations of a task took each action in each state, (S, A)."""
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
        again: All tasks are encoded again with the last dictionary. Otherwise a reward is that of when its task came.
        n: Demonstrations of each task.
        ridge: Penalty of the fits.
        shuffled: In each task the features are in another order.
    """

    by: Literal["each", "all", "near", "true"] = "each"
    metric: Literal["covariance", "identity"] | None = None
    again: bool = False
    n: int = 8
    ridge: float = 1.0
    shuffled: bool = False

    def fit(self, data: Dataset, tasks: list[Task]) -> np.ndarray:
        """Rewards of features without a dictionary, (tasks, F)."""
        weights, features = np.stack([t.weights for t in tasks]), np.stack([t.features for t in tasks])
        counts = np.stack([counts_of(data, number, self.n) for number in range(len(tasks))])
        if self.by == "all":
            weights[:] = fit_reward(TRANSITIONS, features, counts, DISCOUNT, self.ridge)
        elif self.by != "true":
            used = NEAR if self.by == "near" else slice(None)
            for w, f, c in zip(weights, features[..., used], counts, strict=True):
                w[used] = fit_reward(TRANSITIONS, f, c, DISCOUNT, self.ridge)
        return weights

    def learn(self, data: Dataset, tasks: list[Task], orders: np.ndarray, seed: int) -> np.ndarray:
        """Rewards of features of each task, for each order of the tasks, (orders, tasks, F)."""
        weights = FITS.get((seed, len(tasks), self.by, self.n, self.ridge), lambda: self.fit(data, tasks))
        learned, rng = np.tile(weights, (len(orders), 1, 1)), np.random.default_rng([seed, 2])
        if self.metric is None:
            return learned
        n_features = weights.shape[1]
        metrics, columns = [np.eye(n_features)] * len(tasks), np.tile(np.arange(n_features), (len(tasks), 1))
        if self.metric == "covariance":
            metrics = [covariance(t.features, soft_policy(TRANSITIONS, t.features @ w, DISCOUNT))
                       for t, w in zip(tasks, weights, strict=True)]
        if self.shuffled:
            columns = rng.permuted(columns, axis=1)
        encoded = [(w[c], h[np.ix_(c, c)]) for w, h, c in zip(weights, metrics, columns, strict=True)]
        for order, rewards in zip(orders, learned, strict=True):
            dictionary = Dictionary(n_features)
            for task in order:
                code = dictionary.add(*encoded[task])
                rewards[task, columns[task]] = dictionary.columns @ code
            for task in order if self.again else ():
                rewards[task, columns[task]] = dictionary.columns @ dictionary.encode(*encoded[task])
        return learned


def losses(experiment, arm: Learned, data: Dataset, seed: int, episodes: int, starts: int) -> dict[str, list[float]]:
    """Mean loss in the first and in the second half of the tasks, its logarithm, and what is not lost."""
    tasks = tasks_of(seed, len({e.metadata["task"] for e in data}))
    rng, half = np.random.default_rng([seed, 3]), len(tasks) // 2
    orders = np.array([rng.permutation(len(tasks)) for _ in range(N_ORDERS)])
    learned = arm.learn(data, tasks, orders, seed)
    loss = np.array([[tasks[task].loss(rewards[task]) for task in order]
                     for order, rewards in zip(orders, learned, strict=True)]).mean(0)
    means = {"early": loss[:half].mean(), "late": loss[half:].mean()}
    return {**{f"{name} value": [1 - m] for name, m in means.items()},
            **{f"log {name} loss": [float(np.log(max(m, 1e-4)))] for name, m in means.items()}}


DICTIONARY = Learned(metric="covariance")
TABLE = Experiment(
    TaskDemonstrations(), env="tabular:object-world", measure=losses, first_seed=1850, n_seeds=10, episodes=1,
    looks=((5, 0.02), (10, 0.03)), arms={
        "independent": Learned(), "dictionary": DICTIONARY, "encoded again": replace(DICTIONARY, again=True),
        "identity": Learned(metric="identity"), "one reward": Learned("all"), "known features": Learned("near"),
        "true reward": Learned("true"), "independent, 32": Learned(n=32), "dictionary, 32": replace(DICTIONARY, n=32),
        "shuffled": replace(DICTIONARY, shuffled=True)})
TABLE = replace(TABLE, experiment=replace(TABLE.experiment, sanity=(
    ("true reward", "late value", 0.99), ("known features", "late value", 0.95),
    ("independent", "log late loss", math.log(0.05)))))
