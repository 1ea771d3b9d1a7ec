from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from torch import Generator, Tensor, nn

from ...core import Above, AtLeast, AtMost, Batch, Below, Schema, Unsupported, part
from ...data.episode import Dataset
from ...execute.planners import BestOfN
from ...heads.likelihood.cvae import CVAE, squared_error_loss
from ...heads.likelihood.squashed_gaussian import SquashedGaussian
from ...learn.critics.critic_learning import critic_method, draw_plans
from ...learn.critics.off_policy_actor_critic import ActorCritic, ActorCriticLearner
from ...learn.method import Method
from ...policy import Policy
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@part
class BEAR(ActorCritic):
    """Bootstrapping error accumulation reduction: the policy draws plans that an autoencoder of the data also draws.

    The policy maximizes the smallest score, while the maximum mean discrepancy (MMD) between its plans and those of the
    autoencoder stays below a threshold. A multiplier, which is trained along, weighs the constraint.

    Args:
        threshold: Largest MMD that costs nothing (epsilon).
        n_samples: Number of plans whose best score is the value of an observation.
        n_mmd_samples: Number of plans of each kind from which the MMD is estimated.
        kernel_width: Half of the distance at which the Laplacian kernel is 1 / e (sigma), in coded units. Distances are
            summed over a plan.
        min_weight: Weight of the smallest score among the critic networks (lambda). The largest has the remainder.
        beta: Weight of the KL divergence of the autoencoder, which is a mean over the dimensions of the latent.
        warmup_fraction: Fraction of all updates, the first ones, in which the policy lowers the MMD alone.

    References:
        Kumar et al. (2019), Stabilizing Off-Policy Q-Learning via Bootstrapping Error Reduction, arXiv:1906.00949.
    """

    policy_delay: Annotated[int, AtLeast(1)] = 1
    threshold: Annotated[float, AtLeast(0)] = 0.05
    n_samples: Annotated[int, AtLeast(1)] = 10
    n_mmd_samples: Annotated[int, AtLeast(1)] = 4
    kernel_width: Annotated[float, Above(0)] = 20.0
    min_weight: Annotated[float, AtLeast(0), AtMost(1)] = 0.75
    beta: Annotated[float, AtLeast(0)] = 0.5
    warmup_fraction: Annotated[float, AtLeast(0), Below(1)] = 0.1

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> BEARLearner:
        if not isinstance(policy.config.head, SquashedGaussian):
            raise Unsupported(f"samples of {type(policy.config.head).__name__} are not compared with those of the data",
                              where="BEAR", hint="use the head SquashedGaussian()")
        return BEARLearner(self, policy, seed, steps, data)


class BEARLearner(ActorCriticLearner):
    """Learner of `BEAR`."""

    config: BEAR

    def __init__(self, config: BEAR, policy: Policy, seed: int, steps: int, data: Dataset):
        config.critic.check_no_subset()
        self.log_multiplier = nn.ParameterList([torch.zeros(())])
        super().__init__(config, policy, seed, steps, data, auxiliary=[self.log_multiplier])
        self.warmup_updates = int(config.warmup_fraction * steps)
        self.latent_dim = 2 * policy.window.horizon * policy.codec.width
        self.behavior = Policy(replace(policy.config, head=CVAE(self.latent_dim)), policy.features)
        self.behavior.codec = policy.codec
        self.register("behavior", self.behavior, config.optimizer)

    def update(self, batch: Batch) -> dict[str, float]:
        self.minimize("behavior", self.behavior_loss, batch)
        metrics = super().update(batch)
        self.log_multiplier[0].data.clamp_(-5, 10)
        return metrics

    def behavior_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the autoencoder, (B, H)."""
        context, coded = self.behavior.training_context(batch.obs, rng), self.behavior.encode_batch(batch)
        return squared_error_loss(self.behavior.net, context, coded, batch.mask, rng, self.config.beta)

    def target_value(self, batch: Batch, rng: Generator) -> Tensor:
        return self.best_plan_target(self.policy, batch, rng, self.config.n_samples, self.config.min_weight)

    def policy_loss(self, batch: Batch, rng: Generator) -> tuple[Tensor, Tensor]:
        """Returns the weighted MMD minus, after the warm-up, the score, and the loss of the multiplier, (B,) each."""
        mmd, multiplier = self.mmd(batch, rng), self.log_multiplier[0].exp()
        self.log(mmd=mmd, multiplier=multiplier.expand(len(mmd)))
        excess = mmd - self.config.threshold
        loss = multiplier.detach() * excess
        if self.n_updates >= self.warmup_updates:
            plan = draw_plans(self.policy, batch.obs, 1, rng).squeeze(1)
            loss = loss - self.critic.scores(batch.obs, plan).amin(0)
        return loss, -multiplier * excess.detach()

    def mmd(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the maximum mean discrepancy between plans of the policy and of the autoencoder, (B,)."""
        n = self.config.n_mmd_samples
        with torch.no_grad():
            latent = torch.randn(n * len(batch), self.latent_dim, generator=rng, device=self.device).clamp(-0.5, 0.5)
            context = self.behavior.context(batch.obs).repeat(n)
            stored = CVAE(temperature=1.0).sample(self.behavior.net, context, latent)
        drawn = self.policy.sample(self.policy.context(batch.obs).repeat(n), rng, temperature=1.0)
        x, y = (plans.flatten(1).unflatten(0, (-1, n)) for plans in (drawn, stored))
        squared = self.kernel(x, x) + self.kernel(y, y) - 2 * self.kernel(x, y)
        return (squared + 1e-6).sqrt()  # whose gradient is finite at 0

    def kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the mean kernel over all pairs of vectors (B, n, D), (B,)."""
        distance = (x.unsqueeze(2) - y.unsqueeze(1)).abs().sum(-1)
        return (-distance / (2 * self.config.kernel_width)).exp().mean((1, 2))


@method("Kumar et al. 2019 (BEAR), arXiv 1906.00949, with a Laplacian kernel, and with the current policy in targets",
        needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards and no environment, and actions must be among those in the data; no claim has "
             "tested it here.")
def bear(threshold: float = 0.05, n_samples: int = 10, features: Schema | None = None) -> Method:
    """BEAR: follows the critic as long as the policy's actions are among those that the demonstrators take.

    Args:
        threshold: Largest maximum mean discrepancy from the demonstrators' actions that costs nothing (epsilon).
        n_samples: Number of actions from which the best is taken, in targets and while acting.
    """
    return critic_method(SquashedGaussian(temperature=1.0), BEAR(threshold=threshold, n_samples=n_samples), features,
                         inference=(BestOfN(n=n_samples),))
