"""Distillation: a policy learns from a trained policy's samples, to need fewer sampling steps itself."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

import torch
from torch import Generator

from ...checkpoint import FromStage
from ...core import AtLeast, Batch, Context, UserError, part
from ...data.episode import Dataset
from ...nets.ema import EMADecay, WarmupDecay
from ...policy import Policy
from ..algorithm import Algorithm, Net, prepare
from ..optimizer import OptimizerConfig


@part
class Distillation(Algorithm):
    """Base class of methods that train a policy from a teacher, a trained policy with the same window and codec.

    Args:
        teacher: The trained policy.
        ema: Decay of the averaged weights, which act.
    """

    teacher: Policy | FromStage = FromStage("teacher")
    steps: Annotated[int, AtLeast(0)] = 2000
    batch_size: Annotated[int, AtLeast(1)] = 128
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMADecay = field(default_factory=lambda: WarmupDecay(0.995))

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        student, teacher = policy.config, self.trained_teacher.config
        if (student.window, student.target, student.codec) != (teacher.window, teacher.target, teacher.codec):
            raise UserError("the teacher plans other chunks than the policy", where=f"{type(self).__name__}.teacher",
                            hint="give both policies the same window, target and codec")
        self.trained_teacher.to(policy.device).eval()
        return {"policy": Net(policy, self.optimizer, average=self.ema)}

    @property
    def trained_teacher(self) -> Policy:
        """The teacher, which is no longer a reference to a stage."""
        if not isinstance(self.teacher, Policy):
            raise UserError(f"{self.teacher} is not a trained policy", where=f"{type(self).__name__}.teacher",
                            hint="refer to a stage of the method, FromStage(NAME), or give a Policy")
        return self.teacher

    @prepare(when=lambda method, n_updates, steps: n_updates == 0)
    def checked(self, nets: Any, batch: Batch, rng: Generator) -> Batch:
        """Raises UserError if the policy and the teacher scale columns differently. Returns the batch unchanged."""
        student, teacher = (policy.codec.state_dict() for policy in (nets.policy, self.trained_teacher))
        if any(not torch.equal(student[name], teacher[name]) for name in student):
            raise UserError("the policy and its teacher scale the columns differently",
                            where=f"{type(self).__name__}.teacher",
                            hint='take over the statistics: InitializeFrom(FromStage(NAME), load=("codec",))')
        return batch

    def encode_obs(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Context, Context]:
        """Returns the observations as encoded by the policy and by the teacher, after the policy's augmentations."""
        obs = nets.policy.augment(batch.obs, rng)
        with torch.no_grad():
            teacher_context = self.trained_teacher.context(obs)
        return nets.policy.context(obs, rng), teacher_context
