"""Demonstrations that are made of a few."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from evidence.experiment import TRUSTED, DemonstrationSource, Experiment, ExpertDemonstrations
from evidence.measures import ROWS, flags, train_once
from evidence.worlds.one_goal_rooms import GOAL
from understudy.checkpoint import FromStage
from understudy.data.augment import GaussianNoise
from understudy.data.codec import Normalizer
from understudy.data.column_changes import SelectComponents
from understudy.data.episode import Dataset
from understudy.data.operations import Operation, Select
from understudy.data.window import Window
from understudy.envs import make
from understudy.envs.toys.arms import LENGTH, SIGN, Arms
from understudy.envs.toys.four_rooms import CELLS, STEPS
from understudy.envs.toys.lane_driving import BOX_HALF, HALF_WIDTH, PERIOD, RADIUS, LaneDriving, LaneExpert, steer
from understudy.envs.toys.maze import cell_of
from understudy.envs.wrappers import WrappedEnv
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.waypoints import WaypointWrapper
from understudy.execute.wrappers import ActionWrapper, wrapped_env_name
from understudy.heads.likelihood.regression import Regression
from understudy.improve.generation import DemoGeneration, MovableObject, SegmentRule, SymmetryAugmentation
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.sample_weights import ColumnWeights, SampleWeights, UniformWeights
from understudy.methods.behavior_cloning.ccil import CorrectiveLabels, LipschitzLoss
from understudy.methods.behavior_cloning.chauffeurnet import (
    SYNTHESIZED,
    CollisionLoss,
    ImitationDropout,
    LaneLoss,
    TrajectoryPerturbation,
)
from understudy.nets.feed_forward import FeedForward
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

STATE = "observation.state"
FAST = OptimizerConfig(lr=1e-3)


def success(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """"success" of the trained actor, with its wrapper."""
    env = make(experiment.env, rows=ROWS, trust=TRUSTED)
    return flags(rollout(train_once(experiment, method, data, seed).actor, env, episodes, seed=starts))


def select(n_episodes: int | None) -> tuple[Operation, ...]:
    """The first episodes. None: all."""
    return () if n_episodes is None else (Select(tuple(range(n_episodes))),)


# -- key poses of two hands, at the bar and where it is carried to ---------------------------------------------------

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


BARS = Experiment(TaughtKeyPoses(), env="arms", measure=success, first_seed=620, episodes=300,
                  levels={"20 demonstrations": 0.8, "100 demonstrations": 0.9}, arms={
    "proliferated": proliferated(BAR, END),
    "noisy copies": carry(1, NoisyCopies()),
    "1 demonstration": carry(1),
    "20 demonstrations": carry(20),
    "100 demonstrations": carry(None),
    "wrong key poses": proliferated(
        MovableObject(BAR.components, END.steps, BAR.reach), MovableObject(END.components, BAR.steps, END.reach))})

# -- segments of three walks, elsewhere in rooms whose walls end an episode ------------------------------------------

ROOMS_ENV = "evidence.worlds.one_goal_rooms:OneGoalRooms"
CLONING = BehaviorCloning(2000, 128, FAST)


@dataclass(frozen=True)
class NearerToGoal(SegmentRule):
    """Segments that end in a cell from which fewer cells are to be walked, or at the goal."""

    def accepts(self, segment):
        goal = cell_of(np.array(GOAL), CELLS)
        x, y = cell_of(segment.steps[STATE][[0, -1]], CELLS).T
        before, after = STEPS[CELLS * goal[0] + goal[1]][x, y]
        return bool(before > after) or bool(segment.steps["next.reward"].any())


def walk(n_episodes: int | None, *operations: Operation) -> Method:
    policy = PolicyConfig(Regression(), MLP(64, 1), window=Window(1, 1), inputs=(STATE,))
    return Method(policy, RecedingHorizon(), CLONING, transforms=(*select(n_episodes), *operations))


def moved(rule: SegmentRule | None) -> Method:
    return walk(3, SymmetryAugmentation(ROOMS_ENV, 3000, 10, 0.1, 7.9, rule, trust=TRUSTED))


ROOMS = Experiment(ExpertDemonstrations(ROOMS_ENV, 105), measure=success, first_seed=640, episodes=300,
                   levels={"cloning, 100 walks": 0.7}, arms={
    "cloning, guided": moved(NearerToGoal()),
    "cloning, random": moved(None),
    "cloning, 3 walks": walk(3),
    "cloning, 100 walks": walk(None)})

# -- states beside few drives, whose actions lead back to them -------------------------------------------------------

N_DRIVES = 10
GUSTS = {"success": 1.0, "strong gusts": 2.0}  # rad/s^2


def in_gusts(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """Success of the trained actor at each strength of the gusts."""
    actor = train_once(experiment, method, data, seed).actor
    return {name: flags(rollout(actor, LaneDriving(ROWS, gust=gust), episodes, seed=starts))["success"]
            for name, gust in GUSTS.items()}


def drive(n_episodes: int | None, *operations: Operation, noise: float = 0.0, slope_weight: float = 0.1) -> Method:
    policy = PolicyConfig(Regression(), MLP(64, 1), inputs=(STATE,))
    if noise:
        policy = replace(policy, augmentations=(GaussianNoise(STATE, tuple(noise * s for s in SPREAD)),))
    model = PolicyConfig(Regression(), FeedForward((64, 64)), codec=Normalizer(target="zscore", relative=STATE),
                         window=Window(action_offset=1), inputs=(STATE, "action"), target=STATE)
    continuity = (LipschitzLoss(weight=slope_weight),) if slope_weight else ()
    dynamics = Method(model, learner=BehaviorCloning(2000, 128, FAST, auxiliary_losses=continuity),
                      transforms=select(n_episodes))
    return Method(policy, RecedingHorizon(), BehaviorCloning(2000, 128, FAST), (*select(n_episodes), *operations),
                  (Stage("dynamics", dynamics),) if operations else ())


def corrected(**options) -> Method:
    return drive(N_DRIVES, CorrectiveLabels(FromStage("dynamics"), 3.0, 5, max_error=10.0), **options)


SPREAD = (0.35, 0.1, 0.9, 0.3, 0.05, 0.05, 0.05, 17.0, 0.9, 0.35, 0.35, 0.35)  # of the state, in demonstrations
GUSTY = Experiment(ExpertDemonstrations("lane_driving", 100), measure=in_gusts, first_seed=700, episodes=300,
                   levels={"100 drives": 0.9}, arms={
    "CCIL": corrected(),
    "without continuity": corrected(slope_weight=0.0),
    "cloning": drive(N_DRIVES),
    "cloning with noise": drive(N_DRIVES, noise=0.02),
    "100 drives": drive(None)})

# -- bent paths, and losses against the edges of the lane and the box ------------------------------------------------

N_PATHS = 20
AHEAD = (3, 6, 9, 12)  # steps to the points of a path
STILL = SelectComponents(STATE, (0, 2, 4, 5, 6, 7, 8))  # without heading, yaw rate and past offsets


@dataclass(frozen=True)
class FollowPath(ActionWrapper):
    """The action is a path: points (distance ahead, offset). The car steers to the second point."""

    def features(self, features):
        return {**features, "action": replace(features["action"], shape=(2 * len(AHEAD),), names=None)}

    def transform_action(self, obs, action, state):
        s, ahead = obs[STATE].double(), action[:, 2].double().clamp(min=0.1)
        heading = torch.atan2(action[:, 3] - s[:, 0], ahead).clamp(-0.5, 0.5)
        return steer(s, heading, ahead / (AHEAD[1] * PERIOD)).float(), state


@dataclass(frozen=True)
class DrivenPaths(DemonstrationSource):
    """Drives of the expert, whose actions are the paths that it drove. Beyond the end it keeps its last speed."""

    episodes: int = 100

    def load(self, seed):
        drives = rollout(LaneExpert(), LaneDriving(ROWS), self.episodes, recording_seed(seed))
        return Dataset([self._with_paths(e) for e in drives], drives.metadata)

    def _with_paths(self, episode):
        progress, offset = np.asarray(episode.steps["simulator.state"])[:, :2].T
        progress = np.append(progress, progress[-1] + PERIOD * episode.steps[STATE][-1, 2] * np.arange(1, AHEAD[-1]))
        now, later = np.arange(len(episode)), np.arange(len(episode))[:, None] + np.array(AHEAD)
        path = np.stack([progress[later] - progress[now, None], offset[later.clip(max=len(offset) - 1)]], 2)
        metadata = {**episode.metadata, "env": wrapped_env_name("lane_driving", FollowPath())}
        return replace(episode.replace({"action": path.reshape(len(episode), -1).astype(np.float32)}),
                       metadata=metadata)


class UnchangedLabels(TrajectoryPerturbation):
    """Bent states with the path that was driven, as seen from the car: shifted and turned with it, and no way back."""

    def label(self, action, bend):
        action[1::2] += bend.offset + bend.slope * np.array(self.steps)
        return action


def past_the_box(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """"success" from starts anywhere between the edges, and whether the car came "past the box"."""
    rollouts = rollout(train_once(experiment, method, data, seed).actor, LaneDriving(ROWS, offset=1.0), episodes,
                       seed=starts)
    return {**flags(rollouts), "past the box": [float(e.steps[STATE][-1, 7] < -BOX_HALF[0] - RADIUS)
                                                for e in rollouts]}


def path(n_episodes: int | None, bent: type[TrajectoryPerturbation] | None = None, env_weight: float = 0.0,
         dropout: float = 0.0, motion: bool = True) -> Method:
    perturbation = () if bent is None else (bent(AHEAD, past=(9, 10, 11)),)
    losses = (CollisionLoss((7, 8), BOX_HALF, RADIUS, env_weight), LaneLoss(HALF_WIDTH, RADIUS, env_weight))
    weights: SampleWeights = ColumnWeights(SYNTHESIZED, 0.1) if perturbation else UniformWeights()
    if dropout:
        weights = ImitationDropout(dropout, weights)
    learner = BehaviorCloning(2000, 128, FAST, sample_weights=weights, auxiliary_losses=losses if env_weight else ())
    return Method(PolicyConfig(Regression(), MLP(64, 1), inputs=(STATE,)), RecedingHorizon(), learner,
                  transforms=(*select(n_episodes), *perturbation, *(() if motion else (STILL,))), wrapper=FollowPath())


PATHS = Experiment(DrivenPaths(), env="lane_driving", measure=past_the_box, first_seed=720, n_seeds=20, episodes=300,
                   levels={"100 drives without motion": 0.9}, arms={
    "M0": path(N_PATHS),
    "M1": path(N_PATHS, TrajectoryPerturbation),
    "M3": path(N_PATHS, TrajectoryPerturbation, 2.0),
    "M4": path(N_PATHS, TrajectoryPerturbation, 2.0, dropout=0.5),
    "M0 without motion": path(N_PATHS, motion=False),
    "100 drives without motion": path(None, motion=False),
    "unchanged labels": path(N_PATHS, UnchangedLabels)})
