"""Measures: train one method with one seed and measure the result."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from understudy import config
from understudy.checkpoint import FromStage
from understudy.data.episode import Dataset, Episode
from understudy.envs import make
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.learn.fit_method import FitResult, fit_method, part_of
from understudy.learn.method import Method, build_actor, resolve_references
from understudy.learn.stacked import fit_seeds
from understudy.policy import Policy

from .experiment import TRUSTED
from .memo import Memo

ROWS = 25  # environments side by side; results do not depend on it
STACKED_SEEDS = 10  # most seeds that are trained at once: their results are kept until they are measured


def train_once(experiment, method: Method, data: Dataset, seed: int, parts: tuple[str, ...] = ()) -> FitResult:
    """Trains as `understudy train` does, on all of the data and without a folder.

    Arms that differ only in their executor share the training of each seed, and so do those with the same stages.

    Args:
        experiment: The experiment. Its source is a part of the key under which results are cached.
        parts: The parts of a mixture that the data are, where a stage names one.
    """
    return _trained.get(_training_key(experiment, method, seed, parts), lambda: fit_method(
        method, data, seed, stages=train_stages(experiment, method, data, seed, parts)))


def _training_key(experiment, method: Method, seed: int, parts: tuple[str, ...] = ()) -> str:
    return json.dumps(config.dump({"method": replace(method, executor=RecedingHorizon()), "source": experiment.source,
                                   "seed": seed, **({"parts": parts} if parts else {})}))


def train_stages(experiment, method: Method, data: Dataset, seed: int, parts: tuple[str, ...] = ()
                 ) -> dict[str, FitResult]:
    """The results of a method's stages by name, each trained by `train_once` on its part of the data."""
    return {stage.name: train_once(experiment, stage.method, data.select(part_of(data, stage.dataset)), seed,
                                   parts if stage.dataset is None else (*parts, stage.dataset))
            for stage in method.stages}


def deployed_actor(experiment, method: Method, data: Dataset, seed: int, rows: int = ROWS) -> Actor:
    """The actor of a method that `train_once` trains. Its networks see batches of `rows`."""
    stages = {FromStage(stage, name): module for stage, result in train_stages(experiment, method, data, seed).items()
              for name, module in result.modules.items()}
    modules = train_once(experiment, method, data, seed).modules  # of an arm that may have another executor
    return build_actor(resolve_references(method, stages), modules, rows)


_trained = Memo(30)


def train_policy(experiment, method: Method, data: Dataset, seed: int) -> Policy:
    """The policy that `train_once` trains."""
    return train_once(experiment, method, data, seed).policy


def rollout_policy(experiment, policy: Policy, method: Method, episodes: int, starts: int) -> Dataset:
    """Rolls out a policy in the environment of an experiment, as its method executes plans."""
    env = make(experiment.env, rows=min(ROWS, episodes), trust=TRUSTED, **dict(experiment.env_options))
    try:
        return rollout(PolicyActor(FixedBatch(policy, ROWS), method.executor), env, episodes, seed=starts)
    finally:
        env.close()


def closed_loop(experiment, method: Method, data: Dataset, seed: int, episodes: int,
                starts: int) -> dict[str, list[float]]:
    """Trains a method, rolls it out, and measures the episodes.

    Returns:
        One value per episode: "return", "log_jerk", and every flag of the environment as 0 or 1, such as "success" if
        the environment defines it.
    """
    rollouts = rollout_policy(experiment, train_policy(experiment, method, data, seed), method, episodes, starts)
    measures = {"return": [float(e.steps["next.reward"].sum()) for e in rollouts],
                "log_jerk": [log_jerk(e) for e in rollouts]}
    return {**measures, **flags(rollouts)}


@dataclass(frozen=True)
class StackedSeeds:
    """A measure that trains all seeds of an experiment at once, where `fit_seeds` can.

    Values are those of the measure, except for rounding. Each arm must be a `Method` that the measure trains with
    `train_policy` or `train_once` on the demonstrations as they are. Where a run continues, the seeds that are left are
    trained at once.
    """

    measure: Callable[..., dict[str, list[float]]] = closed_loop

    def __call__(self, experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int
                 ) -> dict[str, list[float]]:
        if seed in experiment.seeds:
            seeds = experiment.seeds[experiment.seeds.index(seed):][:STACKED_SEEDS]
            _keep_stacked(experiment, method, seeds, lambda s: data if s == seed else experiment.source.load(s))
        return self.measure(experiment, method, data, seed, episodes, starts)


def _keep_stacked(experiment, method: Method, seeds: tuple[int, ...], load: Callable[[int], Dataset]) -> None:
    """Trains a method and its stages with several seeds at once, and keeps the results for `train_once`."""
    data_sets = cache(load)

    @cache
    def results() -> dict[int, FitResult]:
        for stage in method.stages:
            if stage.dataset is None:
                _keep_stacked(experiment, stage.method, seeds, data_sets)
        stages = [train_stages(experiment, method, data_sets(seed), seed) for seed in seeds]
        return dict(zip(seeds, fit_seeds(method, [data_sets(seed) for seed in seeds], seeds, stages=stages),
                        strict=True))
    for seed in seeds:
        _trained.get(_training_key(experiment, method, seed), lambda seed=seed: results()[seed])


def flags(rollouts: Dataset) -> dict[str, list[float]]:
    """Every flag that the environment gives its episodes, as 0 or 1, such as "success"."""
    return {k: [float(e.metadata[k]) for e in rollouts] for k, v in rollouts[0].metadata.items() if isinstance(v, bool)}


@dataclass(frozen=True)
class Rollouts:
    """A measure that trains an arm, rolls it out, and gives every flag of the environment as 0 or 1.

    Args:
        per_episode: (name, function of an episode) each. One value per episode.
        per_run: (name, function of the policy and its rollouts) each. One value per training run.
    """

    per_episode: tuple[tuple[str, Callable[[Episode], float]], ...] = ()
    per_run: tuple[tuple[str, Callable[[Policy, Dataset], float]], ...] = ()

    def __call__(self, experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int
                 ) -> dict[str, list[float]]:
        policy = train_policy(experiment, method, data, seed)
        rollouts = rollout_policy(experiment, policy, method, episodes, starts)
        return {**flags(rollouts), **{name: [float(value(e)) for e in rollouts] for name, value in self.per_episode},
                **{name: [float(value(policy, rollouts))] for name, value in self.per_run}}


def log_jerk(episode: Episode) -> float:
    """Log of the mean squared third difference of the actions. Compare it only between arms on the same task."""
    jerk = np.diff(np.asarray(episode.steps["action"], float), n=3, axis=0)
    return float(np.log(np.mean(jerk**2) + 1e-12)) if len(jerk) else float(np.log(1e-12))
