from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from torch import Generator, Tensor

from ...core import AtLeast, Batch, Below, Schema, part
from ...data.episode import Dataset
from ...heads.likelihood.cvae import CVAE, squared_error_loss
from ...heads.likelihood.regression import Regression
from ...learn.critics.critic_learning import critic_method
from ...learn.critics.off_policy_actor_critic import OffPolicyActorCritic, OffPolicyActorCriticLearner
from ...learn.method import Method
from ...learn.targets import mean_over_steps
from ...policy import Policy
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@part
class SupportedActorCritic(OffPolicyActorCritic):
    """TD3 whose plans stay where an autoencoder of the stored ones has a high density.

    In place of the squared distance to the stored plan, `bc_weight` weighs the negative evidence lower bound of the
    policy's own plan: far from all plans of the data it is large, and among several of them small.

    Args:
        beta: Weight of the KL divergence of the autoencoder, which is a mean over the dimensions of the latent.
        cloning_fraction: Fraction of all updates, the first ones, that train the autoencoder alone. Later ones leave it
            as it is.

    References:
        Wu et al. (2022), Supported Policy Optimization for Offline Reinforcement Learning, arXiv:2202.06239.
    """

    beta: Annotated[float, AtLeast(0)] = 0.5
    cloning_fraction: Annotated[float, AtLeast(0), Below(1)] = 0.25

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> SupportedActorCriticLearner:
        return SupportedActorCriticLearner(self, policy, seed, steps, data)


class SupportedActorCriticLearner(OffPolicyActorCriticLearner):
    """Learner of `SupportedActorCritic`."""

    config: SupportedActorCritic

    def __init__(self, config: SupportedActorCritic, policy: Policy, seed: int, steps: int, data: Dataset):
        super().__init__(config, policy, seed, steps, data)
        self.cloning_updates = int(config.cloning_fraction * steps)
        self.behavior = Policy(replace(policy.config, head=CVAE(2 * policy.window.horizon * policy.codec.width)),
                               policy.features)
        self.behavior.codec = policy.codec
        self.register("behavior", self.behavior, config.optimizer)

    def update(self, batch: Batch) -> dict[str, float]:
        if self.n_updates >= self.cloning_updates:
            return super().update(batch)
        self.minimize("behavior", self.behavior_loss, batch)
        return self.end_update()

    def behavior_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the autoencoder, (B, H)."""
        context, coded = self.behavior.training_context(batch.obs, rng), self.behavior.encode_batch(batch)
        return squared_error_loss(self.behavior.net, context, coded, batch.mask, rng, self.config.beta)

    def distance(self, coded: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """Returns the negative evidence lower bound of coded plans, (B, H, A), in the autoencoder, (B,)."""
        context = self.behavior.context(batch.obs)
        loss = squared_error_loss(self.behavior.net, context, coded, batch.mask, rng, self.config.beta)
        return mean_over_steps(loss, batch.mask)


@method("Wu et al. 2022 (SPOT), arXiv 2202.06239, without dropout in the policy", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards and no environment, and demonstrators act in several ways; no claim has tested it "
             "here.")
def spot(support_weight: float = 1.0, cloning_fraction: float = 0.25, features: Schema | None = None) -> Method:
    """SPOT: TD3 that is held where the demonstrators' actions are dense, by an autoencoder of them.

    Args:
        support_weight: Weight of the autoencoder's loss of the policy's action (lambda). The mean absolute score has
            weight 1.
    """
    learner = SupportedActorCritic(bc_weight=support_weight, cloning_fraction=cloning_fraction)
    return critic_method(Regression(), learner, features)
