"""Row 268: does the median of many small blocks learn from demonstrations if a fifth of the actions is wrong?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from claims.worlds.any_block import AnyBlock
from claims.worlds.curation import cached_load
from understudy.claims.base import (
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
    expert_of,
)
from understudy.claims.measures import closed_loop
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.envs import make
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit import LearnerConfig
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.sample_weights import ColumnWeights
from understudy.methods.behavior_cloning.robust_bc import RobustBC
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

FRACTION = 0.2  # of the actions that are wrong
WRONG = 1.0  # what they are: the upper limit of every component
BATCH, N_BLOCKS = 128, 42  # blocks of 3 windows: half of them have no wrong action
UPDATES = 2000
CLEAN = "keep.clean"


@dataclass(frozen=True)
class CorruptedDemonstrations(DemonstrationSource):
    """Episodes of the expert in which single actions are replaced by a constant. `CLEAN` marks the others.

    Args:
        fraction: Probability that an action is replaced.
    """

    episodes: int
    fraction: float

    @cached_load
    def load(self, seed):
        env = make("particle", rows=min(self.episodes, 16), fully_observed=True)
        rng = np.random.default_rng(seed)
        changed = []
        for episode in rollout(expert_of(env), env, self.episodes, recording_seed(seed)):
            action = np.array(episode.steps["action"])
            is_wrong = rng.random(len(action)) < self.fraction
            action[is_wrong] = WRONG
            changed.append(episode.replace({"action": action, CLEAN: (~is_wrong).astype(np.float32)}))
        return Dataset(changed)


def learner_arm(name: str, learner: LearnerConfig, loss: Literal["l1", "l2"] = "l2") -> Arm:
    """The same network, batches and number of updates for every arm."""
    policy = PolicyConfig(Regression(loss), MLP(64, 1), window=Window(1, 1), inputs=("observation.state",))
    return Arm(name, (Method(policy, RecedingHorizon(1), learner),))


def cloning(name: str, loss: Literal["l1", "l2"] = "l2", **options) -> Arm:
    return learner_arm(name, BehaviorCloning(UPDATES, BATCH, OPTIMIZER, **options), loss)


def with_any_block(experiment: Experiment) -> Experiment:
    """The block that trains does not depend on the losses."""
    return experiment.replace_arms(learner_arm("median of means", AnyBlock(N_BLOCKS, UPDATES, BATCH, OPTIMIZER)))


OPTIMIZER = OptimizerConfig(lr=1e-3)
PARTICLE = Experiment(
    CorruptedDemonstrations(100, FRACTION),
    "particle",
    (
        cloning("cloning"),
        learner_arm("median of means", RobustBC(N_BLOCKS, UPDATES, BATCH, OPTIMIZER)),
        cloning("cloning, clean actions", sample_weights=ColumnWeights(CLEAN, 1.0, 0.0)),
        cloning("cloning, absolute error", "l1"),
    ),
    closed_loop,
    seeds=(540, 541, 542, 543, 544),
    env_options=(("fully_observed", True),),
    starts_seed=540,
    sanity=(("cloning, clean actions", "success", 0.8),),
)
ROBUST = GreaterThan("success", "median of means", "cloning")

CLAIM = Claim(
    name="corrupted-demonstrations",
    rows=("268",),
    parts=(
        ClaimPart("particle", PARTICLE, ROBUST),
        ClaimPart("as without errors", PARTICLE,
                  GreaterThan("success", "median of means", "cloning, clean actions", -0.1), is_decisive=False),
        ClaimPart("absolute error", PARTICLE,
                  GreaterThan("success", "median of means", "cloning, absolute error"), is_decisive=False),
    ),
    negative_control=NegativeControl(with_any_block, "particle", removes=(ROBUST,)),
)
