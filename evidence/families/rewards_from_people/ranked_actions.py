"""Row 021: somebody ranks actions that a policy draws. Does the ranking choose better among new ones?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import train_once
from evidence.worlds.curation import cached_load
from understudy.core import keys
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs import make
from understudy.envs.toys.tabletop import CENTERS
from understudy.evaluate.evaluation import recording_seed
from understudy.execute.base import sample_noise, sample_plans
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.rewards.denoising_preference import DenoisingPreference
from understudy.learn.rewards.preference_reward import PREFERENCE, SEGMENT, PreferenceLearning, PreferenceReward
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig

ENV, CLICK = "tabletop:pick_and_place", "observation.click"
OPTIONS: tuple[tuple[str, Any], ...] = (("instruction", "click"), ("limit", 1))
GOOD, NOISE = 0.6, 0.05  # fraction of demonstrations; standard deviation, where 1 is half of the table
N, RANKED, CORRECTED = 8, 200_000, 300_000  # actions; numbers of the first states that are ranked, and demonstrated
QUALITY, ANOMALY, GAP = "quality", "anomaly", "truth minus random"
IMPLICIT, TUNED, TRUTH = "best by implicit reward", "one of the tuned policy", "best in truth"
CLONE = PolicyConfig(Diffusion(prediction="sample"), MLP(128, 2), ConcatEncoder(), window=Window(1, 1), inputs=(CLICK,))


def drawn_states(seed: int, n: int, first: int = 0):
    """An environment in drawn states, and where the block and its bin are, (n, 4) in m."""
    env = make(ENV, rows=n, **dict(OPTIONS))
    return env, env.reset(torch.arange(n), keys(seed, range(first, first + n)))[CLICK]


def quality(click: Tensor, action: Tensor) -> Tensor:
    """1 minus the distances (m) between block and bin and where an action takes and puts, at least 0."""
    gap = (action.clamp(-1, 1) + 1) / 2 - click
    return (1 - gap.unflatten(-1, (2, 2)).norm(dim=-1).sum(-1)).clamp(min=0)


def demonstrated(click: Tensor, seed: int, good: float) -> list[Episode]:
    """One action in each state. Bad ones take at the mirrored place, left for right, or put into another bin."""
    rng, action = np.random.default_rng([seed, 1]), click.numpy().copy()
    kind, bins = rng.random(len(action)), CENTERS[:, 0]
    action[:, 0] = np.where(kind > (1 + good) / 2, 1 - action[:, 0], action[:, 0])
    other = np.abs(action[:, 2:3] - bins).argmin(1) + rng.integers(1, 3, len(action))
    action[:, 2] = np.where((good < kind) & (kind <= (1 + good) / 2), bins[other % 3], action[:, 2])
    action = (2 * action - 1 + NOISE * rng.normal(size=action.shape)).astype(np.float32)
    return [Episode({CLICK: c[None], "action": a[None]}) for c, a in zip(click.numpy(), action, strict=True)]


@dataclass(frozen=True)
class MixedQuality(DemonstrationSource):
    """One action in each of many states. 60 % of the actions are good."""

    episodes: int = 2000

    @cached_load
    def load(self, seed):
        return Dataset(demonstrated(drawn_states(recording_seed(seed), self.episodes)[1], seed, GOOD))


def drawn_actions(policy: Policy, click: Tensor, seed: int, n: int = N) -> Tensor:
    """Actions that a policy draws in each state, (B, n, 4)."""
    key = keys(seed, range(len(click)))
    obs, noise = {CLICK: click[:, None]}, sample_noise(policy, key, torch.zeros_like(key), n)
    with torch.no_grad():
        return sample_plans(policy, obs, noise, n)[:, :, 0]


def ranked(policy: Policy, seed: int, n_states: int, flipped: float) -> Dataset:
    """All pairs of 8 actions of a policy in each state, as a judge compares them. Some answers are wrong."""
    _, click = drawn_states(recording_seed(seed), n_states, RANKED)
    action, (first, second) = drawn_actions(policy, click, seed), np.triu_indices(N, 1)
    value, rng = quality(click[:, None], action).numpy(), np.random.default_rng([seed, 2])
    better = (value[:, first] > value[:, second]) != (rng.random((n_states, len(first))) < flipped)
    return Dataset([Episode({CLICK: click[s].expand(2, -1).numpy(), "action": action[s, [i, j]].numpy(),
                             SEGMENT: np.array([[0], [1]]), PREFERENCE: np.array([[2 * b], [2 - 2 * b]])})
                    for s in range(n_states) for i, j, b in zip(first, second, better[s].astype(int), strict=True)])


@dataclass(frozen=True)
class Choice:
    """How an action is chosen: one of a policy, or the best of 8 of the clone.

    Args:
        by: "clone", "tuned" and "corrected" draw one. The last is a clone of 200 further good demonstrations too.
        lr: Learning rate of what learns from the judge.
        flipped: Fraction of the answers of the judge that are wrong.
    """

    by: Literal["clone", "tuned", "corrected", "implicit", "ranking", "truth", "random"]
    lr: float = 3e-5
    flipped: float = 0.05
    updates: int = 2000
    judged_updates: int = 1000
    n_states: int = 200

    def reward(self, clone: Policy, seed: int):
        """What is learned from the judge."""
        pairs, fast = ranked(clone, seed, self.n_states, self.flipped), OptimizerConfig(lr=self.lr)
        if self.by == "ranking":
            learner = PreferenceLearning(self.judged_updates, 128, PreferenceReward((128, 128)), reward_optimizer=fast)
            return fit_method(Method(replace(CLONE, head=Regression()), learner=learner), pairs, seed).modules["reward"]
        learner = DenoisingPreference(self.judged_updates, 128, optimizer=fast)
        return fit_method(Method(CLONE, learner=learner), pairs, seed, policy=clone).modules["reward"]


@torch.no_grad()
def measured(option: Choice, clone: Policy, reward, seed: int, episodes: int, starts: int) -> dict[str, Tensor]:
    """The quality and the success of one action in each state."""
    env, click = drawn_states(starts, episodes)
    action = drawn_actions(reward.tuned if option.by == "tuned" else clone, click, starts,
                           1 if option.by in ("clone", "tuned", "corrected") else N)
    value, rows = quality(click[:, None], action), torch.arange(episodes)
    random = torch.from_numpy(np.random.default_rng([seed, 3]).random(value.shape))
    score = (reward.score_plans({CLICK: click[:, None]}, action.unsqueeze(2)) if option.by in ("implicit", "ranking")
             else value if option.by == "truth" else random)
    best = score.argmax(1)
    values = {QUALITY: value[rows, best], "success": env.step(action[rows, best]).info["success"].float()}
    gap = values[QUALITY].mean() - value[rows, random.argmax(1)].mean()
    return {**values, GAP: gap[None]} if option.by == "truth" else values


def judged(experiment, option: Choice, data: Dataset, seed: int, episodes: int, starts: int):
    """Trains a clone and what chooses, and measures one action in each state."""
    method = Method(CLONE, learner=BehaviorCloning(option.updates, 128, OptimizerConfig(lr=2e-3)))
    if option.by == "corrected":
        _, click = drawn_states(recording_seed(seed), option.n_states, CORRECTED)
        clone = fit_method(method, Dataset([*data, *demonstrated(click, seed, 1.0)]), seed).policy
    else:
        clone = train_once(experiment, method, data, seed).policy
    reward = option.reward(clone, seed) if option.by in ("tuned", "implicit", "ranking") else None
    values = measured(option, clone, reward, seed, episodes, starts)
    least = quality(*(torch.from_numpy(np.concatenate([e.steps[k] for e in data])) for k in (CLICK, "action"))
                    ).quantile(0.1)
    return {name: x.tolist() for name, x in {**values, ANOMALY: (values[QUALITY] < least).float()}.items()}


TABLE = Experiment(
    MixedQuality(), env=ENV, env_options=OPTIONS, measure=judged, first_seed=3000, episodes=400,
    levels={"one of the clone": 0.3}, arms={
    "one of the clone": Choice("clone"),
    TUNED: Choice("tuned", 1e-5),
    IMPLICIT: Choice("implicit", 3e-5),
    "best by ranking net": Choice("ranking", 3e-3),
    TRUTH: Choice("truth"),
    "any of 8": Choice("random"),
    "one of a clone of 200 more": Choice("corrected"),
    "win and loss swapped at random": Choice("implicit", 3e-5, flipped=0.5)})
