from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from ...core import Above, AtLeast, AtMost, Batch, Below, Schema, Unsupported, part
from ...data.episode import Dataset
from ...heads.base import DeterministicHead
from ...heads.likelihood.cvae import CVAE, squared_error_loss
from ...learn.critic import mix_networks
from ...learn.critics.critic_learning import critic_method
from ...learn.critics.off_policy_actor_critic import ActorCritic, ActorCriticLearner
from ...learn.method import Method
from ...learn.targets import td_terms
from ...policy import Policy
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@part
class ChosenLatent(DeterministicHead):
    """Plans that a conditional variational autoencoder decodes from a latent, which a network chooses.

    Another network may change them within a limit. The loss trains the autoencoder alone. The gradients of samples
    train the other networks alone.

    Args:
        max_latent: Largest absolute value of a component of the latent.
        beta: Weight of the KL divergence, which is a mean over the dimensions of the latent.
        max_perturbation: Largest change of a component of a decoded plan, in coded units.
    """

    max_latent: Annotated[float, Above(0)] = 2.0
    beta: Annotated[float, AtLeast(0)] = 0.5
    max_perturbation: Annotated[float, AtLeast(0)] = 0.0

    def build(self, trunk, coded_dim, spec):
        cvae = CVAE(2 * spec.horizon * coded_dim).build(trunk, coded_dim, spec)
        net = nn.ModuleDict({"cvae": cvae, "latent": trunk.build(0, 2 * coded_dim, 0, spec)})
        if self.max_perturbation:
            net["perturbation"] = trunk.build(coded_dim, coded_dim, 0, spec)
        return net

    def loss(self, net, context, action, mask, rng):
        """Negative evidence lower bound of each step, (B, H), with the squared error as reconstruction."""
        return squared_error_loss(net["cvae"], context, action, mask, rng, self.beta)

    def sample(self, net, context, noise):
        latent = self.max_latent * net["latent"](noise, noise, context).tanh()
        x = latent.flatten(1).unsqueeze(1).expand(-1, latent.shape[1], -1)
        fixed = {name: parameter.detach() for name, parameter in net["cvae"].decoder.named_parameters()}
        action = functional_call(net["cvae"].decoder, fixed, (x, noise, context))
        if not self.max_perturbation:
            return action
        return action + self.max_perturbation * net["perturbation"](action, noise, context).tanh()


@part
class PLAS(ActorCritic):
    """Policy in the latent action space, with the head `ChosenLatent`.

    Args:
        cloning_fraction: Fraction of all updates, the first ones, that train the autoencoder alone, with the encoder.
            Later ones leave both as they are.
        min_weight: Weight of the smallest score among the critic networks (lambda). The largest has the remainder.

    References:
        Zhou et al. (2020), PLAS: Latent Action Space for Offline Reinforcement Learning, arXiv:2011.07213.
    """

    policy_delay: Annotated[int, AtLeast(1)] = 1
    cloning_fraction: Annotated[float, AtLeast(0), Below(1)] = 0.25
    min_weight: Annotated[float, AtLeast(0), AtMost(1)] = 0.75

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> PLASLearner:
        if not isinstance(policy.config.head, ChosenLatent):
            raise Unsupported(f"{type(policy.config.head).__name__} has no latent to choose", where="PLAS",
                              hint="use the head ChosenLatent(), or train td3-bc")
        return PLASLearner(self, policy, seed, steps, data)


class PLASLearner(ActorCriticLearner):
    """Learner of `PLAS`."""

    config: PLAS

    def __init__(self, config: PLAS, policy: Policy, seed: int, steps: int, data: Dataset):
        config.critic.check_no_subset()
        super().__init__(config, policy, seed, steps, data)
        self.target_policy = self.target_network("policy", config.target_decay)
        self.cloning_updates = int(config.cloning_fraction * steps)

    def update(self, batch: Batch) -> dict[str, float]:
        if self.n_updates >= self.cloning_updates:
            return super().update(batch)
        self.minimize("policy", self.policy.loss, batch)
        return self.end_update()

    @torch.no_grad()
    def target_value(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the rewards of the steps plus the discounted value of the lagged policy's plan, (n_quantiles, B)."""
        assert batch.next is not None
        coded = self.target_policy.sample(self.target_policy.context(batch.next), rng)
        quantiles = self.target_critic.quantiles(batch.next, self.policy.decode(coded, batch.next))
        reward, bootstrap = td_terms(batch, self.discount, self.config.n_step)
        return reward + bootstrap * mix_networks(quantiles, self.config.min_weight)

    def policy_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the negative score of the decoded plan, (B,)."""
        context = self.policy.context(batch.obs)
        # The autoencoder reads the same encodings, and would decode others if they changed.
        coded = self.policy.sample(replace(context, tokens=context.tokens.detach()), rng)
        return -self.critic.scores(batch.obs, self.policy.decode(coded, batch.obs), n_critics=1)[0]


@method("Zhou et al. 2020 (PLAS), arXiv 2011.07213", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards and no environment, and only actions like those in the data may be taken.")
def plas(max_latent: float = 2.0, cloning_fraction: float = 0.25, max_perturbation: float = 0.0,
         features: Schema | None = None) -> Method:
    """Policy in the latent space of an autoencoder of the stored actions, which chooses what has the highest score.

    Args:
        max_latent: Largest absolute value of a component of the latent, whose prior is standard normal.
        max_perturbation: Largest change of a decoded action, in coded units, such as 0.05. The paper's optional layer.
    """
    head = ChosenLatent(max_latent, max_perturbation=max_perturbation)
    return critic_method(head, PLAS(cloning_fraction=cloning_fraction), features)
