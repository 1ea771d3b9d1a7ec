"""Row 071: a clone practises at locks that sometimes open by luck, and only the end of an episode is paid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from evidence.experiment import TRUSTED, Experiment, ExpertDemonstrations
from evidence.measures import train_once
from understudy.checkpoint import FromStage
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset
from understudy.envs import make
from understudy.envs.toys.mdp import MDP
from understudy.envs.toys.tabular import Tabular
from understudy.improve.collection import CollectionRounds, RolloutCollector, TemperatureExploration
from understudy.improve.retention import SuccessfulEpisodes
from understudy.improve.updates import PerRound
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.online_rl.loop import loop
from understudy.methods.online_rl.ppo import ppo
from understudy.policy import Policy

N_STAGES, N_SYMBOLS, N_ACTIONS = 8, 6, 5
LUCK = 0.3  # probability that a wrong action opens a lock
ROWS = 60
BASE = FromStage("base")


def locks() -> MDP:
    """A row of locks. Each shows a symbol, which says with the stage which action opens it. A wrong action ends the
    episode, unless luck opens the lock. The last lock has reward 1."""
    right = np.random.default_rng(0).integers(N_ACTIONS, size=(N_STAGES, N_SYMBOLS))
    n = N_STAGES * N_SYMBOLS
    opened, shut = n, n + 1
    transitions = np.zeros((n + 2, N_ACTIONS, n + 2))
    for stage, symbol in np.ndindex(N_STAGES, N_SYMBOLS):
        state, following = stage * N_SYMBOLS + symbol, (stage + 1) * N_SYMBOLS + np.arange(N_SYMBOLS)
        p = np.where(np.arange(N_ACTIONS) == right[stage, symbol], 1.0, LUCK)
        if stage == N_STAGES - 1:
            transitions[state, :, opened] = p
        else:
            transitions[state][:, following] = p[:, None] / N_SYMBOLS
        transitions[state, :, shut] = 1 - p
    transitions[opened, :, opened] = transitions[shut, :, shut] = 1
    rewards = np.zeros_like(transitions)
    rewards[:n, :, opened] = 1
    final = np.arange(n + 2) >= n
    start = np.where(np.arange(n + 2) < N_SYMBOLS, 1 / N_SYMBOLS, 0.0)
    places = np.stack(np.divmod(np.arange(n + 2), N_SYMBOLS), 1).astype(float)
    return MDP(transitions, rewards, start, final, np.arange(n + 2) == opened, places)


class Locks(Tabular):
    """The locks as an environment."""

    def __init__(self, rows: int = 1):
        super().__init__(rows, N_STAGES, locks())


@dataclass(frozen=True)
class Practice:
    """How a clone practises, in rounds of 240 episodes, or of 1,500 steps with PPO.

    Args:
        by: "nothing", "LOOP", "PPO" with a value, or "cloning" of the successes so far.
        lr: Learning rate of the practice.
        n_updates: Updates of cloning after each round.
    """

    by: Literal["nothing", "LOOP", "PPO", "cloning"]
    lr: float = 3e-3
    n_rounds: int = 8
    n_updates: int = 100

    @property
    def base(self) -> Method:
        policy = replace(loop(features=make(f"{__name__}:Locks", trust=TRUSTED).features).policy,
                         codec=Normalizer(obs="identity"))
        return Method(policy, learner=BehaviorCloning(300, 64, OptimizerConfig(lr=1e-3)))

    def method(self) -> Method:
        features = make(f"{__name__}:Locks", trust=TRUSTED).features
        optimizer = OptimizerConfig(lr=self.lr, lr_schedule="constant")
        if self.by == "LOOP":
            method = loop(self.n_rounds, features=features)
        elif self.by == "PPO":
            method = ppo(self.n_rounds, 1500, 2, features=features)
        else:
            collector = RolloutCollector(240, TemperatureExploration())
            method = replace(self.base, collection=CollectionRounds(
                self.n_rounds, collector, retention=SuccessfulEpisodes(), updates=PerRound(self.n_updates)))
        learner = replace(method.learner, optimizer=optimizer)
        return replace(method, policy=self.base.policy, learner=learner, stages=(Stage(BASE.stage, self.base),),
                       initialize_from=(InitializeFrom(BASE),))


@torch.no_grad()
def chosen(policy: Policy, mdp: MDP) -> np.ndarray:
    """Which action a policy takes in each state, one-hot, (states, actions)."""
    obs = {"observation.state": torch.from_numpy(mdp.visible_numbers)[:, None]}
    keys = torch.arange(mdp.states)
    actions = policy.plan(obs, policy.noise(keys, torch.zeros_like(keys)))[:, 0, 0].long()
    return np.eye(mdp.actions)[actions.numpy()]


def exact_success(experiment, option: Practice, data: Dataset, seed: int, episodes: int, starts: int):
    """Trains, and computes the success of the policy exactly."""
    base = train_once(experiment, option.base, data, seed)
    policy, mdp = base.policy, locks()
    if option.by != "nothing":
        policy = fit_method(option.method(), data, seed, stages={BASE.stage: base},
                            env=make(experiment.env, ROWS, TRUSTED)).policy
    return {"success": [mdp.expected_return(chosen(policy, mdp), N_STAGES)]}


TABLE = Experiment(ExpertDemonstrations(f"{__name__}:Locks", 8), measure=exact_success, first_seed=5820, n_seeds=10,
                   levels={"LOOP": 0.5}, arms={
    "cloned": Practice("nothing"),
    "successes cloned": Practice("cloning", 1e-3),
    "PPO": Practice("PPO"),
    "LOOP": Practice("LOOP")})
