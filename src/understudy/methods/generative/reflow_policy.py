from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated, Any, Literal

import torch
from torch import Generator, Tensor

from ...checkpoint import FromStage
from ...core import AtLeast, Batch, Schema, Unsupported, part
from ...data.episode import Dataset
from ...heads.base import DenoisingHead
from ...heads.denoising.flow import Flow
from ...learn.algorithm import Net, loss
from ...learn.cloning.distillation import Distillation
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.optimizer import OptimizerConfig
from ...policy import Policy
from ..registry import method
from .flow_policy import flow_policy


@method("Liu et al. 2023, arXiv 2209.03003, which stores the pairs; here each update makes new ones", rows=("028",),
        when="if a flow policy is good and too slow; two steps with --prediction sample lost at most 3 points "
             "on two toys.")
@part
class ReflowPolicy(Distillation):
    """A flow is trained again on pairs of noise and the chunk that it made from it, so that one step gives a chunk.

    Trajectories of the trained policy do not cross, and so neither do the lines between the pairs. The new flow is
    therefore straighter, and needs fewer steps. It learns the actions of the trained policy, not of the demonstrations.

    Args:
        teacher: A trained policy with a head that moves noise to an action without drawing more noise.
        teacher_steps: Number of sampling steps of the teacher. Its errors become the data of the new flow.
        norm: ``"l2"`` is the squared error of each step. ``"pseudo_huber"`` is ``(sqrt(e**2 + c**2) - c) / d``, with e
            the norm of the error of the whole chunk, d its number of components and c 0.00054 d. It is nearly the
            norm, so that chunks with large errors count less.

    References:
        Liu et al. (2023), Flow Straight and Fast, arXiv:2209.03003.
        Lee et al. (2024), Improving the Training of Rectified Flows, arXiv:2405.20320 (2-rectified flow++), for
        ``norm="pseudo_huber"`` and `Flow` with ``time_distribution="u_shaped"``.
    """

    teacher: Policy | FromStage = FromStage("flow")
    steps: Annotated[int, AtLeast(0)] = 4000
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3, warmup_steps=100))
    teacher_steps: Annotated[int, AtLeast(1)] = 50
    norm: Literal["l2", "pseudo_huber"] = "l2"

    def method(self, features: Schema | None = None, n_steps: int = 1, n_obs_steps: int = 2, horizon: int = 16,
               n_action_steps: int = 8, prediction: Literal["velocity", "sample"] = "velocity") -> Method:
        """Returns the method of this learner.

        Args:
            prediction: What both networks predict: the velocity, or the action itself. See `Flow`.
        """
        first = flow_policy(n_obs_steps, horizon, n_action_steps, prediction)
        return replace(
            first,
            policy=replace(first.policy, head=Flow(n_steps, prediction=prediction)),
            learner=self,
            stages=(Stage("flow", first),),
            initialize_from=(InitializeFrom(FromStage("flow")),),
        )

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        nets = super().networks(policy, data)
        teacher = self.trained_teacher
        if not isinstance(policy.config.head, Flow) or not isinstance(teacher.config.head, DenoisingHead):
            raise Unsupported("reflow needs a policy with the head Flow, and a teacher that moves noise to an action",
                              where="ReflowPolicy", hint="use Flow, or EDM for the teacher")
        if (shape := self.source.noise(policy.window.horizon, teacher.codec.width)) != policy.noise_shape:
            raise Unsupported(f"a plan of the teacher has noise of shape {shape}, and a plan of the policy of shape "
                              f"{tuple(policy.noise_shape)}", where="ReflowPolicy.teacher",
                              hint="use a teacher that draws noise only at its start, such as Flow")
        return nets

    @property
    def source(self) -> Any:
        """Head of the teacher, with `teacher_steps`."""
        return replace(self.trained_teacher.config.head, n_steps=self.teacher_steps)

    @loss("policy")
    def distillation_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        context, teacher_context = self.encode_obs(nets, batch, rng)
        noise = torch.randn(len(batch), *nets.policy.noise_shape, generator=rng, device=batch.mask.device)
        with torch.no_grad():
            action = self.source.sample(self.trained_teacher.net, teacher_context, noise)
        error = nets.policy.config.head.pair_loss(nets.policy.net, context, action, noise, rng)
        if self.norm == "l2":
            return error
        size = batch.mask.sum(1, keepdim=True).clamp(min=1) * action.shape[-1]
        constant, square = 0.00054 * size, action.shape[-1] * (error * batch.mask).sum(1, keepdim=True)
        return (((square + constant.square()).sqrt() - constant) / size).expand_as(error)
