"""Rows 003, 007, 009, 185, 301 and 327 in one world: which way to choose among demonstrations of which many are bad."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from evidence.families.bad_demonstrations.extraneous_segments import DetourExpert
from evidence.families.bad_demonstrations.out_of_dynamics import mode_labels, sharpen, straight_flights, transferability

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import flags, rollout_policy
from evidence.worlds.curation import (
    CuratedMethod,
    cached_load,
    cloning_method,
    successful_rollouts,
    train_curated,
    with_keep_columns,
)
from understudy.audit.scores import ActionVariance, Alignment, Compatibility, FilterLikeYouTest, soft_capped_counts
from understudy.data.episode import Dataset, Episode
from understudy.envs.toys.fork import PILLAR, ForkExpert
from understudy.heads.likelihood.regression import Regression
from understudy.learn.fit_method import fit_method

STATE = "observation.state"
LEFT, RIGHT = 1, -1


@dataclass(frozen=True)
class SpoiledDemonstrations(DemonstrationSource):
    """A few demonstrations that are known to be good, and a pool of good and bad ones that is not sorted.

    All good ones pass the pillar on the left. Of the bad ones, some drive a circle, some pass on the right, and some
    fly over the pillar, which the learner cannot.

    Args:
        n_trusted: Demonstrations that are known to be good.
        n_good: Good ones in the pool.
        n_each: Bad ones of each kind in the pool.
        n_updates: Updates of the scoring network of FLYT.
        noise: Standard deviation of the noise in the actions of all, m/s. `straight_flights` has its own.
    """

    n_trusted: int = 3
    n_good: int = 12
    n_each: int = 10
    n_updates: int = 1000
    noise: float = 0.3

    @cached_load
    def load(self, seed):
        def record(actor, episodes, split):
            return [Episode({k: np.asarray(e.steps[k]) for k in (STATE, "action", "extraneous") if k in e.steps})
                    for e in successful_rollouts(actor, "fork", episodes, seed, split)]

        steady = ForkExpert(side=LEFT, noise=self.noise)
        fine = [*record(steady, self.n_trusted, 0), *record(steady, self.n_good, 1)]
        circles = record(DetourExpert(steady, 8), self.n_each, 2)
        right = record(ForkExpert(side=RIGHT, noise=self.noise), self.n_each, 3)
        over = straight_flights(self.n_each, np.random.default_rng(seed))
        needed = [*([1.0] * len(fine)), *(~e.steps["extraneous"] for e in circles), *([0.0] * 2 * self.n_each)]
        data = Dataset([*fine, *(e.replace({"extraneous": None}) for e in circles), *right, *over])
        return with_keep_columns(data, {"fine": needed, **self._weights(data, seed)}, {})

    def _weights(self, data: Dataset, seed: int) -> dict[str, Any]:
        """How often each curation samples: a weight for each episode, or for each of its steps."""
        trusted, pool = data[:self.n_trusted], data[self.n_trusted:]
        rng, n, trust = np.random.default_rng(seed), len(data), np.ones(self.n_trusted)
        group, like = mode_labels(data, 4, seed), np.zeros(n)
        for g in set(group.tolist()):
            members = np.flatnonzero(group == g)
            like[members] = transferability([data[i] for i in members], seed)
        compared = Compatibility(trusted, error_threshold=2.0, novelty_threshold=0.2, seed=seed).compare_to_base(pool)
        accepted = compared.n_incompatible() <= 2
        score = FilterLikeYouTest(trusted, pool=pool, n_updates=self.n_updates, lr=0.1, scorer_lr=3e-3, seed=seed)
        counts = soft_capped_counts(score(pool), len(pool) // 2, seed=seed)
        aligned = Alignment(inputs=(STATE,), seed=seed).steps(data)
        consistent = _best_half(np.asarray(ActionVariance(inputs=(STATE,))(data)))
        return {
            "all": np.ones(n), "random half": _best_half(rng.random(n)), "trusted": np.r_[trust, np.zeros(len(pool))],
            "half trusted": np.r_[trust * len(pool) / len(trusted), np.ones(len(pool))],
            "EIL": [*trust, *(kept > 0.5 for kept in aligned[self.n_trusted:])],
            "OOD-IL": sharpen(like), "compatible": np.r_[trust, accepted], "consistent": consistent,
            "critical": [critical_steps(e) for e in data], "FLYT": np.r_[trust, counts],
            "permuted OOD-IL": rng.permutation(sharpen(like))}


def _best_half(scores: np.ndarray) -> np.ndarray:
    """Whether each episode is in the half with the highest scores."""
    return np.argsort(np.argsort(-scores, kind="stable")) < len(scores) // 2


def critical_steps(episode: Episode) -> np.ndarray:
    """(T,) the steps that set a course: the first two, those around the turn at the pillar, and the last."""
    onward = episode.steps[STATE][:-1, 0] >= PILLAR[0] - 0.05
    change = np.flatnonzero(np.diff(onward.astype(int)))
    marked = np.zeros(len(onward), bool)
    marked[[0, 1, *change, *(change + 1), -1]] = True
    return marked


@dataclass(frozen=True)
class FineTuning:
    """A base that is trained on some steps, and then on others."""

    base: CuratedMethod
    tuning: CuratedMethod


def success(experiment, option: CuratedMethod | FineTuning, data: Dataset, seed: int, episodes: int,
            starts: int) -> dict:
    """"success", 0 or 1 per start."""
    if isinstance(option, FineTuning):
        method, column = option.tuning.method, f"keep.{option.tuning.curation}"
        base = train_curated(option.base, data, seed)
        policy = fit_method(replace(method, policy=base.config), data, seed, policy=base,
                            sampling_weights=lambda e: e.steps[column]).policy
    else:
        method, policy = option.method, train_curated(option, data, seed)
    return flags(rollout_policy(experiment, policy, method, episodes, starts))


def kept(name: str, **options) -> CuratedMethod:
    return CuratedMethod(cloning_method(3e-3, **options), name)


TABLE = Experiment(SpoiledDemonstrations(), env="fork", measure=success, first_seed=680, n_seeds=10, episodes=200,
                   env_options=(("limit", 25), ("gust", 0.4)), levels={"all": 0.3, "fine": 0.7}, arms={
    **{name: kept(name) for name in ("all", "random half", "trusted", "half trusted", "EIL", "OOD-IL", "compatible",
                                     "consistent", "FLYT", "fine")},
    "ATLaS": FineTuning(kept("all", steps=250), kept("critical", steps=250)),
    "all, absolute error": kept("all", head=Regression("l1")),
    "permuted weights": kept("permuted OOD-IL")})
