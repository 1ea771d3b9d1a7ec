from __future__ import annotations

from typing import Annotated, Literal

from torch import Generator, Tensor

from ...core import Above, AtLeast, Batch, Schema, part
from ...data.episode import Dataset
from ...heads.likelihood.gaussian import Gaussian
from ...learn.critics.advantage_weighted_actor_critic import AWAC, AWACLearner
from ...learn.critics.critic_learning import critic_method
from ...learn.method import Method
from ...policy import Policy
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@part
class CRR(AWAC):
    """`AWAC` with weights ``exp(advantage / temperature)``, and targets of a lagged policy.

    Args:
        weight_type: ``"binary"`` clones the windows with an advantage above 0, and no others.
        advantage_type: What a score is compared with: the mean or the max of those of `n_samples` actions.
        max_weight: Upper bound of a weight.

    References:
        Wang et al. (2020), Critic Regularized Regression, arXiv:2006.15134.
    """

    n_samples: Annotated[int, AtLeast(1)] = 4
    weight_type: Literal["exp", "binary"] = "exp"
    advantage_type: Literal["mean", "max"] = "mean"
    max_weight: Annotated[float, Above(0)] = 20.0

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> CRRLearner:
        return CRRLearner(self, policy, seed, steps, data)


class CRRLearner(AWACLearner):
    """Learner of `CRR`."""

    config: CRR

    def __init__(self, config: CRR, policy: Policy, seed: int, steps: int, data: Dataset):
        super().__init__(config, policy, seed, steps, data)
        self.next_policy = self.target_network("policy", config.target_decay)

    def weights(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the weights of the windows, (B,)."""
        config, (score, sampled) = self.config, self.compared_scores(batch, rng)
        advantage = score - (sampled.mean(1) if config.advantage_type == "mean" else sampled.amax(1))
        if config.weight_type == "binary":
            return (advantage > 0).float()
        return (advantage / config.temperature).exp().clamp(max=config.max_weight)


@method("Wang et al. 2020 (CRR), arXiv 2006.15134, with two critics of plain values, and plans that are means",
        needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards and no environment; binary weights drop actions no better than the policy's own.")
def crr(weight_type: Literal["exp", "binary"] = "exp", advantage_type: Literal["mean", "max"] = "mean",
        temperature: float = 1.0, n_samples: int = 4, features: Schema | None = None) -> Method:
    """Critic regularized regression: clones the stored actions whose score is above that of the policy's own.

    Args:
        weight_type: "exp" weighs by the exponential advantage, "binary" leaves out the actions without one.
        temperature: Temperature of exponential weights, in units of return. Large values are cloning.
        n_samples: Number of actions of the policy that each stored action is compared with.
    """
    learner = CRR(temperature=temperature, n_samples=n_samples, weight_type=weight_type, advantage_type=advantage_type)
    return critic_method(Gaussian(), learner, features)
