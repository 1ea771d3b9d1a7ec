"""Row 284: do clusters of actions with offsets succeed, and in all ways, where demonstrations go two ways?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from claims.worlds.fork import measure_sides, passes_left, rollout_starts
from understudy.claims.base import (
    SCORE,
    AboveBound,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    Experiment,
    ExpertDemonstrations,
    GreaterThan,
    NegativeControl,
)
from understudy.claims.measures import train_policy
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.base import Head
from understudy.heads.likelihood.regression import Regression
from understudy.heads.tokens.behavior_transformer import BeT
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig


@dataclass(frozen=True)
class CentersOnly(BeT):
    """The action is the center of the chosen cluster, without an offset."""

    def _predict(self, net, context, like):
        logits, offset = super()._predict(net, context, like)
        return logits, torch.zeros_like(offset)


def success_and_sides(
    experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method and measures its rollouts as `measure_sides` does."""
    policy = train_policy(experiment, method, data, seed)
    return measure_sides(rollout_starts(policy, method.executor, experiment.env, episodes, starts))


def head_arm(name: str, head: Head) -> Arm:
    """One action per observation, and a history of three observations, as when the authors evaluate."""
    policy = PolicyConfig(head, trunk=MLP(64, 1), encoder=ConcatEncoder(), window=Window(n_obs_steps=3))
    learner = BehaviorCloning(steps=1000, optimizer=OptimizerConfig(lr=3e-3))
    return Arm(name, (Method(policy, RecedingHorizon(1), learner),))


def only_left(experiment: Experiment) -> Experiment:
    return replace(experiment, source=ExpertDemonstrations("fork", 120, filter=passes_left))


FORK = Experiment(
    ExpertDemonstrations("fork", 60),
    "fork",
    (
        head_arm("bet", BeT(n_clusters=16)),
        head_arm("regression", Regression()),
        head_arm("centers only", CentersOnly(n_clusters=16)),
    ),
    success_and_sides,
    seeds=(420, 421, 422, 423, 424),
    episodes=500,
    measures=(("entropy", SCORE),),
    starts_seed=420,
    sanity=(("regression", "success", 0.3),),
)
OVER_REGRESSION = GreaterThan("success", "bet", "regression")
BOTH_SIDES = AboveBound("entropy", "bet", 0.5)

CLAIM = Claim(
    name="bet-modes",
    rows=("284",),
    parts=(ClaimPart("fork", FORK, AllOf((OVER_REGRESSION, BOTH_SIDES))),),
    negative_control=NegativeControl(only_left, "fork", removes=(OVER_REGRESSION, BOTH_SIDES)),
)
