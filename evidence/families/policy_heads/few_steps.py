"""Rows 028, 267 and 285: policies on the fork that need few evaluations of their network.

Each row keeps the seeds of its run, so there are three tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evidence.experiment import DemonstrationSource, Experiment, ExpertDemonstrations
from evidence.measures import train_policy
from evidence.worlds.curation import cached_load, successful_rollouts
from evidence.worlds.fork import (
    TEACHER,
    SampledMethod,
    after_teacher,
    chunk_method,
    measure_sides,
    rollout_starts,
    success_and_sides,
    train_sampled,
)
from understudy.checkpoint import FromStage
from understudy.data.episode import Dataset
from understudy.envs.toys.fork import ForkExpert
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.denoising.adaflow import AdaFlow
from understudy.heads.denoising.edm import EDM
from understudy.heads.denoising.flow import Flow
from understudy.heads.one_step.one_step import OneStepGenerator
from understudy.learn.algorithm import loss
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.generative.onedp import OneDP
from understudy.methods.generative.reflow_policy import ReflowPolicy
from understudy.policy import Policy

FAST, SLOW = OptimizerConfig(lr=3e-3), OptimizerConfig(lr=1e-3)
DEMONSTRATIONS = ExpertDemonstrations("fork", 100)

# -- 028: a flow that is trained again on its own pairs of noise and action ------------------------------------------

N_WINDOWS, N_POINTS = 256, 32  # for the bend of trajectories


@dataclass(frozen=True)
class UnpairedReflow(ReflowPolicy):
    """Reflow on the actions of the teacher, each with a noise that did not make it."""

    @loss("policy")
    def distillation_loss(self, nets, batch, rng):
        context, source_context = self.encode_obs(nets, batch, rng)
        made_of, paired = (torch.randn(len(batch), *nets.policy.noise_shape, generator=rng, device=batch.mask.device)
                           for _ in range(2))
        with torch.no_grad():
            action = self.source.sample(self.trained_teacher.net, source_context, made_of)
        return nets.policy.config.head.pair_loss(nets.policy.net, context, action, paired, rng)


def success_and_bend(
    experiment, option: SampledMethod, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method and rolls it out.

    Returns:
        "success" and "entropy" as in `measure_sides`, and one "log bend" of the trajectories.
    """
    trained = train_policy(experiment, option.method, data, seed)
    rollouts = rollout_starts(trained.with_head(option.head), option.method.executor, experiment.env, episodes, starts)
    return {**measure_sides(rollouts), "log bend": [log_bend(trained, data, seed)]}


@torch.no_grad()
def log_bend(policy: Policy, data: Dataset, seed: int) -> float:
    """Logarithm of the mean squared difference between the velocity and the mean velocity of its trajectory, in units
    of the mean squared length of the trajectories. It is minus infinity if all trajectories are straight.
    """
    batch = policy.windows(data).batch(N_WINDOWS, 0, seed)
    context = policy.context(batch.obs)
    start = torch.randn(len(batch), *policy.noise_shape, generator=torch.Generator().manual_seed(seed))
    x, velocities = start, []
    for i in range(N_POINTS):
        velocities.append(_velocity(policy, x, i / N_POINTS, context))
        x = x + velocities[-1] / N_POINTS
    length = (x - start).square().mean()
    return math.log(torch.stack([(v - (x - start)).square().mean() for v in velocities]).mean() / length)


def _velocity(policy: Policy, x: Tensor, t: float, context) -> Tensor:
    return policy.net(x, torch.full_like(x[..., :1], t), context)


FLOW = chunk_method(Flow(), 1500, 4)


def reflow(n_steps: int, learner: type[ReflowPolicy] = ReflowPolicy) -> SampledMethod:
    again = learner(FromStage(TEACHER), teacher_steps=10, steps=1500, batch_size=128, optimizer=FAST)
    return SampledMethod(after_teacher(FLOW, Flow(), again), Flow(n_steps))


REFLOW = Experiment(DEMONSTRATIONS, measure=success_and_bend, first_seed=400, levels={"flow, 16 steps": 0.7}, arms={
    "reflow, 1 step": reflow(1),
    "flow, 1 step": SampledMethod(FLOW, Flow(1)),
    "flow, 16 steps": SampledMethod(FLOW, Flow(16)),
    "reflow, 16 steps": reflow(16),
    "other pairs": reflow(1, UnpairedReflow)})

# -- 285: one step, distilled from a diffusion policy ----------------------------------------------------------------

ONE_STEP = OneStepGenerator(2.5, sigma_max=5.0)
TEN_STEPS = chunk_method(EDM(10, sigma_max=5.0), 1500, 4)


def onedp(n_score_updates: int) -> SampledMethod:
    learner = OneDP(FromStage(TEACHER), 800, 128, optimizer=SLOW, score_optimizer=FAST,
                    n_score_updates=n_score_updates)
    return SampledMethod(after_teacher(TEN_STEPS, ONE_STEP, learner), ONE_STEP)


# Without updates of the second network, its estimates are those of the teacher, and their difference is 0.
ONEDP = Experiment(DEMONSTRATIONS, measure=success_and_sides, first_seed=430,
                   levels={"teacher, 10 steps": 0.7, "teacher, 1 step": 0.1}, arms={
    "onedp": onedp(2),
    "teacher, 1 step": SampledMethod(TEN_STEPS, ONE_STEP),
    "teacher, 10 steps": SampledMethod(TEN_STEPS, EDM(10, sigma_max=5.0)),
    "teacher, 3 steps": SampledMethod(TEN_STEPS, EDM(3, sigma_max=5.0)),
    "frozen score": onedp(0)})

# -- 267: a flow that chooses its steps ------------------------------------------------------------------------------


@dataclass(frozen=True)
class ForkDemonstrations(DemonstrationSource):
    """Successful episodes of the fork's expert.

    Args:
        side: The side on which the pillar is passed: 1, -1, or 0 for both at even odds.
        noise: Standard deviation of the noise of the expert's actions, m/s.
    """

    episodes: int
    side: int = 0
    noise: float = 0.03

    @cached_load
    def load(self, seed):
        return successful_rollouts(ForkExpert(self.side, self.noise), "fork", self.episodes, seed)


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
        "success" and "entropy" as in `measure_sides`. Logarithms of the mean number of network evaluations of
        a plan in these rollouts, one each: "log evaluations" of all plans, "log evaluations, later" without the first
        plan of each rollout.
    """
    like = option.like if isinstance(option, EqualSteps) else option
    policy = train_sampled(experiment, like, data, seed)
    executor = like.method.executor
    assert isinstance(executor, RecedingHorizon)
    rollouts = rollout_starts(policy, executor, experiment.env, episodes, starts)
    count, later = mean_evaluations(policy, rollouts, executor.n_action_steps, seed)
    if isinstance(option, EqualSteps):
        count = later = math.ceil(count)
        rollouts = rollout_starts(policy.with_head(equal_steps(count)), executor, experiment.env, episodes, starts)
    return {**measure_sides(rollouts), "log evaluations": [math.log(count)],
            "log evaluations, later": [math.log(later)]}


@torch.no_grad()
def mean_evaluations(policy: Policy, rollouts: Dataset, n_action_steps: int, seed: int) -> tuple[float, float]:
    """Mean number of network evaluations of the plans of rollouts, and of all but the first plan of each."""
    states = [e.steps["observation.state"][: len(e) : n_action_steps] for e in rollouts]
    is_later = torch.cat([torch.arange(len(s)) for s in states]) > 0
    obs = {"observation.state": torch.from_numpy(np.concatenate(states)).unsqueeze(1)}
    noise = torch.randn(len(is_later), *policy.noise_shape, generator=torch.Generator().manual_seed(seed))
    head = policy.config.head
    assert isinstance(head, AdaFlow)
    steps: Tensor = head.count_steps(policy.net, policy.context(obs), noise)
    return float(steps.mean()), float(steps[is_later].mean())


def adaflow(head: AdaFlow, trained: AdaFlow | None = None) -> SampledMethod:
    return SampledMethod(chunk_method(trained or AdaFlow(), 3000, 4), head)


def equal_steps(n_steps: int) -> AdaFlow:
    return AdaFlow(n_steps, max_error=1e-9)


ADAPTIVE = adaflow(AdaFlow(20, max_error=0.2))
UNINFORMED = adaflow(UninformedAdaFlow(20, max_error=0.2), UninformedAdaFlow())
STEPS = Experiment(ForkDemonstrations(100), env="fork", measure=success_and_evaluations, first_seed=410,
                   levels={"20 steps": 0.7, "equal steps": 0.1}, arms={
    "adaptive": ADAPTIVE,
    "20 steps": adaflow(equal_steps(20)),
    "equal steps": EqualSteps(ADAPTIVE),
    "1 step": adaflow(equal_steps(1)),
    "uninformed": UNINFORMED,
    "uninformed, equal steps": EqualSteps(UNINFORMED)})
