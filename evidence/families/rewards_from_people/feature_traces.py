"""Row 217: people first teach features, by motions along which each grows, and then show what they want."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from evidence.experiment import DemonstrationSource, Experiment
from understudy.data.episode import Dataset, Episode
from understudy.envs.toys.planar_arms import ARMS, joint_positions
from understudy.learn.fit_method import fit_method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.rewards.preference_reward import PreferenceLearning, PreferenceReward
from understudy.methods.reward_matching.ferl import TRACE, ferl
from understudy.nets.feed_forward import FeedForward, feed_forward_layers

STATE, PLACES, FEATURE = "observation.state", "places", "feature"
LENGTHS = np.array(ARMS["three"], np.float32)
STEPS, N_NOISE, WOBBLE, WIDTH, FAR = 20, 24, 0.05, 0.4, 1.0  # steps; inputs; rad; m; m
SHIFT = 1.0  # rad by which scenes of the test are turned
N_DEMONSTRATIONS, N_MOTIONS, N_TRACES, N_TEST = 5, 50, 20, 200
WEIGHTS = np.array([1.0, -1.0], np.float32)  # of how near the tip is to the target, and to the object
N_SCENES = 5  # in each update
CORRELATION = "rank correlation"


def tips(joints: np.ndarray) -> np.ndarray:
    """Positions of the tip, (..., 2), m, of joints (..., 3)."""
    return joint_positions(joints.reshape(-1, 3), LENGTHS)[:, -1].reshape(*joints.shape[:-1], 2)


def poses(rng: np.random.Generator, *shape: int, turned: float = 0.0) -> np.ndarray:
    """Random joints, (*shape, 3), rad. The first of them is turned."""
    return (rng.uniform(-1.5, 1.5, size=(*shape, 3)) + np.array([turned, 0, 0])).astype(np.float32)


def motions(rng: np.random.Generator, start: np.ndarray, end: np.ndarray, places: np.ndarray) -> list[Episode]:
    """Unsteady straight motions between joints (N, 3), rad, where target and object are at places (N, 2, 2), m."""
    shares = np.linspace(0, 1, STEPS + 1)[:, None]
    joints = start[:, None] + shares * (end - start)[:, None] + WOBBLE * rng.normal(size=(len(start), STEPS + 1, 3))
    turns, joints = np.diff(joints, axis=1).astype(np.float32), joints[:, :-1].astype(np.float32)
    tip, at = tips(joints), np.repeat(places.reshape(-1, 1, 4), STEPS, 1)
    noise = rng.normal(size=(*tip.shape[:2], N_NOISE))
    inputs = np.concatenate([joints, tip, at, np.tile(tip, 2) - at, noise], -1).astype(np.float32)
    return [Episode({STATE: x, PLACES: p, "action": a}) for x, p, a in zip(inputs, at, turns, strict=True)]


def true_features(inputs: np.ndarray) -> np.ndarray:
    """How near the tip is to the target and to the object, (..., 2), from 0 to 1."""
    gap = inputs[..., 9:13].reshape(*inputs.shape[:-1], 2, 2)
    return np.exp(-np.square(gap).sum(-1) / (2 * WIDTH**2))


def traces(rng: np.random.Generator, feature: int) -> list[Episode]:
    """Motions that begin far from the target (feature 0) or the object (1), and end there."""
    start, end = poses(rng, 2, 50 * N_TRACES)
    is_long = np.linalg.norm(tips(start) - tips(end), axis=1) > FAR
    start, end = start[is_long][:N_TRACES], end[is_long][:N_TRACES]
    places = tips(poses(rng, N_TRACES, 2))
    places[:, feature] = tips(end)
    return [replace(e, metadata={TRACE: "up", FEATURE: feature}) for e in motions(rng, start, end, places)]


@dataclass(frozen=True)
class Traces(DemonstrationSource):
    """Traces of both features."""

    def load(self, seed):
        return Dataset([e for feature in (0, 1) for e in traces(np.random.default_rng([seed, feature]), feature)])


def column(episodes, name: str = STATE) -> np.ndarray:
    return np.stack([np.asarray(e.steps[name]) for e in episodes])


def random_motions(rng: np.random.Generator, start: np.ndarray, places: np.ndarray, n: int) -> np.ndarray:
    """Inputs (N, n, STEPS, D) of motions from joints (N, 3), where target and object are at places (N, 2, 2)."""
    drawn = motions(rng, np.repeat(start, n, 0), poses(rng, n * len(start)), np.repeat(places, n, 0))
    return column(drawn).reshape(len(start), n, STEPS, -1)


def demonstrations(rng: np.random.Generator, n: int) -> np.ndarray:
    """Inputs (n, N_MOTIONS, STEPS, D): random motions of each scene. The first is the best."""
    drawn = random_motions(rng, poses(rng, n), tips(poses(rng, n, 2)), N_MOTIONS)
    order = np.argsort(-(true_features(drawn) @ WEIGHTS).mean(2), 1)
    return np.take_along_axis(drawn, order[..., None, None], 1)


def traces_as_demonstrations(rng: np.random.Generator, data: Dataset) -> np.ndarray:
    """The same from traces: going to the target and away from the object is better than random motions from there."""
    inputs, places = column(data), column(data, PLACES)[:, 0].reshape(-1, 2, 2)
    away = np.array([e.metadata[FEATURE] for e in data]) == 1
    inputs[away] = inputs[away, ::-1]
    drawn = random_motions(rng, inputs[:, 0, :3], places, N_MOTIONS - 1)
    return np.concatenate([inputs[:, None], drawn], 1)


def maximum_entropy(layers: nn.Module, inputs: Tensor, updates: int, lr: float, decay: float, seed: int) -> None:
    """Trains a reward whose sum makes the first motion of each scene likely: inputs (scenes, motions, STEPS, D)."""
    optimizer = torch.optim.AdamW(layers.parameters(), lr=lr, weight_decay=decay)
    rng = np.random.default_rng([seed, 5])
    for _ in range(updates):
        drawn = inputs[rng.choice(len(inputs), N_SCENES, replace=False)]
        optimizer.zero_grad()
        (-layers(drawn).sum((-2, -1)).log_softmax(1)[:, 0].mean()).backward()
        optimizer.step()


@dataclass(frozen=True)
class RewardLearner:
    """How a reward is learned from demonstrations.

    Args:
        reads: What the reward reads. It is linear in features, or a network of the inputs.
        n: Number of demonstrations.
        with_traces: Traces are demonstrations too.
        reversed: Fraction of the traces of each feature that are said to fall.
    """

    reads: Literal["ranked features", "true features", "inputs"]
    n: int = N_DEMONSTRATIONS
    with_traces: bool = False
    reversed: float = 0.0
    updates: int = 600

    def read(self, data: Dataset, demos: Tensor, seed: int):
        """A function from inputs (..., D) to what the reward reads, and the untrained reward."""
        if self.reads == "ranked features":
            return features(data, self.reversed, self.updates, seed), nn.Linear(2, 1)
        if self.reads == "true features":
            return (lambda inputs: torch.from_numpy(true_features(inputs.numpy()))), nn.Linear(2, 1)
        mean, std = (f(demos.flatten(0, 2), 0) for f in (torch.mean, torch.std))
        return (lambda inputs: (inputs - mean) / std), feed_forward_layers((len(mean), 64, 64, 1))


def features(data: Dataset, reversed_fraction: float, updates: int, seed: int):
    """A function from inputs (..., D) to both features (..., 2), which the method `ferl` learns from their traces."""
    base, reward = ferl(), PreferenceReward((64, 64), "relu", inputs="state")
    learner = PreferenceLearning(updates, 64, reward, reward_optimizer=OptimizerConfig(lr=1e-3, weight_decay=1.0))
    method, models = replace(base, policy=replace(base.policy, trunk=FeedForward((8,))), learner=learner), []
    for feature in (0, 1):
        own = [e for e in data if e.metadata[FEATURE] == feature]
        down = round(reversed_fraction * len(own))
        labeled = [replace(e, metadata={TRACE: "down" if i < down else "up"}) for i, e in enumerate(own)]
        models.append(fit_method(method, Dataset(labeled), seed).modules["reward"].eval())

    @torch.no_grad()
    def both(inputs: Tensor) -> Tensor:
        flat = inputs.reshape(-1, 1, inputs.shape[-1])
        values = [model({STATE: flat}, flat[..., :0]) for model in models]
        return torch.stack(values, -1).reshape(*inputs.shape[:-1], 2)
    return both


def correlations(experiment, arm: RewardLearner, data: Dataset, seed: int, episodes: int, starts: int):
    """The rank correlation of the learned reward with the true one, over the steps of motions in turned scenes."""
    demos = demonstrations(np.random.default_rng([seed, 2]), arm.n)
    if arm.with_traces:
        demos = np.concatenate([demos, traces_as_demonstrations(np.random.default_rng([seed, 3]), data)])
    demos, rng = torch.from_numpy(demos), np.random.default_rng([seed, 4])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        read, layers = arm.read(data, demos, seed)
    is_linear = isinstance(layers, nn.Linear)
    maximum_entropy(layers, read(demos), arm.updates, 1e-2 if is_linear else 1e-3, 0.01 if is_linear else 1.0, seed)
    start, end, *places = poses(rng, 4, N_TEST, turned=SHIFT)
    new = torch.from_numpy(column(motions(rng, start, end, np.stack([tips(p) for p in places], 1))))
    with torch.no_grad():
        reward = layers(read(new)).flatten()
    true = (true_features(new.numpy()) @ WEIGHTS).ravel()
    return {CORRELATION: [float(spearmanr(reward.numpy(), true).statistic)]}


RANKED, DEEP, WITH_TRACES, TRUE = "ranked features", "network", "network, traces shown", "true features"
TABLE = Experiment(
    Traces(), env="planar_arms", measure=correlations, first_seed=3700, n_seeds=10, episodes=1,
    arms={
    RANKED: RewardLearner("ranked features"),
    DEEP: RewardLearner("inputs"),
    WITH_TRACES: RewardLearner("inputs", with_traces=True),
    "network, 45 demonstrations": RewardLearner("inputs", N_DEMONSTRATIONS + 2 * N_TRACES),
    TRUE: RewardLearner("true features"),
    "half of the traces reversed": RewardLearner("ranked features", reversed=0.5)})
