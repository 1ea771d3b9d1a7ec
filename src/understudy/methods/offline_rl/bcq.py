from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Generator, Tensor, nn

from ...core import AtLeast, AtMost, Batch, Schema, Unsupported, part
from ...data.episode import Dataset
from ...execute.planners import BestOfN
from ...heads.base import TemperatureHead
from ...heads.likelihood.cvae import CVAE, squared_error_loss
from ...learn.algorithm import Net, loss
from ...learn.critics.critic_learning import critic_method, draw_plans
from ...learn.critics.off_policy_actor_critic import ActorCritic, policy_is_due
from ...learn.method import Method
from ...policy import Policy
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@part
class PerturbedCVAE(TemperatureHead):
    """Head that perturbs samples of a conditional variational autoencoder by a network, within a limit.

    The loss trains the autoencoder alone. The gradients of samples train the network alone.

    Args:
        max_perturbation: Largest change of a component (phi), in coded units.
        beta: Weight of the KL divergence, which is a mean over the dimensions of the latent.
        temperature: Scale of the latent, whose components are clipped to 0.5.
    """

    max_perturbation: Annotated[float, AtLeast(0)] = 0.05
    beta: Annotated[float, AtLeast(0)] = 0.5
    temperature: Annotated[float, AtLeast(0)] = 1.0

    def noise(self, horizon, coded_dim):
        return (2 * horizon * coded_dim,)

    def build(self, trunk, coded_dim, spec):
        cvae = CVAE(2 * spec.horizon * coded_dim).build(trunk, coded_dim, spec)
        return nn.ModuleDict({"cvae": cvae, "perturbation": trunk.build(coded_dim, coded_dim, 0, spec)})

    def loss(self, net, context, action, mask, rng):
        """Returns the negative evidence lower bound of each step, (B, H), with the squared error as reconstruction."""
        return squared_error_loss(net["cvae"], context, action, mask, rng, self.beta)

    def sample(self, net, context, noise):
        with torch.no_grad():
            latent = (self.temperature * noise).clamp(-0.5, 0.5)
            action = CVAE(temperature=1.0).sample(net["cvae"], context, latent)
        return action + self.max_perturbation * net["perturbation"](action, action[..., :0], context).tanh()


@method("Fujimoto et al. 2019 (BCQ), arXiv 1812.02900, with a lagged autoencoder in targets, and actions that the "
        "smallest score chooses", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards and no environment, and actions must stay close to those in the data.")
@part
class BCQ(ActorCritic):
    """Batch-constrained Q-learning: the best of several actions that resemble the stored ones, each slightly improved.

    Args:
        bc_weight: Weight of the loss of the autoencoder. The score has weight 1. It matters if both train an encoder.
        n_samples: Number of plans from which the best is taken, in targets and while acting.
        min_weight: Weight of the smallest score among the critic networks (lambda). The largest has the remainder.

    References:
        Fujimoto et al. (2019), Off-Policy Deep Reinforcement Learning without Exploration, arXiv:1812.02900.
    """

    policy_delay: Annotated[int, AtLeast(1)] = 1
    bc_weight: Annotated[float, AtLeast(0)] = 1.0
    n_samples: Annotated[int, AtLeast(1)] = 10
    min_weight: Annotated[float, AtLeast(0), AtMost(1)] = 0.75

    def method(self, max_perturbation: float = 0.05, features: Schema | None = None) -> Method:
        """Builds a method with the head `PerturbedCVAE`.

        Args:
            max_perturbation: Largest change of an action that the autoencoder draws (phi), in coded units.
        """
        return critic_method(PerturbedCVAE(max_perturbation), self, features, inference=(BestOfN(n=self.n_samples),))

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        if not isinstance(policy.config.head, PerturbedCVAE):
            raise Unsupported(f"nothing keeps the actions of {type(policy.config.head).__name__} close to stored ones",
                              where="BCQ", hint="use the head PerturbedCVAE(), or train td3-bc")
        self.critic.check_no_subset()
        nets = super().networks(policy, data)
        return {**nets, "policy": replace(nets["policy"], target=self.target_decay)}

    def target_value(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        return self.best_plan_target(nets, nets.target.policy, batch, rng, self.n_samples, self.min_weight)

    @loss("policy", when=policy_is_due)
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, Tensor]:
        """Returns the weighted loss of the autoencoder, (B, H), and the negative score of a changed sample, (B,)."""
        plan = draw_plans(nets.policy, batch.obs, 1, rng).squeeze(1)
        score = nets.critic.scores(batch.obs, plan, n_critics=1)[0]
        return self.bc_weight * nets.policy.loss(batch, rng), -score
