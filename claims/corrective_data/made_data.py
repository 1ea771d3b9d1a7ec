"""Rows 118 and 369: demonstrations that are made of one or three."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from claims.worlds.one_goal_rooms import GOAL
from understudy.claims.base import SCORE, TRUSTED, DemonstrationSource, ExpertDemonstrations, smaller
from understudy.claims.kit import Row, ablation, experiment, family, higher
from understudy.claims.measures import ROWS, flags, train_once
from understudy.data.column_changes import SelectComponents
from understudy.data.episode import Dataset
from understudy.data.operations import Operation, Select
from understudy.data.window import Window
from understudy.envs import make
from understudy.envs.toys.arms import LENGTH, SIGN, Arms
from understudy.envs.toys.four_rooms import CELLS, STEPS
from understudy.envs.toys.maze import cell_of
from understudy.envs.wrappers import WrappedEnv
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.waypoints import WaypointWrapper
from understudy.heads.regression import Regression
from understudy.improve.generation import DemoGeneration, MovableObject, SegmentRule, SymmetryAugmentation
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig
from understudy.learn.method import Method
from understudy.learn.off_policy_actor_critic import OffPolicyActorCritic
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

STATE = "observation.state"
FAST = OptimizerConfig(lr=1e-3)


def success(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """"success" of the trained actor, with its wrapper. "outside": the same among the starts of the bar world that no
    copy of the first demonstration can have."""
    env = make(experiment.env, rows=ROWS, trust=TRUSTED)
    rollouts = rollout(train_once(experiment, method, data, seed).actor, env, episodes, seed=starts)
    if experiment.env != "arms":
        return flags(rollouts)
    first, *others = (np.asarray(e.steps[STATE][0])[[*BAR.components, *END.components]] for e in (data[0], *rollouts))
    outside = [(np.abs(at - first) > (*BAR.reach, *END.reach)).any() for at in others]
    successes = np.array(flags(rollouts)["success"])[outside]
    return {**flags(rollouts), "outside": [float(successes.mean()) if len(successes) else 0.0]}


def select(n_episodes: int | None) -> tuple[Operation, ...]:
    """The first episodes. None: all, which are fewer in a probe."""
    return () if n_episodes is None else (Select(tuple(range(n_episodes))),)


# -- 118: key poses of two hands, at the bar and where it is carried to ----------------------------------------------

HANDS = WaypointWrapper((0, 1, 2, 3))
BAR, END = MovableObject((4, 5), (0,), (0.3, 0.0)), MovableObject((10, 11), (1,), (0.4, 0.15))


@dataclass(frozen=True)
class KeyPoses(Actor):
    """The ends of the bar, and once both hands hold it, where its ends are if its middle is at the goal."""

    def start(self, obs, key):
        return {"key": key}

    def act(self, obs, state):
        s = obs[STATE]
        middle = torch.where(s[:, 8:10].bool().all(1, keepdim=True), s[:, 10:12], s[:, 4:6])
        offset = torch.from_numpy(LENGTH / 2 * SIGN * np.array([1, 0], np.float32))
        return (middle[:, None] + offset).flatten(1), state


@dataclass(frozen=True)
class TaughtKeyPoses(DemonstrationSource):
    """Episodes of two key poses."""

    episodes: int = 100

    def load(self, seed):
        return rollout(KeyPoses(), WrappedEnv(Arms(ROWS), HANDS), self.episodes, recording_seed(seed))

    def for_probe(self):
        return smaller(self, episodes=20)


@dataclass(frozen=True)
class NoisyCopies(Operation):
    """Copies of demonstrations with Gaussian noise on observations and actions, as large as shifts of objects are."""

    n_copies: int = 200

    def apply(self, data):
        rng = np.random.default_rng(0)
        return Dataset([e.replace({k: e.steps[k] + rng.normal(0, std, e.steps[k].shape).astype(np.float32)
                                   for k, std in ((STATE, 0.15), ("action", 0.02))})
                        for e in data for _ in range(self.n_copies)], data.metadata)


def carry(n_episodes: int | None, *operations: Operation) -> Method:
    policy = PolicyConfig(Regression(), MLP(64, 1), window=Window(1, 2))
    visible = SelectComponents(STATE, (*BAR.components, 8, 9, *END.components))  # the objects, and which hand holds
    return Method(policy, RecedingHorizon(2), BehaviorCloning(1000, 128, FAST),
                  transforms=(*select(n_episodes), *operations, visible), wrapper=HANDS)


def proliferated(*objects: MovableObject) -> Method:
    return carry(1, DemoGeneration(objects, 200))


BARS = experiment(TaughtKeyPoses(), env="arms", measure=success, first_seed=620, episodes=300,
                  sanity={"20 demonstrations": 0.8, "100 demonstrations": 0.9}, measures={"outside": SCORE}, arms={
    "proliferated": proliferated(BAR, END),
    "noisy copies": carry(1, NoisyCopies()),
    "1 demonstration": carry(1),
    "20 demonstrations": carry(20),
    "100 demonstrations": carry(None),
    "wrong key poses": ablation("proliferated", proliferated(
        MovableObject(BAR.components, END.steps, BAR.reach), MovableObject(END.components, BAR.steps, END.reach)))})
OVER_COPIES = higher("proliferated", "noisy copies")

# -- 369: segments of three walks, elsewhere in rooms whose walls end an episode -------------------------------------

ROOMS_ENV = "claims.worlds.one_goal_rooms:OneGoalRooms"
CLONING = BehaviorCloning(2000, 128, FAST)
TD3_BC = OffPolicyActorCritic(2000, 128, OptimizerConfig(
    lr=1e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None), CriticConfig((64, 64)), discount=0.97)


@dataclass(frozen=True)
class NearerToGoal(SegmentRule):
    """Segments that end in a cell from which fewer cells are to be walked, or at the goal.

    Args:
        sign: -1 accepts those from which more are to be walked.
    """

    sign: int = 1

    def accepts(self, segment):
        goal = cell_of(np.array(GOAL), CELLS)
        x, y = cell_of(segment.steps[STATE][[0, -1]], CELLS).T
        before, after = STEPS[CELLS * goal[0] + goal[1]][x, y]
        return bool(self.sign * (before - after) > 0) or self.sign > 0 and bool(segment.steps["next.reward"].any())


def walk(learner, n_episodes: int | None, *operations: Operation) -> Method:
    policy = PolicyConfig(Regression(), MLP(64, 1), window=Window(1, 1), inputs=(STATE,))
    return Method(policy, RecedingHorizon(), learner, transforms=(*select(n_episodes), *operations))


def moved(learner, rule: SegmentRule | None) -> Method:
    return walk(learner, 3, SymmetryAugmentation(ROOMS_ENV, 3000, 10, 0.1, 7.9, rule, trust=TRUSTED))


ROOMS = experiment(ExpertDemonstrations(ROOMS_ENV, 105), measure=success, first_seed=640, episodes=300,
                   sanity={"cloning, 100 walks": 0.7}, arms={
    "cloning, guided": moved(CLONING, NearerToGoal()),
    "cloning, random": moved(CLONING, None),
    "TD3+BC, guided": moved(TD3_BC, NearerToGoal()),
    "TD3+BC, random": moved(TD3_BC, None),
    "cloning, 3 walks": walk(CLONING, 3),
    "cloning, 100 walks": walk(CLONING, None),
    "cloning, away": ablation("cloning, guided", moved(CLONING, NearerToGoal(-1))),
    "TD3+BC, away": ablation("TD3+BC, guided", moved(TD3_BC, NearerToGoal(-1)))})

CLAIMS = (
    *family(__file__, BARS, {"118": Row(
        "proliferated-demonstration", (OVER_COPIES, higher("proliferated", "20 demonstrations", -0.1)),
        control="wrong key poses", removes=(OVER_COPIES,), reported=("1 demonstration", "100 demonstrations"))}),
    *family(__file__, ROOMS, {"369": Row(
        "guided-augmentation", tuple(higher(f"{learner}, guided", f"{learner}, random")
                                     for learner in ("cloning", "TD3+BC")),
        control=("cloning, away", "TD3+BC, away"),
        reported=("cloning, 3 walks", "cloning, 100 walks"))}))
