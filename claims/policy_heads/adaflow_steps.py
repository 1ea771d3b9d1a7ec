"""Row 267: does a flow that chooses its step sizes need one step where actions are certain, and lose nothing elsewhere?
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from claims.worlds.curation import cached_load, successful_rollouts
from claims.worlds.fork import SampledMethod, chunk_method, measure_sides, rollout_starts, train_sampled
from understudy.claims.base import (
    SCORE,
    AllOf,
    Arm,
    BelowBound,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    Measure,
    NegativeControl,
)
from understudy.data.episode import Dataset
from understudy.envs.toys.fork import Expert
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.adaflow import AdaFlow
from understudy.policy import Policy

HORIZON, UPDATES = 4, 3000
MOST, MAX_ERROR = 20, 0.2  # steps of the finest sampler; bound of the error of a step


@dataclass(frozen=True)
class ForkDemonstrations(DemonstrationSource):
    """Successful episodes of the fork's expert.

    Args:
        episodes: Number of episodes.
        side: The side on which the pillar is passed: 1, -1, or 0 for both at even odds.
        noise: Standard deviation of the noise of the expert's actions, m/s.
    """

    episodes: int
    side: int = 0
    noise: float = 0.03

    @cached_load
    def load(self, seed):
        return successful_rollouts(Expert(self.side, self.noise), "fork", self.episodes, seed)


@dataclass(frozen=True)
class UninformedAdaFlow(AdaFlow):
    """The standard deviation is trained on the errors of other windows, so it does not depend on the observation."""

    def loss(self, net, context, action, mask, rng):
        noise = torch.randn(action.shape, generator=rng, device=action.device)
        t = torch.rand(action[:, :1, :1].shape, generator=rng, device=action.device).expand(*action.shape[:2], 1)
        velocity, log_std = self._velocity_log_std(net(self.interpolate(action, noise, t), t, context))
        error = (velocity - self.path.velocity(action, noise, t)).square().mean(-1)
        other = error.detach().roll(1, 0)
        return error + 0.5 * other * (-2 * log_std).exp() + log_std


@dataclass(frozen=True)
class EqualSteps:
    """The weights of a method with equal steps, as many as its own head needs on average, rounded up.

    Args:
        like: The method, and the head that chooses its steps.
    """

    like: SampledMethod


def success_and_evaluations(
    experiment, option: SampledMethod | EqualSteps, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method and rolls it out.

    Returns:
        "success" and "entropy" as in `few_steps.measure_sides`. Logarithms of the mean number of network evaluations of
        a plan in these rollouts, one each: "log evaluations" of all plans, "log evaluations, later" without the first
        plan of each rollout.
    """
    like = option.like if isinstance(option, EqualSteps) else option
    policy = train_sampled(experiment, like, data, seed)
    executor = like.method.executor
    assert isinstance(executor, RecedingHorizon)
    ran = rollout_starts(policy, executor, experiment.env, episodes, starts)
    count, later = mean_evaluations(policy, ran, executor.n_action_steps, seed)
    if isinstance(option, EqualSteps):
        count = later = math.ceil(count)
        ran = rollout_starts(policy.with_head(equal_steps(count)), executor, experiment.env, episodes, starts)
    return {**measure_sides(ran), "log evaluations": [math.log(count)], "log evaluations, later": [math.log(later)]}


@torch.no_grad()
def mean_evaluations(policy: Policy, ran: Dataset, n_action_steps: int, seed: int) -> tuple[float, float]:
    """Mean number of network evaluations of the plans of rollouts, and of all but the first plan of each."""
    seen = [e.steps["observation.state"][: len(e) : n_action_steps] for e in ran]
    is_later = torch.cat([torch.arange(len(s)) for s in seen]) > 0
    obs = {"observation.state": torch.from_numpy(np.concatenate(seen)).unsqueeze(1)}
    noise = torch.randn(len(is_later), *policy.noise_shape, generator=torch.Generator().manual_seed(seed))
    head = policy.config.head
    assert isinstance(head, AdaFlow)
    steps: Tensor = head.count_steps(policy.net, policy.context(obs), noise)
    return float(steps.mean()), float(steps[is_later].mean())


def equal_steps(n_steps: int) -> AdaFlow:
    return AdaFlow(n_steps, max_error=1e-9)


def method_with(head: AdaFlow, trained: AdaFlow | None = None) -> SampledMethod:
    return SampledMethod(chunk_method(trained or AdaFlow(), UPDATES, HORIZON), head)


def uninformed(experiment: Experiment) -> Experiment:
    other = method_with(UninformedAdaFlow(MOST, MAX_ERROR), UninformedAdaFlow())
    return experiment.replace_arms(Arm("adaptive", (other,)), Arm("equal steps", (EqualSteps(other),)))


ADAPTIVE = method_with(AdaFlow(MOST, MAX_ERROR))
EVALUATIONS = Measure("real", "log ratio")
FORK = Experiment(
    ForkDemonstrations(100),
    "fork",
    (
        Arm("adaptive", (ADAPTIVE,)),
        Arm("20 steps", (method_with(equal_steps(MOST)),)),
        Arm("equal steps", (EqualSteps(ADAPTIVE),)),
        Arm("1 step", (method_with(equal_steps(1)),)),
    ),
    success_and_evaluations,
    seeds=(410, 411, 412, 413, 414),
    episodes=500,
    measures=(("entropy", SCORE), ("log evaluations", EVALUATIONS), ("log evaluations, later", EVALUATIONS)),
    starts_seed=410,
    sanity=(("20 steps", "success", 0.7), ("equal steps", "success", 0.1)),
)
AS_SUCCESSFUL = GreaterThan("success", "adaptive", "20 steps", -0.1)
AS_DIVERSE = GreaterThan("entropy", "adaptive", "20 steps", -0.1)
OVER_EQUAL_STEPS = GreaterThan("success", "adaptive", "equal steps")
ONE_STEP_LATER = BelowBound("log evaluations, later", "adaptive", math.log(1.5))

CLAIM = Claim(
    name="adaflow-steps",
    rows=("267",),
    parts=(ClaimPart("fork", FORK, AllOf((AS_SUCCESSFUL, AS_DIVERSE, OVER_EQUAL_STEPS, ONE_STEP_LATER))),),
    negative_control=NegativeControl(uninformed, "fork", removes=(OVER_EQUAL_STEPS, ONE_STEP_LATER)),
)
