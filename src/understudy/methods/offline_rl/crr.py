from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from torch import Generator, Tensor

from ...core import Above, AtLeast, Batch, part
from ...data.episode import Dataset
from ...learn.algorithm import Net
from ...policy import Policy
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method
from .awac import AWAC


@method("Wang et al. 2020 (CRR), arXiv 2006.15134, with two critics of plain values, and plans that are means",
        needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards and no environment; binary weights drop actions no better than the policy's own.")
@part
class CRR(AWAC):
    """Critic regularized regression: clones the stored actions whose score is above that of the policy's own.

    It is `AWAC` with weights ``exp(advantage / temperature)``, and targets of a lagged policy.

    Args:
        weight_type: "exp" weighs by the exponential advantage, "binary" leaves out the actions without one.
        advantage_type: What a score is compared with: the mean or the max of those of `n_samples` actions.
        max_weight: Upper bound of a weight.

    References:
        Wang et al. (2020), Critic Regularized Regression, arXiv:2006.15134.
    """

    n_samples: Annotated[int, AtLeast(1)] = 4
    weight_type: Literal["exp", "binary"] = "exp"
    advantage_type: Literal["mean", "max"] = "mean"
    max_weight: Annotated[float, Above(0)] = 20.0

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        nets = super().networks(policy, data)
        return {**nets, "policy": replace(nets["policy"], target=self.target_decay)}

    def next_policy(self, nets: Any) -> Policy:
        return nets.target.policy

    def weight(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the weights of the windows, (B,)."""
        score, sampled = self.compared_scores(nets, batch, rng)
        advantage = score - (sampled.mean(1) if self.advantage_type == "mean" else sampled.amax(1))
        if self.weight_type == "binary":
            return (advantage > 0).float()
        return (advantage / self.temperature).exp().clamp(max=self.max_weight)
