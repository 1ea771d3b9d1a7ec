"""Rewards by optimal transport: how little it costs to move an episode's steps onto those of a demonstration."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from ...core import Above, AtLeast, Feature, Unsupported, part
from ...data.episode import Dataset, Episode, LabeledEpisodes
from ...data.mixture import expert_episodes
from .reward_models import RewardModel, RewardModelConfig, RewardSpec

COLUMN = "next.matching_reward"


class EpisodeRewardConfig(RewardModelConfig):
    """Base class of configs of an `EpisodeReward`."""

    def check(self, inputs, features):
        if other := [name for name in inputs if features[name].kind != "vector"]:
            raise Unsupported(f"distances are between numbers, and {other[0]!r} is of kind {features[other[0]].kind!r}",
                              where=type(self).__name__, hint="let the policy read other columns (policy.inputs)")


@part
class OptimalTransportReward(EpisodeRewardConfig):
    """Reward: minus the cost of a step in the optimal transport of an episode onto a demonstration (ROT).

    If there are several demonstrations, the one that gives an episode the highest return counts. Distances are
    Euclidean, in coded units. They are divided by the mean distance between two steps of demonstrations, and multiplied
    by `scale`: an episode whose steps lie as far from a demonstration as this mean has the return -`scale`. Episodes
    and demonstrations may have different lengths: each step has an equal part of the mass.

    Args:
        plan: "uniform" spreads each step over all steps of the demonstration, as a control.
        epsilon: Weight of the entropy of the plan, relative to the mean cost of the episode.
        inputs: "next" compares the observations that steps lead to, and "action" observations and actions.

    References:
        Haldar et al. (2022), Watch and Match: Supercharging Imitation with Regularized Optimal Transport,
        arXiv:2206.15469.
    """

    plan: Literal["sinkhorn", "uniform"] = "sinkhorn"
    epsilon: Annotated[float, Above(0)] = 0.01
    n_iterations: Annotated[int, AtLeast(1)] = 100
    scale: Annotated[float, Above(0)] = 10.0
    inputs: Literal["next", "action"] = "next"

    def build(self, policy, data):
        return _OptimalTransport.of(self, policy, data)


@part
class PWILReward(EpisodeRewardConfig):
    """Reward that falls exponentially with the cost of a step in a greedy transport onto demonstrations (PWIL).

    It is ``scale * exp(-rate * n * c / sqrt(d))`` for a step that costs c.

    Each step moves 1 / n of the mass, in order and each part to the nearest step of a demonstration that has mass
    left. n is the number of steps of the longest demonstration, and d the number of components of a step. The
    demonstrations are in the replay buffer too, with their own rewards.

    Args:
        inputs: "next" compares the observations that steps lead to, and "action" observations and actions.

    References:
        Dadashi et al. (2021), Primal Wasserstein Imitation Learning, arXiv:2006.04678.
    """

    scale: Annotated[float, Above(0)] = 5.0
    rate: Annotated[float, Above(0)] = 5.0
    inputs: Literal["next", "action"] = "action"
    compares = False

    def build(self, policy, data):
        return _GreedyTransport.of(self, policy, data)


class EpisodeReward(RewardModel):
    """Reward model of whole episodes, computed from demonstrations when episodes are collected."""

    annotations = (COLUMN,)
    points: Tensor
    lengths: Tensor

    def __init__(self, about, features, codec=None):
        super().__init__(about, features, codec)
        self.config = about.config
        self.register_buffer("points", torch.zeros(0, 0))  # steps of all demonstrations, (N, D)
        self.register_buffer("lengths", torch.zeros(0, dtype=torch.int64))

    @classmethod
    def of(cls, config: RewardModelConfig, policy, data: Dataset):
        """Builds the reward model with the demonstrations of a data set."""
        config.check(policy.inputs, policy.features)
        model = cls(RewardSpec.of(config, policy), policy.features, policy.codec).to(policy.device)
        demonstrations = [model.read(data[i]) for i in expert_episodes(data)]
        model.points = torch.cat(demonstrations)
        model.lengths = torch.tensor([len(d) for d in demonstrations], device=model.points.device)
        return model

    @abstractmethod
    def rewards(self, steps: Tensor) -> Tensor:
        """Returns the reward of each step of an episode, (T,), from the numbers that are compared, (T, D)."""

    @torch.no_grad()
    def read(self, episode: Episode) -> Tensor:
        """Returns the numbers of each step of an episode that are compared, (T, D)."""
        rows = np.arange(len(episode)) + (self.config.inputs == "next")
        obs = {name: torch.as_tensor(np.array(column[np.minimum(rows, len(column) - 1)])).float()[:, None]
               for name in self.inputs for column in [np.asarray(episode.steps[name])]}
        action = torch.as_tensor(np.array(episode.steps[self.about.target][:len(episode)]))[:, None]
        return self._coded(*({k: v.to(self.points.device) for k, v in obs.items()}, action.to(self.points.device)))

    def _coded(self, obs, plan: Tensor) -> Tensor:
        coded = self.codec.encode_obs({k: v[:, -1:] for k, v in obs.items()})
        parts = [coded[name].flatten(1) for name in self.inputs]
        return torch.cat([*parts, *([self.codec.encode(plan, obs)[:, 0]] if self.config.inputs == "action" else [])], 1)

    def annotate(self, episodes):
        rewards = [self.rewards(self.read(episode)).cpu().numpy() for episode in episodes]
        labeled = LabeledEpisodes(episodes, {COLUMN: Feature("float32", ())}, lambda i: {COLUMN: rewards[i]})
        return Dataset(labeled, episodes.metadata)

    def reward(self, batch, policy):
        return batch.extra[COLUMN].reshape(batch.extra.get("lookahead_mask", batch.mask).shape)

    def forward(self, obs, plan):
        if self.config.inputs == "next":
            raise Unsupported("the reward compares what steps lead to, which a plan does not tell",
                              where=type(self.config).__name__, hint='use inputs="action"')
        return self.score(self._coded({k: obs[k] for k in self.inputs}, plan))

    def score(self, steps: Tensor) -> Tensor:
        """Returns how near steps, (T, D), are to those of demonstrations, (T,). Larger is nearer."""
        return -torch.cdist(steps, self.points).amin(1)


class _OptimalTransport(EpisodeReward):
    @torch.no_grad()
    def rewards(self, steps):
        unit = torch.cdist(self.points, self.points).mean().clamp(min=1e-6)
        candidates = []
        for demonstration in self.points.split(self.lengths.tolist()):
            cost = torch.cdist(steps, demonstration)
            if self.config.plan == "uniform":
                plan = torch.full_like(cost, 1 / cost.numel())
            else:
                plan = transport_plan(cost, self.config.epsilon * float(cost.mean()), self.config.n_iterations)
            candidates.append(-self.config.scale / unit * (plan * cost).sum(1))
        return max(candidates, key=lambda rewards: float(rewards.sum()))


class _GreedyTransport(EpisodeReward):
    @torch.no_grad()
    def rewards(self, steps):
        n = int(self.lengths.max())
        cost = n * greedy_costs(torch.cdist(steps, self.points), 1 / n) / self.points.shape[1]**0.5
        return self.config.scale * torch.exp(-self.config.rate * cost)


def transport_plan(cost: Tensor, epsilon: float, n_iterations: int) -> Tensor:
    """Computes the transport plan of least cost minus `epsilon` times its entropy, with equal mass in rows and columns.

    Sinkhorn's algorithm in the log domain. After the last iteration the columns have exactly equal mass.

    Args:
        cost: Cost of each pair, (T, U).

    Returns:
        Mass of each pair, (T, U), 1 in all.

    References:
        Cuturi (2013), Sinkhorn Distances: Lightspeed Computation of Optimal Transport, arXiv:1306.0895.
    """
    score = -cost.double() / max(epsilon, 1e-12)
    rows, columns = (torch.zeros(n, dtype=torch.float64, device=cost.device) for n in cost.shape)
    for _ in range(n_iterations):
        rows = -(score + columns).logsumexp(1) - np.log(len(rows))
        columns = -(score + rows[:, None]).logsumexp(0) - np.log(len(columns))
    return (score + rows[:, None] + columns).exp().to(cost.dtype)


def greedy_costs(cost: Tensor, mass: float) -> Tensor:
    """Computes the cost of each row if it moves its mass, in order, to the cheapest columns with mass left, (T,).

    All columns have equal mass, 1 together. Rows cost infinitely much once no mass is left. `cost` is (T, U).
    """
    pairs, room = cost.double().cpu().numpy(), np.full(cost.shape[1], 1 / cost.shape[1])
    costs = np.zeros(len(pairs))
    for row, distances in enumerate(pairs):
        remaining = mass
        for column in np.argsort(distances, kind="stable"):
            moved = min(room[column], remaining)
            costs[row] += moved * distances[column]
            room[column] -= moved
            remaining -= moved
            if remaining <= 1e-9 * mass:
                break
        else:
            costs[row] = np.inf
    return torch.as_tensor(costs, dtype=cost.dtype, device=cost.device)
