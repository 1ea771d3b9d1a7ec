"""Row 339: two learners score the same encoders. Does each need another encoder? The answer is planted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from evidence.experiment import DemonstrationSource, Experiment
from understudy.data.episode import Dataset
from understudy.evaluate.learner_agreement import rank_agreement

N_ENCODERS, N_TASKS, N_SEEDS = 8, 3, 6
TASK, CLONING, REINFORCEMENT = 0.5, 0.3, 1.2  # standard deviations, where that of the qualities of encoders is 1
ALIKE = 0.8  # an agreement that leaves little to choose


@dataclass(frozen=True)
class Nothing(DemonstrationSource):
    """No demonstrations: the scores are drawn."""

    env: str = "planted orders"

    def load(self, seed):
        return Dataset([])


def tables(rng: np.random.Generator, depends: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scores of cloning and of reinforcement learning, (encoders, tasks, seeds), with own qualities, or the same."""
    quality = rng.normal(size=(2, N_ENCODERS, 1, 1))
    deviations = TASK * rng.normal(size=(2, N_ENCODERS, N_TASKS, 1))
    cloning, reinforcement = quality[[0, int(depends)]] + deviations[[0, int(depends)]]
    noise = rng.normal(size=(2, N_ENCODERS, N_TASKS, N_SEEDS))
    return cloning + CLONING * noise[0], reinforcement + REINFORCEMENT * noise[1]


def claims(rule: Literal["best", "estimate", "interval"], cloning: np.ndarray, reinforcement: np.ndarray) -> bool:
    """Whether a rule says that the best encoder depends on the learner."""
    if rule == "best":
        return bool(cloning.mean((1, 2)).argmax() != reinforcement.mean((1, 2)).argmax())
    agreement = rank_agreement(cloning, reinforcement)
    return (agreement.estimate if rule == "estimate" else agreement.high) < ALIKE


def told_right(experiment, rule: Literal["best", "estimate", "interval"], data: Dataset, seed: int, episodes: int,
               starts: int) -> dict[str, list[float]]:
    """Draws pairs of tables, of which every second one has two orders.

    Returns:
        "success": for each pair whether the rule says what was planted. "false alarm": whether it says that the
        learners differ, of the pairs with one order.
    """
    rng, depends = np.random.default_rng([seed, starts]), [i % 2 > 0 for i in range(episodes)]
    claimed = [claims(rule, *tables(rng, planted)) for planted in depends]
    return {"success": [float(c == d) for c, d in zip(claimed, depends, strict=True)],
            "false alarm": [float(c) for c, d in zip(claimed, depends, strict=True) if not d]}


TABLE = Experiment(Nothing(), measure=told_right, first_seed=5780, n_seeds=10, episodes=200,
                   levels={"interval": 0.7}, arms={"another one is best": "best", "small tau": "estimate",
                                                   "interval": "interval"})
