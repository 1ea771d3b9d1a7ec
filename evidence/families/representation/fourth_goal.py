"""Row 357: encoders of pictures learn from pushes to three goals, and policies on them from pushes to a fourth one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from evidence.experiment import DemonstrationSource, Experiment, expert_of
from evidence.families.representation.frozen_encoders import (
    CAMERA,
    FAST,
    NEAREST,
    OF_NEIGHBORS,
    OWN,
    PICTURE,
    REGRESSION,
    ROWS,
    SHIFTS,
    SIZE,
    STATE,
    EncodedPictures,
    Frozen,
    NearPush,
    PushesToGoals,
    cloning,
    part,
    progress,
)
from evidence.measures import flags, train_once
from understudy.data.augment import ConditionDropout
from understudy.data.episode import Dataset
from understudy.data.mixture import DATASET_NAME
from understudy.data.ordered_frames import N_FRAMES
from understudy.data.window import Window
from understudy.envs.toys.push import Push
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.regression import Regression
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.objectives.frame_objectives import ActionPrediction, DynamicsAlignment, OrderedContrastive
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig

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


@dataclass(frozen=True)
class OtherDynamics(DynamicsAlignment):
    """States and actions around the frames of another video of the batch."""

    def dynamics(self, policy, batch):
        return super().dynamics(policy, batch).roll(N_FRAMES, 0)


def of_frames(*objectives, steps: int = 600) -> Frozen:
    """An encoder that learns from 26 times five pictures an update."""
    policy = PolicyConfig(Regression(), MLP(64, 1), CAMERA, window=Window(horizon=3, action_offset=-1),
                          inputs=(PICTURE, OWN), augmentations=(*SHIFTS, ConditionDropout(OWN, 1.0)))
    learner = RepresentationLearning(objectives, steps, 26 * N_FRAMES, optimizer=FAST)
    return Frozen(Method(policy, learner=learner, transforms=(part("prior"),)))


def pushed(experiment, arm: Frozen | Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """"progress" and "success" of a policy at the fourth goal, and on frozen features those of neighbors."""
    def judge(policy: Policy, env, name: str) -> dict[str, list[float]]:
        rollouts = rollout(PolicyActor(FixedBatch(policy, ROWS), RecedingHorizon()), env, episodes, seed=starts)
        return {f"progress{name}": [sum(map(progress, rollouts)) / len(rollouts)],
                f"success{name}": flags(rollouts)["success"]}
    if isinstance(arm, Method):
        return judge(train_once(experiment, arm, data, seed).policy, FourthPush(), "")
    env = EncodedPictures(FourthPush(), train_once(experiment, arm.encoder, data, seed).policy)
    encoded = Dataset([env.transform_episode(e) for e in part("task").apply(data)])
    return {**judge(fit_method(REGRESSION, encoded, seed).policy, env, ""),
            **judge(fit_method(NEAREST, encoded, seed).policy, env, OF_NEIGHBORS)}


ORDER, ALIGNMENT, ACTIONS = OrderedContrastive(), DynamicsAlignment(OWN), ActionPrediction()
RIVALS = {
    "without alignment": of_frames(ORDER, ACTIONS),
    "time-contrastive": of_frames(ORDER)}
TABLE = Experiment(PushesToFourth(), env="push-images", first_seed=3570, episodes=100, measure=pushed,
                   levels={"state": 0.8}, arms={
    "MCR": of_frames(ORDER, ALIGNMENT, ACTIONS),
    **RIVALS,
    "without actions": of_frames(ORDER, ALIGNMENT),
    "random": of_frames(ORDER, steps=0),
    "end to end": cloning((PICTURE, OWN), "task", encoder=CAMERA, augmentations=SHIFTS),
    "state": cloning((STATE,), "task", "more"),
    "dynamics of other videos": of_frames(ORDER, OtherDynamics(OWN), ACTIONS)})
