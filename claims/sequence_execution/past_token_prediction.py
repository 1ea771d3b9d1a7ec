"""Row 344: does a policy with a long history act better if it also predicts the actions of this history?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from understudy.claims.base import (
    Arm,
    Claim,
    ClaimPart,
    Experiment,
    ExpertDemonstrations,
    GreaterThan,
    NegativeControl,
)
from understudy.claims.measures import closed_loop
from understudy.data.window import Window
from understudy.execute.base import Executor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.past_verification import PastVerification
from understudy.heads.base import Head
from understudy.heads.denoising.diffusion import Diffusion
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.sample_weights import PastTargetWeights
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

HISTORY, FUTURE = 12, 4  # observed rows, and actions from the current one on
PAST = HISTORY - 1


@dataclass(frozen=True)
class ShuffledPast(Head):
    """A head whose past targets belong to other rows of the batch.

    Args:
        n_past: Number of past steps of a chunk.
    """

    head: Diffusion
    n_past: int

    def noise(self, horizon, coded_dim):
        return self.head.noise(horizon, coded_dim)

    def build(self, trunk, coded_dim, spec):
        return self.head.build(trunk, coded_dim, spec)

    def loss(self, net, context, action, mask, rng):
        order = torch.randperm(len(action), generator=rng, device=action.device)
        action = torch.cat([action[order, : self.n_past], action[:, self.n_past :]], 1)
        return self.head.loss(net, context, action, mask, rng)

    def sample(self, net, context, noise):
        return self.head.sample(net, context, noise)


def past_targets_arm(name: str, *, head: Head, n_obs_steps: int = HISTORY, n_past: int = PAST, weight: float = 1.0,
                     executor: Executor | None = None) -> Arm:
    """The same network, updates and learning rate for every arm."""
    window = Window(n_obs_steps, n_past + FUTURE, action_offset=-n_past)
    policy = PolicyConfig(head, MLP(width=160, depth=1), ConcatEncoder(), window=window, inputs=("observation.state",))
    learner = BehaviorCloning(1500, 64, OptimizerConfig(lr=2e-3), sample_weights=PastTargetWeights(weight))
    return Arm(name, (Method(policy, executor or RecedingHorizon(1, n_past), learner),))


def with_shuffled_past(experiment: Experiment) -> Experiment:
    """The past targets tell nothing about the history."""
    return experiment.replace_arms(past_targets_arm("past targets", head=ShuffledPast(DIFFUSION, PAST)))


DIFFUSION = Diffusion(n_steps=5, n_train_steps=50, prediction="sample")
PARTICLE = Experiment(
    ExpertDemonstrations("particle", 200),
    "particle",
    (
        past_targets_arm("masked", head=DIFFUSION, weight=0.0),
        past_targets_arm("past targets", head=DIFFUSION),
        past_targets_arm("no past", head=DIFFUSION, n_past=0),
    ),
    closed_loop,
    seeds=tuple(range(600, 620)),
    looks=((5, 0.01), (10, 0.015), (20, 0.025)),
    episodes=200,
    starts_seed=600,
    sanity=(("masked", "success", 0.25), ("no past", "success", 0.5)),
)
FIRST_SEEDS = replace(PARTICLE, seeds=PARTICLE.seeds[:5], looks=())  # the same cells
VERIFIED = past_targets_arm("verified", head=DIFFUSION, executor=PastVerification(1, PAST))

CLAIM = Claim(
    name="past-token-prediction",
    rows=("344",),
    parts=(
        ClaimPart("particle", PARTICLE, GreaterThan("success", "past targets", "masked")),
        ClaimPart("without a past", FIRST_SEEDS, GreaterThan("success", "past targets", "no past"), is_decisive=False),
        ClaimPart("verification", replace(FIRST_SEEDS, arms=(*PARTICLE.arms, VERIFIED)),
                  GreaterThan("success", "verified", "past targets"), is_decisive=False),
    ),
    negative_control=NegativeControl(with_shuffled_past, "particle"),
)
