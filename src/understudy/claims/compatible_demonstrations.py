"""Row 009: new demonstrators help where they do as the first one did, or where he has not been."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..audit.scores import Compatibility
from ..data.episode import Dataset, Episode
from ..data.window import Window
from ..envs.fork import Expert
from ..heads.gmm import GMM
from .base import SCORE, AllOf, Claim, ClaimPart, DemonstrationSource, Experiment, GreaterThan, NegativeControl
from .curation import arms, cached_load, cloning_method, curated_success, successful_rollouts, with_keep_columns


@dataclass(frozen=True)
class NewDemonstrators(DemonstrationSource):
    """`base` demonstrations of the first `first` steps by one who goes left, and `new` ones of the whole task by
    others, half of whom go right. A new one is refused if more than `limit` of its steps do otherwise, by more than
    `far`, where the base policy knows what to do. blind: nobody is refused, since nothing is known."""

    n_base: int
    n_new: int
    noise: float = 0.1
    first: int = 6
    error_threshold: float = 6.0  # variances of the base's actions
    limit: int = 0
    shuffle_filter: bool = False

    @cached_load
    def load(self, seed):
        base = successful_rollouts(Expert(side=1, noise=self.noise), "fork", self.n_base, seed, 0)
        base = Dataset(
            [Episode({k: np.asarray(v)[: self.first] for k, v in e.steps.items()}, e.metadata) for e in base]
        )
        left = successful_rollouts(Expert(side=1, noise=self.noise), "fork", self.n_new // 2, seed, 1)
        right = successful_rollouts(Expert(side=-1, noise=self.noise), "fork", self.n_new - self.n_new // 2, seed, 2)
        new = left + right
        limits: dict[str, Any] = {"novelty_threshold": 0.0} if self.shuffle_filter else {}
        bad = (
            Compatibility(base, error_threshold=self.error_threshold, seed=seed, **limits)
            .compare_to_base(new)
            .n_incompatible()
        )
        kept = bad <= self.limit
        rng, old = np.random.default_rng(seed), np.ones(len(base))
        same = np.zeros(len(new))
        same[rng.choice(len(new), int(kept.sum()), replace=False)] = 1
        true = np.arange(len(new)) < len(left)
        figures = {"refused of right.filtered": float((~kept[~true]).mean()),
                   "refused of left.filtered": float((~kept[true]).mean())}
        marks = {"base": np.r_[old, 0 * bad], "all": np.r_[old, 0 * bad + 1], "filtered": np.r_[old, kept],
                 "random": np.r_[old, same], "left": np.r_[old, true]}
        return with_keep_columns(Dataset([*base, *new]), marks, {"figures": figures})


def shuffled_filter(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, shuffle_filter=True))


FORK = Experiment(NewDemonstrators(6, 40), "fork", arms("base", "all", "filtered", "random", "left"), curated_success,
                  seeds=tuple(range(100, 106)),
                  measures=(("refused of right", SCORE), ("refused of left", SCORE)))
MIXTURES = replace(FORK, arms=arms("all", "filtered", options=tuple(
    cloning_method(rate, GMM(), Window(2, 8), 4, steps=1000) for rate in (3e-3, 1e-3))))

CLAIM = Claim(
    name="compatible-demonstrations",
    rows=("009",),
    paper="Gandhi et al. 2022, Eliciting Compatible Demonstrations for Multi-Human Imitation Learning, arXiv "
    "2210.08073",
    statement="We can both identify incompatible demonstrations via post-hoc filtering, and apply our compatibility "
    "measure to actively elicit compatible demonstrations from new users, leading to improved task success "
    "rates across simulated and real environments.",
    setup="fork: 6 demonstrations of its first 6 steps by a demonstrator who turns left, and 40 of the whole task by "
    "others, half of whom turn right. A new one is refused if any step is off by more than 6 variances of the "
    "base's actions where 5 networks trained on the base differ less than they do on 95 % of its own steps. "
    "Cloning by regression (an MLP of 64 x 1 blocks, 500 updates) with those that are left succeeds more often "
    "than with all, with as many random ones, and without any. A mixture of Gaussians, which can represent two "
    "ways, is reported too. Only the filter is tested: nobody is asked to demonstrate again.",
    parts=(
        ClaimPart(
            "regression",
            FORK,
            AllOf(
                (
                    GreaterThan("success", "filtered", "all"),
                    GreaterThan("success", "filtered", "base"),
                    GreaterThan("success", "filtered", "random"),
                )
            ),
        ),
        ClaimPart(
            "a mixture needs no filter", MIXTURES, GreaterThan("success", "all", "filtered", -0.1), is_decisive=False
        ),
    ),
    negative_control=NegativeControl(
        "no step counts as known to the base policy (its limit of disagreement is 0)", shuffled_filter, "regression",
        removes=(GreaterThan("success", "filtered", "all"),),
    ),
)
