"""Row 027: how the regret on a tightrope grows with its length, for a clone and for practice with a learned reward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import expit, log_expit

from evidence.experiment import DemonstrationSource, Experiment
from understudy.data.episode import Dataset, Episode

LENGTHS, N_LOOKS, N_DEMONSTRATIONS, REPEATS = (5, 10, 20, 50, 100), 6, 20, 3
LOOK, ACTION = "observation.look", "action"
SLOPE = "exponent of regret"
PRIOR = 1e-6  # pseudo-count of each action in the clone
KL_WEIGHT, CLIP, PASSES, REPLAYS, BATCH = 0.1, 0.2, 4, 2, 32


def right_actions(seed: int, length: int, n: int) -> np.ndarray:
    """The right action, 0 or 1, at each step and look of the first ropes of a training seed, (n, length, N_LOOKS)."""
    return np.random.default_rng([seed, length]).integers(2, size=(16, length, N_LOOKS))[:n]


@dataclass(frozen=True)
class Ropes(DemonstrationSource):
    """Demonstrations of each rope, side by side in one episode: looks (length + 1, n) and actions (length + 1, n)."""

    n_ropes: int = 10
    n: int = 2 * N_DEMONSTRATIONS

    def load(self, seed):
        rng, episodes = np.random.default_rng([seed, 1]), []
        for length in LENGTHS:
            for right in right_actions(seed, length, self.n_ropes):
                look = rng.integers(N_LOOKS, size=(length + 1, self.n))
                actions = np.concatenate([np.take_along_axis(right, look[:-1], 1), np.zeros((1, self.n), int)])
                episodes.append(Episode({LOOK: look, ACTION: actions}, {"length": length}))
        return Dataset(episodes)


class Table:
    """Sums over episodes for each rope, step and look.

    Args:
        look: Looks (ropes, n, length) of n episodes on each rope.
    """

    def __init__(self, look: np.ndarray):
        ropes, _, length = look.shape
        self.shape = ropes, length, N_LOOKS
        self.at = np.arange(ropes)[:, None, None], np.arange(length), look
        self.index = np.ravel_multi_index(self.at, self.shape).ravel()

    def sum(self, x: np.ndarray) -> np.ndarray:
        """Sums of x (ropes, n, length), as (ropes, length, N_LOOKS)."""
        return np.bincount(self.index, x.ravel(), np.prod(self.shape)).reshape(self.shape)


def clone(look: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Log-odds of action 1, (ropes, length, N_LOOKS), from what n demonstrations did, (ropes, n, length)."""
    table = Table(look)
    return np.log(table.sum(action) + PRIOR) - np.log(table.sum(1 - action) + PRIOR)


def walk(right: np.ndarray, logits: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Episodes of a policy: looks (ropes, n, length + 1), actions, and whether the rope still holds, as the looks."""
    look = rng.integers(N_LOOKS, size=(len(right), n, right.shape[1] + 1))
    at = Table(look[..., :-1]).at
    action = (rng.random(at[2].shape) < expit(logits[at])).astype(int)
    up = np.ones(look.shape, bool)
    up[..., 1:] = np.logical_and.accumulate(action == right[at], 2)
    return look, action, up


def arrivals(look: np.ndarray, up: np.ndarray) -> np.ndarray:
    """The feature of each state that a step leads to: its look, or N_LOOKS after a fall."""
    return np.where(up, look, N_LOOKS)[..., 1:]


def learned_reward(right: np.ndarray, look: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The logit of a discriminator for each feature, (ropes, N_LOOKS + 1): demonstrations against random actions."""
    own = arrivals(*walk(right, np.zeros(right.shape), look.shape[1], rng)[::2])
    count = (np.stack([(x == k).sum((1, 2)) for k in range(N_LOOKS + 1)], 1) + 1.0 for x in (look[..., 1:], own))
    return np.subtract(*map(np.log, count))


def ppo(right, reference, reward, rng, rounds, rate, standardized=True) -> np.ndarray:
    """Log-odds after proximal policy optimization with a penalty on the divergence from the reference.

    Args:
        right: See `right_actions`.
        reference: Log-odds of the clone, from which it begins.
        reward: See `learned_reward`.
        standardized: Divide the advantages of each batch by their root mean square.
    """
    logits, value, ropes = reference.copy(), np.zeros(right.shape), np.arange(len(right))[:, None, None]
    for _ in range(rounds):
        look, action, up = walk(right, logits, BATCH, rng)
        table, sign, acts = Table(look[..., :-1]), 2 * action - 1, up[..., :-1]
        old = log_expit(sign * logits[table.at])
        cost = KL_WEIGHT * acts * (old - log_expit(sign * reference[table.at]))
        returns = np.cumsum((reward[ropes, arrivals(look, up)] - cost)[..., ::-1], 2)[..., ::-1]
        advantage = returns - value[table.at]
        value += table.sum(acts * advantage) / np.maximum(table.sum(acts), 1)
        if standardized:
            advantage = advantage / np.sqrt((acts * advantage**2).sum((1, 2)) / acts.sum((1, 2)))[:, None, None]
        for _ in range(PASSES):
            ratio = np.exp(log_expit(sign * logits[table.at]) - old)
            pays = np.where(advantage > 0, ratio < 1 + CLIP, ratio > 1 - CLIP) & acts
            logits += rate / BATCH * table.sum(pays * ratio * advantage * (action - expit(logits[table.at])))
    return logits


def soft_q(right, reference, reward, rng, rounds, rate) -> np.ndarray:
    """Log-odds after soft Q-learning from all earlier rounds, for the same objective as `ppo`."""
    ropes, length, _ = right.shape
    values, fallen, memory = np.zeros((2, *right.shape)), np.zeros((ropes, length + 1)), []
    prior = np.stack([log_expit(-reference), log_expit(reference)])
    for _ in range(rounds):
        memory.append(walk(right, reference + (values[1] - values[0]) / KL_WEIGHT, BATCH, rng))
        for choice in rng.integers(len(memory), size=REPLAYS):
            look, action, up = memory[choice]
            for t in reversed(range(length)):
                following = KL_WEIGHT * np.logaddexp(*(prior + values / KL_WEIGHT)[:, :, t + 1]) \
                    if t + 1 < length else np.zeros((ropes, N_LOOKS))
                after = np.concatenate([following, fallen[:, t + 1:t + 2]], 1) + reward
                fallen[:, t] += rate * (after[:, -1] - fallen[:, t])
                target = np.take_along_axis(after, arrivals(look, up)[..., t], 1)
                for a in (0, 1):
                    table, acts = Table(look[..., t:t + 1]), (up[..., t] & (action[..., t] == a))[..., None]
                    n = table.sum(acts)[:, 0]
                    mean = table.sum(acts * target[..., None])[:, 0] / np.maximum(n, 1)
                    values[a, :, t] += rate * (n > 0) * (mean - values[a, :, t])
    return reference + (values[1] - values[0]) / KL_WEIGHT


def regret(right: np.ndarray, logits: np.ndarray, recoverable: bool = False) -> np.ndarray:
    """Expected number of steps on each rope that earn nothing, (ropes,). The expert earns one in each step."""
    chance = expit((2 * right - 1) * logits).mean(2)
    return right.shape[1] - (chance if recoverable else np.cumprod(chance, 1)).sum(1)


@dataclass(frozen=True)
class Learner:
    """What learns on each rope, beginning with the clone.

    Args:
        reward: "random" has the size of the learned one.
        recoverable: Whether a fall costs its own step alone. Only for a clone.
    """

    learns: Literal["nothing", "ppo", "soft q"] = "nothing"
    rate: float = 0.0
    reward: Literal["learned", "true", "random"] = "learned"
    standardized: bool = True
    n: int = N_DEMONSTRATIONS
    recoverable: bool = False
    rounds: int = 50

    def regrets(self, data: Dataset, length: int, seed: int) -> np.ndarray:
        """The regret on each rope in each repetition, (ropes, REPEATS)."""
        rng, episodes = np.random.default_rng([seed, 2, length]), [e for e in data if e.metadata["length"] == length]
        look, action = (np.repeat(np.stack([np.asarray(e.steps[name])[:, :self.n].T for e in episodes]), REPEATS, 0)
                        for name in (LOOK, ACTION))
        right = np.repeat(right_actions(seed, length, len(episodes)), REPEATS, 0)
        logits = clone(look[..., :-1], action[..., :-1])
        if self.learns != "nothing":
            reward = learned_reward(right, look, rng)
            if self.reward == "true":
                reward = np.broadcast_to(np.arange(N_LOOKS + 1) < N_LOOKS, reward.shape)
            elif self.reward == "random":
                reward = rng.normal(0, np.sqrt(np.mean(reward**2)), reward.shape)
            arguments = right, logits, reward, rng, self.rounds, self.rate
            logits = soft_q(*arguments) if self.learns == "soft q" else ppo(*arguments, self.standardized)
        return regret(right, logits, self.recoverable).reshape(-1, REPEATS)


def learn_and_measure(experiment, arm: Learner, data: Dataset, seed, episodes, starts) -> dict[str, list[float]]:
    """The exponent of the regret's growth, its standard deviation over repetitions, and the regret of two lengths."""
    regrets = [arm.regrets(data, length, seed) for length in LENGTHS]
    means = np.array([r.mean() for r in regrets])
    spread = np.mean([r.std(1, ddof=1).mean() / length for r, length in zip(regrets, LENGTHS, strict=True)])
    is_zero = arm.learns == "soft q" or arm.n > N_DEMONSTRATIONS  # on some ropes, so that it has no exponent
    slope = {} if is_zero else {SLOPE: [float(np.polyfit(np.log(LENGTHS), np.log(means), 1)[0])]}
    return {**slope, "spread": [float(spread)], "success": [round(1 - float(means[2]) / LENGTHS[2], 9)],
            "regret of 5": [float(means[0])], "regret of 100": [float(means[-1])]}


PPO = Learner("ppo", 10.0)
TABLE = Experiment(
    Ropes(), env="tabular", measure=learn_and_measure, first_seed=1800, n_seeds=10, episodes=1,
    levels={"PPO, true reward": 0.9}, arms={
    "clone": Learner(), "reward + PPO": PPO, "reward + soft Q": Learner("soft q", 0.3),
    "reward + PPO, raw advantages": Learner("ppo", 0.1, standardized=False),
    "random reward + PPO": replace(PPO, reward="random"), "PPO, true reward": replace(PPO, reward="true"),
    "clone of 40": Learner(n=2 * N_DEMONSTRATIONS), "clone, a fall costs one step": Learner(recoverable=True),
    "recoverable": Learner(recoverable=True)})
