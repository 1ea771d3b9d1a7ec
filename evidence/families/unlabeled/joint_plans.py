"""Rows 350 and 338: 80 of 240 walks to goals have actions, and one network learns actions and states of all."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from evidence.experiment import TRUSTED, DemonstrationSource, Experiment, expert_of
from evidence.measures import ROWS, deployed_actor, flags
from understudy.checkpoint import FromStage
from understudy.data.episode import Dataset, Episode
from understudy.data.missing_actions import LabeledSteps
from understudy.data.mixture import DATASET_NAME
from understudy.data.window import Window
from understudy.envs import make
from understudy.envs.observation_wrappers import RandomFeatureObs
from understudy.envs.toys.four_rooms import FourRooms
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.cloning.pseudo_labels import PseudoLabel
from understudy.learn.method import Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.observation_only.pad import pad
from understudy.methods.observation_only.uwm import uwm
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

STATE, GOAL = "observation.state", "observation.goal"
N_FEATURES, CURVATURE = 32, 2.5  # of the fixed random network through which positions are observed
HORIZON, EXECUTED = 4, 2
TRUNK, REGRESSION = MLP(128, 2), Regression()
LEARNER = BehaviorCloning(2000, 128, OptimizerConfig(lr=1e-3))


class FeatureRooms(RandomFeatureObs):
    """Four rooms in which the position and the goal are observed through the same fixed random network."""

    def __init__(self, rows: int = 1):
        super().__init__(RandomFeatureObs(FourRooms(rows), N_FEATURES, GOAL, CURVATURE), N_FEATURES, STATE, CURVATURE)


@dataclass(frozen=True)
class WalksToGoals(DemonstrationSource):
    """Walks of the expert. All have their actions, and the first are the part "task" of a mixture.

    Args:
        n_labeled: Number of walks in the part "task". Arms that hide actions know those of this part alone.
    """

    episodes: int = 240
    n_labeled: int = 80

    def load(self, seed):
        rooms = make("four_rooms", rows=ROWS)
        walks = rollout(expert_of(rooms), rooms, self.episodes, recording_seed(seed))
        goals = RandomFeatureObs(rooms, N_FEATURES, GOAL, CURVATURE)
        states = RandomFeatureObs(goals, N_FEATURES, STATE, CURVATURE)
        parts = ["task" if i < self.n_labeled else "prior" for i in range(self.episodes)]
        return Dataset([replace(states.transform_episode(goals.transform_episode(e)),
                                metadata={**e.metadata, DATASET_NAME: part})
                        for e, part in zip(walks, parts, strict=True)], walks.metadata)


def without_other_actions(episode: Episode) -> Episode:
    """The episode as a camera would have it: without its actions if it is not in the part "task"."""
    if episode.metadata[DATASET_NAME] == "task":
        return episode
    return episode.replace({"action": np.full_like(episode.steps["action"], np.nan)})


def success(experiment, method: Method, data: Dataset, seed: int, episodes: int,
            starts: int) -> dict[str, list[float]]:
    """Trains a method, rolls it out with the planner of its policy, and gives the flags of the environment."""
    env = make(experiment.env, rows=ROWS, trust=TRUSTED)
    return flags(rollout(deployed_actor(experiment, method, data, seed), env, episodes, seed=starts))


def cloning(*transforms, stages=()) -> Method:
    policy = PolicyConfig(REGRESSION, TRUNK, window=Window(horizon=HORIZON))
    return Method(policy, RecedingHorizon(EXECUTED), LEARNER, transforms, stages)


def labeled_by_inverse_dynamics() -> Method:
    policy = PolicyConfig(REGRESSION, TRUNK, window=Window(2, obs_offset=1), inputs=(STATE,))
    inverse = Method(policy, learner=LEARNER, transforms=(without_other_actions, LabeledSteps(followed=True)))
    labels = PseudoLabel(FromStage("inverse"), None, only_missing=True)
    return cloning(without_other_actions, labels, stages=(Stage("inverse", inverse),))


def joint(method: Method, *transforms) -> Method:
    return replace(method, policy=replace(method.policy, trunk=TRUNK, head=replace(method.policy.head, action_size=2)),
                   learner=LEARNER, transforms=(*transforms, *method.transforms))


UWM, PAD = (method(1, HORIZON, EXECUTED) for method in (uwm, pad))
TABLE = Experiment(WalksToGoals(), env=f"{__name__}:FeatureRooms", first_seed=5700, n_seeds=10, episodes=100,
                   measure=success, levels={"all actions": 0.4}, arms={
    "labeled walks": cloning(without_other_actions, LabeledSteps()),
    "inverse dynamics": labeled_by_inverse_dynamics(),
    "UWM": joint(UWM, without_other_actions),
    "UWM, labeled walks": joint(UWM, without_other_actions, LabeledSteps()),
    "PAD": joint(PAD, without_other_actions),
    "all actions": cloning()})
