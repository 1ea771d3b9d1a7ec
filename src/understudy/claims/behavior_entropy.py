"""Row 004: two policies succeed alike. Do they know as many ways?"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from ..core import keys
from ..data.window import Window
from ..envs import make
from ..evaluate.rollout import rollout
from ..execute.actor import Actor, PolicyActor
from ..execute.chunking import RecedingHorizon
from ..execute.planners import FixedBatch
from ..heads.gmm import GMM
from ..heads.neighbors import Neighbors
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import Method
from ..learn.optimizer import OptimizerConfig
from ..nets.encoders import ConcatEncoder
from ..nets.mlp import MLP
from ..policy import PolicyConfig
from .base import (
    SCORE,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    EquivalentTo,
    Experiment,
    ExpertDemonstrations,
    GreaterThan,
    NegativeControl,
)
from .measures import ROWS, train_policy

N_REPEATS = 10  # that each start is met


@dataclass(frozen=True)
class RepeatedStartActor(Actor):
    """The same start met once more: the environment keeps its key, the actor gets another."""

    actor: Actor
    repeat: int

    def start(self, obs, key):
        return self.actor.start(obs, keys(self.repeat, key))

    def act(self, obs, state):
        return self.actor.act(obs, state)


def success_and_entropy(experiment, method, data, seed: int, episodes: int, starts: int) -> dict[str, list[float]]:
    """success, one value a rollout. entropy, one a start: of the side on which successful rollouts from it pass the
    pillar, in units of its largest value (Jia et al. 2024, section 4: of behaviors per initial state, with the number
    of behaviors as the base of the logarithm)."""
    actor = PolicyActor(FixedBatch(train_policy(experiment, method, data, seed), ROWS), method.executor)
    env = make(experiment.env, rows=min(ROWS, episodes // N_REPEATS))
    runs = [
        rollout(RepeatedStartActor(actor, time), env, episodes // N_REPEATS, seed=starts) for time in range(N_REPEATS)
    ]
    entropy = []
    for met in zip(*runs, strict=True):
        sides = Counter(passes_left(e) for e in met if e.metadata["success"])
        share = np.array(list(sides.values())) / max(sides.total(), 1)
        entropy.append(float(-(share * np.log2(share)).sum()) + 0.0)
    return {"success": [float(e.metadata["success"]) for run in runs for e in run], "entropy": entropy}


def passes_left(episode) -> bool:
    return bool(episode.steps["observation.state"][:, 1].mean() > 0)


def only_left(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, filter=passes_left))


WINDOW = Window(n_obs_steps=1, horizon=8)
MIXTURE_METHODS = tuple(
    Method(
        PolicyConfig(GMM(), trunk=MLP(64, 1), encoder=ConcatEncoder(), window=WINDOW),
        RecedingHorizon(4),
        BehaviorCloning(steps=800, optimizer=OptimizerConfig(lr=rate)),
    )
    for rate in (3e-3, 1e-3)
)
NEIGHBOR_METHODS = tuple(
    Method(
        PolicyConfig(Neighbors(n_neighbors=count), encoder=ConcatEncoder(), window=WINDOW),
        RecedingHorizon(4),
        BehaviorCloning(steps=1),
    )
    for count in (1, 2)
)
FORK = Experiment(
    ExpertDemonstrations("fork", 60, resample=False),
    "fork",
    (Arm("mixture", MIXTURE_METHODS), Arm("nearest", NEIGHBOR_METHODS)),
    success_and_entropy,
    seeds=(100, 101, 102, 103, 104, 105),
    episodes=200,
    tuning_episodes=50,
    measures=(("entropy", SCORE),),
)

CLAIM = Claim(
    name="behavior-entropy", rows=("004",),
    paper="Jia et al. 2024, Towards Diverse Behaviors: A Benchmark for Imitation Learning with Human Demonstrations, "
          "arXiv 2402.14606",
    statement="To address the challenge of diversity quantification, we introduce tractable metrics that provide "
              "valuable insights into a model's ability to acquire and reproduce diverse behaviors.",
    setup="fork: 60 scripted demonstrations that pass a pillar left or right at even odds. A mixture of Gaussians (an "
         "MLP of 64 x 1 blocks, 800 updates) and a nearest neighbor, which always answers alike, both in chunks of 8, "
         "succeed within 0.15 of each other; their behavior entropy, of the side over 10 rollouts from each of 20 "
         "starts, is more than 0.4 apart. So the metric says what the success rate does not.",
    parts=(ClaimPart("fork", FORK, AllOf((EquivalentTo("success", "mixture", "nearest", 0.15),
                                     GreaterThan("entropy", "mixture", "nearest", 0.4)))),),
    negative_control=NegativeControl(
        "only demonstrations that pass on the left", only_left, "fork",
        removes=(GreaterThan("entropy", "mixture", "nearest", 0.4),),
    ),
)
