"""Row 352: does a transformer that denoises a chunk beat one whose features a small network denoises?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from claims.worlds.fork import passes_left
from understudy.claims.base import (
    Arm,
    Claim,
    ClaimPart,
    EquivalentTo,
    Experiment,
    ExpertDemonstrations,
    GreaterThan,
    NegativeControl,
)
from understudy.claims.measures import closed_loop
from understudy.data.window import Window
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.base import Head
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.likelihood.bins import Bins
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.base import Trunk
from understudy.nets.encoders import TokenEncoder
from understudy.nets.in_context import InContextTransformer
from understudy.nets.mlp import MLP
from understudy.nets.small_denoiser import SmallDenoiser
from understudy.policy import PolicyConfig

HORIZON, WIDTH, UPDATES = 4, 32, 2000


@dataclass(frozen=True)
class SeparateSteps(InContextTransformer):
    """`InContextTransformer` whose action steps read the context and the time, but not each other."""

    def attention_mask(self, n_context, n_steps, has_time):
        mask, first = super().attention_mask(n_context, n_steps, has_time), n_context + has_time
        mask[first:, first:] = torch.eye(n_steps, dtype=torch.bool)
        return mask


def head_and_trunk_arm(name: str, head: Head, trunk: Trunk) -> Arm:
    """The same encoder, data, updates and executor. Arms differ in head and trunk, with as many parameters."""
    policy = PolicyConfig(head, trunk, TokenEncoder(WIDTH), window=Window(1, HORIZON))
    learner = BehaviorCloning(UPDATES, 64, OptimizerConfig(lr=2e-3))
    return Arm(name, (Method(policy, RecedingHorizon(HORIZON), learner),))


def with_separate_steps(experiment: Experiment) -> Experiment:
    arm = head_and_trunk_arm("in context", DENOISE, SeparateSteps(WIDTH, 2))
    return replace(experiment.replace_arms(arm), sanity=())


DENOISE = Diffusion(prediction="sample")
BACKBONE = InContextTransformer(WIDTH, 1)
IN_CONTEXT = head_and_trunk_arm("in context", DENOISE, InContextTransformer(WIDTH, 2))
EACH_STEP = head_and_trunk_arm("head of each step", DENOISE, SmallDenoiser(BACKBONE, MLP(42, 3), WIDTH))

FORK = Experiment(
    ExpertDemonstrations("fork", 100),
    "fork",
    (IN_CONTEXT, EACH_STEP),
    closed_loop,
    seeds=tuple(range(1000, 1010)),
    episodes=200,
    starts_seed=1000,
    looks=((5, 0.02), (10, 0.03)),
    sanity=(("in context", "success", 0.6),),
)
OTHERS = replace(FORK, seeds=FORK.seeds[:5], looks=(), arms=(  # the cells of the first arm are the same
    IN_CONTEXT,
    head_and_trunk_arm("head of the chunk", DENOISE, SmallDenoiser(BACKBONE, MLP(44, 2), WIDTH // 2, each_step=False)),
    head_and_trunk_arm("not causal", DENOISE, InContextTransformer(WIDTH, 2, causal=False)),
    head_and_trunk_arm("bins", Bins(autoregressive=False), InContextTransformer(WIDTH, 2)),
    head_and_trunk_arm("regression", Regression(), InContextTransformer(WIDTH, 2)),
))
ONE_WAY = replace(FORK, source=replace(FORK.source, filter=passes_left), seeds=FORK.seeds[:5], looks=(),
                  sanity=(("head of each step", "success", 0.8),))
JOINT = GreaterThan("success", "in context", "head of each step", 0.1)

CLAIM = Claim(
    name="in-context-denoising",
    rows=("352",),
    parts=(
        ClaimPart("fork", FORK, JOINT, is_decisive=False),
        ClaimPart("head of the chunk", OTHERS, GreaterThan("success", "in context", "head of the chunk")),
        ClaimPart("not causal", OTHERS, GreaterThan("success", "not causal", "in context"), is_decisive=False),
        ClaimPart("bins", OTHERS, GreaterThan("success", "in context", "bins"), is_decisive=False),
        ClaimPart("regression", OTHERS, GreaterThan("success", "in context", "regression"), is_decisive=False),
        ClaimPart("one way", ONE_WAY, EquivalentTo("success", "in context", "head of each step", 0.1),
                  is_decisive=False),
    ),
    negative_control=NegativeControl(with_separate_steps, "fork", removes=(JOINT,)),
)
