"""Row 067: an encoder of states with noise also learns to predict the encodings of what comes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import flags, train_policy
from understudy.core import Batch, part
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.envs.base import Env
from understudy.envs.observation_wrappers import NoiseColumns
from understudy.envs.toys.push import Push, PushExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import AuxiliaryLoss, BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.representation.act_jepa import (
    LatentPrediction,
    LatentPredictionLoss,
    TransformerEncoder,
    coming_observations,
)
from understudy.nets.transformer import Transformer
from understudy.policy import Policy, PolicyConfig

N_NOISE, ROWS, LATER = 32, 100, 8
COLUMNS = STATE, NOISE = "observation.state", "observation.noise"
FIT = "R² of a linear probe"
HELD_OUT = 200_000, 300_000  # numbers of the first episodes with which the probe is fitted and tested


def noisy_push() -> Env:
    return NoiseColumns(Push(ROWS), N_NOISE)


def pushes(episodes: int, seed: int, first: int = 0) -> Dataset:
    return rollout(PushExpert(), noisy_push(), episodes, recording_seed(seed), first=first)


@dataclass(frozen=True)
class Pushes(DemonstrationSource):
    """Successful episodes of the expert."""

    episodes: int = 300

    def load(self, seed):
        return pushes(self.episodes, seed).filter(lambda e: e.metadata["success"])


@part
class RawPrediction(LatentPrediction):
    """Predicts the coming observations themselves, as coded numbers, with the same network and loss."""

    def build(self, policy):
        return RawPredictionLoss(self, policy)


class RawPredictionLoss(LatentPredictionLoss):
    def target_size(self, policy: Policy) -> int:
        return sum(policy.features[name].size for name in self.config.columns)

    def targets(self, policy: Policy, batch: Batch) -> torch.Tensor:
        return torch.cat(list(coming_observations(policy, batch, self.config.columns).values()), -1)


@part
class OtherFutures(LatentPrediction):
    """Predicts the encodings of what comes in another window of the batch."""

    def build(self, policy):
        return OtherFuturesLoss(self, policy)


class OtherFuturesLoss(LatentPredictionLoss):
    def targets(self, policy: Policy, batch: Batch) -> torch.Tensor:
        return super().targets(policy, batch).roll(1, 0)


def cloning(*losses: AuxiliaryLoss) -> Method:
    policy = PolicyConfig(Regression("l1"), Transformer(64, 1, 4), TransformerEncoder(64, 1, 4),
                          Normalizer(target="zscore"), Window(1, 8))
    optimizer = OptimizerConfig(lr=2e-3, weight_decay=1e-4, warmup_steps=100)
    return Method(policy, RecedingHorizon(2), BehaviorCloning(1000, 64, optimizer, auxiliary_losses=losses))


@torch.no_grad()
def encodings_and_motion(policy: Policy, data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Encodings with a constant, and velocity of the disc, positions and heading 8 steps later: (N, D + 1), (N, 8)."""
    windows = policy.windows(data, extra=(STATE,), lookahead=LATER + 1)
    batch = windows.gather(np.arange(len(windows)))
    exists, state = batch.extra["lookahead_mask"][:, -1], batch.extra[STATE].double().numpy()
    motion = np.concatenate([state[:, 1, :2] - state[:, 0, :2], state[:, -1, :6]], 1)
    flat = policy.eval().context(batch.obs).flat().double()
    return torch.cat([flat, flat.new_ones(len(flat), 1)], 1)[exists].numpy(), motion[exists.numpy()]


def linear_fit(policy: Policy, episodes: int, seed: int) -> float:
    """Mean fraction of the variance of the motion in new episodes that a ridge regression from others explains."""
    (x, y), (new_x, new_y) = (encodings_and_motion(policy, pushes(episodes, seed, first)) for first in HELD_OUT)
    weights = np.linalg.solve(x.T @ x + 1e-3 * len(x) * np.eye(x.shape[1]), x.T @ y)
    return float(np.mean(1 - ((new_x @ weights - new_y) ** 2).mean(0) / new_y.var(0)))


def pushed(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """"success", and how well a linear function of the encoding tells the coming motion."""
    policy = train_policy(experiment, method, data, seed)
    rollouts = rollout(PolicyActor(FixedBatch(policy, ROWS), method.executor), noisy_push(), episodes, seed=starts)
    return {**flags(rollouts), FIT: [linear_fit(policy, episodes, seed)]}


PREDICTOR = Transformer(32, 1, 4)
ACT, RAW, JEPA = "ACT", "raw future", "ACT-JEPA"
TABLE = Experiment(Pushes(), env="push", first_seed=1760, episodes=200, measure=pushed, levels={ACT: 0.3}, arms={
    ACT: cloning(),
    RAW: cloning(RawPrediction(COLUMNS, PREDICTOR)),
    JEPA: cloning(LatentPrediction(COLUMNS, PREDICTOR)),
    "other futures": cloning(OtherFutures(COLUMNS, PREDICTOR))})
