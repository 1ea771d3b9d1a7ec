from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from ...checkpoint import FromStage
from ...core import AtLeast, Batch, Schema, Unsupported, part
from ...data.episode import Dataset
from ...execute.steering import ComposedPolicies
from ...heads.base import DenoisingHead
from ...learn.algorithm import Net, loss
from ...learn.cloning.distillation import Distillation
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.optimizer import OptimizerConfig
from ...policy import Policy
from ..registry import method
from .flow_policy import flow_policy


@method("Alemohammad et al. 2024 (SIMS), arXiv 2408.16333, for images; here for chunks of actions",
        when="if there are few demonstrations, and plans may take twice as long.")
@part
class SIMS(Distillation):
    """A flow policy that is moved away from a copy of it, which was trained further on its own samples.

    The copy repeats the errors of the policy, and makes them larger. Plans come from ``(1 + weight) * policy -
    weight * copy`` at each step of sampling. The policy of the checkpoint is the copy, which the plans combine with the
    policy of the stage "flow".

    Args:
        teacher: The policy whose samples the copy learns, in the observations of the data.

    References:
        Alemohammad et al. (2024), Self-Improving Diffusion Models with Synthetic Data, arXiv:2408.16333.
    """

    teacher: Policy | FromStage = FromStage("flow")
    steps: Annotated[int, AtLeast(0)] = 400
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=3e-4))

    def method(self, features: Schema | None = None, weight: float = 1.0, n_obs_steps: int = 2, horizon: int = 16,
               n_action_steps: int = 8) -> Method:
        """Returns the method of this learner.

        Args:
            weight: How far plans are moved away from the copy. 0 is the policy of the stage.
        """
        flow = flow_policy(n_obs_steps, horizon, n_action_steps)
        apart = ComposedPolicies(others=(FromStage("flow"),), weights=(-weight, 1 + weight))
        return replace(flow, learner=self, stages=(Stage("flow", flow),), inference=(apart,),
                       initialize_from=(InitializeFrom(FromStage("flow")),))

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        if not isinstance(self.trained_teacher.config.head, DenoisingHead):
            raise Unsupported("the policy and its copy are combined at each step of sampling", where="SIMS.teacher",
                              hint="use a teacher that samples step by step, such as Flow or Diffusion")
        return super().networks(policy, data)

    @loss("policy")
    def cloning_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the copy for samples of the teacher, (B, H)."""
        teacher = self.trained_teacher
        context, teacher_context = self.encode_obs(nets, batch, rng)
        noise = torch.randn(len(batch), *teacher.noise_shape, generator=rng, device=batch.mask.device)
        with torch.no_grad():
            action = teacher.config.head.sample(teacher.net, teacher_context, noise) * batch.mask.unsqueeze(-1)
        return nets.policy.config.head.loss(nets.policy.net, context, action, batch.mask, rng)
