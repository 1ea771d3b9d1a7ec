"""Row 324: an encoder learns from which motions people find similar, and then rewards from few preferences."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import softplus

from evidence.experiment import DemonstrationSource, Experiment
from evidence.memo import Memo
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs.toys.planar_arms import SPEED, PlanarArms, PlanarArmsExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.heads.likelihood.regression import Regression
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.objectives.reconstruction_objectives import VAE
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.rewards.similarity import SIMILARITY, SimilarityLearning
from understudy.methods.behavior_cloning.g_blend import ColumnEncoder
from understudy.nets.feed_forward import feed_forward_layers
from understudy.policy import Policy, PolicyConfig

STATE, FEATURES = "observation.state", "features"
STEPS, WIDTH, HIDDEN, N_USERS, N_OTHERS, N_TEST = 10, 6, (64, 64), 20, 10, 500
N_PREFERENCES, N_QUERIES, UPDATES, RIDGE, BETA = 50, 300, 500, 1.0, 0.01
MEAN, DEVIATION = (0.67, 0.0, 0.78), (0.3, 0.37, 0.33)  # of the features of segments
PACES, OBJECT = (0.3, 0.5, 0.7, 1.0), (0.5, 0.0)
CORRELATION = 0.5  # of each spurious input with a feature
POLICY = PolicyConfig(Regression(), encoder=ColumnEncoder(WIDTH, HIDDEN), window=Window(1, 1), inputs=(STATE,),
                      target="")
ACCURACY, FIT = "preference accuracy", "R² of the features"


@dataclass(frozen=True)
class PacedExpert(PlanarArmsExpert):
    """Moves its joints at a fraction of the speed."""

    pace: float = 1.0

    def act(self, obs, state):
        action, state = super().act(obs, state)
        return self.pace * action.clamp(-1, 1), state


def segments(n: int, seed: int, first: int = 0, shifted: bool = False) -> Dataset:
    """Ten steps each of an unsteady arm that reaches. Six inputs only look like features, in shifted data not even so.

    The features are how far the tip is from an object, how high it is, and how fast the joints turn.
    """
    arm, moves = PlanarArms(100), []
    for number, pace in enumerate(PACES):
        expert = PacedExpert("reach", tuple(arm.lengths.tolist()), 0.3, pace=pace)
        each = rollout(expert, arm, n, recording_seed(seed), first=first + 10_000 * number)
        moves += [e for e in each if len(e) > STEPS][:n // len(PACES)]
    n = len(moves)
    rng = np.random.default_rng([seed, first])
    state, target = (np.stack([np.asarray(e.steps[name])[:STEPS + 1] for e in moves]).astype(float)
                     for name in (STATE, "observation.environment_state"))
    turn, state, target = np.diff(state[..., :3], axis=1) / SPEED, state[:, :-1], target[:, :-1]
    features = np.stack([np.linalg.norm(state[..., 3:] - np.array(OBJECT), axis=-1), state[..., 4],
                         np.linalg.norm(turn, axis=-1)], -1)
    features = (features - np.array(MEAN)) / np.array(DEVIATION)
    alike = np.tile(features[rng.permutation(n)] if shifted else features, 2)
    alike = CORRELATION * alike + np.sqrt(1 - CORRELATION**2) * rng.normal(size=(n, 1, 6))
    inputs = np.concatenate([state, target, turn, alike], -1).astype(np.float32)
    return Dataset([Episode({STATE: x, FEATURES: f}) for x, f in zip(inputs, features, strict=True)])


@dataclass(frozen=True)
class Segments(DemonstrationSource):
    """Segments that nobody has compared."""

    episodes: int = 1000

    def load(self, seed):
        return segments(self.episodes, seed)


def column(data: Dataset, name: str) -> np.ndarray:
    return np.stack([np.asarray(e.steps[name]) for e in data])


def queries(data: Dataset, n: int, rng: np.random.Generator, by: str) -> Dataset:
    """Triples of segments, in which the closest two are similar. Distances are of mean features, or of all inputs."""
    drawn = np.stack([rng.choice(len(data), 3, replace=False) for _ in range(n)])
    inputs = column(data, STATE)
    judged = column(data, FEATURES).mean(1) if by == "features" else inputs / inputs.std((0, 1))
    judged = judged.reshape(len(data), -1)
    orders = [(0, 1, 2), (0, 2, 1), (1, 2, 0)]
    gaps = np.stack([np.linalg.norm(judged[drawn[:, i]] - judged[drawn[:, j]], axis=1) for i, j, _ in orders], 1)
    drawn = np.take_along_axis(drawn, np.array(orders)[gaps.argmin(1)], 1)
    return Dataset([Episode({STATE: inputs[d].reshape(3 * STEPS, -1), SIMILARITY: np.repeat(np.arange(3), STEPS)})
                    for d in drawn])


def compared(features: np.ndarray, users: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The better and the worse one of random pairs for each user, (users, n) each: weights (users, 3) of features."""
    pairs = np.stack([[rng.choice(len(features), 2, replace=False) for _ in range(n)] for _ in users])
    first = np.einsum("unk,uk->un", features[pairs[..., 0]] - features[pairs[..., 1]], users) > 0
    return np.where(first, pairs[..., 0], pairs[..., 1]), np.where(first, pairs[..., 1], pairs[..., 0])


def linear_rewards(encodings: Tensor, better: np.ndarray, worse: np.ndarray) -> Tensor:
    """Weights (users, D) of Bradley-Terry models, by Newton's method."""
    gap = encodings[better] - encodings[worse]
    weights = gap.new_zeros(len(gap), gap.shape[2])
    for _ in range(20):
        error = torch.sigmoid(-torch.einsum("und,ud->un", gap, weights))
        slope = torch.einsum("und,un->ud", gap, error) - RIDGE * weights
        curvature = torch.einsum("und,une,un->ude", gap, gap, error * (1 - error)) + RIDGE * torch.eye(gap.shape[2])
        weights = weights + torch.linalg.solve(curvature, slope)
    return weights


def minimize(parameters, loss, updates: int, decay: float) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=decay)
    for _ in range(updates):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def seeded_layers(seed: int, *sizes: int) -> torch.nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return feed_forward_layers(sizes)


def network_rewards(inputs: Tensor, new: Tensor, better, worse, updates: int, decay: float, seed: int) -> Tensor:
    """Rewards (users, N) of new segments by a network for each user, whose sum over steps explains the preferences."""
    layers = [seeded_layers(1000 * seed + user, inputs.shape[2], *HIDDEN, 1) for user in range(len(better))]
    parameters, _ = stack_module_state(layers)
    users, rng = np.arange(len(better))[:, None], np.random.default_rng([seed, 2])

    def reward(weights, x):
        return functional_call(layers[0], weights, (x,)).sum((-2, -1))

    def loss():
        drawn = rng.integers(better.shape[1], size=(len(better), 32))
        pairs = torch.cat([inputs[better[users, drawn]], inputs[worse[users, drawn]]], 1)
        good, bad = vmap(reward)(parameters, pairs).chunk(2, 1)
        return softplus(bad - good).mean(1).sum()
    minimize(list(parameters.values()), loss, updates, decay)
    return vmap(reward, in_dims=(0, None))(parameters, new).detach()


def shared_encoder(inputs: Tensor, better, worse, updates: int, decay: float, seed: int) -> torch.nn.Sequential:
    """An encoder of steps for the rewards of several users, each of whom has weights of their own."""
    layers, rng = seeded_layers(seed, inputs.shape[2], *HIDDEN, WIDTH), np.random.default_rng([seed, 2])
    weights = torch.from_numpy(rng.normal(size=(len(better), WIDTH)) / WIDTH).float().requires_grad_()

    def loss():
        user, answer = rng.integers(len(better), size=64), rng.integers(better.shape[1], size=64)
        good, bad = (layers(inputs[x[user, answer]]).sum(1) for x in (better, worse))
        return softplus(((bad - good) * weights[user]).sum(1)).mean()
    minimize([*layers.parameters(), weights], loss, updates, decay)
    return layers


@dataclass(frozen=True)
class RewardLearner:
    """How rewards are learned from preferences: linear in what is frozen, or end to end by a network.

    Args:
        frozen: An encoder and what trained it ("others": preferences of other users), or the mean inputs or features.
        n: Preferences of each user.
        similar_by: What similar segments have in common.
        decay: Weight decay of networks.
    """

    frozen: Literal["similarity", "autoencoder", "random", "others", "inputs", "features", "nothing"]
    n: int = N_PREFERENCES
    similar_by: Literal["features", "states"] = "features"
    decay: float = 0.01
    updates: int = UPDATES

    def policy(self, data: Dataset, seed: int) -> Policy:
        """A policy with the encoder. Others read their inputs as it does."""
        fast = OptimizerConfig(lr=1e-3, weight_decay=self.decay)
        if self.frozen == "similarity":
            data = queries(data, N_QUERIES, np.random.default_rng([seed, 3]), self.similar_by)
            learner = SimilarityLearning(self.updates, optimizer=fast)
        else:
            learner = RepresentationLearning((VAE(WIDTH, BETA),), self.updates if self.frozen == "autoencoder" else 0,
                                             optimizer=fast)
        return fit_method(Method(POLICY, learner=learner), data, seed).policy

    @torch.no_grad()
    def encodings(self, policy: Policy, inputs: Tensor, features: np.ndarray, others: torch.nn.Module) -> Tensor:
        """The mean over the steps of each segment, (N, D)."""
        if self.frozen == "features":
            return torch.from_numpy(features)
        if self.frozen == "inputs":
            return inputs.mean(1).double()
        if self.frozen == "others":
            return others(inputs).mean(1).double()
        steps = policy.encoder({STATE: inputs.flatten(0, 1).unsqueeze(1)}).flat()
        return steps.unflatten(0, (-1, STEPS)).mean(1).double()


def explained(x: Tensor, features: np.ndarray, new: Tensor, new_features: np.ndarray) -> float:
    """The mean fraction of the variance of new features that a linear function of encodings explains."""
    fit = np.linalg.lstsq(np.c_[x, np.ones(len(x))], features, rcond=None)[0]
    error = np.c_[new, np.ones(len(new))] @ fit - new_features
    return float(np.mean(1 - error.var(0) / new_features.var(0)))


_shifted = Memo()  # segments that all arms are judged on


def accuracies(experiment, arm: RewardLearner, data: Dataset, seed: int, episodes: int, starts: int):
    """The fraction of pairs of shifted segments that the learned reward of each new user orders as the user does."""
    shifted = _shifted.get(seed, partial(segments, N_TEST, seed, 100_000, shifted=True))
    rng = np.random.default_rng([seed, 1])
    (features, new_features), (inputs, new_inputs) = (
        [column(d, name) for d in (data, shifted)] for name in (FEATURES, STATE))
    features, new_features = features.mean(1), new_features.mean(1)
    users = rng.normal(size=(N_USERS + N_OTHERS, 3))
    users, others = np.split(users / np.linalg.norm(users, axis=1, keepdims=True), [N_USERS])
    new_better, new_worse = compared(new_features, users, 1000, rng)
    better, worse = compared(features, users, arm.n, rng)
    policy = arm.policy(data, seed)
    inputs, new_inputs = (policy.codec.encode_obs({STATE: torch.from_numpy(x)})[STATE] for x in (inputs, new_inputs))
    if arm.frozen == "nothing":
        rewards, fit = network_rewards(inputs, new_inputs, better, worse, arm.updates, arm.decay, seed), {}
    else:
        layers = shared_encoder(inputs, *compared(features, others, N_QUERIES // N_OTHERS, rng),
                                arm.updates if arm.frozen == "others" else 0, arm.decay, seed)
        x, new = (arm.encodings(policy, *pair, layers) for pair in ((inputs, features), (new_inputs, new_features)))
        x, new = ((z - x.mean(0)) / x.std(0).clamp(min=1e-6) for z in (x, new))
        rewards, fit = linear_rewards(x, better, worse) @ new.T, {FIT: [explained(x, features, new, new_features)]}
    each = np.arange(N_USERS)[:, None]
    return {ACCURACY: (rewards.numpy()[each, new_better] > rewards.numpy()[each, new_worse]).mean(1).tolist(), **fit}


SIRL, NETWORK, VARIATIONAL = "SIRL", "end to end", "autoencoder"
TABLE = Experiment(
    Segments(), env="planar_arms", measure=accuracies, first_seed=3500, n_seeds=20,
    looks=((5, 0.01), (10, 0.015), (20, 0.025)), episodes=N_USERS,
    arms={
    SIRL: RewardLearner("similarity"),
    NETWORK: RewardLearner("nothing", decay=1.0),
    VARIATIONAL: RewardLearner("autoencoder"),
    "random encoder": RewardLearner("random"),
    "preferences of others": RewardLearner("others"),
    "linear in the inputs": RewardLearner("inputs"),
    "end to end, 350 answers": RewardLearner("nothing", N_PREFERENCES + N_QUERIES, decay=1.0),
    "true features": RewardLearner("features"),
    "similar inputs": RewardLearner("similarity", similar_by="states")})
TABLE = replace(TABLE, experiment=replace(TABLE.experiment, sanity=(("true features", ACCURACY, 0.9),)))
