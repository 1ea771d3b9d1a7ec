"""Row 289: only a policy is left of its demonstrations. Does it practise as well as with a critic from offline data?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import ROWS, train_once
from understudy.checkpoint import FromStage
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs import make
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.regression import Regression
from understudy.improve.collection import CollectionRounds, GaussianExploration, RolloutCollector
from understudy.improve.practice import BASE, Practice, porl
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critics.td3 import TD3
from understudy.learn.fit_method import fit_method
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.offline_rl.iql import IQL
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig

ENV, LENGTH = "Pendulum-v1", 100  # steps of an episode
RANDOM, EXPERT = -609.0, -145.0  # mean returns of uniformly random torques, and of SwingUp
SCORE, LOWEST = "score", "lowest score"
N_ROUNDS, N_EPISODES, N_UPDATES = 20, 2, 200  # one update for each step
ALONE, CHECK_EVERY = 4, 2  # rounds in which the critic learns alone, and between two checks
SETTINGS: dict[str, Any] = {"batch_size": 64, "discount": 0.95, "target_decay": 0.95}  # as in row 200
CRITIC_RATE = 3e-3  # as in row 200, and a third of it for policies, as in the card


@dataclass(frozen=True)
class SwingUp(Actor):
    """Gives the pendulum the energy of the upright position, and holds it there."""

    def start(self, obs, key):
        return {"key": key}

    def act(self, obs, state):
        cos, sin, speed = obs["observation.state"].unbind(1)
        angle, energy = sin.atan2(cos), speed.square() / 2 + 15 * (cos - 1)
        is_near = (angle.abs() < 0.5) & (energy.abs() < 8)
        torque = torch.where(is_near, -10 * angle - 2 * speed, -0.5 * energy * speed)
        return torque.clamp(-2, 2)[:, None], state


@dataclass(frozen=True)
class SwingUps(DemonstrationSource):
    """Episodes of `SwingUp`."""

    episodes: int = 12
    env: str = ENV

    def load(self, seed):
        env = make(ENV, self.episodes, max_episode_steps=LENGTH)
        return rollout(SwingUp(), env, self.episodes, recording_seed(seed))


@dataclass(frozen=True)
class PolicyOnly:
    """How the cloned policy practises.

    Args:
        critic: A new one learns "alone" in the first rounds, or "at once" with the policy. That of "IQL" was trained on
            the demonstrations, with as many updates as the first has alone, and then learns with the policy.
        n_rounds: 0 for the cloned policy.
    """

    critic: Literal["alone", "at once", "IQL"] = "alone"
    n_rounds: int = N_ROUNDS
    n_updates: int = N_UPDATES
    cloned: int = 1000


    @property
    def base(self) -> Method:
        policy = PolicyConfig(Regression(), FeedForward((64, 64)), window=Window(1, 1))
        return Method(policy, RecedingHorizon(), BehaviorCloning(self.cloned, 64, OptimizerConfig(lr=1e-3)))

    def method(self, data: Dataset) -> Method:
        base = replace(self.base, stages=(Stage(BASE.stage, self.base),), initialize_from=(InitializeFrom(BASE),))
        method = porl(Practice(data, self.n_rounds, N_EPISODES, self.n_updates), base)
        learner, rounds = method.learner, method.collection
        assert isinstance(learner, TD3) and isinstance(rounds, CollectionRounds)
        assert isinstance(rounds.collector, RolloutCollector)
        critic, policy_optimizer = replace(learner.critic, hidden=(64, 64)), learner.policy_optimizer
        assert policy_optimizer is not None
        optimizer = replace(policy_optimizer, lr=CRITIC_RATE)
        learner = replace(learner, critic=critic, optimizer=optimizer, **SETTINGS,
                          policy_optimizer=replace(policy_optimizer, lr=CRITIC_RATE / 3),
                          critic_warmup_updates=ALONE * self.n_updates if self.critic == "alone" else 0)
        collector = replace(rounds.collector, exploration=GaussianExploration(0.4))  # a fifth of the largest torque
        method = replace(method, transforms=(), learner=learner, collection=replace(rounds, collector=collector))
        if self.critic != "IQL":
            return method
        all_critics = replace(critic, target_subset_size=None)
        iql = IQL(ALONE * self.n_updates, critic=all_critics, optimizer=optimizer, **SETTINGS)
        offline = replace(self.base, learner=iql)
        return replace(method, stages=(*method.stages, Stage("offline", offline)), initialize_from=(
            *method.initialize_from, InitializeFrom(FromStage("offline", "critic"), into="critic")))


def normalized(episode: Episode) -> float:
    """The return, 0 for random torques and 1 for the expert."""
    return (float(np.sum(episode.steps["next.reward"])) - RANDOM) / (EXPERT - RANDOM)


def practised(experiment, option: PolicyOnly, data: Dataset, seed: int, episodes: int, starts: int):
    """Trains, and measures the policy after every second round.

    Returns:
        For each start "score", that of the last policy, "lowest score", that of the policy whose mean is lowest, and
        "success", whether the last one ends upright.
    """
    def rolled_out(policy: Policy) -> Dataset:
        env = make(ENV, ROWS, max_episode_steps=LENGTH)
        return rollout(PolicyActor(FixedBatch(policy, ROWS), RecedingHorizon()), env, episodes, seed=starts)

    checks = []

    def check(n_updates, learner, metrics):
        if "critic/loss" in metrics and n_updates % (CHECK_EVERY * option.n_updates) == 0:
            checks.append(list(map(normalized, rolled_out(learner.trained_policy))))

    policy = train_once(experiment, option.base, data, seed).policy
    if option.n_rounds:
        method = option.method(data)
        stages = {stage.name: train_once(experiment, stage.method, data, seed) for stage in method.stages}
        policy = fit_method(method, data, seed, stages=stages, env=make(ENV, N_EPISODES, max_episode_steps=LENGTH),
                            callbacks=[check]).policy
    last = rolled_out(policy)
    scores = list(map(normalized, last))
    return {SCORE: scores, LOWEST: min([*checks, scores], key=np.mean),
            "success": [float(e.steps["observation.state"][-1, 0] > 0.95) for e in last]}


TABLE = Experiment(SwingUps(), measure=practised, first_seed=2890, episodes=50, levels={"IQL": 0.8}, arms={
    "cloned": PolicyOnly(n_rounds=0),
    "PORL": PolicyOnly(),
    "at once": PolicyOnly("at once"),
    "IQL": PolicyOnly("IQL")})
