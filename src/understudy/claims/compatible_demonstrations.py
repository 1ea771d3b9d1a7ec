"""Row 009: new demonstrators help where they do as the first one did, or where he has not been."""

from dataclasses import dataclass, replace

import numpy as np

from ..audit.scores import Compatibility
from ..data.episode import Dataset, Episode
from ..data.window import Window
from ..envs.fork import Expert
from ..heads.gmm import GMM
from .base import Above, Claim, Every, Experiment, Part, Sabotage, Source
from .curated import arms, cloning, closed, marked, once, shown


@dataclass(frozen=True)
class Newcomers(Source):
    """`base` demonstrations of the first `first` steps by one who goes left, and `new` ones of the whole task by
    others, half of whom go right. A new one is refused if more than `limit` of its steps do otherwise, by more than
    `far`, where the base policy knows what to do. blind: nobody is refused, since nothing is known."""

    base: int
    new: int
    noise: float = 0.1
    first: int = 6
    far: float = 6.0  # variances of the base's actions
    limit: int = 0
    blind: bool = False

    @once
    def load(self, seed):
        base = shown(Expert(side=1, noise=self.noise), "fork", self.base, seed, 0)
        base = Dataset([Episode({k: np.asarray(v)[: self.first] for k, v in e.steps.items()}, e.meta) for e in base])
        left = shown(Expert(side=1, noise=self.noise), "fork", self.new // 2, seed, 1)
        right = shown(Expert(side=-1, noise=self.noise), "fork", self.new - self.new // 2, seed, 2)
        new = left + right
        limits = {"novel": 0.0} if self.blind else {}
        bad = Compatibility(base, far=self.far, seed=seed, **limits).judge(new).bad()
        kept = bad <= self.limit
        rng, old = np.random.default_rng(seed), np.ones(len(base))
        same = np.zeros(len(new))
        same[rng.choice(len(new), int(kept.sum()), replace=False)] = 1
        true = np.arange(len(new)) < len(left)
        figures = {"refused of right.filtered": float((~kept[~true]).mean()),
                   "refused of left.filtered": float((~kept[true]).mean())}
        marks = {"base": np.r_[old, 0 * bad], "all": np.r_[old, 0 * bad + 1], "filtered": np.r_[old, kept],
                 "random": np.r_[old, same], "left": np.r_[old, true]}
        return marked(Dataset([*base, *new]), marks, {"figures": figures})


def blind(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, blind=True))


FORK = Experiment(Newcomers(6, 40), "fork", arms("base", "all", "filtered", "random", "left"), closed,
                  seeds=tuple(range(100, 106)),
                  kinds=(("refused of right", "bounded"), ("refused of left", "bounded")))
MIXTURES = replace(FORK, arms=arms("all", "filtered", options=tuple(
    cloning(rate, GMM(), Window(2, 8), 4, steps=1000) for rate in (3e-3, 1e-3))))

CLAIM = Claim(
    name="compatible-demonstrations", rows=("009",),
    paper="Gandhi et al. 2022, Eliciting Compatible Demonstrations for Multi-Human Imitation Learning, arXiv "
          "2210.08073",
    statement="We can both identify incompatible demonstrations via post-hoc filtering, and apply our compatibility "
              "measure to actively elicit compatible demonstrations from new users, leading to improved task success "
              "rates across simulated and real environments.",
    here="fork: 6 demonstrations of its first 6 steps by one who turns left, and 40 of the whole task by others, half "
         "of whom turn right. A new one is refused if any step is off by more than 6 variances of the base's actions "
         "where 5 networks trained on the base differ less than they do on 95 % of its own steps. Cloning by "
         "regression (an MLP of 64 x 1 blocks, 500 updates) with those that are left succeeds more often than with "
         "all, with as many by lot, and without any. A mixture of Gaussians, which can tell two ways apart, stands "
         "beside it. Only the filter is tested: nobody is asked to demonstrate again.",
    parts=(Part("regression", FORK, Every((Above("success", "filtered", "all"), Above("success", "filtered", "base"),
                                           Above("success", "filtered", "random")))),
           Part("a mixture needs no filter", MIXTURES, Above("success", "all", "filtered", -0.1), decides=False)),
    sabotage=Sabotage("no step counts as known to the base policy (its limit of disagreement is 0)", blind,
                      "regression"),
)
