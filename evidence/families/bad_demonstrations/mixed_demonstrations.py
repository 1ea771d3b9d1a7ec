"""Rows 256 and 268: demonstrations some of which are wrong or worse than others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from evidence.experiment import DemonstrationSource, Experiment, expert_of
from evidence.measures import closed_loop
from evidence.worlds.any_block import AnyBlock
from understudy.checkpoint import FromStage
from understudy.core import Batch, normal, uniform
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
from understudy.learn.sample_weights import (
    ColumnWeights,
    SampleWeights,
    TrimmedWeights,
    WeightFunction,
    loss_per_window,
)
from understudy.methods.behavior_cloning.robust_bc import RobustBC, median_block
from understudy.methods.offline_rl.iw_sft import IWSFT, ReturnStrata
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig

STATE = "observation.state"
FAST = OptimizerConfig(lr=1e-3)
LOOKS = ((5, 0.01), (10, 0.015), (20, 0.025))

# -- 268: single actions are replaced ---------------------------------------------------------------------------------

WRONG = 1.0  # what replaces an action: the upper limit of every component
DRAW, CLEAN = "keep.draw", "keep.clean"
N_BLOCKS = {10: 21, 20: 42}  # by the percentage of wrong actions: blocks of 6 and 3 windows, half of which are clean


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

    percent: int

    def __call__(self, episode: Episode) -> Episode:
        is_clean = episode.steps[DRAW] >= self.percent / 100
        action = np.where(is_clean[:, None], episode.steps["action"], np.float32(WRONG))
        return episode.replace({"action": action, CLEAN: is_clean.astype(np.float32)})


@dataclass(frozen=True)
class MedianBlockWeights(SampleWeights, WeightFunction):
    """Median of means without a rival: the block of each batch with the median loss trains."""

    n_blocks: int

    def build(self, policy, data):
        return self

    def __call__(self, batch: Batch, policy: Policy):
        block = torch.arange(len(batch)) * self.n_blocks // len(batch)
        sums = torch.zeros(self.n_blocks).index_add(0, block, loss_per_window(policy, batch))
        return (block == median_block(sums / block.bincount())).float()


def robust(percent: int, learner: LearnerConfig, norm: Literal["l1", "l2", "huber"] = "l2") -> Method:
    policy = PolicyConfig(Regression(norm), MLP(64, 1), inputs=(STATE,))
    return Method(policy, RecedingHorizon(), learner, (ReplacedActions(percent),))


def cloning(percent: int, norm: Literal["l1", "l2", "huber"] = "l2", **options) -> Method:
    return robust(percent, BehaviorCloning(2000, 128, FAST, **options), norm)


def median_of_means(percent: int, learner: type[RobustBC] = RobustBC) -> Method:
    return robust(percent, learner(N_BLOCKS[percent], 2000, 128, FAST))


PARTICLE = Experiment(
    DrawnDemonstrations(), measure=closed_loop, env="particle", env_options=(("fully_observed", True),), first_seed=760, n_seeds=20,
    looks=LOOKS, episodes=300, levels={"clean actions": 0.8}, arms={
    **{f"squared error, {p} %": cloning(p) for p in N_BLOCKS},
    **{f"absolute error, {p} %": cloning(p, "l1") for p in N_BLOCKS},
    **{f"median of means, {p} %": median_of_means(p) for p in N_BLOCKS},
    "one policy, 20 %": cloning(20, sample_weights=MedianBlockWeights(N_BLOCKS[20])),
    "trimmed, 20 %": cloning(20, sample_weights=TrimmedWeights(0.25)),
    "Huber, 20 %": cloning(20, "huber"),
    "clean actions": cloning(20, sample_weights=ColumnWeights(CLEAN, 1.0, 0.0)),
    **{f"any block, {p} %": median_of_means(p, AnyBlock) for p in N_BLOCKS}})

# -- 256: half of the demonstrators fail, and the others are slow or fast ----------------------------------------------


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


class PermutedCloning(IWSFT):
    """`IWSFT` whose weights are permuted over the steps of each batch."""

    def weight(self, nets, batch, rng):
        weights, logged = super().weight(nets, batch, rng)
        return weights[torch.randperm(len(batch), generator=rng)], logged


def fine_tuned(learner: type[IWSFT] = IWSFT, **options) -> Method:
    config = learner(FromStage("reference"), 2000, 256, OptimizerConfig(lr=3e-4, warmup_steps=300), **options)
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
    "iw-SFT, steps": fine_tuned(beta=1.0, max_weight=2.0, over="step"),
    "permuted weights": fine_tuned(PermutedCloning)})
