"""Row 009: new demonstrators help where they do as the first one did, or where he has not been."""

from dataclasses import dataclass, replace

import numpy as np

from claims.worlds.curation import (
    cached_load,
    cloning_method,
    curated_arms,
    curated_success,
    successful_rollouts,
    with_keep_columns,
)
from understudy.audit.scores import Compatibility
from understudy.claims.base import (
    SCORE,
    AboveBound,
    AllOf,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.data.episode import Dataset
from understudy.envs.toys.fork import ForkExpert


@dataclass(frozen=True)
class NewDemonstrators(DemonstrationSource):
    """Demonstrations by one who goes left, and new ones by others, half of whom go right.

    A new demonstration is refused if more than `limit` of its steps do otherwise than the base policy where that policy
    is certain.

    Args:
        n_base: Demonstrations of the first demonstrator.
        n_new: Demonstrations of the others.
        error_threshold: Above it a step does otherwise, in variances of the base's actions.
        novelty_threshold: Below it the base policy is certain: standard deviation between its members, in standard
            deviations of the base's actions. At 0 it is certain nowhere, and nobody is refused.
        limit: Incompatible steps that are tolerated.
    """

    n_base: int
    n_new: int
    error_threshold: float = 2.0
    novelty_threshold: float = 0.2
    limit: int = 2

    @cached_load
    def load(self, seed):
        half = self.n_new // 2
        base = successful_rollouts(ForkExpert(side=1), "fork", self.n_base, seed, 0)
        new = [*successful_rollouts(ForkExpert(side=1), "fork", half, seed, 1),
               *successful_rollouts(ForkExpert(side=-1), "fork", half, seed, 2)]
        compared = Compatibility(
            base, error_threshold=self.error_threshold, novelty_threshold=self.novelty_threshold, seed=seed
        ).compare_to_base(Dataset(new))
        kept = compared.n_incompatible() <= self.limit
        old, is_left = np.ones(len(base)), np.arange(len(new)) < half
        drawn = np.zeros(len(new))
        drawn[np.random.default_rng(seed).choice(len(new), int(kept.sum()), replace=False)] = 1
        of_left, of_right = float((~kept[is_left]).mean()), float((~kept[~is_left]).mean())
        figures = {"refused of right.filtered": of_right, "refused of left.filtered": of_left,
                   "identified.filtered": (of_right + 1 - of_left) / 2}
        marks = {"base": np.r_[old, 0 * drawn], "all": np.r_[old, 0 * drawn + 1], "filtered": np.r_[old, kept],
                 "random": np.r_[old, drawn]}
        return with_keep_columns(Dataset([*base, *new]), marks, {"figures": figures})


def certain_nowhere(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, novelty_threshold=0.0))


FORK = Experiment(
    NewDemonstrators(4, 40),
    "fork",
    curated_arms("base", "all", "filtered", "random", options=(cloning_method(3e-3),)),
    curated_success,
    seeds=tuple(range(600, 630)),
    looks=((10, 0.01), (20, 0.015), (30, 0.025)),
    episodes=200,
    starts_seed=600,
    measures=(("refused of right", SCORE), ("refused of left", SCORE), ("identified", SCORE)),
    sanity=(("base", "success", 0.5),),
)
BETTER_THAN_ALL = GreaterThan("success", "filtered", "all")

CLAIM = Claim(
    name="compatible-demonstrations",
    rows=("009",),
    parts=(
        ClaimPart(
            "regression",
            FORK,
            AllOf((
                AboveBound("identified", "filtered", 0.5),
                BETTER_THAN_ALL,
                GreaterThan("success", "filtered", "random"),
            )),
        ),
        ClaimPart(
            "better than the base alone",
            replace(FORK, seeds=FORK.seeds[:10], looks=(), arms=curated_arms("base", "filtered",
                                                                             options=(cloning_method(3e-3),))),
            GreaterThan("success", "filtered", "base"),
            is_decisive=False,
        ),
    ),
    negative_control=NegativeControl(certain_nowhere, "regression", removes=(BETTER_THAN_ALL,)),
)
