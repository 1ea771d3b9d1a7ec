"""Row 204: demonstrations without actions, and practice of which the environment says whether it succeeded."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from claims.observation_only.own_practice import STATE, Practice
from understudy.claims.base import DemonstrationSource, expert_of
from understudy.claims.kit import Row, ablation, experiment, family, higher
from understudy.claims.measures import flags, rollout_policy
from understudy.data.column_changes import EpisodeTransform
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import DATASET_NAME
from understudy.data.operations import Filter
from understudy.envs.observation_wrappers import RandomFeatureObs
from understudy.envs.toys.mdp import slippery_grid
from understudy.envs.toys.tabular import Tabular
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.recording import UniformRandomActor
from understudy.evaluate.rollout import rollout
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.categorical import Categorical
from understudy.improve.collection import CollectionRounds, RolloutCollector
from understudy.improve.retention import AllEpisodes, LastRounds, RetentionRule
from understudy.improve.updates import PerRound
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.cloning_from_observation import BehaviorCloningFromObservation
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.observation_only.abco import SuccessBalancedCloning
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
BCO, ABCO = BehaviorCloningFromObservation(*SIZES), SuccessBalancedCloning(*SIZES, balance_classes=True)
NEWEST = LastRounds(1, keep_initial=True)


class WindingGrid(RandomFeatureObs):
    """A grid of three corridors with a goal at the end, seen through a fixed random network. Steps may slip aside."""

    def __init__(self, rows: int = 1):
        grid = slippery_grid(LAYOUT, SLIP)
        place = (grid.places - grid.places.mean(0)) / grid.places.std(0)
        process = replace(grid, observations=place.astype(np.float32))
        super().__init__(Tabular(rows, LIMIT, process), N_FEATURES, STATE, CURVATURE)


@dataclass(frozen=True)
class ObservedWalks(DemonstrationSource):
    """Demonstrations, the part "task", and episodes of random actions, the part "prior"."""

    episodes: int = 5
    n_practice: int = 20
    probe_sizes = {"n_practice": 5}

    def load(self, seed):
        env = WindingGrid(10)
        demonstrations = rollout(expert_of(env.env), env.env, self.episodes, recording_seed(seed))
        practice = rollout(UniformRandomActor(env.env), env.env, self.n_practice, recording_seed(seed), first=100_000)
        return Dataset([replace(changed := env.transform_episode(e), metadata={**changed.metadata, DATASET_NAME: part})
                        for part, data in (("task", demonstrations), ("prior", practice)) for e in data])


def count_all(episode: Episode) -> Episode:
    """The episode as a success."""
    return replace(episode, metadata={**episode.metadata, "success": True})


def count_failures(episode: Episode) -> Episode:
    """The episode as a success if it failed, and as a failure if it succeeded."""
    return replace(episode, metadata={**episode.metadata, "success": not episode.metadata["success"]})


def practicing(learner: BehaviorCloningFromObservation, retention: RetentionRule, *relabel: EpisodeTransform
               ) -> Practice:
    rounds = CollectionRounds(N_ROUNDS, RolloutCollector(10), relabel, retention, initial_updates=FIRST,
                              updates=PerRound(PER_ROUND))
    return Practice(Method(POLICY, RecedingHorizon(), learner, collection=rounds))


def practiced(experiment, option, data, seed, episodes, starts):
    """Trains with practice in the environment, and measures the success of the policy."""
    method = option.method
    policy = fit_method(method, data, seed, env=WindingGrid(10) if method.collection else None).policy
    return flags(rollout_policy(experiment, policy, method, episodes, starts))


WITH_ACTIONS = Method(POLICY, RecedingHorizon(), BehaviorCloning(*SIZES), (Filter(DATASET_NAME, equals=("task",)),))
TABLE = experiment(ObservedWalks(), env=f"{__name__}:WindingGrid", measure=practiced, first_seed=3310, n_seeds=10,
                   episodes=300, looks=((5, 0.02), (10, 0.03)), sanity={"with actions": 0.7}, arms={
    "ABCO": practicing(ABCO, NEWEST),
    "BCO": practicing(BCO, AllEpisodes()),
    "with actions": Practice(WITH_ACTIONS),
    "without filter": practicing(ABCO, NEWEST, count_all),
    "failures alone": ablation("ABCO", practicing(ABCO, NEWEST, count_failures))})

CLAIMS = family(__file__, TABLE, {"204": Row(
    "told-success", higher("ABCO", "BCO"), control="failures alone", reported=("with actions", "without filter"))})
