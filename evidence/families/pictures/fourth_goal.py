"""Row 357: encoders of pictures learn from pushes to three goals, and policies on them from pushes to a fourth one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from evidence.experiment import DemonstrationSource, Experiment, expert_of
from evidence.families.pictures.frozen_encoders import (
    CAMERA,
    FAST,
    OWN,
    PICTURE,
    ROWS,
    SHIFTS,
    SIZE,
    STATE,
    Frozen,
    NearPush,
    PushesToGoals,
    cloning,
    end_to_end,
    part,
    pushed,
)
from understudy.data.augment import ConditionDropout
from understudy.data.episode import Dataset
from understudy.data.mixture import DATASET_NAME
from understudy.data.window import Window
from understudy.envs.toys.push import Push
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.heads.likelihood.regression import Regression
from understudy.learn.method import Method
from understudy.learn.objectives.frame_objectives import ActionPrediction, DynamicsAlignment, OrderedContrastive
from understudy.learn.objectives.ordered_frames import N_FRAMES
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

FOURTH = (0.75, 0.5)


class FourthPush(NearPush):
    """Pushes to the fourth goal."""

    def __init__(self, rows: int = ROWS):
        Push.__init__(self, rows, images=True, size=SIZE, goal=FOURTH)


@dataclass(frozen=True)
class PushesToFourth(DemonstrationSource):
    """Pushes to three goals, the part "prior", and to a fourth one, "task". "more" are of the fourth too.

    Args:
        episodes: Number of pushes in "prior", evenly to the three goals.
    """

    episodes: int = 100
    n_task: int = 20
    n_more: int = 130

    def load(self, seed):
        env = FourthPush()
        fourth = rollout(expert_of(env), env, self.n_task + self.n_more, recording_seed(seed), first=900_000)
        parts = ["task"] * self.n_task + ["more"] * self.n_more
        return Dataset([*PushesToGoals(self.episodes, 0, 0).load(seed), *(
            replace(e, metadata={**e.metadata, DATASET_NAME: name}) for e, name in zip(fourth, parts, strict=True))])


def of_frames(*objectives, steps: int = 600) -> Frozen:
    """An encoder that learns from 26 times five pictures an update."""
    policy = PolicyConfig(Regression(), MLP(64, 1), CAMERA, window=Window(horizon=3, action_offset=-1),
                          inputs=(PICTURE, OWN), augmentations=(*SHIFTS, ConditionDropout(OWN, 1.0)))
    learner = RepresentationLearning(objectives, steps, 26 * N_FRAMES, optimizer=FAST)
    return Frozen(Method(policy, learner=learner, transforms=(part("prior"),)))


ORDER, ALIGNMENT, ACTIONS = OrderedContrastive(), DynamicsAlignment(OWN), ActionPrediction()
TABLE = Experiment(PushesToFourth(), env=f"{__name__}:FourthPush", first_seed=3570, episodes=100, measure=pushed,
                   levels={"state": 0.8}, arms={
    "MCR": of_frames(ORDER, ALIGNMENT, ACTIONS),
    "without alignment": of_frames(ORDER, ACTIONS),
    "time-contrastive": of_frames(ORDER),
    "without actions": of_frames(ORDER, ALIGNMENT),
    "random": of_frames(ORDER, steps=0),
    "end to end": end_to_end("task"),
    "state": cloning((STATE,), "task", "more")})
