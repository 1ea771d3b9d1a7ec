"""A flow policy that stays as it is, what improves it by practice, and a fork in which only one side counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from evidence.experiment import TRUSTED, DemonstrationSource
from evidence.measures import ROWS, flags, train_once
from evidence.worlds.curation import cached_load
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs import make
from understudy.envs.base import Env
from understudy.envs.toys.fork import PILLAR, Fork
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.wrappers import NoiseSteeringWrapper
from understudy.heads.denoising.flow import Flow
from understudy.improve.practice import BASE, Practice, steered_episodes
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import FitResult, fit_method
from understudy.learn.method import Method, Stage, build_actor
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig

N_ACTION_STEPS = 4  # executed of each chunk
INSIDE = "share of chunks near a demonstrated one"


class LeftCounts(Fork):
    """A fork in which a success counts only if the pillar was passed on the left. On the right the episode ends."""

    def initial_state(self, key):
        return {**super().initial_state(key), "side": np.zeros(len(key))}

    def advance(self, action):
        _, success, failure = super().advance(action)
        at = self.state["at"]
        self.state["side"] = np.where(at[:, 0] < PILLAR[0], np.sign(at[:, 1]), self.state["side"])
        counts = success & (self.state["side"] > 0)
        return counts.astype(np.float32) - failure, counts, failure | (success & ~counts)


@dataclass(frozen=True)
class BothSides(DemonstrationSource):
    """Episodes of the expert of the fork, which draws the side, with the successes of `LeftCounts`."""

    episodes: int
    env: str = f"{LeftCounts.__module__}:LeftCounts"

    @cached_load
    def load(self, seed):
        env = LeftCounts(ROWS)
        return rollout(env.expert(), env, self.episodes, recording_seed(seed))


def flow_method(updates: int) -> Method:
    """The policy that stays as it is: flow matching with chunks of 8 actions, of which 4 are executed."""
    learner = BehaviorCloning(updates, 128, OptimizerConfig(lr=1e-3))
    return Method(PolicyConfig(Flow(n_steps=4), MLP(64, 1), window=Window(1, 8)), RecedingHorizon(N_ACTION_STEPS),
                  learner)


@dataclass(frozen=True)
class Practised:
    """How the policy is improved.

    Args:
        n_updates: After each round. None for ten passes over its episodes.
        first: Updates of the policy before.
    """

    n_rounds: int
    n_episodes: int
    n_updates: int | None
    first: int = 3000

    def for_probe(self):
        sizes = [self.n_rounds, self.n_episodes, self.first, *([self.n_updates] if self.n_updates else [])]
        return replace(self, n_rounds=1, n_episodes=5, n_updates=5, first=50), sizes

    @property
    def base(self) -> Method:
        return flow_method(self.first)

    def method(self, practice: Practice, base: Method) -> Method:
        """The method that practises, given that of the policy, whose stages are complete."""
        return base

    def first_episodes(self, method: Method, policy: Policy, env: Env, data: Dataset, seed: int) -> Dataset:
        """The episodes with which a method that steers the noise of the policy starts."""
        return steered_episodes(method, policy, env, data, seed)


def practised(experiment, option: Practised, data: Dataset, seed: int, episodes: int, starts: int):
    """Trains the policy, lets it practise, and measures success, and how near executed chunks are to demonstrated ones.
    """
    result = train_practised(experiment, option, data, seed)
    env = make(experiment.env, rows=ROWS, trust=TRUSTED, **dict(experiment.env_options))
    actor = build_actor(result.method, result.modules, ROWS, features=env.features)
    rollouts = rollout(actor, env, episodes, seed=starts)
    index = DemonstratedChunks(data)
    return {**flags(rollouts), INSIDE: [index.share(e) for e in rollouts]}


def train_practised(experiment, option: Practised, data: Dataset, seed: int) -> FitResult:
    base = train_once(experiment, option.base, data, seed)
    env = make(experiment.env, rows=option.n_episodes, trust=TRUSTED, **dict(experiment.env_options))
    practice = Practice(data, option.n_rounds, option.n_episodes, option.n_updates)
    method = option.method(practice, replace(option.base, stages=(Stage(BASE.stage, option.base),)))
    if method.collection is None:
        return base
    if isinstance(method.wrapper, NoiseSteeringWrapper):
        data = option.first_episodes(method, base.policy, env, data, seed)
    return fit_method(method, data, seed, stages={BASE.stage: base}, env=env)


class DemonstratedChunks:
    """Which executed chunks are as near to a demonstrated one as those of 95 % of the demonstrations to another's.

    A chunk is the observed state and the actions that follow, in standard deviations of the demonstrations.
    """

    def __init__(self, data: Dataset):
        chunks = [self._chunks(e) for e in data]
        self.scale = np.maximum(np.concatenate(chunks).std(0), 1e-6)
        self.tree = cKDTree(np.concatenate(chunks) / self.scale)
        of = np.repeat(np.arange(len(chunks)), [len(c) for c in chunks])
        n = max(len(c) for c in chunks) + 1
        distances, neighbors = self.tree.query(self.tree.data, np.arange(1, n + 1))
        is_other = of[neighbors.clip(max=len(of) - 1)] != of[:, None]
        self.radius = float(np.quantile(np.where(is_other, distances, np.inf).min(1), 0.95))

    def share(self, episode: Episode) -> float:
        """The share of the executed chunks of an episode that are as near. 0 if it ended within the first."""
        chunks = self._chunks(episode)[::N_ACTION_STEPS] / self.scale
        return float(np.mean(self.tree.query(chunks)[0] <= self.radius)) if len(chunks) else 0.0

    def _chunks(self, episode: Episode) -> np.ndarray:
        state, action = (np.asarray(episode.steps[k][:len(episode)], float) for k in ("observation.state", "action"))
        starts = np.arange(max(len(action) - N_ACTION_STEPS + 1, 0))
        following = action[starts[:, None] + np.arange(N_ACTION_STEPS)]
        return np.concatenate([state[starts], following.reshape(len(starts), N_ACTION_STEPS * action.shape[1])], 1)
