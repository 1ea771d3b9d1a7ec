"""Row 039: ten of a hundred walks have actions, and a policy learns to go to goals from all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from evidence.experiment import DemonstrationSource, Experiment, expert_of
from evidence.measures import closed_loop
from understudy.checkpoint import FromStage
from understudy.data.episode import Dataset
from understudy.data.mixture import DATASET_NAME
from understudy.data.operations import Filter
from understudy.data.window import Goal, Window
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
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

STATE, GOAL = "observation.state", "observation.goal"
N_FEATURES, CURVATURE = 32, 2.5  # of the fixed random network through which positions are observed
FAST = OptimizerConfig(lr=1e-3)
NOW, NEXT = Window(1), Window(2, obs_offset=1)  # the present observation, and also the next


class FeatureRooms(RandomFeatureObs):
    """Four rooms in which the position and the goal are observed through the same fixed random network."""

    def __init__(self, rows: int = 1):
        super().__init__(RandomFeatureObs(FourRooms(rows), N_FEATURES, GOAL, CURVATURE), N_FEATURES, STATE, CURVATURE)


@dataclass(frozen=True)
class PartlyLabeledWalks(DemonstrationSource):
    """Walks from place to place. The first are the part "task", whose actions are used, and the others "prior".

    Args:
        n_labeled: Number of walks in the part "task".
    """

    episodes: int = 100
    n_labeled: int = 10

    def load(self, seed):
        env = make("four_rooms:play", rows=25)
        walks = rollout(expert_of(env), env, self.episodes, recording_seed(seed))
        features = RandomFeatureObs(env, N_FEATURES, STATE, CURVATURE)
        parts = ["task" if i < self.n_labeled else "prior" for i in range(self.episodes)]
        return Dataset([replace(features.transform_episode(e), metadata={**e.metadata, DATASET_NAME: part})
                        for e, part in zip(walks, parts, strict=True)], walks.metadata)


def cloning(*transforms, stages=()) -> Method:
    policy = PolicyConfig(Regression(), FeedForward((128, 128)), window=Window(goals=(Goal(STATE, max_steps=40),)),
                          inputs=(STATE, GOAL))
    return Method(policy, RecedingHorizon(), BehaviorCloning(4000, 128, FAST), transforms, stages)


def labeled_by(window: Window) -> Method:
    policy = PolicyConfig(Regression(), FeedForward((128, 128)), window=window, inputs=(STATE,))
    inverse = Stage("inverse", Method(policy, learner=BehaviorCloning(2000, 128, FAST)), dataset="task")
    return cloning(PseudoLabel(FromStage("inverse")), stages=(inverse,))


TABLE = Experiment(PartlyLabeledWalks(), env=f"{__name__}:FeatureRooms", first_seed=1010, episodes=300,
                   measure=closed_loop, levels={"all actions": 0.4}, arms={
    "inverse dynamics": labeled_by(NEXT),
    "labeled walks": cloning(Filter(DATASET_NAME, equals=("task",))),
    "all actions": cloning(),
    "labels without the next observation": labeled_by(NOW)})
