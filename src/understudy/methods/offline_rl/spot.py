from __future__ import annotations

from typing import Annotated, Any

from torch import Generator, Tensor

from ...core import AtLeast, Batch, Below, Schema, part
from ...data.episode import Dataset
from ...heads.likelihood.cvae import squared_error_loss
from ...heads.likelihood.regression import Regression
from ...learn.algorithm import Net, loss
from ...learn.critics.critic_learning import autoencoder_loss, critic_method, plan_autoencoder
from ...learn.critics.off_policy_actor_critic import critic_is_due
from ...learn.critics.td3 import TD3
from ...learn.method import Method
from ...learn.targets import mean_over_steps
from ...policy import Policy
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@method("Wu et al. 2022 (SPOT), arXiv 2202.06239, without dropout in the policy", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards and no environment, and demonstrators act in several ways.")
@part
class SPOT(TD3):
    """SPOT: TD3 that is held where the demonstrators' actions are dense, by an autoencoder of them.

    In place of the squared distance to the stored plan, `bc_weight` weighs the negative evidence lower bound of the
    policy's own plan: far from all plans of the data it is large, and among several of them small.

    Args:
        bc_weight: Weight of the autoencoder's loss of the policy's action (lambda). The mean absolute score has
            weight 1.
        beta: Weight of the KL divergence of the autoencoder, which is a mean over the dimensions of the latent.
        cloning_fraction: Fraction of all updates, the first ones, that train the autoencoder alone. Later ones leave it
            as it is.

    References:
        Wu et al. (2022), Supported Policy Optimization for Offline Reinforcement Learning, arXiv:2202.06239.
    """

    bc_weight: Annotated[float, AtLeast(0)] = 1.0
    beta: Annotated[float, AtLeast(0)] = 0.5
    cloning_fraction: Annotated[float, AtLeast(0), Below(1)] = 0.25

    def method(self, features: Schema | None = None) -> Method:
        return critic_method(Regression(), self, features)

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        return {**super().networks(policy, data), "behavior": Net(plan_autoencoder(policy), self.optimizer)}

    def cloning_updates(self, steps: int) -> int:
        return int(self.cloning_fraction * steps)

    @loss("behavior", when=lambda method, n_updates, steps: not critic_is_due(method, n_updates, steps))
    def behavior_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the autoencoder, (B, H)."""
        return autoencoder_loss(nets.behavior, batch, rng, self.beta)

    def distance(self, nets: Any, coded: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """Returns the negative evidence lower bound of coded plans, (B, H, A), in the autoencoder, (B,)."""
        context = nets.behavior.context(batch.obs)
        return mean_over_steps(squared_error_loss(nets.behavior.net, context, coded, batch.mask, rng, self.beta),
                               batch.mask)
