"""Row 327: weights that follow the gradient of a downstream loss find the demonstrations that the task needs."""

from dataclasses import dataclass, replace

import numpy as np

from ..audit.scores import ValidationWeights, soft_capped_counts
from ..data.episode import Dataset
from ..envs import make
from ..envs.fork import Expert
from ..evaluate.rollout import rollout
from ..execute.actor import PolicyActor
from ..execute.planners import FixedBatch
from .base import (
    RATE,
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
from .curation import CuratedMethod, arms, cached_load, successful_rollouts, train_curated, with_keep_columns
from .measures import ROWS


def success_on_the_left(
    experiment, method: CuratedMethod, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """success: the goal is reached past the left of the pillar, as the clean demonstrations show. either side: the goal
    is reached. Facts "FIGURE.ARM" of the data that belong to this arm are measures too, one value per run."""
    env = make(experiment.env, rows=min(ROWS, episodes), **dict(experiment.env_options))
    ran = rollout(PolicyActor(FixedBatch(train_curated(method, data, seed), ROWS), method.method.executor), env,
                  episodes, seed=starts)
    figures = {k.removesuffix(f".{method.curation}"): [float(v)] for k, v in data.metadata["figures"].items()
               if k.endswith(f".{method.curation}")}
    reached = [bool(e.metadata["success"]) for e in ran]
    left = [float(e.steps["observation.state"][:, 1].mean()) > 0 for e in ran]
    return {"success": [float(r and side) for r, side in zip(reached, left, strict=True)],
            "either side": [float(r) for r in reached], **figures}


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


FORK = Experiment(
    CorruptedDemonstrations(12, 8),
    "fork",
    arms("all", "sampled", "lot", "clean"),
    success_on_the_left,
    seeds=tuple(range(300, 320)),
    tuning_seeds=(910,),
    env_options=(("limit", 25),),
    starts_seed=300,
    looks=((5, 0.01), (10, 0.015), (20, 0.025)),
    sanity=(("clean", "success", 0.8),),
    measures=(("auroc", SCORE), ("either side", RATE)),
)

CLAIM = Claim(
    name="filter-like-you-test",
    rows=("327",),
    paper="Shechter and Carmon 2025, Filter Like You Test, arXiv 2503.08805",
    statement="FLYT trains a scoring model that learns to weigh each example using gradient signals from downstream "
    "tasks training sets.",
    setup="not with pictures and text: a pool of 36 demonstrations of fork. 12 pass the pillar on the left, which is "
    "the downstream task. 24 are corrupted: they pass on the right, some of them unsteadily, or pass on the left "
    "and rest half of the time. The score is a log weight for each demonstration. It follows the gradient of the "
    "loss on 8 clean demonstrations through one update of a small regression. 36 draws with a soft cap choose the "
    "training data. Success is to reach the goal on the left within 25 steps. The weights tell clean from "
    "corrupted (area under the curve above 0.8). Cloning the drawn demonstrations (an MLP of 64 x 1 blocks, 500 "
    "updates, two learning rates tried for each arm) succeeds more often than cloning all, and than a random "
    "subset of the same size. Cloning the clean demonstrations alone must succeed in 80 % of episodes. 5, 10, "
    "then 20 training seeds.",
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
    ),
    negative_control=NegativeControl(
        "the downstream demonstrations are corrupted ones",
        wrong_test_set,
        "fork",
        removes=(GreaterThan("success", "sampled", "all"),),
    ),
    revision="Success counts on the side that the downstream demonstrations show. Before, either side counted, so "
    "weights for the wrong task helped as well and the control could not fail. New training seeds, demonstrations and "
    "starts; 5, 10, then 20 seeds with planned looks; a sanity level.",
)
