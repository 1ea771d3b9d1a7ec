"""Row 195: can a single expert avoid the mean of two ways, if it may choose the data that it learns from?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from claims.worlds.fork import passes_left
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
from understudy.envs import make
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.sample_weights import CurriculumWeights, SampleWeights, UniformWeights
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig

ROWS = 100  # environments side by side; results do not depend on it
N_DEMONSTRATIONS = 100  # demonstrations
TEMPERATURE = 0.03
N_WINDOWS, UNDECIDED = 512, 0.2  # for the specialization: windows, and the x (m) up to which both ways are open


@dataclass(frozen=True)
class ExchangedWeights(CurriculumWeights):
    """The same weights, but those of other windows of the batch, whose order is random."""

    def __call__(self, batch, policy):
        return super().__call__(batch, policy).roll(1)


def success_and_specialization(
    experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method and rolls it out.

    Returns:
        "success" of each episode, and one "specialization".
    """
    policy = train_policy(experiment, method, data, seed)
    actor = PolicyActor(FixedBatch(policy, ROWS), method.executor)
    rollouts = rollout(actor, make(experiment.env, rows=ROWS), episodes, seed=starts)
    return {"success": [float(e.metadata["success"]) for e in rollouts],
            "specialization": [specialization(policy, method, data, seed)]}


@torch.no_grad()
def specialization(policy: Policy, method: Method, data: Dataset, seed: int) -> float:
    """How one-sided the weights are that a method gives its data where both ways are open: 1 if all weight is on
    windows of one side, 0 if both have the same.
    """
    assert isinstance(method.learner, BehaviorCloning)
    batch = policy.eval().windows(data).batch(N_WINDOWS, 0, seed)
    weights = method.learner.sample_weights.build(policy, data)(batch, policy)
    weights = weights * (batch.obs["observation.state"][:, -1, 0] < UNDECIDED)
    goes_left = batch.action[:, :3, 1].mean(1) > 0
    return abs(2 * float((weights * goes_left).sum() / weights.sum()) - 1)


def weighted_arm(name: str, weights: SampleWeights) -> Arm:
    """The same expert, updates and learning rate. Arms differ in the weights of windows."""
    window = Window(n_obs_steps=2, horizon=8)
    policy = PolicyConfig(Regression(), trunk=MLP(64, 1), encoder=ConcatEncoder(), window=window)
    learner = BehaviorCloning(600, 64, OptimizerConfig(lr=3e-3), sample_weights=weights)
    return Arm(name, (Method(policy, RecedingHorizon(4), learner),))


def with_exchanged_weights(experiment: Experiment) -> Experiment:
    return experiment.replace_arms(weighted_arm("curriculum", ExchangedWeights(TEMPERATURE)))


FORK = Experiment(
    ExpertDemonstrations("fork", N_DEMONSTRATIONS),
    "fork",
    (weighted_arm("curriculum", CurriculumWeights(TEMPERATURE)), weighted_arm("likelihood", UniformWeights())),
    success_and_specialization,
    seeds=(530, 531, 532, 533, 534),
    episodes=500,
    measures=(("specialization", SCORE),),
    starts_seed=530,
)
ONE_WAY = replace(FORK, source=ExpertDemonstrations("fork", 2 * N_DEMONSTRATIONS, passes_left),
                  sanity=(("likelihood", "success", 0.8),))
OVER_LIKELIHOOD = GreaterThan("success", "curriculum", "likelihood", 0.3)
IGNORES = AboveBound("specialization", "curriculum", 0.5)

CLAIM = Claim(
    name="self-chosen-curriculum",
    rows=("195",),
    parts=(
        ClaimPart("fork", FORK, AllOf((OVER_LIKELIHOOD, IGNORES))),
        ClaimPart("one way", ONE_WAY, GreaterThan("success", "curriculum", "likelihood", -0.1), is_decisive=False),
    ),
    negative_control=NegativeControl(with_exchanged_weights, "fork", removes=(OVER_LIKELIHOOD, IGNORES)),
)
