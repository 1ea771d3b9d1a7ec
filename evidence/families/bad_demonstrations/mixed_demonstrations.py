"""Demonstrations some of which are wrong or worse than others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from evidence.experiment import DemonstrationSource, Experiment, expert_of
from evidence.measures import closed_loop
from understudy.checkpoint import FromStage
from understudy.core import normal, uniform
from understudy.data.episode import Dataset, Episode
from understudy.data.operations import Filter
from understudy.data.relabel import ScaledReward
from understudy.envs import make
from understudy.envs.toys.fork import GOAL, ForkExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit import LearnerConfig
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.sample_weights import ColumnWeights, TrimmedWeights
from understudy.methods.behavior_cloning.robust_bc import RobustBC
from understudy.methods.offline_rl.iw_sft import IWSFT, ReturnStrata
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

STATE = "observation.state"
FAST = OptimizerConfig(lr=1e-3)

# -- single actions are replaced -------------------------------------------------------------------------------------

WRONG = 1.0  # what replaces an action: the upper limit of every component
DRAW, CLEAN = "keep.draw", "keep.clean"


@dataclass(frozen=True)
class DrawnDemonstrations(DemonstrationSource):
    """Episodes of the expert. Each step has a uniform draw, which decides whether `ReplacedActions` replaces it."""

    episodes: int = 100

    def load(self, seed):
        env, rng = make("particle", rows=25, fully_observed=True), np.random.default_rng(seed)
        episodes = rollout(expert_of(env), env, self.episodes, recording_seed(seed))
        return Dataset([e.replace({DRAW: rng.random(len(e), np.float32)}) for e in episodes], episodes.metadata)


@dataclass(frozen=True)
class ReplacedActions:
    """Replaces a percentage of the actions. `CLEAN` marks the others."""

    percent: int = 20

    def __call__(self, episode: Episode) -> Episode:
        is_clean = episode.steps[DRAW] >= self.percent / 100
        action = np.where(is_clean[:, None], episode.steps["action"], np.float32(WRONG))
        return episode.replace({"action": action, CLEAN: is_clean.astype(np.float32)})


class AnyBlock(RobustBC):
    """`RobustBC` in which the first block trains, which is as good as drawn by lot."""

    def choose_block(self, differences):
        return 0


def robust(learner: LearnerConfig, norm: Literal["l1", "l2", "huber"] = "l2") -> Method:
    policy = PolicyConfig(Regression(norm), MLP(64, 1), inputs=(STATE,))
    return Method(policy, RecedingHorizon(), learner, (ReplacedActions(),))


def cloning(norm: Literal["l1", "l2", "huber"] = "l2", **options) -> Method:
    return robust(BehaviorCloning(2000, 128, FAST, **options), norm)


PARTICLE = Experiment(
    DrawnDemonstrations(), measure=closed_loop, env="particle", env_options=(("fully_observed", True),),
    first_seed=760, episodes=300, levels={"clean actions": 0.8}, arms={
        "squared error, 20 %": cloning(),
        "absolute error, 20 %": cloning("l1"),
        "median of means, 20 %": robust(RobustBC(42, 2000, 128, FAST)),  # blocks of three, half of which are clean
        "any block, 20 %": robust(AnyBlock(42, 2000, 128, FAST)),
        "trimmed, 20 %": cloning(sample_weights=TrimmedWeights(0.25)),
        "Huber, 20 %": cloning("huber"),
        "clean actions": cloning(sample_weights=ColumnWeights(CLEAN, 1.0, 0.0))})

# -- half of the demonstrators fail, and the others are slow or fast -------------------------------------------------


@dataclass(frozen=True)
class MixedDemonstrators(Actor):
    """Demonstrators of the fork with noise from 0.1 to 0.8 m/s. Half of them aim at the goal, through the pillar."""

    def start(self, obs, key):
        return {**ForkExpert(side=1).start(obs, key), "drawn": uniform(key, torch.zeros_like(key), (2,), stream=6)}

    def act(self, obs, state):
        action, after = ForkExpert(side=1, noise=0.0).act(obs, state)
        aim = torch.tensor(GOAL) - obs[STATE]
        is_direct, noise = (state["drawn"][:, :1] < 0.5), 0.1 + 0.7 * state["drawn"][:, 1:].float()
        action = torch.where(is_direct, aim / aim.norm(dim=1, keepdim=True).clamp(min=0.1), action)
        return action + noise * normal(state["key"], state["count"], (2,), stream=2), after


@dataclass(frozen=True)
class GradedDemonstrations(DemonstrationSource):
    """Episodes of `MixedDemonstrators`. Each step costs 0.01, so that fast successes have larger returns."""

    env: str = "fork"
    episodes: int = 100

    def load(self, seed):
        episodes = rollout(MixedDemonstrators(), make(self.env, rows=25, spread=0.25), self.episodes,
                           recording_seed(seed))
        return episodes.map(ScaledReward(shift=-0.01))


def fine_tuned(**options) -> Method:
    config = IWSFT(FromStage("reference"), 2000, 256, OptimizerConfig(lr=3e-4, warmup_steps=300), **options)
    return replace(CLONING, learner=config, transforms=(ReturnStrata(),), stages=(Stage("reference", CLONING),),
                   initialize_from=(InitializeFrom(FromStage("reference")),))


CLONING = Method(PolicyConfig(Gaussian(), MLP(64, 1), inputs=(STATE,)), RecedingHorizon(),
                 BehaviorCloning(2000, 128, FAST))
FORK = Experiment(
    GradedDemonstrations(), measure=closed_loop, env_options=(("spread", 0.25),), first_seed=780, episodes=300,
    levels={"filtered cloning": 0.8}, arms={
        "cloning": CLONING,
        "filtered cloning": replace(CLONING, transforms=(Filter("success", equals=(True,)),)),
        "SFT": fine_tuned(beta=0.0),
        "iw-SFT": fine_tuned(),
        "iw-SFT, steps": fine_tuned(beta=1.0, max_weight=2.0, over="step")})
