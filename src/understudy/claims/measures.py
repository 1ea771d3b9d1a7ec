"""Measures: train one method with one seed and measure the result."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from .. import config
from ..data.episode import Dataset, Episode
from ..envs import make
from ..evaluate.rollout import rollout
from ..execute.actor import PolicyActor
from ..execute.chunking import RecedingHorizon
from ..execute.planners import FixedBatch
from ..learn.fit_method import FitResult, fit_method
from ..learn.method import Method
from ..policy import Policy
from .memo import Memo

ROWS = 25  # environments side by side; results do not depend on it


def train_once(experiment, method: Method, data: Dataset, seed: int) -> FitResult:
    """Trains as `understudy train` does, on all of the data and without a folder.

    Arms that differ only in their executor share the training of each seed, and so do those with the same stages.

    Args:
        experiment: The experiment. Its source is a part of the key under which results are cached.
        method: The method to train.
        data: The demonstrations.
        seed: Training seed.
    """
    key = json.dumps(config.dump({"method": replace(method, executor=RecedingHorizon()), "source": experiment.source,
                                  "seed": seed}))

    def train() -> FitResult:
        stages = {s.name: train_once(experiment, s.method, data, seed) for s in method.stages}
        return fit_method(method, data, seed, stages=stages)
    return _trained.get(key, train)


_trained = Memo(30)


def train_policy(experiment, method: Method, data: Dataset, seed: int) -> Policy:
    """The policy that `train_once` trains."""
    return train_once(experiment, method, data, seed).policy


def _rollout_policy(experiment, policy: Policy, method: Method, episodes: int, starts: int) -> Dataset:
    made = make(experiment.env, rows=min(ROWS, episodes), **dict(experiment.env_options))
    try:
        return rollout(PolicyActor(FixedBatch(policy, ROWS), method.executor), made, episodes, seed=starts)
    finally:
        made.close()


def closed_loop(experiment, method: Method, data: Dataset, seed: int, episodes: int,
                starts: int) -> dict[str, list[float]]:
    """Trains a method, rolls it out, and measures the episodes.

    Args:
        experiment: The experiment.
        method: The method to train.
        data: The demonstrations.
        seed: Training seed.
        episodes: Number of starts.
        starts: Seed of the starts.

    Returns:
        One value per episode: "return", "log_jerk", and every flag of the environment as 0 or 1, such as "success" if
        the environment defines it.
    """
    ran = _rollout_policy(experiment, train_policy(experiment, method, data, seed), method, episodes, starts)
    measures = {"return": [float(e.steps["next.reward"].sum()) for e in ran],
                "log_jerk": [log_jerk(e) for e in ran]}
    for flag in (k for k, v in ran[0].metadata.items() if isinstance(v, bool)):
        measures[flag] = [float(e.metadata[flag]) for e in ran]
    return measures


def log_jerk(episode: Episode) -> float:
    """Log of the mean squared third difference of the actions. Compare it only between arms on the same task."""
    jerk = np.diff(np.asarray(episode.steps["action"], float), n=3, axis=0)
    return float(np.log(np.mean(jerk**2) + 1e-12)) if len(jerk) else float(np.log(1e-12))
