from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Generator, Tensor, nn

from ...core import Above, AtLeast, AtMost, Batch, Below, Schema, Unsupported, part
from ...data.episode import Dataset
from ...execute.planners import BestOfN
from ...heads.likelihood.cvae import CVAE
from ...heads.likelihood.squashed_gaussian import SquashedGaussian
from ...learn.algorithm import Net, first, loss
from ...learn.critics.critic_learning import autoencoder_loss, critic_method, draw_plans, plan_autoencoder
from ...learn.critics.off_policy_actor_critic import ActorCritic, policy_is_due
from ...learn.method import Method
from ...policy import Policy
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


def is_warming_up(method: BEAR, n_updates: int, steps: int) -> bool:
    return n_updates < int(method.warmup_fraction * steps)


@method("Kumar et al. 2019 (BEAR), arXiv 1906.00949, with a Laplacian kernel, and with the current policy in targets",
        needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards and no environment, and actions must be among those in the data.")
@part
class BEAR(ActorCritic):
    """BEAR: follows the critic as long as the policy's actions are among those that the demonstrators take.

    The policy maximizes the smallest score, while the maximum mean discrepancy (MMD) between its plans and plans of the
    autoencoder stays below a threshold. A multiplier, which is trained along, weighs the constraint.

    Args:
        threshold: Largest MMD that costs nothing (epsilon).
        n_samples: Number of plans from which the best is taken, in targets and while acting.
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

    def method(self, features: Schema | None = None) -> Method:
        return critic_method(SquashedGaussian(temperature=1.0), self, features,
                             inference=(BestOfN(n=self.n_samples),))

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        if not isinstance(policy.config.head, SquashedGaussian):
            raise Unsupported(f"samples of {type(policy.config.head).__name__} are not compared with those of the data",
                              where="BEAR", hint="use the head SquashedGaussian()")
        self.critic.check_no_subset()
        return {**super().networks(policy, data),
                "log_multiplier": Net(nn.ParameterList([torch.zeros(())]), trained_with="policy"),
                "behavior": Net(plan_autoencoder(policy), self.optimizer)}

    @first
    @loss("behavior")
    def behavior_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the autoencoder, (B, H)."""
        return autoencoder_loss(nets.behavior, batch, rng, self.beta)

    def target_value(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        return self.best_plan_target(nets, nets.policy, batch, rng, self.n_samples, self.min_weight)

    @loss("policy", when=lambda *now: policy_is_due(*now) and is_warming_up(*now))
    def warmup_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Returns the weighted MMD, and the loss of the multiplier, (B,) each."""
        mmd, multiplier = self.mmd(nets, batch, rng), nets.log_multiplier[0].exp()
        excess = mmd - self.threshold
        return (multiplier.detach() * excess, -multiplier * excess.detach(),
                {"mmd": mmd, "multiplier": multiplier.expand(len(mmd))})

    @loss("policy", when=lambda *now: policy_is_due(*now) and not is_warming_up(*now))
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Returns the weighted MMD minus the score, and the loss of the multiplier, (B,) each."""
        constraint, of_multiplier, values = self.warmup_loss(nets, batch, rng)
        plan = draw_plans(nets.policy, batch.obs, 1, rng).squeeze(1)
        return constraint - nets.critic.scores(batch.obs, plan).amin(0), of_multiplier, values

    def end_update(self, nets: Any) -> None:
        nets.log_multiplier[0].data.clamp_(-5, 10)

    def mmd(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the maximum mean discrepancy between plans of the policy and of the autoencoder, (B,)."""
        n, head = self.n_mmd_samples, nets.behavior.config.head
        with torch.no_grad():
            latent = torch.randn(n * len(batch), head.latent_dim, generator=rng, device=rng.device).clamp(-0.5, 0.5)
            context = nets.behavior.context(batch.obs).repeat(n)
            stored = CVAE(temperature=1.0).sample(nets.behavior.net, context, latent)
        drawn = nets.policy.sample(nets.policy.context(batch.obs).repeat(n), rng, temperature=1.0)
        x, y = (plans.flatten(1).unflatten(0, (-1, n)) for plans in (drawn, stored))
        squared = self.kernel(x, x) + self.kernel(y, y) - 2 * self.kernel(x, y)
        return (squared + 1e-6).sqrt()  # whose gradient is finite at 0

    def kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the mean kernel over all pairs of vectors (B, n, D), (B,)."""
        distance = (x.unsqueeze(2) - y.unsqueeze(1)).abs().sum(-1)
        return (-distance / (2 * self.kernel_width)).exp().mean((1, 2))
