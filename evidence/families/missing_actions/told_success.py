"""Row 204: demonstrations without actions, and practice of which the environment says whether it succeeded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from evidence.experiment import Experiment
from evidence.families.missing_actions.own_practice import STATE, ObservedAndPractice, Practice, practiced
from understudy.data.column_changes import EpisodeTransform
from understudy.data.episode import Episode
from understudy.data.mixture import DATASET_NAME
from understudy.data.operations import Filter
from understudy.envs.observation_wrappers import RandomFeatureObs
from understudy.envs.toys.mdp import slippery_grid
from understudy.envs.toys.tabular import Tabular
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.categorical import Categorical
from understudy.improve.collection import CollectionRounds, RolloutCollector
from understudy.improve.retention import AllEpisodes, LastRounds, RetentionRule
from understudy.improve.updates import PerRound
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.cloning.cloning_from_observation import BehaviorCloningFromObservation
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.observation_only.abco import ABCO
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

LAYOUT = (".........",
          ".........",
          "#######..",
          ".........",
          ".........",
          "..#######",
          ".........",
          ".........",
          "........G")
SLIP, LIMIT = 0.1, 60
N_FEATURES, CURVATURE = 32, 2.5  # of the fixed random network through which cells are observed
FIRST, N_ROUNDS, PER_ROUND = 500, 10, 100  # updates before practice, rounds of practice, updates after each
SIZES = (FIRST + N_ROUNDS * PER_ROUND, 64, OptimizerConfig(lr=3e-3, lr_schedule="constant"))
POLICY = PolicyConfig(Categorical(), FeedForward((64, 64)), inputs=(STATE,))
FROM_OBSERVATION, SUCCESS_BALANCED = BehaviorCloningFromObservation(*SIZES), ABCO(*SIZES)
NEWEST = LastRounds(1, keep_initial=True)


class WindingGrid(RandomFeatureObs):
    """A grid of three corridors with a goal at the end, seen through a fixed random network. Steps may slip aside."""

    def __init__(self, rows: int = 1):
        grid = slippery_grid(LAYOUT, SLIP)
        place = (grid.places - grid.places.mean(0)) / grid.places.std(0)
        process = replace(grid, observations=place.astype(np.float32))
        super().__init__(Tabular(rows, LIMIT, process), N_FEATURES, STATE, CURVATURE)


def count_all(episode: Episode) -> Episode:
    """The episode as a success."""
    return replace(episode, metadata={**episode.metadata, "success": True})


def practicing(learner: BehaviorCloningFromObservation, retention: RetentionRule, *relabel: EpisodeTransform
               ) -> Practice:
    rounds = CollectionRounds(N_ROUNDS, RolloutCollector(10), relabel, retention, initial_updates=FIRST,
                              updates=PerRound(PER_ROUND))
    return Practice(Method(POLICY, RecedingHorizon(), learner, collection=rounds))


WITH_ACTIONS = Method(POLICY, RecedingHorizon(), BehaviorCloning(*SIZES), (Filter(DATASET_NAME, equals=("task",)),))
TABLE = Experiment(ObservedAndPractice(f"{__name__}:WindingGrid"), measure=practiced, first_seed=3310,
                   episodes=300, levels={"with actions": 0.7}, arms={
    "ABCO": practicing(SUCCESS_BALANCED, NEWEST),
    "BCO": practicing(FROM_OBSERVATION, AllEpisodes()),
    "with actions": Practice(WITH_ACTIONS),
    "without filter": practicing(SUCCESS_BALANCED, NEWEST, count_all)})
