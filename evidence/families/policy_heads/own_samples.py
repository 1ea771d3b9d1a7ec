"""Rows 006 and 392: a flow policy on the fork is trained on what it samples itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from evidence.experiment import Experiment, ExpertDemonstrations
from evidence.measures import deployed_actor, train_stages
from evidence.worlds.fork import (
    N_REPEATS,
    ROWS,
    TEACHER,
    SampledMethod,
    after_teacher,
    chunk_method,
    measure_sides,
    rollout_starts,
    train_sampled,
)
from understudy.checkpoint import FromStage
from understudy.data.episode import Dataset
from understudy.envs import make
from understudy.evaluate.behavior.modes import rollout_repeated_starts
from understudy.execute.actor import PolicyActor
from understudy.execute.planners import FixedBatch
from understudy.execute.steering import ComposedPolicies
from understudy.heads.denoising.flow import Flow
from understudy.learn.algorithm import loss
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.generative.reflow_policy import ReflowPolicy
from understudy.methods.generative.sims import SIMS
from understudy.policy import Policy

FLOW = chunk_method(Flow(), 1500, 4)
HELD_OUT = 50_000  # is added to a training seed for demonstrations that no arm learns from
N_WINDOWS = 1024


@torch.no_grad()
def plans_of(policy: Policy, obs: Mapping[str, Tensor], seed: int) -> Tensor:
    """A plan in the units of the codec for each observation, (B, H, A)."""
    noise = torch.randn(len(next(iter(obs.values()))), *policy.noise_shape,
                        generator=torch.Generator().manual_seed(seed))
    return policy.config.head.sample(policy.net, policy.context(obs), noise)


# -- 006: where the second flow is trained, and how errors count -----------------------------------------------------


def success_and_miss(
    experiment, option: SampledMethod, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method and rolls it out.

    Returns:
        "success" and "entropy" as in `measure_sides`, and one "log miss": the logarithm of the mean squared difference
        between plans and those of the teacher in 50 steps, from the same noise, in held-out observations.
    """
    policy = train_sampled(experiment, option, data, seed)
    stages = train_stages(experiment, option.method, data, seed)
    teacher = (stages[TEACHER].policy if stages else policy).with_head(Flow(50))
    obs = policy.windows(experiment.source.load(HELD_OUT + seed)).batch(N_WINDOWS, 0, seed).obs
    miss = (plans_of(policy, obs, seed) - plans_of(teacher, obs, seed)).square().mean()
    rollouts = rollout_starts(policy, option.method.executor, experiment.env, episodes, starts)
    return {**measure_sides(rollouts), "log miss": [math.log(miss)]}


def reflow(time_distribution: Literal["uniform", "u_shaped"] = "uniform",
           norm: Literal["l2", "pseudo_huber"] = "l2") -> SampledMethod:
    learner = ReflowPolicy(FromStage(TEACHER), teacher_steps=10, steps=1500, batch_size=128, norm=norm,
                           optimizer=OptimizerConfig(lr=3e-3))
    return SampledMethod(after_teacher(FLOW, Flow(time_distribution=time_distribution), learner),
                         Flow(1, time_distribution=time_distribution))


REFLOW = Experiment(ExpertDemonstrations("fork", 100), measure=success_and_miss, first_seed=5600, n_seeds=10,
                    levels={"reflow": 0.4}, arms={
    "reflow": reflow(),
    "U-shaped times": reflow("u_shaped"),
    "pseudo-Huber norm": reflow(norm="pseudo_huber"),
    "both": reflow("u_shaped", "pseudo_huber"),
    "flow, 1 step": SampledMethod(FLOW, Flow(1))})

# -- 392: away from a copy that learns its own samples ---------------------------------------------------------------

FEW = ExpertDemonstrations("fork", 5)
COPY = OptimizerConfig(lr=3e-4)
COPY_STEPS = 400


@dataclass(frozen=True)
class CopyOfData(SIMS):
    """The copy learns further from the demonstrations, so that nothing of it is synthetic."""

    @loss("policy")
    def cloning_loss(self, nets, batch, rng):
        policy, context = nets.policy, self.encode_obs(nets, batch, rng)[0]
        action = policy.encode(batch.action, batch.obs)
        return policy.config.head.loss(policy.net, context, action, batch.mask, rng)


def success_and_distance(
    experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method and rolls it out.

    Returns:
        "success" and "entropy" as in `measure_sides`, and one "log distance": the logarithm of the energy distance
        between pairs of observation and plan and pairs of observation and demonstrated actions, of 100 held-out
        demonstrations.
    """
    actor = deployed_actor(experiment, method, data, seed, ROWS)
    assert isinstance(actor, PolicyActor) and isinstance(actor.planner, FixedBatch)
    rollouts = rollout_repeated_starts(actor, make(experiment.env, rows=ROWS), max(1, episodes // N_REPEATS),
                                       N_REPEATS, seed=starts)
    planner, held_out = actor.planner.planner, replace(experiment.source, episodes=100).load(HELD_OUT + seed)
    batch = planner.window.windows(held_out, planner.inputs, "action").batch(N_WINDOWS, 0, seed)
    keys = torch.arange(len(batch)) + N_WINDOWS * seed
    with torch.no_grad():
        plans = planner.plan(batch.obs, planner.noise(keys, torch.zeros_like(keys)))
    states = batch.obs["observation.state"].flatten(1)
    planned, demonstrated = (torch.cat([states, chunk.flatten(1)], 1) for chunk in (plans, batch.action))
    distance = energy_distance(planned, demonstrated)
    return {**measure_sides(rollouts), "log distance": [math.log(distance)]}


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Twice the mean distance of a row of `a` to a row of `b`, minus the mean distances inside `a` and inside `b`."""
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


def away(learner: type[SIMS]) -> Method:
    copy = learner(FromStage(TEACHER), COPY_STEPS, 128, optimizer=COPY)
    apart = ComposedPolicies(others=(FromStage(TEACHER),), weights=(-1.0, 2.0))
    return replace(after_teacher(FLOW, Flow(), copy), inference=(apart,))


SIMS_TABLE = Experiment(FEW, measure=success_and_distance, first_seed=5620, n_seeds=10, levels={"flow": 0.3}, arms={
    "flow": FLOW,
    "SIMS": away(SIMS),
    "flow, further updates": after_teacher(FLOW, Flow(), BehaviorCloning(COPY_STEPS, 128, COPY)),
    "copy of data": away(CopyOfData)})
