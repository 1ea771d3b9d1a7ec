"""Row 157: few episodes have actions, and all have rewards."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import closed_loop
from evidence.worlds.one_goal_rooms import OneGoalRooms
from understudy.checkpoint import FromStage
from understudy.data.episode import Dataset
from understudy.data.mixture import DATASET_NAME
from understudy.data.operations import Filter
from understudy.data.window import Window
from understudy.envs.observation_wrappers import RandomFeatureObs
from understudy.envs.toys.four_rooms import FourRoomsExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.cloning.pseudo_labels import PseudoLabel
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.td3 import TD3
from understudy.learn.method import Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

CONSTANT = OptimizerConfig(lr=1e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)
TD3_BC = TD3(2000, 128, CONSTANT, CriticConfig((64, 64)), discount=0.97, bc_weight=0.4)
CLONING = BehaviorCloning(1000, 128, OptimizerConfig(lr=1e-3))


class FeatureRooms(RandomFeatureObs):
    """Rooms whose walls end an episode. The position is observed through a fixed random network."""

    def __init__(self, rows: int = 1):
        super().__init__(OneGoalRooms(rows), 32, scale=0.5)


@dataclass(frozen=True)
class PartlyLabeled(DemonstrationSource):
    """Episodes of which half walk at random. The part "task" has actions: some of those that failed."""

    episodes: int = 300
    n_labeled: int = 30

    def load(self, seed):
        rollouts = rollout(FourRoomsExpert(aimless=0.5), OneGoalRooms(25), self.episodes, recording_seed(seed))
        failed = [i for i, e in enumerate(rollouts) if not e.metadata["success"]]
        labeled = set(np.random.default_rng(seed).permutation(failed)[: self.n_labeled].tolist())
        features = FeatureRooms()
        parts = ["task" if i in labeled else "prior" for i in range(self.episodes)]
        return Dataset([replace(features.transform_episode(e), metadata={**e.metadata, DATASET_NAME: part})
                        for e, part in zip(rollouts, parts, strict=True)], rollouts.metadata)


def method(learner, *transforms, stages=(), window: Window | None = None) -> Method:
    policy = PolicyConfig(Regression(), MLP(64, 1), window=window or Window(), inputs=("observation.state",))
    return Method(policy, RecedingHorizon(), learner, transforms, stages)


def pseudo_labeled() -> Method:
    inverse = Stage("inverse", method(CLONING, window=Window(2, obs_offset=1)), dataset="task")
    return method(TD3_BC, PseudoLabel(FromStage("inverse")), stages=(inverse,))


TABLE = Experiment(PartlyLabeled(), measure=closed_loop, env=f"{__name__}:FeatureRooms", first_seed=660, episodes=300,
                   levels={"all actions": 0.4}, arms={
    "pseudo-labels": pseudo_labeled(),
    "labeled episodes": method(TD3_BC, Filter(DATASET_NAME, equals=("task",))),
    "all actions": method(TD3_BC)})
