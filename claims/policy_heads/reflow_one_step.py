"""Row 028: is one step of a flow enough after it was trained again on its own pairs of noise and action?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from claims.worlds.fork import TEACHER, SampledMethod, after_teacher, chunk_method, measure_sides, rollout_starts
from understudy.checkpoint import FromStage
from understudy.claims.base import (
    SCORE,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    Experiment,
    ExpertDemonstrations,
    GreaterThan,
    Measure,
    NegativeControl,
)
from understudy.claims.measures import train_policy
from understudy.data.episode import Dataset
from understudy.heads.flow import Flow
from understudy.learn.distillation import Reflow, ReflowLearner
from understudy.learn.optimizer import OptimizerConfig
from understudy.policy import Policy

HORIZON = 4
FIRST, AGAIN = 1500, 1500  # updates of the first flow, and of the flow that is trained on its pairs
N_STEPS, TEACHER_STEPS = 16, 10  # of the baseline, and for the pairs
N_WINDOWS, N_POINTS = 256, 32  # for the bend of trajectories
FIRST_FLOW = chunk_method(Flow(), FIRST, HORIZON)


@dataclass(frozen=True)
class UnpairedReflow(Reflow):
    """Reflow on the actions of the teacher, each with a noise that did not make it."""

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> UnpairedReflowLearner:
        return UnpairedReflowLearner(self, policy, seed, steps)


class UnpairedReflowLearner(ReflowLearner):
    def distillation_loss(self, batch, rng):
        context, given = self.encode_obs(batch, rng)
        made_of, paired = (torch.randn(len(batch), *self.policy.noise_shape, generator=rng, device=self.device)
                           for _ in range(2))
        with torch.no_grad():
            action = self.source.sample(self.teacher.net, given, made_of)
        return self.head.pair_loss(self.policy.net, context, action, paired, rng)


def success_and_bend(
    experiment, option: SampledMethod, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method and rolls it out.

    Returns:
        "success" and "entropy" as in `few_steps.measure_sides`, and one "log bend" of the trajectories.
    """
    trained = train_policy(experiment, option.method, data, seed)
    ran = rollout_starts(trained.with_head(option.head), option.method.executor, experiment.env, episodes, starts)
    return {**measure_sides(ran), "log bend": [log_bend(trained, data, seed)]}


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


def reflow_arm(name: str, n_steps: int, learner: type[Reflow] = Reflow) -> Arm:
    """A flow that is trained again on the pairs of the first one."""
    again = learner(FromStage(TEACHER), teacher_steps=TEACHER_STEPS, steps=AGAIN, batch_size=128,
                    optimizer=OptimizerConfig(lr=3e-3))
    return Arm(name, (SampledMethod(after_teacher(FIRST_FLOW, Flow(), again), Flow(n_steps)),))


def flow_arm(name: str, n_steps: int) -> Arm:
    """The first flow."""
    return Arm(name, (SampledMethod(FIRST_FLOW, Flow(n_steps)),))


def without_pairs(experiment: Experiment) -> Experiment:
    return experiment.replace_arms(reflow_arm("reflow, 1 step", 1, UnpairedReflow))


FORK = Experiment(
    ExpertDemonstrations("fork", 100),
    "fork",
    (
        reflow_arm("reflow, 1 step", 1),
        flow_arm("flow, 1 step", 1),
        flow_arm("flow, 16 steps", N_STEPS),
        reflow_arm("reflow, 16 steps", N_STEPS),
    ),
    success_and_bend,
    seeds=(400, 401, 402, 403, 404),
    episodes=500,
    measures=(("entropy", SCORE), ("log bend", Measure("real", "log ratio"))),
    starts_seed=400,
    sanity=(("flow, 16 steps", "success", 0.7),),
)
OVER_ONE_STEP = GreaterThan("success", "reflow, 1 step", "flow, 1 step", 0.2)
NEAR_MANY_STEPS = GreaterThan("success", "reflow, 1 step", "flow, 16 steps", -0.1)
STRAIGHTER = GreaterThan("log bend", "flow, 1 step", "reflow, 1 step", math.log(2))

CLAIM = Claim(
    name="reflow-one-step",
    rows=("028",),
    parts=(ClaimPart("fork", FORK, AllOf((OVER_ONE_STEP, NEAR_MANY_STEPS, STRAIGHTER))),),
    negative_control=NegativeControl(without_pairs, "fork", removes=(OVER_ONE_STEP, STRAIGHTER)),
)
