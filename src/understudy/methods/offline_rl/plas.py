from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from torch import Generator, Tensor, nn
from torch.func import functional_call

from ...core import Above, AtLeast, AtMost, Batch, Below, Schema, Unsupported, part
from ...data.episode import Dataset
from ...heads.base import DeterministicHead
from ...heads.likelihood.cvae import CVAE, squared_error_loss
from ...learn.algorithm import Net, loss
from ...learn.critic import mix_networks
from ...learn.critics.critic_learning import critic_method
from ...learn.critics.off_policy_actor_critic import ActorCritic, critic_is_due, policy_is_due
from ...learn.method import Method
from ...policy import Policy
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@part
class ChosenLatent(DeterministicHead):
    """Head that decodes a latent, which a network chooses, by a conditional variational autoencoder.

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
        """Returns the negative evidence lower bound of each step, (B, H), with the squared error as reconstruction."""
        return squared_error_loss(net["cvae"], context, action, mask, rng, self.beta)

    def sample(self, net, context, noise):
        latent = self.max_latent * net["latent"](noise, noise, context).tanh()
        x = latent.flatten(1).unsqueeze(1).expand(-1, latent.shape[1], -1)
        fixed = {name: parameter.detach() for name, parameter in net["cvae"].decoder.named_parameters()}
        action = functional_call(net["cvae"].decoder, fixed, (x, noise, context))
        if not self.max_perturbation:
            return action
        return action + self.max_perturbation * net["perturbation"](action, noise, context).tanh()


@method("Zhou et al. 2020 (PLAS), arXiv 2011.07213", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards and no environment, and only actions like those in the data may be taken.")
@part
class PLAS(ActorCritic):
    """Policy in the latent space of an autoencoder of the stored actions, which chooses what has the highest score.

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

    def method(self, max_latent: float = 2.0, max_perturbation: float = 0.0, features: Schema | None = None) -> Method:
        """Builds a method with the head `ChosenLatent`.

        Args:
            max_latent: Largest absolute value of a component of the latent, whose prior is standard normal.
            max_perturbation: Largest change of a decoded action, in coded units, such as 0.05. The paper's optional
                layer.
        """
        return critic_method(ChosenLatent(max_latent, max_perturbation=max_perturbation), self, features)

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        if not isinstance(policy.config.head, ChosenLatent):
            raise Unsupported(f"{type(policy.config.head).__name__} has no latent to choose", where="PLAS",
                              hint="use the head ChosenLatent(), or train td3-bc")
        self.critic.check_no_subset()
        nets = super().networks(policy, data)
        return {**nets, "policy": replace(nets["policy"], target=self.target_decay)}

    def cloning_updates(self, steps: int) -> int:
        return int(self.cloning_fraction * steps)

    @loss("policy", when=lambda method, n_updates, steps: not critic_is_due(method, n_updates, steps))
    def cloning_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the autoencoder, (B, H)."""
        return nets.policy.loss(batch, rng)

    def target_value(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the rewards of the steps plus the discounted value of the lagged policy's plan, (n_quantiles, B)."""
        assert batch.next is not None
        coded = nets.target.policy.sample(nets.target.policy.context(batch.next), rng)
        quantiles = nets.target.critic.quantiles(batch.next, nets.policy.decode(coded, batch.next))
        return self.bootstrapped(nets, batch, mix_networks(quantiles, self.min_weight))

    @loss("policy", when=policy_is_due)
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the negative score of the decoded plan, (B,)."""
        context = nets.policy.context(batch.obs)
        # The autoencoder reads the same encodings, and would decode others if they changed.
        coded = nets.policy.sample(replace(context, tokens=context.tokens.detach()), rng)
        return -nets.critic.scores(batch.obs, nets.policy.decode(coded, batch.obs), n_critics=1)[0]
