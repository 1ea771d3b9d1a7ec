"""Row 262: is search among demonstrations as good as a trained policy, and do other demonstrations change the task?"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from understudy.claims.base import (
    RATE,
    AboveBound,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.claims.measures import ROWS, train_policy
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.envs import make
from understudy.envs.toys.fork import ForkExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.base import Executor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.following import FollowDemonstration
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.regression import Regression
from understudy.heads.memory.neighbors import Neighbors
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

GUST, N_DEMONSTRATIONS = 0.3, 20
RIGHT, LEFT = -1, 1  # sides of the pillar


@dataclass(frozen=True)
class RightWayEpisodes(DemonstrationSource):
    """Successful episodes of the expert that pass the pillar on the right, in gusts."""

    episodes: int

    def load(self, seed):
        return one_sided_demonstrations(seed, self.episodes, RIGHT)


def one_sided_demonstrations(seed: int, episodes: int, side: int) -> Dataset:
    """Successful episodes of the expert. Both sides are independent draws."""
    env = make("fork", rows=episodes, gust=GUST)
    rollouts = rollout(ForkExpert(side), env, episodes, recording_seed(seed), first=100_000 * (side == LEFT))
    return rollouts.filter(lambda e: e.metadata["success"])


@dataclass(frozen=True)
class DeployedMethod:
    """A method, and the demonstrations with which it acts.

    Args:
        method: The method, which learns from the demonstrations of the experiment.
        changed: It acts with demonstrations that pass on the other side. Everything else stays: the statistics too.
    """

    method: Method
    changed: bool = False


def success_and_way(experiment, option: DeployedMethod, data: Dataset, seed: int, episodes: int, starts: int
                    ) -> dict[str, list[float]]:
    """Rolls out a method.

    Returns:
        "success" and "left", 0 or 1 per start: whether the goal was reached, and whether it was reached by the left.
    """
    method, policy = option.method, train_policy(experiment, option.method, data, seed)
    if option.changed:
        policy = copy.deepcopy(policy)
        policy.fit_statistics(one_sided_demonstrations(seed, N_DEMONSTRATIONS, LEFT), refit_codec=False)
    env = make("fork", rows=ROWS, **dict(experiment.env_options))
    rollouts = rollout(PolicyActor(FixedBatch(policy, ROWS), method.executor), env, episodes, seed=starts)
    success = [float(e.metadata["success"]) for e in rollouts]
    by_left = [float(e.steps["observation.state"][:, 1].sum() > 0) for e in rollouts]
    return {"success": success, "left": [s * w for s, w in zip(success, by_left, strict=True)]}


@dataclass(frozen=True)
class ExchangedActions(Neighbors):
    """Each remembered situation has the actions of another."""

    def fit(self, net, pairs):
        super().fit(net, pairs)
        order = torch.randperm(len(net.values), generator=torch.Generator().manual_seed(0))
        net.values, net.known = net.values[order], net.known[order]


def retrieval_method(head: Neighbors, executor: Executor) -> Method:
    """Nothing is trained: the demonstrations are the policy."""
    policy = PolicyConfig(head, encoder=ConcatEncoder(), window=Window(1, horizon=2))
    return Method(policy, executor, BehaviorCloning(steps=1))


def regression_method(lr: float) -> Method:
    policy = PolicyConfig(Regression(), trunk=FeedForward((64, 64)), encoder=ConcatEncoder(), window=Window())
    return Method(policy, RecedingHorizon(), BehaviorCloning(1000, 64, OptimizerConfig(lr=lr)))


def make_search_arms(memory: Neighbors) -> tuple[Arm, ...]:
    methods = tuple(retrieval_method(memory, FollowDemonstration(ratio=ratio)) for ratio in (2.0, 4.0))
    return (Arm("search", tuple(DeployedMethod(m) for m in methods)),
            Arm("changed", tuple(DeployedMethod(m, changed=True) for m in methods)))


def with_exchanged_actions(experiment: Experiment) -> Experiment:
    return experiment.replace_arms(*make_search_arms(ExchangedActions(1, weights="equal")))


FORK = Experiment(
    RightWayEpisodes(N_DEMONSTRATIONS),
    "fork",
    (
        *make_search_arms(Neighbors(1, weights="equal")),
        Arm("trained", tuple(DeployedMethod(regression_method(lr)) for lr in (1e-3, 3e-3))),
        Arm("to the end", tuple(
            DeployedMethod(retrieval_method(Neighbors(1, weights="equal"), FollowDemonstration(n, ratio=None)))
            for n in (64, 128))),
        Arm("every step", tuple(
            DeployedMethod(retrieval_method(Neighbors(k, weights="equal"), RecedingHorizon())) for k in (1, 3))),
    ),
    success_and_way,
    seeds=tuple(range(560, 570)),
    env_options=(("gust", GUST),),
    episodes=500,
    measures=(("left", RATE),),
    starts_seed=560,
    sanity=(("trained", "success", 0.8),),
)
COMPARABLE = GreaterThan("success", "search", "trained", -0.1)
ADAPTS = AboveBound("left", "changed", 0.8)
SEARCHES_AGAIN = GreaterThan("success", "search", "to the end")

CLAIM = Claim(
    name="search-demonstrations",
    rows=("262",),
    parts=(
        ClaimPart("fork", FORK, AllOf((COMPARABLE, ADAPTS, SEARCHES_AGAIN))),
        ClaimPart("search at every step", FORK, GreaterThan("success", "search", "every step"), is_decisive=False),
    ),
    negative_control=NegativeControl(with_exchanged_actions, "fork", removes=(COMPARABLE, ADAPTS, SEARCHES_AGAIN)),
)
