"""Row 282: motions to the goal of a picture, by distances of encodings that classify motions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import ROWS, flags, train_once
from understudy.checkpoint import FromStage
from understudy.core import Feature
from understudy.data.augment import ColorJitter
from understudy.data.episode import Dataset
from understudy.data.window import Goal, Window
from understudy.envs.observation_wrappers import ObservationTransform
from understudy.envs.raster import COLOR_OF_ROLE, Canvas
from understudy.envs.shifts import Brightness
from understudy.envs.toy import distance
from understudy.envs.toys.four_rooms import CELLS, HALF, FourRooms
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.energy.motion_classifier import MotionClassifier
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.goal_conditioned.manipulate_by_seeing import GOAL, MotionPrediction, SharedGoalEncoder
from understudy.nets.encoders import TokenEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.vision import SmallConv
from understudy.policy import PolicyConfig

STATE, PICTURE = "observation.state", "observation.images.top"
SIZE, RADIUS, REACH = 16, 0.4, 0.5  # pixels along each side; m, of the disc in the picture; m, of a pixel
DARKNESS, COLORS = 0.4, ("block", "goal", "obstacle", "waypoint")  # of the light; roles whose color the agent takes
JITTER = tuple(ColorJitter(column, 0.2, 0.2, 0.2) for column in (PICTURE, GOAL))
CAMERA = TokenEncoder(32, vision=SmallConv((16, 16, 32, 32), 16))


class SameRoom(FourRooms):
    """Walks of at most 40 steps to a goal in the room of the start."""

    def __init__(self, rows: int = ROWS):
        super().__init__(rows, 40)

    def initial_state(self, key):
        drawn = super().initial_state(key)
        return {**drawn, "goal": drawn["at"] // HALF * HALF + drawn["goal"] % HALF}

    def advance(self, action):
        super().advance(action)
        success = distance(self.state["at"], self.state["goal"]) < REACH
        return success, success, np.zeros_like(success)


class Pictures(ObservationTransform):
    """Rooms that are also observed in a picture. The goal is a picture of the rooms on arrival."""

    def __init__(self, env, role: str = "agent"):
        canvas = Canvas(1, SIZE, (0.0, 0.0), CELLS)
        for wall in env.map()["shapes"]:
            canvas.box(np.array([wall["at"]], np.float32), np.array([[1, 0]], np.float32), wall["half"],
                       COLOR_OF_ROLE[wall["role"]])
        self.rooms, self.color = canvas.image, COLOR_OF_ROLE[role]
        super().__init__(env)

    def transform_features(self, features):
        image = Feature("uint8", (SIZE, SIZE, 3), "image")
        return {**features, PICTURE: image, **({GOAL: image} if GOAL in features else {})}

    def transform_obs(self, obs):
        pictures = {PICTURE: self._draw(obs[STATE])}
        return {**obs, **pictures, **({GOAL: self._draw(obs[GOAL])} if GOAL in obs else {})}

    def _draw(self, at: Tensor) -> Tensor:
        canvas = Canvas(len(at), SIZE, (0.0, 0.0), CELLS)
        canvas.image[:] = self.rooms
        canvas.circle(at.numpy(), RADIUS, self.color)
        return torch.from_numpy(canvas.image)


@dataclass(frozen=True)
class Walks(DemonstrationSource):
    """Unsteady walks between random places in pictures, without goals. Each lasts 150 steps."""

    episodes: int = 20

    def load(self, seed):
        env = FourRooms(ROWS, style="noisy")
        pictures = Pictures(env)
        return Dataset([pictures.transform_episode(e)
                        for e in rollout(env.expert(), env, self.episodes, recording_seed(seed))])


class Unclassified(MotionClassifier):
    """The head without its own loss: only the prediction of encodings trains it."""

    def loss(self, net, context, action, mask, rng):
        return torch.zeros(mask.shape)


def method(head, *losses, column: str = PICTURE, stages=(), p_randomgoal: float = 0.0) -> Method:
    """A policy of chunks of 4 steps. Goals are at most 20 steps later. With a stage, its encoder stays as it is."""
    window = Window(1, 4, goals=(Goal(column, max_steps=20, p_randomgoal=p_randomgoal),))
    policy = PolicyConfig(head, FeedForward((128, 128)), SharedGoalEncoder(CAMERA), window=window,
                          inputs=(column, GOAL), augmentations=JITTER if column == PICTURE else ())
    learner = BehaviorCloning(1000, 32, OptimizerConfig(lr=1e-3), auxiliary_losses=losses)
    frozen = tuple(InitializeFrom(FromStage(stage.name), load=("codec", "encoder"), train=()) for stage in stages)
    return Method(policy, RecedingHorizon(), learner, stages=stages, initialize_from=frozen)


def to_goals(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int):
    """Success in the pictures of training, with less light, and with agents of other colors."""
    policy, rooms = train_once(experiment, method, data, seed).policy, SameRoom(min(ROWS, episodes))

    def success(env, count=episodes):
        actor = PolicyActor(FixedBatch(policy, env.rows), method.executor)
        return flags(rollout(actor, env, count, seed=starts))["success"]
    if PICTURE not in policy.inputs:
        return dict.fromkeys(("success", "darker", "recolored"), success(rooms))
    recolored = [success(Pictures(rooms, role), -(-episodes // len(COLORS))) for role in COLORS]
    return {"success": success(Pictures(rooms)), "darker": success(Brightness(Pictures(rooms), DARKNESS)),
            "recolored": [reached for one in recolored for reached in one]}


MOTIONS, CLONING = MotionClassifier(32, 0.05), "cloning with goals"
RANDOM = Stage("encoder", replace(method(Regression()), learner=BehaviorCloning(0)))
TABLE = Experiment(Walks(), env="four_rooms", first_seed=2820, episodes=200, measure=to_goals,
                   levels={"true state": 0.8}, arms={
    "motions": method(MOTIONS, MotionPrediction()),
    CLONING: method(Regression()),
    "without classification": method(Unclassified(32), MotionPrediction()),
    "random encoder": method(MOTIONS, MotionPrediction(), stages=(RANDOM,)),
    "true state": method(Regression(), column=STATE),
    "goals of other episodes": method(MOTIONS, MotionPrediction(), p_randomgoal=1.0)})
