"""Row 146: how many steps matching takes in a combination lock, from its start and from demonstrated states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from evidence.experiment import Experiment, ExpertDemonstrations
from understudy.data.episode import Dataset
from understudy.envs.toys.mdp import combination_lock

LENGTHS, N_ACTIONS = (4, 6, 8, 10, 12, 14), 2
PER_POSITION, EXPONENT = "growth per position", "exponent of the length"


def right_actions(seed: int, length: int, n: int) -> np.ndarray:
    """The right action at each position of n locks of a training seed, (n, length)."""
    first = 1000 * seed
    return np.stack([combination_lock(length, N_ACTIONS, resets=False, seed=first + i).transitions[
        np.arange(length), :, np.arange(1, length + 1)].argmax(1) for i in range(n)])


@dataclass(frozen=True)
class Matching:
    """Matches the rate at which demonstrations open the lock, until the policy opens it as surely.

    Args:
        starts: Where episodes begin that do not begin at the start: at a position of a demonstration, or at one where
            the learner has been, all steps equally likely.
        fraction: Fraction of these episodes.
        limit: Most episodes.
    """

    starts: Literal["expert", "own"] = "expert"
    fraction: float = 0.0
    limit: int = 500_000

    def steps(self, right: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Steps in each lock until the greedy policy of the table opens it from the start, (n,)."""
        (n, length), position = right.shape, np.arange(right.shape[1])
        values, steps = np.zeros((n, length, N_ACTIONS)), np.zeros(n)
        visits = np.tile((position == 0).astype(float), (n, 1))
        for _ in range(self.limit):
            rows = np.flatnonzero(np.take_along_axis(values, right[..., None], 2).min((1, 2)) == 0)
            if not len(rows):
                break
            weight = visits[rows] if self.starts == "own" else np.ones((len(rows), length))
            drawn = (weight.cumsum(1) <= rng.random((len(rows), 1)) * weight.sum(1, keepdims=True)).sum(1)
            first = np.where(rng.random(len(rows)) < self.fraction, drawn, 0)[:, None]
            action = (values[rows] + rng.random((len(rows), length, N_ACTIONS)) / 2).argmax(2)
            goes_on = np.logical_and.accumulate((action == right[rows]) | (position < first), 1)
            visited = (position >= first) & np.concatenate([np.ones_like(first, bool), goes_on[:, :-1]], 1)
            opened = goes_on[:, -1:]
            at = rows[:, None], position, action
            values[at] = np.where(visited, opened, values[at])
            visits[rows] += visited
            steps[rows] += visited.sum(1)
        return steps


def steps_of_matching(experiment, arm: Matching, data: Dataset, seed, episodes, starts) -> dict[str, list[float]]:
    """How the logarithm of the steps grows with the length and with its logarithm. One value for each lock."""
    logs = np.stack([np.log(arm.steps(right_actions(seed, length, episodes), np.random.default_rng([seed, length])))
                     for length in LENGTHS])
    slopes = {name: np.polyfit(x, logs, 1)[0].tolist() for name, x in (
        (PER_POSITION, LENGTHS), (EXPONENT, np.log(LENGTHS)))}
    return {**slopes, "log steps of 4": logs[0].tolist(), "log steps of 14": logs[-1].tolist()}


TABLE = Experiment(
    ExpertDemonstrations("tabular", 1, options=(("task", "combination-lock"),)), env="tabular",
    measure=steps_of_matching, first_seed=1820, episodes=40, arms={
    "matching": Matching(), "FILTER": Matching(fraction=0.5), "NRMM": Matching(fraction=1.0),
    "own states": Matching("own", 0.5)})
