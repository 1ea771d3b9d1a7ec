"""Row 014: encoders of pictures learn from pushes to three goals, and policies on them from pushes to one of these."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from evidence.experiment import TRUSTED, DemonstrationSource, Experiment, expert_of
from evidence.measures import flags, train_once
from understudy.core import Feature
from understudy.data.augment import RandomShift
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import DATASET_NAME
from understudy.data.operations import Filter
from understudy.data.window import Window
from understudy.envs import make
from understudy.envs.base import Env
from understudy.envs.observation_wrappers import ObservationTransform
from understudy.envs.toys.push import Push
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.objectives.latent_objectives import LatentDynamics
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.learn.objectives.representation_objectives import BYOL, InverseDynamics, TimeContrastive
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.base import Encoder
from understudy.nets.encoders import ConcatEncoder, TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.transformer import Transformer
from understudy.nets.vision import SmallConv
from understudy.policy import Policy, PolicyConfig

GOALS = ((0.7, 0.65), (0.3, 0.75), (0.75, 0.3))
BLOCK, DISC = np.array([0.4, 0.35], np.float32), np.array([0.12, 0.12], np.float32)  # the middles of where they start
ROWS, SIZE, WIDTH = 100, 24, 32
PICTURE, STATE, OWN = "observation.images.top", "simulator.state", "observation.state"
FEATURES = "observation.features"
FAST = OptimizerConfig(lr=1e-3)
SHIFTS = (RandomShift(PICTURE, 1),)
CAMERA = TokenEncoder(WIDTH, vision=SmallConv((16, 16, 32, 32), 16))


class NearPush(Push):
    """Pushes in pictures to one of three goals. Block and disc start within 0.1 and 0.05 m of their places."""

    def __init__(self, rows: int = ROWS, goal: int = 0):
        super().__init__(rows, images=True, size=SIZE, goal=GOALS[goal])

    def initial_state(self, key):
        drawn = super().initial_state(key)
        return {**drawn, "block": BLOCK + (drawn["block"] - 0.5) / 3, "disc": DISC + (drawn["disc"] - 0.5) / 9}


@dataclass(frozen=True)
class PushesToGoals(DemonstrationSource):
    """Pushes to each of three goals. Parts: "task" and "prior", and "more", of the first goal, which trains no encoder.

    Args:
        episodes: Number of pushes in "task" and "prior", evenly to the three goals.
        n_task: Number of pushes in "task", all to the first goal.
        n_more: Number of pushes in "more".
    """

    episodes: int = 100
    n_task: int = 25
    n_more: int = 75

    def load(self, seed):
        pushes = []
        for number in range(len(GOALS)):
            env, count = NearPush(goal=number), len(range(number, self.episodes, len(GOALS)))
            recorded = rollout(expert_of(env), env, count + self.n_more * (number == 0), recording_seed(seed),
                               first=100_000 * number)
            n_task = self.n_task * (number == 0)
            parts = ["task"] * n_task + ["prior"] * (count - n_task) + ["more"] * self.n_more
            pushes += [replace(e, metadata={**e.metadata, DATASET_NAME: part})
                       for e, part in zip(recorded, parts, strict=False)]
        return Dataset(pushes)


def part(*names: str) -> Filter:
    return Filter(DATASET_NAME, equals=names)


@dataclass(frozen=True)
class Frozen:
    """Policies on the features of a frozen encoder, which a method trains."""

    encoder: Method


class EncodedPictures(ObservationTransform):
    """Pictures are observed as the features of an encoder, whose first input they are."""

    def __init__(self, env: Env, encoder: Policy):
        self.encoder = encoder
        super().__init__(env)

    def transform_features(self, features):
        return {**features, FEATURES: Feature("float32", (WIDTH,))}

    @torch.no_grad()
    def transform_obs(self, obs):
        return {**obs, FEATURES: self.encoder.context({k: obs[k][:, None] for k in self.encoder.inputs}).tokens[:, 0]}


def cloning(inputs: tuple[str, ...], *parts: str, encoder: Encoder | None = None, augmentations=(),
            steps: int = 2000) -> Method:
    policy = PolicyConfig(Regression(), MLP(128, 2), encoder or ConcatEncoder(), inputs=inputs,
                          augmentations=augmentations)
    return Method(policy, RecedingHorizon(), BehaviorCloning(steps, 64, FAST), (part(*parts),))


def end_to_end(*parts: str, steps: int = 2000) -> Method:
    """An encoder that learns with the policy alone."""
    return cloning((PICTURE, OWN), *parts, encoder=CAMERA, augmentations=SHIFTS, steps=steps)


def frozen(objective, n_obs_steps: int = 1, lookahead: int = 0, steps: int = 400, augmentations=()) -> Frozen:
    """An encoder that learns from 128 or 130 pictures an update, or pairs of views of 64."""
    policy = PolicyConfig(Regression(), MLP(64, 1), CAMERA, window=Window(n_obs_steps), inputs=(PICTURE,),
                          augmentations=augmentations)
    learner = RepresentationLearning((objective,), steps, 64 if n_obs_steps == 1 else 26, lookahead, FAST)
    return Frozen(Method(policy, learner=learner, transforms=(part("task", "prior"),)))


def progress(episode: Episode) -> float:
    """The fraction of the way to the goal that the block is closer in the end: from 0 to 1, which is success."""
    state = np.asarray(episode.steps[STATE], float)
    remaining = np.linalg.norm(state[:, 2:4] - state[:, 6:8], axis=1)
    return 1.0 if episode.metadata["success"] else max(0.0, float(1 - remaining[-1] / remaining[0]))


def pushed(experiment, arm: Frozen | Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """"progress" and "success" of a policy, which on a frozen encoder learns from the part "task"."""
    env = make(experiment.env, ROWS, TRUSTED)
    if isinstance(arm, Frozen):
        env = EncodedPictures(env, train_once(experiment, arm.encoder, data, seed).policy)
        encoded = Dataset([env.transform_episode(e) for e in part("task").apply(data)])
        policy = fit_method(cloning((FEATURES, OWN), "task"), encoded, seed).policy
    else:
        policy = train_once(experiment, arm, data, seed).policy
    rollouts = rollout(PolicyActor(FixedBatch(policy, ROWS), RecedingHorizon()), env, episodes, seed=starts)
    return {"progress": [progress(e) for e in rollouts], "success": flags(rollouts)["success"]}


TABLE = Experiment(PushesToGoals(), env=f"{__name__}:NearPush", first_seed=1850, episodes=100, measure=pushed,
                   levels={"state": 0.8}, arms={
    "DynaMo": frozen(LatentDynamics(trunk=Transformer(64, 2)), 5),
    "random": frozen(TimeContrastive(), steps=0),
    "BYOL": frozen(BYOL(), augmentations=SHIFTS),
    "time-contrastive": frozen(TimeContrastive(), lookahead=4),
    "inverse dynamics": frozen(InverseDynamics()),
    "end to end": end_to_end("task"),
    "state": cloning((STATE,), "task", "more")})
