from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from ...checkpoint import FromStage
from ...core import AtLeast, Batch, Schema, Unsupported, part
from ...data.episode import Dataset
from ...heads.denoising.edm import EDM
from ...heads.one_step.consistency import Consistency
from ...learn.algorithm import Net, loss
from ...learn.cloning.distillation import Distillation
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.optimizer import OptimizerConfig
from ...policy import Policy
from ..registry import method
from .flow_policy import flow_policy


@method("Prasad et al. 2024, arXiv 2405.07503, which jumps to any lower noise level and adds the loss of diffusion; "
        "here the jumps end at the action, as in Song et al. 2023, arXiv 2303.01469",
        when="if a trained diffusion policy is good and too slow; it lost 7 points on the toy fork, and most of the "
             "success where motions are precise.")
@part
class ConsistencyPolicy(Distillation):
    """Consistency policy: a diffusion policy is distilled into a network that jumps from noise to action.

    It trains a `Consistency` head so that one step of a trained `EDM` head does not change its estimate. Both heads
    have the same noise levels, and the same network inputs and scales. The student can therefore start from the weights
    of the teacher (`InitializeFrom`). The teacher makes an Euler step from each level to the next one.

    References:
        Song et al. (2023), Consistency Models, arXiv:2303.01469.
    """

    steps: Annotated[int, AtLeast(0)] = 4000
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3, warmup_steps=100))

    def method(self, features: Schema | None = None, n_steps: int = 1, n_obs_steps: int = 2, horizon: int = 16,
               n_action_steps: int = 8) -> Method:
        base = flow_policy(n_obs_steps, horizon, n_action_steps)
        return replace(
            base,
            policy=replace(base.policy, head=Consistency(n_steps)),
            learner=self,
            stages=(Stage("teacher", replace(base, policy=replace(base.policy, head=EDM()))),),
            initialize_from=(InitializeFrom(FromStage("teacher")),),
        )

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        nets = super().networks(policy, data)
        head, source = policy.config.head, self.trained_teacher.config.head
        if not isinstance(head, Consistency) or not isinstance(source, EDM) or head.path != source.path:
            raise Unsupported("consistency distillation needs a policy with the head Consistency, and a teacher with "
                              "the head EDM and the same noise levels", where="ConsistencyPolicy",
                              hint="give both heads the same sigma_min, sigma_max and rho")
        return {"policy": replace(nets["policy"], target=head.target_decay)}

    @loss("policy")
    def distillation_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        context, teacher_context = self.encode_obs(nets, batch, rng)
        action, head = nets.policy.encode_batch(batch), nets.policy.config.head
        noise = torch.randn(action.shape, generator=rng, device=action.device)
        t, t_next = head.training_times(action, rng)
        x = head.interpolate(action, noise, t.unsqueeze(-1))
        with torch.no_grad():
            x_next = self.trained_teacher.denoise_step(teacher_context, x, t, t_next)
            target = head.predict_clean(nets.target.policy.net, context, x_next, t_next)
        return head.distance(head.predict_clean(nets.policy.net, context, x, t), target, t, t_next)
