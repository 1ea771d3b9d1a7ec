"""Row 249: are outputs that are bound to stored examples better than those of a plain network?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from claims.worlds.one_goal_rooms import STATE, one_goal_demonstrations, one_goal_rollouts
from understudy.claims.base import (
    SCORE,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.base import Head
from understudy.heads.likelihood.regression import Regression
from understudy.heads.memory.mcnn import MCNN
from understudy.heads.memory.neighbors import Neighbors
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig


@dataclass(frozen=True)
class OneGoalDemonstrations(DemonstrationSource):
    """Episodes of the expert from anywhere to one goal."""

    episodes: int

    def load(self, seed):
        return one_goal_demonstrations(self.episodes, seed)


@dataclass(frozen=True)
class ShuffledMCNN(MCNN):
    """Each memory has the action of another."""

    def fit(self, net, pairs):
        super().fit(net, pairs)
        net.values = net.values[torch.randperm(len(net.values), generator=torch.Generator().manual_seed(0))]


def success_and_memory_weight(
    experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method and rolls it out.

    Returns:
        "success", 0 or 1 per start. "memory weight", one per run: the mean weight of the nearest memory in the plans of
        the first 500 steps, 0 for other heads.
    """
    policy = fit_method(method, data, seed).policy
    rollouts, head, weight = one_goal_rollouts(policy, method.executor, episodes, starts), policy.config.head, 0.0
    if isinstance(head, MCNN):
        windows = policy.windows(rollouts)
        batch = windows.gather(np.arange(min(500, len(windows))))
        with torch.no_grad():
            weight = float(head.memory_weight(policy.net, policy.context(batch.obs))[1].mean())
    return {"success": [float(e.metadata["success"]) for e in rollouts], "memory weight": [weight]}


def head_arm(name: str, head: Head) -> Arm:
    """The same network, updates and learning rates for every head."""
    policy = PolicyConfig(head, trunk=FeedForward((64, 64)), encoder=ConcatEncoder(), window=Window(), inputs=(STATE,))
    steps = 1 if isinstance(head, Neighbors) else 500  # neighbors are not trained
    return Arm(name, tuple(
        Method(policy, RecedingHorizon(), BehaviorCloning(steps, 64, OptimizerConfig(lr=lr))) for lr in (1e-3, 3e-3)))


def with_shuffled_memories(experiment: Experiment) -> Experiment:
    return experiment.replace_arms(head_arm("memories", ShuffledMCNN(decay=DECAY)))


DECAY = 3.0
ROOMS = Experiment(
    OneGoalDemonstrations(20),
    "four_rooms",
    (
        head_arm("network", Regression()),
        head_arm("bounded network", MCNN(decay=1e6)),
        head_arm("memories", MCNN(decay=DECAY)),
        head_arm("nearest", Neighbors(1)),
    ),
    success_and_memory_weight,
    seeds=tuple(range(600, 630)),
    looks=((10, 0.01), (20, 0.015), (30, 0.025)),
    measures=(("memory weight", SCORE),),
    starts_seed=600,
    sanity=(("network", "success", 0.3), ("bounded network", "success", 0.3), ("nearest", "success", 0.3)),
)
FIRST_SEEDS = replace(ROOMS, seeds=ROOMS.seeds[:10], looks=())  # the same cells

CLAIM = Claim(
    name="mcnn-small-data",
    rows=("249",),
    parts=(
        ClaimPart("rooms", ROOMS, AllOf((GreaterThan("success", "memories", "network"),
                                         GreaterThan("success", "memories", "bounded network")))),
        ClaimPart("over nearest", FIRST_SEEDS, GreaterThan("success", "memories", "nearest"), is_decisive=False),
    ),
    negative_control=NegativeControl(
        with_shuffled_memories, "rooms", removes=(GreaterThan("success", "memories", "network"),)
    ),
)
