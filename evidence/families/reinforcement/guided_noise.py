"""Row 295: demonstrations are half of each batch. Does noise along what they did differently find success sooner?"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import flags, rollout_policy
from evidence.worlds.curation import successful_rollouts
from understudy.core import part
from understudy.data.episode import Dataset
from understudy.envs import make
from understudy.envs.toys.four_rooms import FourRoomsExpert
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.regression import Regression
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.improve.collection import (
    CollectionRounds,
    Exploration,
    GaussianExploration,
    RolloutCollector,
    TemperatureExploration,
)
from understudy.improve.data_guided_exploration import DataGuidedExploration, ZeroMeanGaussian, deviations
from understudy.improve.practice import SuccessReward
from understudy.improve.updates import PerNewStep
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.sac import SAC
from understudy.learn.critics.td3 import TD3
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.feed_forward import FeedForward
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig

GOAL, LIMIT, NOISE = (3.5, 3.5), 100, 1.0  # m; steps of an episode; m/s, half of the largest action
STEPS, DURING = "steps to half", "success in training"
RATE = OptimizerConfig(lr=3e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)  # as in row 289
RLPD = SAC(batch_size=64, discount=0.95, target_decay=0.95, policy_delay=2, temperature=0.01,
           critic=CriticConfig((64, 64), layer_norm=True), optimizer=RATE)
TD3_BC = TD3(batch_size=64, discount=0.95, target_decay=0.95, bc_weight=0.4,
             critic=CriticConfig((64, 64), layer_norm=True), optimizer=RATE)
GUIDED = DataGuidedExploration(MLP(64, 2, dropout=0.5), n_updates=100, decay=1000)


@dataclass(frozen=True)
class UnsteadyWalks(DemonstrationSource):
    """Episodes in which the expert of the four rooms reaches a fixed goal in spite of noise."""

    episodes: int = 10
    env: str = "four_rooms"

    def load(self, seed):
        return successful_rollouts(FourRoomsExpert(NOISE, goal=GOAL), self.env, self.episodes, seed, goal=GOAL,
                                   limit=LIMIT)


@part
class SameSize(Exploration):
    """Adds independent noise of the size that `guided` has on average in the demonstrated states."""

    guided: DataGuidedExploration

    def build(self, actor, env, training):
        policy, noise = training.learner.trained_policy, self.guided.noise_policy(training)
        batch, head = next(noise.windows(deviations(policy, training.data)).scan(10**6)), noise.config.head
        assert isinstance(head, ZeroMeanGaussian)
        with torch.no_grad():
            factor = policy.action_scale[:, None] * head.factor(noise.net, noise.context(batch.obs), batch.action)
        std = factor.square().sum(-1).mean().sqrt().item() * math.exp(-training.n_updates / self.guided.decay)
        return GaussianExploration(std).build(actor, env, training)


@part
class Permuted(Exploration):
    """Explores as `guided`, from demonstrations whose actions have changed places."""

    guided: DataGuidedExploration

    def build(self, actor, env, training):
        data, permuted = training.data, copy.copy(training)
        actions = np.concatenate([e.steps["action"][:len(e)] for e in data])
        ends = np.cumsum([len(e) for e in data])[:-1]
        actions = np.split(np.random.default_rng(training.seed).permutation(actions), ends)
        permuted.data = Dataset([e.replace({"action": a}) for e, a in zip(data, actions, strict=True)], data.metadata)
        return self.guided.build(actor, env, permuted)


@dataclass(frozen=True)
class Guided:
    """How a policy learns from demonstrations and, by rounds of at least `n_steps` steps, from success."""

    exploration: Exploration
    learner: SAC | TD3 | Literal["cloning"] = RLPD
    n_rounds: int = 10
    n_steps: int = 300
    cloned: int = 1500  # as many updates as the others have, about

    @property
    def method(self) -> Method:
        network = FeedForward((64, 64))
        if self.learner == "cloning":
            return Method(PolicyConfig(Regression(), network), learner=BehaviorCloning(
                self.cloned, 64, OptimizerConfig(lr=1e-3)))
        rounds = CollectionRounds(self.n_rounds, RolloutCollector(n_steps=self.n_steps, exploration=self.exploration),
                                  updates=PerNewStep(0.5), mixture_weights=(0.5, 0.5))
        return Method(PolicyConfig(SquashedGaussian(), network), RecedingHorizon(), self.learner, (SuccessReward(),),
                      collection=rounds)


def practised(experiment, option: Guided, data: Dataset, seed: int, episodes: int, starts: int):
    """Trains, and measures the policy before each round and after the last.

    Returns:
        For each start "success" of the last policy, and the mean over all policies, "success in training". Once "steps
        to half": those collected before a policy first reaches at least half of its goals, or all if none does.
    """
    method, steps, checks = option.method, [0], []

    def success(policy: Policy) -> list[float]:
        return flags(rollout_policy(experiment, policy, method, episodes, starts))["success"]

    def check(n_updates, learner, metrics):
        if "round/steps" in metrics:
            checks.append(success(learner.trained_policy))
            steps.append(steps[-1] + metrics["round/steps"])
    env = make(experiment.env, rows=4, **dict(experiment.env_options))
    last = success(fit_method(method, data, seed, env=env if method.collection else None, callbacks=[check]).policy)
    half = next((n for n, c in zip(steps, [*checks, last], strict=True) if np.mean(c) >= 0.5), steps[-1])
    return {"success": last, DURING: np.mean([*checks, last], 0).tolist(), STEPS: [float(half)]}


TABLE = Experiment(UnsteadyWalks(), env_options=(("goal", GOAL), ("limit", LIMIT)), measure=practised, first_seed=2950,
                   episodes=50, levels={"RLPD": 0.5}, arms={
    "cloned": Guided(TemperatureExploration(), "cloning"),
    "RLPD": Guided(TemperatureExploration()),
    "DGN": Guided(GUIDED),
    "isotropic": Guided(SameSize(GUIDED)),
    "TD3+BC": Guided(GaussianExploration(0.4), TD3_BC),
    "permuted": Guided(Permuted(GUIDED))})
