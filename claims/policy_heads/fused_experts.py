"""Row 307: can experts that the noise level chooses be fused beforehand, and act as well as a larger dense network?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from understudy.claims.base import (
    AllOf,
    Arm,
    BelowBound,
    Claim,
    ClaimPart,
    EquivalentTo,
    Experiment,
    ExpertDemonstrations,
    GreaterThan,
    Measure,
    NegativeControl,
)
from understudy.claims.measures import train_policy
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.deploy.fused_experts import fuse_experts
from understudy.envs import make
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.denoising.edm import EDM
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.generative.mode import LoadBalancing
from understudy.nets.base import FusesTimes, record_intermediate
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mixture_of_experts import MoEFeedForward
from understudy.nets.transformer import ExpertTransformerNet, Transformer
from understudy.policy import Policy, PolicyConfig

ROWS = 100  # environments side by side; results do not depend on it
WIDTH, HORIZON, UPDATES = 32, 4, 1000
N_COMPARED = 64  # windows whose plans are compared


@dataclass(frozen=True)
class RoutedByObservation(Transformer):
    """The observation chooses the experts in training. What is computed beforehand for a noise level still has the
    experts that the router chooses for the level."""

    def build(self, inputs, outputs, n_times, spec):
        return _RoutedByObservationNet(self, inputs, outputs, n_times, spec)


class _RoutedByObservationNet(ExpertTransformerNet):
    def _films(self, t, context, n_memory):
        films: Any = super()._films(t, context, n_memory)
        if context.time_film is not None:
            return films
        observation = context.memory[:, 1:].mean(1, keepdim=True).expand(-1, t.shape[1], -1)
        weights = [layer.feed_forward.weights(observation) for layer in self.layers]
        routing = [torch.stack([layer.feed_forward.probabilities(observation), w], 2)
                   for layer, w in zip(self.layers, weights, strict=True)]
        record_intermediate("routing", torch.stack(routing, 2))
        return [torch.cat([film[..., :layer.film.out_features], w], -1)
                for layer, film, w in zip(self.layers, films, weights, strict=True)]


@torch.no_grad()
def plan_error(policy: Policy, fused: Policy, data: Dataset) -> float:
    """Largest error of the plans of `fused` for some of the data, relative to the largest action.

    The reference evaluates the network of `policy` at each step of the sampler as in training: nothing is computed
    beforehand.
    """
    batch = policy.windows(data).batch(N_COMPARED, 0)
    noise = torch.randn(N_COMPARED, *policy.noise_shape, generator=torch.Generator().manual_seed(0))
    coded = policy.config.head.sample(lambda x, t, context: policy.net(x, t, context), policy.context(batch.obs), noise)
    reference = policy.codec.decode(coded, batch.obs)
    return float((fused.plan(batch.obs, noise) - reference).abs().max() / reference.abs().max())


@torch.no_grad()
def count_operations(policy: Policy, data: Dataset) -> int:
    """Floating point operations of the matrix products of a plan for one observation."""
    obs = policy.windows(data).batch(1, 0).obs
    with FlopCounterMode(display=False) as counter:
        policy.plan(obs, torch.zeros(1, *policy.noise_shape))
    return counter.get_total_flops()


def success_and_operations(
    experiment: Experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method and rolls it out, with fused experts if it has experts.

    Returns:
        "success" per start. One value each: "log operations", the logarithm of the operations of a plan, and "log
        error", that of `plan_error`, which is at least 1e-9.
    """
    policy = train_policy(experiment, method, data, seed).eval()
    fused = fuse_experts(policy) if isinstance(policy.net, FusesTimes) else policy
    env: Any = make(experiment.env, rows=ROWS, **dict(experiment.env_options))
    try:
        rollouts = rollout(PolicyActor(FixedBatch(fused, ROWS), method.executor), env, episodes, seed=starts)
    finally:
        env.close()
    return {"success": [float(e.metadata["success"]) for e in rollouts],
            "log operations": [log(count_operations(fused, data))],
            "log error": [log(max(1e-9, plan_error(policy, fused, data)))]}


def trunk_arm(name: str, trunk: Transformer) -> Arm:
    """The same head, data, updates, learning rate and executor. Arms differ in the feed-forward layers alone."""
    policy = PolicyConfig(EDM(10), trunk, TokenEncoder(WIDTH), window=Window(1, HORIZON))
    balancing = (LoadBalancing(0.01),) if trunk.feed_forward else ()
    learner = BehaviorCloning(UPDATES, 64, OptimizerConfig(lr=2e-3), auxiliary_losses=balancing)
    return Arm(name, (Method(policy, RecedingHorizon(HORIZON), learner),))


def routed_by_observation(experiment: Experiment) -> Experiment:
    return experiment.replace_arms(trunk_arm("experts", RoutedByObservation(WIDTH, 2, 2, feed_forward=EXPERTS)))


EXPERTS = MoEFeedForward(n_experts=4, top_k=2)
TOTAL = trunk_arm("same total size", Transformer(WIDTH, 2, 2, feed_forward_ratio=16))
FORK = Experiment(
    ExpertDemonstrations("fork", 100),
    "fork",
    (
        trunk_arm("experts", Transformer(WIDTH, 2, 2, feed_forward=EXPERTS)),
        trunk_arm("same active size", Transformer(WIDTH, 2, 2, feed_forward_ratio=8)),
        TOTAL,
    ),
    success_and_operations,
    seeds=(3070, 3071, 3072, 3073, 3074),
    episodes=500,
    measures=(("log operations", Measure("real", "log ratio")), ("log error", Measure("real", "log ratio"))),
    starts_seed=3070,
    sanity=(("same active size", "success", 0.5), ("same total size", "success", 0.5)),
)
SMALL = replace(FORK, arms=(trunk_arm("small", Transformer(WIDTH, 2, 2, feed_forward_ratio=2)), TOTAL),
                sanity=(("same total size", "success", 0.5),))
AS_GOOD = GreaterThan("success", "experts", "same active size", -0.05)

CLAIM = Claim(
    name="fused-experts",
    rows=("307",),
    parts=(
        ClaimPart("fork", FORK, AS_GOOD),
        ClaimPart("same plans and fewer operations", FORK, AllOf((
            BelowBound("log error", "experts", log(1e-5)),
            GreaterThan("log operations", "same total size", "experts", log(1 / 0.7)),
            GreaterThan("success", "experts", "same total size", -0.1),
        )), is_decisive=False),
        ClaimPart("small", SMALL, EquivalentTo("success", "small", "same total size", 0.1), is_decisive=False),
    ),
    negative_control=NegativeControl(routed_by_observation, "fork"),
)
