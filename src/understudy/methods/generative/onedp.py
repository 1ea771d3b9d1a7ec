from __future__ import annotations

import copy
from dataclasses import field, replace
from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from ...core import AtLeast, AtMost, Batch, Context, Schema, Unsupported, part
from ...data.episode import Dataset
from ...heads.denoising.edm import EDM
from ...heads.one_step.one_step import OneStepGenerator
from ...learn.algorithm import Net, loss
from ...learn.cloning.distillation import Distillation
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...policy import Policy
from ..registry import method
from .consistency_policy import ConsistencyPolicy


@method("Wang et al. 2025 (OneDP-S), arXiv 2410.21257, with a learning rate of 1e-6 for the generator and of 2e-5 for "
        "its score, and larger networks", rows=("285",),
        when="if a trained diffusion policy is good and too slow; it lost 10 points on the toy fork, and most of the "
             "success where motions are precise.")
@part
class OneDP(Distillation):
    """OneDP: a diffusion policy is distilled into a generator whose plans have the distribution of the teacher's.

    It trains a `OneStepGenerator` head from an `EDM` head. Training follows the gradient of the Kullback-Leibler
    divergence between both distributions after noise has been added, averaged over the noise levels. This gradient is
    the difference of two estimates of the clean action. The teacher gives one estimate. A second network, which learns
    to denoise the plans of the policy, gives the other estimate.

    Args:
        score_optimizer: Optimizer of the network that denoises the policy's plans. It must follow the policy, so that
            it learns faster.
        n_score_updates: Updates of this network for each update of the policy.
        time_range: Noise levels at which distributions are compared: times of the path, which are drawn uniformly.

    References:
        Wang et al. (2025), One-Step Diffusion Policy, arXiv:2410.21257.
        Yin et al. (2024), One-step Diffusion with Distribution Matching Distillation, arXiv:2311.18828.
    """

    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-4))
    score_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    n_score_updates: Annotated[int, AtLeast(0)] = 1
    time_range: Annotated[tuple[float, float], AtLeast(0), AtMost(1)] = (0.05, 0.98)

    def method(self, features: Schema | None = None, n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8
               ) -> Method:
        first = ConsistencyPolicy().method(features, 1, n_obs_steps, horizon, n_action_steps)
        return replace(first, policy=replace(first.policy, head=OneStepGenerator()), learner=self)

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        nets = super().networks(policy, data)
        head, source = policy.config.head, self.trained_teacher.config.head
        if not isinstance(head, OneStepGenerator) or not isinstance(source, EDM) or head.path != source.path:
            raise Unsupported("one-step distillation needs a policy with the head OneStepGenerator, and a teacher with "
                              "the head EDM and the same noise levels", where="OneDP",
                              hint="give both heads the same sigma_min, sigma_max and rho")
        score = copy.deepcopy(self.trained_teacher.net).requires_grad_(True)
        return {**nets, "score": Net(score, self.score_optimizer)}

    @loss("score", times="n_score_updates")
    def score_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the network that denoises the policy's plans for each step, (B, H)."""
        with torch.no_grad():
            action, teacher_context = self.new_plans(nets, batch, rng)
        return self.trained_teacher.config.head.loss(nets.score, teacher_context, action, batch.mask, rng)

    @loss("policy")
    def distillation_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        source: Any = self.trained_teacher.config.head
        action, teacher_context = self.new_plans(nets, batch, rng)
        low, high = self.time_range
        t = low + (high - low) * torch.rand(action[:, :1, 0].shape, generator=rng, device=action.device)
        t = t.to(action.dtype).expand(action.shape[:2])
        with torch.no_grad():
            noise = torch.randn(action.shape, generator=rng, device=action.device)
            x = source.interpolate(action, noise, t.unsqueeze(-1))
            estimate, target = (source.predict_clean(net, teacher_context, x, t)
                                for net in (nets.score, self.trained_teacher.net))
        # The value is a squared difference. Its gradient with respect to the action is the difference.
        return 0.5 * (action - (action - estimate + target).detach()).square().mean(-1)

    def new_plans(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, Context]:
        """Returns new plans of the policy, coded (B, H, A), and the observations as the teacher encodes them."""
        context, teacher_context = self.encode_obs(nets, batch, rng)
        noise = torch.randn(len(batch), *nets.policy.noise_shape, generator=rng, device=batch.mask.device)
        return nets.policy.config.head.sample(nets.policy.net, context, noise), teacher_context
