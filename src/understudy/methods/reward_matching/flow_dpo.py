from __future__ import annotations

import copy
from typing import Annotated, Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from ...core import Above, AtLeast, Batch, Unsupported, part
from ...data.episode import Dataset
from ...heads.denoising.flow import Flow
from ...learn.algorithm import Net, loss
from ...learn.method import Method
from ...learn.rewards.denoising_preference import DenoisingPreference, denoising_error
from ...policy import Policy
from ..generative.flow_policy import flow_policy
from ..needs import COMPARISONS, NUMBERS
from ..registry import method

LEAST_NOISE = 1e-3  # smallest 1 - t: the velocity's error is the clean plan's error divided by its square


@method("Liu et al. 2025 (Flow-DPO), arXiv 2501.13918, for videos; here for chunks of actions",
        needs=(NUMBERS, COMPARISONS),
        when="if a flow policy acts in several ways, and you can say which of two motions is better; with --from RUN.")
@part
class FlowDPO(DenoisingPreference):
    """Tunes a flow policy by comparisons, without a reward: it learns better chunks rather than worse ones.

    The loss is ``-log sigmoid(beta / 2 * (improvement of the better - improvement of the worse))``. The improvement of
    a chunk is the error of its velocity before the tuning minus the error now. All four errors are computed with the
    same time and noise. The policy has to be trained already: ``understudy train flow-dpo DATA --from RUN``.

    References:
        Liu et al. (2025), Improving Video Generation with Human Feedback, arXiv:2501.13918.
    """

    batch_size: Annotated[int, AtLeast(1)] = 32
    beta: Annotated[float, Above(0)] = 10.0

    def method(self) -> Method:
        """Returns the method of this learner, with the policy of `flow-policy`."""
        return Method(flow_policy().policy, flow_policy().executor, self)

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        if not isinstance(policy.config.head, Flow):
            raise Unsupported(f"the errors are those of velocities, and {type(policy.config.head).__name__} has none",
                              where="FlowDPO", hint="use a policy with the head Flow, such as flow-policy")
        return {"policy": Net(policy, self.optimizer), "reference": Net(copy.deepcopy(policy)),
                "comparisons": super().networks(policy, data)["comparisons"]}

    @loss("policy")
    def preference_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of as many random comparisons as the batch has rows, (B,)."""
        sign, arguments = self.draw(nets, len(batch), rng)
        with torch.no_grad():
            reference = denoising_error(nets.reference, *arguments)
        improvement = reference - denoising_error(nets.policy, *arguments)
        velocity = improvement.unsqueeze(1) / (1 - arguments[2]).clamp(min=LEAST_NOISE).square()
        margin = (velocity.reshape(sign.shape) * sign).sum(1)
        return -logsigmoid(0.5 * self.beta * margin), {"agreement": (margin > 0).float()}
