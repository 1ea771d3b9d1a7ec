"""Row 327: a scoring network that follows the gradient of a downstream loss finds the data that the task needs.

Demonstrations come in four action frames, all equally coherent. Only the downstream data tell which frame the
environment has, so nothing but their gradient can lead the scores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from claims.worlds.curation import (
    cached_load,
    cloning_method,
    curated_arms,
    curated_success,
    successful_rollouts,
    with_keep_columns,
)
from understudy.audit.scores import FilterLikeYouTest, soft_capped_counts
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
from understudy.data.episode import Dataset, Episode
from understudy.envs.toys.particle import ParticleExpert

N_FRAMES = 4
N_DRAWS = 180
INNER_LR, SCORER_LR = 0.1, 3e-3  # of the reference model, of the scoring network


class RandomSignal(FilterLikeYouTest):
    """Each gradient of the downstream loss is replaced by a random direction of the same length."""

    def downstream_signal(self, gradient, update):
        """Draw a new direction."""
        rng = torch.Generator().manual_seed(1_000_003 * self.seed + update)
        noise = {k: torch.randn(v.shape, generator=rng) for k, v in gradient.items()}
        length, of_noise = (sum(float(v.square().sum()) for v in d.values()) ** 0.5 for d in (gradient, noise))
        return {k: v * (length / of_noise) for k, v in noise.items()}


def with_turned_actions(data: Dataset, quarters: int) -> list[Episode]:
    """The same episodes, with action axes that are turned by `quarters` times 90 degrees about the square's middle."""
    c, s = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarters]
    turn = np.array([[c, s], [-s, c]], np.float32)
    return [e.replace({"action": 0.5 + (e.steps["action"] - 0.5) @ turn}) for e in data]


@dataclass(frozen=True)
class FramedDemonstrations(DemonstrationSource):
    """Demonstrations of particle in four action frames. The environment has the first. The scoring network learns on
    one pool, and another pool of new episodes is filtered.

    Args:
        episodes: Number of episodes of each frame in each pool.
        n_downstream: Number of episodes in the frame of the environment that say what is wanted.
        n_updates: Updates of the scoring network.
        downstream_frame: Frame of the downstream episodes. The environment has frame 0.
    """

    episodes: int
    n_downstream: int
    n_updates: int = 1000
    downstream_frame: int = 0
    probe_sizes = {"episodes": 10, "n_updates": 20}

    @cached_load
    def load(self, seed):
        def record(episodes, split):
            actor = ParticleExpert(noise=0.05)
            return successful_rollouts(actor, "particle", episodes, seed, split, fully_observed=True)

        learned, filtered = (Dataset([e for k in range(N_FRAMES)
                                      for e in with_turned_actions(record(self.episodes, first + k), k)])
                             for first in (0, N_FRAMES))
        recorded = record(self.n_downstream, 2 * N_FRAMES)
        downstream = Dataset(with_turned_actions(recorded, self.downstream_frame), recorded.metadata)
        true = np.arange(len(filtered)) < self.episodes
        pool = np.r_[np.ones(len(filtered)), np.zeros(len(downstream))]

        def of_pool(weights):
            return np.r_[weights, np.zeros(len(downstream))]

        marks = {"all": pool, "all and downstream": np.ones(len(pool)), "downstream": 1 - pool,
                 "right frame": of_pool(true)}
        figures = {}
        for name, score in (("filtered", FilterLikeYouTest), ("random signal", RandomSignal)):
            scores = score(downstream, pool=learned, n_updates=self.n_updates, lr=INNER_LR, scorer_lr=SCORER_LR,
                           seed=seed)(filtered)
            counts = soft_capped_counts(scores, N_DRAWS, seed=seed)
            wins = scores[true][:, None] - scores[~true]
            marks[name] = of_pool(counts)
            figures[f"auroc.{name}"] = float((wins > 0).mean() + (wins == 0).mean() / 2)
            figures[f"right share.{name}"] = float(counts[true].sum() / N_DRAWS)
        permuted = np.random.default_rng(seed).permutation(marks["filtered"][: len(filtered)])
        marks["filtered, permuted"] = of_pool(permuted)
        return with_keep_columns(Dataset([*filtered, *downstream], downstream.metadata), marks, {"figures": figures})


def other_downstream_task(experiment: Experiment) -> Experiment:
    """The downstream episodes are in the opposite frame. Their gradient is as coherent, and asks for other data."""
    return replace(experiment, source=replace(experiment.source, downstream_frame=2))


AUROC = AboveBound("auroc", "filtered", 0.8)
GAIN = GreaterThan("success", "filtered", "all")
PARTICLE = Experiment(
    FramedDemonstrations(120, 8),
    "particle",
    curated_arms("all", "all and downstream", "downstream", "filtered", "filtered, permuted", "random signal",
                 "right frame", options=(cloning_method(3e-3, steps=400),)),
    curated_success,
    seeds=tuple(range(600, 620)),
    looks=((5, 0.01), (10, 0.015), (20, 0.025)),
    tuning_seeds=(910,),
    starts_seed=600,
    episodes=200,
    env_options=(("fully_observed", True),),
    measures=(("auroc", SCORE), ("right share", SCORE)),
    sanity=(("right frame", "success", 0.6),),
)

CLAIM = Claim(
    name="filter-like-you-test",
    rows=("327",),
    parts=(
        ClaimPart("particle", PARTICLE, AllOf((AUROC, GAIN))),
        ClaimPart("other uses of the same data", PARTICLE, AllOf(tuple(
            GreaterThan("success", "filtered", other)
            for other in ("all and downstream", "downstream", "filtered, permuted", "random signal")))),
    ),
    negative_control=NegativeControl(other_downstream_task, "particle", removes=(AUROC, GAIN)),
)
