"""Row 327: weights that make training on the weighted data good for what is tested find the corrupted ones."""

from dataclasses import dataclass, replace

import numpy as np

from ..audit.scores import ValidationWeights, soft_capped_counts
from ..data.episode import Dataset
from ..envs.fork import Expert
from .base import (
    SCORE,
    AboveBound,
    AllOf,
    Claim,
    ClaimPart,
    DemonstrationSource,
    EquivalentTo,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from .curation import arms, cached_load, curated_success, successful_rollouts, with_keep_columns


@dataclass(frozen=True)
class CorruptedDemonstrations(DemonstrationSource):
    """A pool of `episodes` demonstrations that pass the pillar of fork on the left, and twice as many corrupted ones:
    half of them on the right, a quarter on the right and very unsteady, a quarter on the left and at rest half of the
    time. `test` clean ones say what is wanted. wrong: these are corrupted as well."""

    episodes: int
    n_test: int
    wrong_test_set: bool = False

    @cached_load
    def load(self, seed):
        clean = successful_rollouts(Expert(side=1, noise=0.1), "fork", self.episodes, seed, 0)
        pool = Dataset([*clean, *self._corrupted_episodes(self.episodes // 2, seed, 1)], clean.metadata)
        test = self._corrupted_episodes(self.n_test // 4 + 1, seed, 5) if self.wrong_test_set else successful_rollouts(
            Expert(side=1, noise=0.1), "fork", self.n_test, seed, 4)
        score = ValidationWeights(Dataset(list(test)), n_updates=400, seed=seed)(pool)
        true = np.arange(len(pool)) < self.episodes
        best = score >= np.sort(score)[-self.episodes]
        rng = np.random.default_rng(seed)
        lot = rng.permutation(best)
        wins = score[true][:, None] - score[~true]
        figures = {"auroc.sampled": float((wins > 0).mean() + (wins == 0).mean() / 2)}
        marks = {"all": np.ones(len(pool)), "sampled": soft_capped_counts(score, len(pool), seed=seed), "best": best,
                 "lot": lot, "clean": true}
        return with_keep_columns(pool, marks, {"figures": figures})

    def _corrupted_episodes(self, quarter, seed, part):
        right = successful_rollouts(Expert(side=-1, noise=0.1), "fork", 2 * quarter, seed, part)
        unsteady = successful_rollouts(Expert(side=-1, noise=1.0), "fork", quarter, seed, part + 10)
        idle = successful_rollouts(Expert(side=1, noise=0.1), "fork", quarter, seed, part + 20)
        rng = np.random.default_rng(seed)
        idle = [e.replace({"action": (e.steps["action"] * (rng.random((len(e), 1)) < 0.5)).astype(np.float32)})
                for e in idle]
        return [*right, *unsteady, *idle]


def wrong_test_set(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, wrong_test_set=True))


FORK = Experiment(CorruptedDemonstrations(12, 8), "fork", arms("all", "sampled", "best", "lot"), curated_success,
                  seeds=tuple(range(100, 106)), env_options=(("limit", 25),), measures=(("auroc", SCORE),))

CLAIM = Claim(
    name="filter-like-you-test",
    rows=("327",),
    paper="Shechter and Carmon 2025, Filter Like You Test, arXiv 2503.08805",
    statement="FLYT trains a scoring model that learns to weigh each example using gradient signals from downstream "
    "tasks training sets.",
    setup="not with pictures and text: a pool of 36 demonstrations of fork, 12 of which pass on the left as wanted, "
    "and 24 pass on the right, some very unsteady, or rest half of the time on the left. The score is a log "
    "weight for each demonstration, which follows the gradient of the loss on 8 clean demonstrations through one "
    "update of a small regression; 36 draws with a soft cap choose what is learned from. The weights tell clean "
    "from corrupted (area under the curve above 0.8), and cloning what was drawn (an MLP of 64 x 1 blocks, 500 "
    "updates, within 25 steps) succeeds more often than cloning all, and than a random subset of the same size. Known "
    "weaknesses: passing on either side counts as success, so any coherent part of the pool helps, and the gain "
    "survives the negative control. There is one free weight for each demonstration, and no scoring model as in the "
    "paper. The record therefore neither supports nor refutes the statement.",
    parts=(
        ClaimPart(
            "fork",
            FORK,
            AllOf(
                (
                    AboveBound("auroc", "sampled", 0.8),
                    GreaterThan("success", "sampled", "all"),
                    GreaterThan("success", "sampled", "lot"),
                )
            ),
        ),
        ClaimPart(
            "soft cap against the best half", FORK, EquivalentTo("success", "sampled", "best", 0.1), is_decisive=False
        ),
    ),
    negative_control=NegativeControl(
        "the episodes that say what is wanted are corrupted ones", wrong_test_set, "fork",
        removes=(GreaterThan("success", "sampled", "lot"),),
    ),
)
