"""Row 195: can a single expert avoid the mean of two ways, if it may choose the data that it learns from?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..data.episode import Dataset
from ..data.window import Window
from ..envs import make
from ..evaluate.rollout import rollout
from ..execute.actor import PolicyActor
from ..execute.chunking import RecedingHorizon
from ..execute.planners import FixedBatch
from ..heads.regression import Regression
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import Method
from ..learn.optimizer import OptimizerConfig
from ..learn.sample_weights import CurriculumWeights, SampleWeights, UniformWeights
from ..nets.encoders import ConcatEncoder
from ..nets.mlp import MLP
from ..policy import Policy, PolicyConfig
from .base import (
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
from .diffusion_bc import passes_left
from .measures import train_policy

ROWS = 100  # environments side by side; results do not depend on it
SHOWN = 100  # demonstrations
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
    ran = rollout(actor, make(experiment.env, rows=ROWS), episodes, seed=starts)
    return {"success": [float(e.metadata["success"]) for e in ran],
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
    left = batch.action[:, :3, 1].mean(1) > 0
    return abs(2 * float((weights * left).sum() / weights.sum()) - 1)


def make_arm(name: str, weights: SampleWeights) -> Arm:
    """The same expert, updates and learning rate. Arms differ in the weights of windows."""
    window = Window(n_obs_steps=2, horizon=8)
    policy = PolicyConfig(Regression(), trunk=MLP(64, 1), encoder=ConcatEncoder(), window=window)
    learner = BehaviorCloning(600, 64, OptimizerConfig(lr=3e-3), sample_weights=weights)
    return Arm(name, (Method(policy, RecedingHorizon(4), learner),))


def with_exchanged_weights(experiment: Experiment) -> Experiment:
    return experiment.replace_arms(make_arm("curriculum", ExchangedWeights(TEMPERATURE)))


FORK = Experiment(
    ExpertDemonstrations("fork", SHOWN),
    "fork",
    (make_arm("curriculum", CurriculumWeights(TEMPERATURE)), make_arm("likelihood", UniformWeights())),
    success_and_specialization,
    seeds=(530, 531, 532, 533, 534),
    episodes=500,
    measures=(("specialization", SCORE),),
    starts_seed=530,
)
ONE_WAY = replace(FORK, source=ExpertDemonstrations("fork", 2 * SHOWN, passes_left),
                  sanity=(("likelihood", "success", 0.8),))
OVER_LIKELIHOOD = GreaterThan("success", "curriculum", "likelihood", 0.3)
IGNORES = AboveBound("specialization", "curriculum", 0.5)

CLAIM = Claim(
    name="self-chosen-curriculum",
    rows=("195",),
    paper="Blessing et al. 2023, Information Maximizing Curriculum: A Curriculum-Based Approach for Imitating Diverse "
    "Skills, arXiv 2303.15349",
    statement="In this work, we propose Information Maximizing Curriculum, a curriculum-based approach that assigns a "
    "weight to each data point and encourages the model to specialize in the data it can represent, effectively "
    "mitigating the mode-averaging problem by allowing the model to ignore data from modes it cannot represent.",
    setup="The statement is about a single expert; the paper's mixture of experts, which is to cover all modes, is "
    "not tested. Fork: 100 scripted demonstrations pass a pillar on the left or on the right, at even odds, new ones "
    "for each seed. The expert is a regression with a network (an MLP of 64 x 1 blocks) that plans 8 steps and "
    "executes 4, so it can represent only one way from a state where both are open. Both arms have 600 updates of 64 "
    "windows and the same learning rate. One weighs all windows equally (maximum likelihood with a fixed variance). "
    "In the other, the weight of a window is proportional to exp(-loss / 0.03), as the newest weights of the network "
    "see it, where the loss is the mean squared error of the window's coded actions. That is the paper's optimal "
    "curriculum. The temperature of 0.03 corresponds to the paper's eta = 0.24, for unit variance and the 16 numbers "
    "of a window. Two rules decide. The curriculum succeeds more than 0.3 more often. Where both ways are open (x "
    "below 0.2 m), its weights are one-sided: their share on the heavier side, scaled so that 0.5 becomes 0 and 1 "
    "stays 1, is above 0.5. Both bounds are this claim's own. In the negative control each window has the weight of "
    "another window of the batch: the same weights, but the expert does not learn from what it can represent. A "
    "reported part has only demonstrations that pass on the left, about as many. It shows that regression works where "
    "there is one way (it must succeed in 0.8 of the starts), and what the curriculum costs there. Pilots on the "
    "seeds 1 and 2 had 800 updates. Equal weights succeeded in 0.08 and 0.01 of the starts, and a curriculum with "
    "temperature 0.1 in all of both. With 0.03, tried on the first alone, it succeeded in all, and the weights of the "
    "other side were near 0. Differences from the paper: one expert, one update of the network between two updates of "
    "the weights in place of five epochs, and weights that are scaled within a batch. The authors' code subtracts the "
    "largest log-likelihood of each window over the experts, so that a single expert there would ignore nothing.",
    parts=(
        ClaimPart("fork", FORK, AllOf((OVER_LIKELIHOOD, IGNORES))),
        ClaimPart("one way", ONE_WAY, GreaterThan("success", "curriculum", "likelihood", -0.1), is_decisive=False),
    ),
    negative_control=NegativeControl(
        "each window has the weight of another window of the batch", with_exchanged_weights, "fork",
        removes=(OVER_LIKELIHOOD, IGNORES),
    ),
)
