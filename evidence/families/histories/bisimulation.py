"""First and second halves of ways were recorded apart, and only histories say where one is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import flags, train_once
from understudy.core import part
from understudy.data.column_changes import LastAction
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.envs.base import Env
from understudy.envs.observation_wrappers import NoiseColumns
from understudy.envs.toy import named_vector
from understudy.envs.toys.mdp import hidden_grid
from understudy.envs.toys.tabular import Tabular, TabularExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.categorical import Categorical
from understudy.learn.behavior_cloning import AuxiliaryLoss
from understudy.learn.critic import CriticConfig
from understudy.learn.method import Method
from understudy.learn.objectives.reconstruction_objectives import ObservationPrediction
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.targets import REWARD
from understudy.methods.offline_rl.history_iql import Bisimulation, BisimulationLoss, HistoryIQL
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.recurrent import RecurrentEncoder
from understudy.policy import PolicyConfig

LAYOUT = ("SSS...", "SS##..", "S.....", ".#..#.", "......", "....#G")  # the goal is 8 steps or more from each S
GOAL, MEETING, AROUND = (5, 0), (3, 3), ((2, 3), (3, 3), (2, 2), (3, 2))
CELL, HISTORY = "observation.cell", ("observation.state", "observation.last_action", "observation.noise")
N_NOISE, N_OBS_STEPS, LIMIT, ROWS, DISCOUNT, WEIGHT, SLIP = 32, 4, 30, 100, 0.95, 0.1, 0.1
FAST = OptimizerConfig(lr=3e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)


class CellGrid(Tabular):
    """`tabular:hidden-grid` with a further column that shows the cell.

    Args:
        starts: Cells in which episodes start. By default S.
    """

    def __init__(self, rows: int = 1, limit: int = LIMIT, starts: tuple[tuple[int, int], ...] = ()):
        process = hidden_grid(LAYOUT, SLIP)
        if starts:
            is_start = np.array([tuple(place) in starts for place in process.places.astype(int)], float)
            process = replace(process, start=is_start / is_start.sum())
        super().__init__(rows, limit, process, DISCOUNT)
        self.features = {**self.features, CELL: named_vector(*(f"cell.{i}" for i in range(process.states)))}

    def observe(self):
        return {**super().observe(), CELL: np.eye(self.mdp.states, dtype=np.float32)[self.state["number"]]}


def grid(limit: int = LIMIT, starts: tuple[tuple[int, int], ...] = ()) -> Env:
    return NoiseColumns(CellGrid(ROWS, limit, starts), N_NOISE, correlation=0.0)


def walker(goal: tuple[int, int], noise: float, limit: int) -> TabularExpert:
    """Goes to a cell, and takes any action at a fraction of the steps."""
    rows = [row.replace("S", ".").replace("G", ".") for row in LAYOUT]
    x, y = goal
    rows[-1 - y] = rows[-1 - y][:x] + "G" + rows[-1 - y][x + 1:]
    return TabularExpert(torch.from_numpy(hidden_grid(rows, SLIP).best_policy(limit, DISCOUNT) > 0), noise)


@dataclass(frozen=True)
class Halves(DemonstrationSource):
    """Half of the episodes go from S towards the meeting point, and are too short to reach the goal.

    The others start around the meeting point. Half of those go to the goal, and half walk at random.
    """

    episodes: int = 48

    def load(self, seed):
        quarter, seed = self.episodes // 4, recording_seed(seed)
        first = rollout(walker(MEETING, 0.3, 7), grid(7), 2 * quarter, seed)
        second = [rollout(walker(GOAL, noise, 12), grid(12, AROUND), quarter, seed, first=100_000 * (1 + i))
                  for i, noise in enumerate((0.3, 1.0))]
        return Dataset([e for part in (first, *second) for e in part], first.metadata)


@part
class OtherRewards(Bisimulation):
    """Bisimulation by rewards of other windows of the batch."""

    def build(self, policy):
        return OtherRewardsLoss(self, policy)


class OtherRewardsLoss(BisimulationLoss):
    def forward(self, policy, batch, rng, captured) -> Tensor:
        other = batch.replace(extra={**batch.extra, REWARD: batch.extra[REWARD].roll(1, 0)})
        return super().forward(policy, other, rng, captured)


def history_iql(*losses: AuxiliaryLoss, inputs: tuple[str, ...] = HISTORY, n_obs_steps: int = N_OBS_STEPS) -> Method:
    policy = PolicyConfig(Categorical(), FeedForward((64,)), RecurrentEncoder(32, 1, ConcatEncoder()), inputs=inputs,
                          window=Window(n_obs_steps))
    learner = HistoryIQL(800, 128, FAST, CriticConfig((64,)), DISCOUNT, 0.98, expectile=0.8, beta=10.0,
                         auxiliary_losses=losses)
    return Method(policy, RecedingHorizon(), learner, (LastAction(),))


def walked(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """"success" from S."""
    return flags(rollout(train_once(experiment, method, data, seed).actor, grid(), episodes, seed=starts))


TABLE = Experiment(Halves(), env="tabular", first_seed=1780, episodes=200, measure=walked, levels={"true cell": 0.9},
                   arms={
    "history": history_iql(),
    "bisimulation": history_iql(Bisimulation((64,), DISCOUNT, WEIGHT)),
    "true cell": history_iql(inputs=(CELL,), n_obs_steps=1),
    "forward prediction": history_iql(ObservationPrediction((64,), 1.0)),
    "other rewards": history_iql(OtherRewards((64,), DISCOUNT, WEIGHT))})
