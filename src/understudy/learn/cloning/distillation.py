"""Distillation: a policy learns from the samples or the steps of a trained policy, to need fewer steps itself."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import field, replace
from typing import Annotated

import torch
from torch import Generator, Tensor

from ...checkpoint import FromStage
from ...core import AtLeast, AtMost, Batch, Context, Unsupported, UserError, part
from ...data.episode import Dataset
from ...heads.base import DenoisingHead
from ...heads.denoising.edm import EDM
from ...heads.denoising.flow import Flow
from ...heads.one_step.consistency import Consistency
from ...heads.one_step.one_step import OneStepGenerator
from ...nets.ema import EMADecay, WarmupDecay
from ...policy import Policy
from ..fit import LearnerConfig
from ..gradient_learner import GradientLearner
from ..optimizer import OptimizerConfig


@part
class ConsistencyDistillation(LearnerConfig):
    """Train a `Consistency` head so that one step of a trained `EDM` head does not change its estimate.

    Both heads have the same noise levels, and the same network inputs and scales. The student can therefore start from
    the weights of the teacher (`InitializeFrom`). The teacher makes an Euler step from each level to the next one.

    Args:
        teacher: A trained policy with an `EDM` head.
        ema: Decay of the averaged weights, which act.

    References:
        Song et al. (2023), Consistency Models, arXiv:2303.01469.
    """

    teacher: Policy | FromStage
    steps: Annotated[int, AtLeast(0)] = 2000
    batch_size: Annotated[int, AtLeast(1)] = 128
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMADecay = field(default_factory=lambda: WarmupDecay(0.995))

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> ConsistencyDistillationLearner:
        return ConsistencyDistillationLearner(self, policy, seed, steps)


@part
class Reflow(LearnerConfig):
    """Train a `Flow` head on pairs of a noise and the action that a trained policy makes of this noise.

    Trajectories of the trained policy do not cross, and so neither do the lines between the pairs. The new flow is
    therefore straighter, and needs fewer steps. Its actions are those of the trained policy, not of the demonstrations.

    Args:
        teacher: A trained policy with a head that moves noise to an action without drawing more noise.
        teacher_steps: Number of sampling steps of the teacher. Its errors become the data of the new flow.
        ema: Decay of the averaged weights, which act.

    References:
        Liu et al. (2023), Flow Straight and Fast, arXiv:2209.03003.
    """

    teacher: Policy | FromStage
    teacher_steps: Annotated[int, AtLeast(1)] = 50
    steps: Annotated[int, AtLeast(0)] = 2000
    batch_size: Annotated[int, AtLeast(1)] = 128
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMADecay = field(default_factory=lambda: WarmupDecay(0.995))

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> ReflowLearner:
        return ReflowLearner(self, policy, seed, steps)


@part
class OneStepDistillation(LearnerConfig):
    """Train a `OneStepGenerator` head so that its plans have the distribution of a trained `EDM` head.

    The gradient is that of the Kullback-Leibler divergence of both distributions after noise has been added, averaged
    over the noise levels. It is the difference of two estimates of the clean action: that of a second network, which
    learns to denoise the plans of the policy, and that of the teacher.

    Args:
        teacher: A trained policy with an `EDM` head.
        score_optimizer: Optimizer of the network that denoises the policy's plans. It must follow the policy, so that
            it learns faster.
        n_score_updates: Updates of this network for each update of the policy.
        time_range: Noise levels at which distributions are compared: times of the path, which are drawn uniformly.
        ema: Decay of the averaged weights, which act.

    References:
        Wang et al. (2025), One-Step Diffusion Policy, arXiv:2410.21257.
        Yin et al. (2024), One-step Diffusion with Distribution Matching Distillation, arXiv:2311.18828.
    """

    teacher: Policy | FromStage
    steps: Annotated[int, AtLeast(0)] = 2000
    batch_size: Annotated[int, AtLeast(1)] = 128
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-4))
    score_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    n_score_updates: Annotated[int, AtLeast(0)] = 1
    time_range: Annotated[tuple[float, float], AtLeast(0), AtMost(1)] = (0.05, 0.98)
    ema: EMADecay = field(default_factory=lambda: WarmupDecay(0.995))

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> OneStepDistillationLearner:
        return OneStepDistillationLearner(self, policy, seed, steps)


class DistillationLearner(GradientLearner):
    """Base class of learners that train a policy from a teacher. A subclass writes `distillation_loss`."""

    config: ConsistencyDistillation | Reflow | OneStepDistillation

    def __init__(self, config: ConsistencyDistillation | Reflow | OneStepDistillation, policy: Policy, seed: int,
                 steps: int):
        super().__init__(config, policy, seed, steps)
        if not isinstance(config.teacher, Policy):
            raise UserError(f"{config.teacher} is not a trained policy", where=f"{type(config).__name__}.teacher",
                            hint="refer to a stage of the method, FromStage(NAME), or give a Policy")
        student, teacher = policy.config, config.teacher.config
        if (student.window, student.target, student.codec) != (teacher.window, teacher.target, teacher.codec):
            raise UserError("the teacher plans other chunks than the policy", where=f"{type(config).__name__}.teacher",
                            hint="give both policies the same window, target and codec")
        self.teacher = copy.deepcopy(config.teacher).to(self.device).requires_grad_(False).eval()
        self.register("policy", policy, config.optimizer)
        self.average_weights("policy", config.ema)

    def update(self, batch: Batch) -> dict[str, float]:
        self.check_statistics()
        self.minimize("policy", self.distillation_loss, batch)
        return self.end_update()

    @abstractmethod
    def distillation_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of each step, (B, H), not reduced."""

    def encode_obs(self, batch: Batch, rng: Generator) -> tuple[Context, Context]:
        """Returns the observations as the policy and as the teacher encode them, after the policy's augmentations."""
        obs = self.policy.augment(batch.obs, rng)
        with torch.no_grad():
            teacher_context = self.teacher.context(obs)
        return self.policy.context(obs, rng), teacher_context

    def check_statistics(self) -> None:
        """Checks before the first update that the policy and the teacher code actions in the same way."""
        if self.n_updates:
            return
        student, teacher = (policy.codec.state_dict() for policy in (self.policy, self.teacher))
        if any(not torch.equal(student[name], teacher[name]) for name in student):
            raise UserError("the policy and its teacher scale the columns differently",
                            where=f"{type(self.config).__name__}.teacher",
                            hint='take over the statistics: InitializeFrom(FromStage(NAME), load=("codec",))')


class ConsistencyDistillationLearner(DistillationLearner):
    """Learner of `ConsistencyDistillation`."""

    def __init__(self, config: ConsistencyDistillation, policy: Policy, seed: int, steps: int):
        super().__init__(config, policy, seed, steps)
        head, source = policy.config.head, self.teacher.config.head
        if not isinstance(head, Consistency) or not isinstance(source, EDM) or head.path != source.path:
            raise Unsupported("consistency distillation needs a policy with the head Consistency, and a teacher with "
                              "the head EDM and the same noise levels", where="ConsistencyDistillation",
                              hint="give both heads the same sigma_min, sigma_max and rho")
        self.head = head
        self.target_policy = self.target_network("policy", head.target_decay)

    def distillation_loss(self, batch, rng):
        context, teacher_context = self.encode_obs(batch, rng)
        action, net = self.policy.encode_batch(batch), self.policy.net
        noise = torch.randn(action.shape, generator=rng, device=action.device)
        t, t_next = self.head.training_times(action, rng)
        x = self.head.interpolate(action, noise, t.unsqueeze(-1))
        with torch.no_grad():
            x_next = self.teacher.denoise_step(teacher_context, x, t, t_next)
            target = self.head.predict_clean(self.target_policy.net, context, x_next, t_next)
        return self.head.distance(self.head.predict_clean(net, context, x, t), target, t, t_next)


class ReflowLearner(DistillationLearner):
    """Learner of `Reflow`."""

    config: Reflow

    def __init__(self, config: Reflow, policy: Policy, seed: int, steps: int):
        super().__init__(config, policy, seed, steps)
        head, source = policy.config.head, self.teacher.config.head
        if not isinstance(head, Flow) or not isinstance(source, DenoisingHead):
            raise Unsupported("reflow needs a policy with the head Flow, and a teacher that moves noise to an action",
                              where="Reflow", hint="use Flow, or EDM for the teacher")
        self.head, self.source = head, replace(source, n_steps=config.teacher_steps)
        if (shape := self.source.noise(policy.window.horizon, self.teacher.codec.width)) != policy.noise_shape:
            raise Unsupported(f"a plan of the teacher has noise of shape {shape}, and a plan of the policy of shape "
                              f"{tuple(policy.noise_shape)}", where="Reflow.teacher",
                              hint="use a teacher that draws noise only at its start, such as Flow")

    def distillation_loss(self, batch, rng):
        context, teacher_context = self.encode_obs(batch, rng)
        noise = torch.randn(len(batch), *self.policy.noise_shape, generator=rng, device=self.device)
        with torch.no_grad():
            action = self.source.sample(self.teacher.net, teacher_context, noise)
        return self.head.pair_loss(self.policy.net, context, action, noise, rng)


class OneStepDistillationLearner(DistillationLearner):
    """Learner of `OneStepDistillation`."""

    config: OneStepDistillation

    def __init__(self, config: OneStepDistillation, policy: Policy, seed: int, steps: int):
        super().__init__(config, policy, seed, steps)
        head, source = policy.config.head, self.teacher.config.head
        if not isinstance(head, OneStepGenerator) or not isinstance(source, EDM) or head.path != source.path:
            raise Unsupported("one-step distillation needs a policy with the head OneStepGenerator, and a teacher with "
                              "the head EDM and the same noise levels", where="OneStepDistillation",
                              hint="give both heads the same sigma_min, sigma_max and rho")
        self.head, self.source = head, source
        score = copy.deepcopy(self.teacher.net).requires_grad_(True)
        self.score = self.register("score", score, config.score_optimizer)

    def update(self, batch):
        self.check_statistics()
        for _ in range(self.config.n_score_updates):
            self.minimize("score", self.score_loss, batch)
        self.minimize("policy", self.distillation_loss, batch)
        return self.end_update()

    def score_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the network that denoises the policy's plans for each step, (B, H)."""
        with torch.no_grad():
            action, teacher_context = self._plans(batch, rng)
        return self.source.loss(self.score, teacher_context, action, batch.mask, rng)

    def distillation_loss(self, batch, rng):
        action, teacher_context = self._plans(batch, rng)
        low, high = self.config.time_range
        t = low + (high - low) * torch.rand(action[:, :1, 0].shape, generator=rng, device=action.device)
        t = t.to(action.dtype).expand(action.shape[:2])
        with torch.no_grad():
            noise = torch.randn(action.shape, generator=rng, device=action.device)
            x = self.source.interpolate(action, noise, t.unsqueeze(-1))
            estimate, target = (self.source.predict_clean(net, teacher_context, x, t)
                           for net in (self.score, self.teacher.net))
        # The value is that of a squared difference, and the gradient with respect to the action is the difference.
        return 0.5 * (action - (action - estimate + target).detach()).square().mean(-1)

    def _plans(self, batch: Batch, rng: Generator) -> tuple[Tensor, Context]:
        """New plans of the policy, coded (B, H, A), and the observations as the teacher encodes them."""
        context, teacher_context = self.encode_obs(batch, rng)
        noise = torch.randn(len(batch), *self.policy.noise_shape, generator=rng, device=self.device)
        return self.head.sample(self.policy.net, context, noise), teacher_context
