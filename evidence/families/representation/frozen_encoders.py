"""Row 014: encoders of pictures learn from pushes to three goals, and policies on them from pushes to one of these."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from evidence.experiment import DemonstrationSource, Experiment, expert_of
from evidence.measures import flags, train_once
from understudy.core import Feature
from understudy.data.augment import RandomShift
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import DATASET_NAME
from understudy.data.operations import Filter
from understudy.data.window import Window
from understudy.envs.base import Env
from understudy.envs.observation_wrappers import ObservationTransform
from understudy.envs.toys.push import Push
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.regression import Regression
from understudy.heads.memory.neighbors import Neighbors
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.objectives.latent_objectives import LatentDynamics, LatentDynamicsLoss
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
ROWS, SIZE, WIDTH, LENGTH = 100, 24, 32, 5
PICTURE, STATE, OWN = "observation.images.top", "simulator.state", "observation.state"
FEATURES, POSITION, ANGLE = "observation.features", "R² of the position", "R² of the angle"
OF_NEIGHBORS = " of neighbors"
FAST = OptimizerConfig(lr=1e-3)
SEQUENCE, SHIFTS = Transformer(64, 2), (RandomShift(PICTURE, 1),)
NUMBERS = ConcatEncoder()
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


@dataclass(frozen=True)
class ShuffledDynamics(LatentDynamics):
    """Latent dynamics of windows whose observations are in a random order."""

    def build(self, policy):
        return ShuffledDynamicsLoss(self, policy)


class ShuffledDynamicsLoss(LatentDynamicsLoss):
    def sequence(self, captured, rng):
        encodings = super().sequence(captured, rng)
        order = torch.rand(encodings.shape[:2], generator=rng).argsort(1)
        return encodings.gather(1, order.unsqueeze(-1).expand_as(encodings))


def cloning(inputs: tuple[str, ...], *parts: str, encoder: Encoder = NUMBERS, augmentations=(),
            steps: int = 2000) -> Method:
    policy = PolicyConfig(Regression(), MLP(128, 2), encoder, inputs=inputs, augmentations=augmentations)
    return Method(policy, RecedingHorizon(), BehaviorCloning(steps, 64, FAST), (part(*parts),))


def frozen(objective, n_obs_steps: int = 1, lookahead: int = 0, steps: int = 400, augmentations=()) -> Frozen:
    """An encoder that learns from 128 or 130 pictures an update, or pairs of views of 64."""
    policy = PolicyConfig(Regression(), MLP(64, 1), CAMERA, window=Window(n_obs_steps), inputs=(PICTURE,),
                          augmentations=augmentations)
    learner = RepresentationLearning((objective,), steps, 64 if n_obs_steps == 1 else 26, lookahead, FAST)
    return Frozen(Method(policy, learner=learner, transforms=(part("task", "prior"),)))


REGRESSION = cloning((FEATURES, OWN), "task")
NEAREST = replace(REGRESSION, policy=replace(REGRESSION.policy, head=Neighbors(1), codec=Normalizer(obs="zscore")),
                  learner=BehaviorCloning(0))


def pose_fit(data: Dataset) -> dict[str, list[float]]:
    """R² of a linear probe of the block's pose, fitted on the episodes of "prior" and tested on those of "more"."""
    def arrays(name):
        episodes = part(name).apply(data)
        x = np.concatenate([np.asarray(e.steps[FEATURES], float) for e in episodes])
        state = np.concatenate([np.asarray(e.steps[STATE], float) for e in episodes])
        angle = 4 * np.arctan2(state[:, 5], state[:, 4])  # a square looks the same after a quarter of a turn
        return np.c_[x, np.ones(len(x))], np.c_[state[:, 2:4], np.cos(angle), np.sin(angle)]
    (x, y), (new_x, new_y) = arrays("prior"), arrays("more")
    error = new_x @ np.linalg.lstsq(x, y, rcond=None)[0] - new_y
    fits = 1 - (error**2).mean(0) / new_y.var(0)
    return {POSITION: [float(fits[:2].mean())], ANGLE: [float(fits[2:].mean())]}


def progress(episode: Episode) -> float:
    """The fraction of the way to the goal that the block is closer in the end: from 0 to 1, which is success."""
    state = np.asarray(episode.steps[STATE], float)
    remaining = np.linalg.norm(state[:, 2:4] - state[:, 6:8], axis=1)
    return 1.0 if episode.metadata["success"] else max(0.0, float(1 - remaining[-1] / remaining[0]))


def pushed(experiment, arm: Frozen | Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """"progress" and "success" of a policy, and on frozen features those of neighbors, and the fit of the pose."""
    def judge(policy: Policy, env: Env, name: str) -> dict[str, list[float]]:
        rollouts = rollout(PolicyActor(FixedBatch(policy, ROWS), RecedingHorizon()), env, episodes, seed=starts)
        return {f"progress{name}": [float(np.mean([progress(e) for e in rollouts]))],
                f"success{name}": flags(rollouts)["success"]}
    if isinstance(arm, Method):
        return judge(train_once(experiment, arm, data, seed).policy, NearPush(), "")
    env = EncodedPictures(NearPush(), train_once(experiment, arm.encoder, data, seed).policy)
    encoded = Dataset([env.transform_episode(e) for e in data])
    return {**judge(fit_method(REGRESSION, encoded, seed).policy, env, ""),
            **judge(fit_method(NEAREST, encoded, seed).policy, env, OF_NEIGHBORS), **pose_fit(encoded)}


RIVALS = {
    "random": frozen(TimeContrastive(), steps=0),
    "BYOL": frozen(BYOL(), augmentations=SHIFTS),
    "time-contrastive": frozen(TimeContrastive(), lookahead=LENGTH - 1),
    "inverse dynamics": frozen(InverseDynamics())}
MEASURES = "progress", f"progress{OF_NEIGHBORS}"
TABLE = Experiment(PushesToGoals(), env="push-images", first_seed=1850, episodes=100, measure=pushed,
                   levels={"state": 0.8}, arms={
    "DynaMo": frozen(LatentDynamics(trunk=SEQUENCE), LENGTH),
    **RIVALS,
    "end to end": cloning((PICTURE, OWN), "task", encoder=CAMERA, augmentations=SHIFTS),
    "state": cloning((STATE,), "task", "more"),
    "shuffled time": frozen(ShuffledDynamics(trunk=SEQUENCE), LENGTH)})
