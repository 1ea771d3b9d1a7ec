"""Row 038: does a rolling buffer succeed as often as whole plans from noise, with fewer network evaluations?"""

from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any

import torch

from claims.worlds.peg import ENV, TOLERANCE, PegDemonstrations
from understudy.claims.base import Arm, Claim, ClaimPart, Experiment, GreaterThan, Measure, NegativeControl
from understudy.claims.measures import closed_loop, train_policy
from understudy.core import keys
from understudy.data.window import Window
from understudy.envs import make
from understudy.execute.actor import PolicyActor
from understudy.execute.base import Executor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.streaming import StreamingExecutor
from understudy.heads.base import RampTimes
from understudy.heads.denoising.diffusion import Diffusion
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

HORIZON, EXECUTED, PER_PLAN = 16, 4, 4
LEVELS = HORIZON // EXECUTED * PER_PLAN  # of an action from noise, in the buffer and in a whole plan
COUNTED_STEPS = 48  # of the episode in which network evaluations are counted


def success_and_evaluations(
    experiment, method: Method, data, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method, rolls it out, and counts its network evaluations.

    Returns:
        "success" of each start. "log evaluations" of the training run: the logarithm of the network evaluations per
        action, over an episode of `COUNTED_STEPS` steps and with its first plan.
    """
    success = closed_loop(experiment, method, data, seed, episodes, starts)["success"]
    return {"success": success, "log evaluations": [log(_evaluations(experiment, method, data, seed))]}


def _evaluations(experiment, method: Method, data, seed: int) -> float:
    policy, calls = train_policy(experiment, method, data, seed), []
    env: Any = make(experiment.env, rows=1, **dict(experiment.env_options))
    obs, key = env.reset(torch.tensor([0]), keys(seed, [0])), keys(seed, [0])
    actor = PolicyActor(policy, method.executor)
    handle = policy.net.register_forward_hook(lambda *_: calls.append(1))
    try:
        state = actor.start(obs, key)
        for _ in range(COUNTED_STEPS):
            _, state = actor.act(obs, state)
    finally:
        handle.remove()
        env.close()
    return len(calls) / COUNTED_STEPS


def diffusion_arm(name: str, head: Diffusion, executor: Executor) -> Arm:
    """The same network, window, updates and learning rate for every arm."""
    policy = PolicyConfig(head, trunk=MLP(width=64, depth=1), window=Window(n_obs_steps=2, horizon=HORIZON))
    learner = BehaviorCloning(steps=1000, batch_size=128, optimizer=OptimizerConfig(lr=3e-3))
    return Arm(name, (Method(policy, executor, learner),))


def without_ramp(experiment: Experiment) -> Experiment:
    """The streaming policy never sees a buffer in training."""
    head = replace(DIFFUSION, times=RampTimes(EXECUTED, shared_fraction=1.0))
    return experiment.replace_arms(diffusion_arm("streaming", head, StreamingExecutor(EXECUTED, PER_PLAN)))


DIFFUSION = Diffusion(n_steps=LEVELS, prediction="sample")
PEG = Experiment(
    PegDemonstrations(50),
    ENV,
    (
        diffusion_arm("whole plans", DIFFUSION, RecedingHorizon(EXECUTED)),
        diffusion_arm("streaming", replace(DIFFUSION, times=RampTimes(EXECUTED)),
                      StreamingExecutor(EXECUTED, PER_PLAN)),
    ),
    success_and_evaluations,
    env_options=(("tolerance", TOLERANCE), ("outlines", (2,))),
    seeds=tuple(range(600, 615)),
    looks=((5, 0.01), (10, 0.015), (15, 0.025)),
    episodes=200,
    measures=(("log evaluations", Measure("real", "log ratio")),),
    starts_seed=600,
    sanity=(("whole plans", "success", 0.4),),
)

CLAIM = Claim(
    name="streaming-diffusion",
    rows=("038",),
    parts=(
        ClaimPart("peg insertion", PEG, GreaterThan("success", "streaming", "whole plans", -0.1)),
        ClaimPart("evaluations", PEG, GreaterThan("log evaluations", "whole plans", "streaming", log(2.0)),
                  is_decisive=False),
    ),
    negative_control=NegativeControl(without_ramp, "peg insertion"),
)
