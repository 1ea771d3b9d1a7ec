"""Row 131: recorded walks have rewards, and practice has none: the values of the walks judge the practice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from evidence.experiment import TRUSTED, DemonstrationSource, Experiment
from evidence.families.reinforcement.locks import chosen
from evidence.measures import train_once, train_stages
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset
from understudy.envs import make
from understudy.envs.toys.mdp import MDP
from understudy.envs.toys.tabular import Tabular, TabularExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.offline_rl.iql import IQL
from understudy.methods.online_rl.dvpo import dvpo
from understudy.methods.online_rl.ppo import ppo

SIZE, STEPS = 6, 12
ROWS = 50
UPDATES, ROUNDS, EPOCHS = 2000, 40, 10
WALKS = f"{__name__}:Walks"


def walks() -> MDP:
    """A field of cells. A step enters a neighbor, or stays at the edge. Each cell has a reward when it is entered."""
    cells = np.stack(np.divmod(np.arange(SIZE * SIZE), SIZE), 1)
    moves = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]])
    after = (cells[:, None] + moves).clip(0, SIZE - 1) @ (SIZE, 1)
    n = len(cells)
    transitions = np.eye(n)[after]
    rewards = np.broadcast_to(np.random.default_rng(0).standard_normal(n), transitions.shape)
    never = np.zeros(n, bool)
    return MDP(transitions, rewards, np.full(n, 1 / n), never, never, cells.astype(float))


class Walks(Tabular):
    """The field as an environment."""

    def __init__(self, rows: int = 1):
        super().__init__(rows, STEPS, walks())


@dataclass(frozen=True)
class RecordedWalks(DemonstrationSource):
    """Walks that go anywhere: each action is as likely as the others."""

    episodes: int

    def load(self, seed):
        env = make(WALKS, ROWS, TRUSTED)
        anywhere = TabularExpert(torch.ones(STEPS, SIZE * SIZE, 4, dtype=torch.bool))
        return rollout(anywhere, env, self.episodes, recording_seed(seed))


@dataclass(frozen=True)
class Judged:
    """What a policy learns from.

    Args:
        by: "cloning" of all walks, "IQL" without practice, "DVPO" that practises without rewards, or "PPO" that
            practises with them.
    """

    by: Literal["cloning", "IQL", "DVPO", "PPO"]

    @property
    def method(self) -> Method:
        features = make(WALKS, trust=TRUSTED).features
        optimizer = OptimizerConfig(lr=1e-3)
        values = IQL(steps=UPDATES, optimizer=optimizer, critic=CriticConfig((64, 64))).method(features)
        if self.by == "IQL":
            return values
        online = (dvpo if self.by == "DVPO" else ppo)(ROUNDS, ROWS * STEPS, EPOCHS, features=features)
        practice = OptimizerConfig(lr=3e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=0.5)
        online = replace(online, learner=replace(online.learner, optimizer=practice))
        if self.by == "cloning":
            policy = replace(online.policy, codec=Normalizer(obs="identity"))
            return Method(policy, learner=BehaviorCloning(UPDATES, 64, optimizer))
        critic = replace(values.learner, expectile=0.5, beta=0.0)
        return replace(online, stages=tuple(replace(s, method=replace(values, learner=critic)) for s in online.stages))


def share_of_the_best(experiment, option: Judged, data: Dataset, seed: int, episodes: int, starts: int):
    """Trains, and computes the return exactly: 0 is that of the recorded walks, and 1 the best."""
    method, mdp = option.method, walks()
    if method.collection is None:
        policy = train_once(experiment, method, data, seed).policy
    else:
        policy = fit_method(method, data, seed, stages=train_stages(experiment, method, data, seed),
                            env=make(WALKS, ROWS, TRUSTED)).policy
    best = mdp.best_policy(STEPS)
    recorded = mdp.expected_return(np.full((mdp.states, mdp.actions), 1 / mdp.actions), STEPS)
    optimum = mdp.expected_return(best, STEPS)
    return {"score": [(mdp.expected_return(chosen(policy, mdp), STEPS) - recorded) / (optimum - recorded)]}


TABLE = Experiment(RecordedWalks(200), measure=share_of_the_best, first_seed=5840, n_seeds=10, env=WALKS,
                   levels={"IQL": 0.5}, arms={
    "cloned": Judged("cloning"),
    "IQL": Judged("IQL"),
    "DVPO": Judged("DVPO"),
    "PPO": Judged("PPO")})
