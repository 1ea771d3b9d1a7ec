"""Iterative generation: a chunk of actions is made from noise in a few steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from ..checkpoint import FromStage
from ..core import Schema
from ..data.augment import ConditionDropout, ModalityDropout
from ..data.codec import Normalizer
from ..data.relabel import LastAction, OptionalColumn, TaskText
from ..data.window import Goal, Window
from ..execute.adaptive import AdaptiveChunking, CosineAgreement
from ..execute.chunking import RecedingHorizon
from ..execute.past_verification import PastVerification
from ..execute.planner_config import (
    BidirectionalDecodingConfig,
    GuidanceConfig,
    SampleSelectorConfig,
    SelfGuidanceConfig,
)
from ..execute.planners import KernelDensity
from ..execute.prefix_chunking import PrefixChunking
from ..execute.streaming import StreamingExecutor
from ..execute.streaming_flow import StreamingFlowExecutor
from ..heads.adaflow import AdaFlow
from ..heads.base import PrefixTimes, RampTimes
from ..heads.consistency import Consistency
from ..heads.diffusion import Diffusion
from ..heads.edm import EDM
from ..heads.flow import Flow
from ..heads.interpolant import Interpolant
from ..heads.mean_flow import MeanFlow
from ..heads.mip import MIP
from ..heads.normalizing_flow import NormalizingFlow
from ..heads.one_step import OneStepGenerator
from ..heads.shortcut import Shortcut
from ..heads.solvers import DDPM
from ..heads.streaming_flow import StreamingFlow
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.distillation import ConsistencyDistillation, OneStepDistillation, Reflow
from ..learn.goal_losses import ContrastiveAlignment, Foresight
from ..learn.load_balancing import LoadBalancing
from ..learn.method import InitializeFrom, Method, Stage
from ..learn.optimizer import OptimizerConfig
from ..nets.encoders import TokenEncoder
from ..nets.goal_encoder import GoalEncoder
from ..nets.in_context import InContextTransformer
from ..nets.mixture_of_experts import MoEFeedForward
from ..nets.mlp import MLP
from ..nets.point_cloud import point_cloud_columns
from ..nets.pooled_history import PooledHistoryEncoder
from ..nets.transformer import Transformer
from ..nets.unet import UNet
from ..policy import ClassifierFreeGuidance, PolicyConfig


def diffusion_policy(
    trunk: Literal["unet", "transformer"] = "unet",
    n_obs_steps: int = 2,
    horizon: int = 16,
    n_action_steps: int = 8,
    prediction: Literal["epsilon", "sample", "v"] = "sample",
) -> Method:
    """Diffusion policy: a chunk of actions is denoised in ten DDIM steps, and half of it is executed.

    Args:
        trunk: The network, "unet" or "transformer".
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
        prediction: What the network predicts: the noise, the action itself, or the velocity.
    """
    # The action itself is learned in far fewer updates than the noise, as DP3 (Ze et al. 2024) found too.
    head, window = Diffusion(prediction=prediction), Window(n_obs_steps, horizon, action_offset=1 - n_obs_steps)
    net = UNet() if trunk == "unet" else Transformer(256, 8, 4, causal=True)
    learner = BehaviorCloning(4000, optimizer=OptimizerConfig(lr=3e-4, betas=(0.95, 0.999), warmup_steps=500))
    return Method(
        PolicyConfig(head, trunk=net, window=window), RecedingHorizon(n_action_steps, skip=n_obs_steps - 1), learner
    )


def diffusion_bc(choice: Literal["plain", "extra-steps", "densest"] = "extra-steps", n_obs_steps: int = 2) -> Method:
    """Diffusion cloning of single actions, which takes a likely one by extra steps or as the densest of many.

    Args:
        choice: "plain" executes a sample, "extra-steps" moves it to a likely action by 8 more steps without noise
            (Diffusion-X), "densest" takes that of 100 samples to which the others are nearest (Diffusion-KDE).
        n_obs_steps: Number of observations that the policy reads.
    """
    head = Diffusion(50, DDPM(), 50, n_extra_steps=8 if choice == "extra-steps" else 0)
    inference = (SampleSelectorConfig(KernelDensity(0.1), 100),) if choice == "densest" else ()
    policy = PolicyConfig(head, trunk=MLP(512, 3), window=Window(n_obs_steps, horizon=1))
    learner = BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100))
    return Method(policy, RecedingHorizon(), learner, inference=inference)


def dp3(features: Schema | None = None, n_obs_steps: int = 2, horizon: int = 4, n_action_steps: int = 3,
        point_clouds: tuple[str, ...] = ()) -> Method:
    """3D Diffusion Policy: the observations are point clouds, encoded by a small PointNet.

    Args:
        features: The columns of the data.
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
        point_clouds: Columns of shape (points, channels) that are point clouds. By default those of shape (points, 3)
            or (points, 6), and those with more channels that are named like `observation.point_cloud`.
    """
    clouds = tuple(point_clouds) or point_cloud_columns(features)
    policy = PolicyConfig(
        Diffusion(prediction="sample"), UNet((128, 256, 384)), TokenEncoder(point_clouds=clouds),
        Normalizer(obs="minmax", unscaled=clouds), Window(n_obs_steps, horizon, action_offset=1 - n_obs_steps))
    optimizer = OptimizerConfig(lr=1e-4, weight_decay=1e-6, betas=(0.95, 0.999), warmup_steps=500)
    return Method(policy, RecedingHorizon(n_action_steps, skip=n_obs_steps - 1),
                  BehaviorCloning(4000, batch_size=128, optimizer=optimizer))


def streaming_diffusion_policy(
    n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 4, n_denoising_steps: int = 4
) -> Method:
    """Streaming diffusion policy: a buffer of actions, from nearly clean to noise, is denoised while it is executed.

    Args:
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in the buffer.
        n_action_steps: Number of actions that are executed from each plan. Must divide the horizon.
        n_denoising_steps: Number of network evaluations of a plan.
    """
    n_steps = horizon // n_action_steps * n_denoising_steps  # of an action from noise, in all the plans that it is in
    head = Diffusion(n_steps, prediction="sample", times=RampTimes(n_action_steps))
    policy = PolicyConfig(head, trunk=MLP(512, 3), window=Window(n_obs_steps, horizon))
    return Method(
        policy,
        StreamingExecutor(n_action_steps, n_denoising_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
    )


def training_time_rtc(horizon: int = 16, n_action_steps: int = 4, max_delay: int = 4) -> Method:
    """Training-time RTC: flow matching that learns to continue the actions that are executed while it plans.

    Args:
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
        max_delay: Largest number of steps that a plan may take.
    """
    base = flow_policy(horizon=horizon, n_action_steps=n_action_steps)
    head = Flow(times=PrefixTimes(max_delay))
    return replace(base, policy=replace(base.policy, head=head), executor=PrefixChunking(n_action_steps))


def ptp(n_obs_steps: int = 16, horizon: int = 32, n_action_steps: int = 1, n_samples: int = 10) -> Method:
    """Past-token prediction: a diffusion policy with a long history that also predicts the actions of this history.

    Args:
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk. The first n_obs_steps - 1 of them lie in the past.
        n_action_steps: Number of actions that are executed before the next plan.
        n_samples: Number of plans that are drawn. The one that recalls the executed actions best is executed.
    """
    base = diffusion_policy("transformer", n_obs_steps, horizon, n_action_steps)
    return replace(base, executor=PastVerification(n_action_steps, n_obs_steps - 1, n_samples))


def beso(column: str = "observation.state", scale: float = 2.0, n_steps: int = 3, n_obs_steps: int = 5) -> Method:
    """Goal-conditioned diffusion with classifier-free guidance: goals are dropped in training, and pushed in acting.

    Args:
        column: The column whose later values are goals.
        scale: Guidance scale. 1 is the plain policy, 0 the policy without a goal.
        n_steps: Number of sampling steps of one action.
        n_obs_steps: Number of observations that the policy reads.
    """
    goal = "observation.goal"
    head = EDM(n_steps, sigma_min=0.005, sigma_max=1.0, log_sigma_mean=-0.69, log_sigma_std=0.9)
    window = Window(n_obs_steps, horizon=1, goals=(Goal(column, into=goal),))
    policy = PolicyConfig(head, trunk=MLP(512, 3), window=window, augmentations=(ConditionDropout(goal, 0.1),))
    learner = BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100))
    guidance = GuidanceConfig((ClassifierFreeGuidance((goal,), scale),))
    return Method(policy, RecedingHorizon(1), learner, inference=(guidance,))


def mdt(column: str = "observation.state", horizon: int = 10, n_action_steps: int = 10) -> Method:
    """Multimodal diffusion transformer: later observations and words are goals of one policy; few words are enough.

    Where an episode has no task in words, a later observation is the goal. The policy acts on either.

    Args:
        column: The column whose later values are goals.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
    """
    goals = goal, _ = "observation.goal", "observation.task"
    window = Window(1, horizon, goals=(Goal(column, into=goal, discount=0.9),))
    policy = PolicyConfig(EDM(10, sigma_min=0.001), Transformer(128, 4, 4, encoder_depth=2),
                          GoalEncoder(goals, TokenEncoder(128)), window=window, augmentations=(ModalityDropout(goals),))
    optimizer = OptimizerConfig(lr=3e-4, weight_decay=0.05, betas=(0.9, 0.9), warmup_steps=100)
    losses = ContrastiveAlignment(*goals), Foresight(column)
    transforms = TaskText(optional=True), OptionalColumn(goal, like=column)
    return Method(policy, RecedingHorizon(n_action_steps), BehaviorCloning(4000, optimizer=optimizer,
                                                                           auxiliary_losses=losses), transforms)


def mode(
    n_experts: int = 4, top_k: int = 2, n_obs_steps: int = 2, horizon: int = 10, n_action_steps: int = 5
) -> Method:
    """Mixture of expert denoisers: diffusion by a transformer whose experts are chosen by the noise level.

    Args:
        n_experts: Number of experts in each layer.
        top_k: Number of experts that are used at a noise level.
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
    """
    trunk = Transformer(128, 4, 4, "joint", causal=True, feed_forward=MoEFeedForward(n_experts, top_k))
    policy = PolicyConfig(EDM(10, sigma_min=0.001), trunk, TokenEncoder(128), window=Window(n_obs_steps, horizon))
    optimizer = OptimizerConfig(lr=3e-4, weight_decay=0.05, betas=(0.9, 0.95), warmup_steps=100)
    learner = BehaviorCloning(4000, optimizer=optimizer, auxiliary_losses=(LoadBalancing(0.01),))
    return Method(policy, RecedingHorizon(n_action_steps), learner)


def dit_policy(
    n_obs_steps: int = 2, horizon: int = 10, n_action_steps: int = 5, causal: bool = True,
    prediction: Literal["epsilon", "sample", "v"] = "sample",
) -> Method:
    """Diffusion transformer policy: context, time and noisy actions are tokens of one causal transformer.

    Args:
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
        causal: Each token reads only those before it. False lets the actions of a chunk read each other.
        prediction: What the network predicts: the noise, the action itself, or the velocity.
    """
    policy = PolicyConfig(Diffusion(prediction=prediction), InContextTransformer(128, 4, 4, causal), TokenEncoder(128),
                          window=Window(n_obs_steps, horizon))
    optimizer = OptimizerConfig(lr=3e-4, weight_decay=0.05, betas=(0.9, 0.95), warmup_steps=100)
    return Method(policy, RecedingHorizon(n_action_steps), BehaviorCloning(4000, optimizer=optimizer))


def contextvla(
    n_obs_steps: int = 8, horizon: int = 16, n_action_steps: int = 8, depth: int = 4, pool_after: int | None = 2,
) -> Method:
    """A flow policy with a history: after two blocks of a transformer, all past observations become one token.

    Args:
        n_obs_steps: Number of observations that the policy reads, one in each step.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
        depth: Number of blocks of the transformer that reads the observations.
        pool_after: Number of blocks before the past becomes one token. None keeps all tokens in all blocks.
    """
    encoder = PooledHistoryEncoder(depth, pool_after, 4, encoder=TokenEncoder(128))
    window = Window(n_obs_steps, horizon, obs_pad_mask=True)
    policy = PolicyConfig(Flow(), Transformer(128, 2, 4), encoder, window=window)
    optimizer = OptimizerConfig(lr=3e-4, weight_decay=0.05, betas=(0.9, 0.95), warmup_steps=100)
    return Method(policy, RecedingHorizon(n_action_steps), BehaviorCloning(4000, optimizer=optimizer))


def flow_policy(
    n_obs_steps: int = 2,
    horizon: int = 16,
    n_action_steps: int = 8,
    prediction: Literal["velocity", "sample"] = "velocity",
) -> Method:
    """A chunk of actions by flow matching: ten steps along the straight line from noise.

    Args:
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
        prediction: What the network predicts: the velocity, or the action itself. See `Flow`.
    """
    policy = PolicyConfig(Flow(prediction=prediction), trunk=MLP(512, 3), window=Window(n_obs_steps, horizon))
    return Method(
        policy,
        RecedingHorizon(n_action_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
    )


def bid_flow_policy(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 1, n: int = 15) -> Method:
    """A flow policy with bidirectional decoding: 15 plans, compared with the last chunk and with a weak policy.

    The weak policy is trained for a third of the updates. In the paper it is a checkpoint after a third of them.

    Args:
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
        n: Number of plans drawn from each policy. A third of them are kept as candidates.
    """
    strong = flow_policy(n_obs_steps, horizon, n_action_steps)
    weak = replace(strong, learner=replace(strong.learner, steps=strong.learner.steps // 3))
    decoding = BidirectionalDecodingConfig(FromStage("weak"), n, n_kept=max(2, n // 3))
    return replace(strong, stages=(Stage("weak", weak),), inference=(decoding,))


def sgac(n_action_steps: int = 1, scale: float = 1.0, threshold: float = 0.97) -> Method:
    """Diffusion policy with self-guidance and adaptive chunking.

    Args:
        n_action_steps: Number of steps between two plans.
        scale: Scale of the guidance away from the prediction for the last observation.
        threshold: Cosine of two next actions from which on the old chunk is kept.
    """
    base = diffusion_policy()
    executor = AdaptiveChunking(n_action_steps, skip=1, agreement=CosineAgreement(threshold))
    policy = replace(base.policy, head=replace(base.policy.head, n_steps=30))
    return replace(base, policy=policy, executor=executor, inference=(SelfGuidanceConfig(scale),))


def shortcut_policy(n_steps: int = 1, n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """A flow that is asked for large steps: one network evaluation gives a chunk, and more give a better one.

    Args:
        n_steps: Number of steps from noise to a chunk: 1, 2, 4, 8 or 16.
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
    """
    head = Shortcut(n_steps, n_train_steps=16)  # each halving of the step is learned from the next smaller step
    policy = PolicyConfig(head, trunk=MLP(512, 3), window=Window(n_obs_steps, horizon))
    return Method(
        policy,
        RecedingHorizon(n_action_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
    )


def mean_flow_policy(n_steps: int = 1, n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """A flow that learns the average velocity from noise to action: one network evaluation gives a chunk.

    Args:
        n_steps: Number of steps from noise to a chunk.
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
    """
    policy = PolicyConfig(MeanFlow(n_steps), trunk=MLP(512, 3), window=Window(n_obs_steps, horizon))
    return Method(
        policy,
        RecedingHorizon(n_action_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
    )


def streaming_flow_policy(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """A flow in action space: each integration step from the last executed action gives the next action.

    Args:
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a plan.
        n_action_steps: Number of actions that are executed before the next plan.
    """
    window = Window(n_obs_steps, horizon + 1, action_offset=-1)  # step 0 is the last executed action
    policy = PolicyConfig(StreamingFlow(), trunk=MLP(512, 3), window=window)
    return Method(
        policy,
        StreamingFlowExecutor(n_action_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
    )


def mip(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """Minimal iterative policy: a regression, and a second one that reads the first answer. No randomness.

    Args:
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
    """
    policy = PolicyConfig(MIP(), trunk=MLP(512, 3), window=Window(n_obs_steps, horizon))
    return Method(
        policy,
        RecedingHorizon(n_action_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
    )


def consistency_training(n_steps: int = 1, n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """A network that jumps from any noise level to the action, trained on the demonstrations alone.

    Args:
        n_steps: Number of network evaluations of a plan.
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
    """
    policy = PolicyConfig(Consistency(n_steps), trunk=MLP(512, 3), window=Window(n_obs_steps, horizon))
    return Method(
        policy,
        RecedingHorizon(n_action_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
    )


def consistency_policy(n_steps: int = 1, n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """Consistency policy: a diffusion policy is trained first, and then distilled into jumps from noise to action.

    Args:
        n_steps: Number of network evaluations of a plan.
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
    """
    teacher = PolicyConfig(EDM(), trunk=MLP(512, 3), window=Window(n_obs_steps, horizon))
    optimizer, executor = OptimizerConfig(lr=1e-3, warmup_steps=100), RecedingHorizon(n_action_steps)
    return Method(
        replace(teacher, head=Consistency(n_steps)),
        executor,
        ConsistencyDistillation(FromStage("teacher"), 4000, optimizer=optimizer),
        stages=(Stage("teacher", Method(teacher, executor, BehaviorCloning(4000, optimizer=optimizer))),),
        initialize_from=(InitializeFrom(FromStage("teacher")),),
    )


def onedp(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """OneDP: a diffusion policy is trained first, and then distilled into a network that answers in one step.

    Args:
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
    """
    first = consistency_policy(1, n_obs_steps, horizon, n_action_steps)
    return replace(
        first,
        policy=replace(first.policy, head=OneStepGenerator()),
        learner=OneStepDistillation(FromStage("teacher")),
    )


def reflow_policy(
    n_steps: int = 1,
    n_obs_steps: int = 2,
    horizon: int = 16,
    n_action_steps: int = 8,
    prediction: Literal["velocity", "sample"] = "velocity",
) -> Method:
    """A flow that is trained again on its own noise and actions, which makes it straight: one step gives a chunk.

    Args:
        n_steps: Number of network evaluations of a plan.
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
        prediction: What both networks predict: the velocity, or the action itself. See `Flow`.
    """
    first = flow_policy(n_obs_steps, horizon, n_action_steps, prediction)
    return replace(
        first,
        policy=replace(first.policy, head=Flow(n_steps, prediction=prediction)),
        learner=Reflow(FromStage("flow"), steps=4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
        stages=(Stage("flow", first),),
        initialize_from=(InitializeFrom(FromStage("flow")),),
    )


def adaflow(n_steps: int = 5, n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """A flow that takes one step where the action is certain, and more where demonstrations differ.

    Args:
        n_steps: Largest number of network evaluations of a plan.
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
    """
    policy = PolicyConfig(AdaFlow(n_steps), trunk=MLP(512, 3), window=Window(n_obs_steps, horizon))
    return Method(
        policy,
        RecedingHorizon(n_action_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
    )


def interpolant_policy(n_steps: int = 5, n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """A flow whose chunks start at the last executed action and some noise, and not at pure noise.

    Args:
        n_steps: Number of integration steps of a plan.
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
    """
    head = Interpolant(n_steps=n_steps)
    encoder, codec = TokenEncoder(named=(head.source,)), Normalizer(obs="minmax")
    policy = PolicyConfig(head, MLP(512, 3), encoder, codec, Window(n_obs_steps, horizon))
    return Method(
        policy,
        RecedingHorizon(n_action_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
        transforms=(LastAction(into=head.source),),
    )


def normalizing_flow_policy(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """An invertible network between noise and a chunk: exact likelihoods, and a plan in one pass.

    Args:
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
    """
    policy = PolicyConfig(NormalizingFlow(), trunk=MLP(256, 2), window=Window(n_obs_steps, horizon))
    return Method(
        policy,
        RecedingHorizon(n_action_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
    )
