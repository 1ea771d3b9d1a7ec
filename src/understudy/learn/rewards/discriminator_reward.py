"""Adversarial rewards: a discriminator tells demonstrations from what the policy does."""

from __future__ import annotations

import warnings
from dataclasses import field
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.parametrizations import spectral_norm

from ...core import AtLeast, AtMost, Batch, ConfigError, DataWarning, Unsupported, part
from ...nets.base import Encoder
from ...nets.encoders import ConcatEncoder
from ...nets.feed_forward import Activation, feed_forward_layers
from ..optimizer import OptimizerConfig
from ..targets import TERMINATED
from .reward_models import RewardModel, RewardModelConfig, RewardSpec

_ABSORBING_SPEED = 10.0  # logit of the absorbing state for each unit of its parameter
SATURATED = 10.0  # mean absolute logit at which a discriminator is certain: its probability of an error is 5e-5


@part
class DiscriminatorReward(RewardModelConfig):
    """Reward model config: a discriminator D, the probability that a step is of a demonstration (GAIL, AIRL).

    | form | reward |
    |---|---|
    | ``"logit"`` | log D - log(1 - D), of either sign (DAC) |
    | ``"gail"`` | -log(1 - D), which is positive: a long episode is worth more than a short one |
    | ``"airl"`` | f = g(s, a) + discount * h(s') - h(s), where D = exp(f) / (exp(f) + density of the policy) |

    The gradient penalty is (norm of the gradient of the logit - target)^2, at points between demonstrated steps and
    steps of the policy, in coded units.

    Args:
        inputs: What is compared: "action" is the state and the action, "state" the state alone, and "next" the state
            and the next state (GAIfO), for demonstrations by a body with other actions.
        penalty: Weight of the gradient penalty. 0 for none.
        one_sided: Only gradients longer than `target` count.
        target: Length of the gradient that is not penalized.
        spectral: Divide the weights of each layer by their largest singular value.
        encoder: Encodes the observation window.
        optimizer: Optimizer of the discriminator.
        discount: Discount of the shaping of "airl", and of the rewards of `absorbing`.
        absorbing: Whether an episode that terminates continues forever in an absorbing state, whose rewards the last
            step has. The logit of the absorbing state is trained like the logits of other states, but without the
            penalty, which would tie it to states that look alike. Otherwise a policy that terminates has no further
            rewards, so that it ends its episodes early where rewards are negative, and late where they are positive.
            Not for "airl".

    References:
        Ho and Ermon (2016), Generative Adversarial Imitation Learning, arXiv:1606.03476.
        Fu et al. (2018), Learning Robust Rewards with Adversarial Inverse Reinforcement Learning, arXiv:1710.11248.
        Kostrikov et al. (2019), Discriminator-Actor-Critic, arXiv:1809.02925.
        Torabi et al. (2019), Generative Adversarial Imitation from Observation, arXiv:1807.06158.
        Blondé et al. (2022), Lipschitzness Is All You Need To Tame Off-policy Generative Adversarial Imitation
        Learning, arXiv:2006.16785.
    """

    form: Literal["logit", "gail", "airl"] = "logit"
    inputs: Literal["action", "state", "next"] = "action"
    penalty: Annotated[float, AtLeast(0)] = 10.0
    one_sided: bool = False
    target: Annotated[float, AtLeast(0)] = 1.0
    spectral: bool = False
    hidden: Annotated[tuple[int, ...], AtLeast(1)] = (256, 256)
    activation: Activation = "tanh"
    encoder: Encoder = field(default_factory=ConcatEncoder)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None))
    discount: Annotated[float, AtLeast(0), AtMost(1)] = 0.99
    absorbing: bool = False

    def __post_init__(self):
        if self.absorbing and (self.form == "airl" or self.discount == 1):
            problem, hint = (("the absorbing state has no action, whose density the discriminator of airl reads",
                              'use form="logit"') if self.form == "airl" else
                             ("the rewards of the absorbing state have no finite sum", "use a discount below 1"))
            raise ConfigError(problem, where="DiscriminatorReward.absorbing", hint=hint)

    @property
    def reads_density(self):
        return self.form == "airl"

    @property
    def learner_discount(self):
        return self.discount if self.absorbing else None

    @property
    def is_biased_by_ends(self):
        return not self.absorbing

    def build(self, policy, data):
        if policy.window.horizon > 1:
            raise Unsupported("a discriminator compares single actions", where="DiscriminatorReward",
                              hint="use a policy with horizon=1")
        return Discriminator(RewardSpec.of(self, policy), policy.features, policy.codec).to(policy.device)


class Discriminator(RewardModel):
    """The discriminator network that `DiscriminatorReward` configures."""

    def __init__(self, about, features, codec=None):
        super().__init__(about, features, codec)
        self.config: DiscriminatorReward = about.config
        self.encoder = self.config.encoder.build({k: features[k] for k in self.inputs}, about.window.n_obs_steps)
        state = self.encoder.tokens * self.encoder.width
        second = {"action": self.codec.width, "next": state, "state": 0}[self.config.inputs]
        self.layers = self._network(state + second)
        self.potential = self._network(state) if self.config.form == "airl" else None
        self.absorbing = nn.Parameter(torch.zeros(())) if self.config.absorbing else None

    def _network(self, size: int) -> nn.Sequential:
        layers = feed_forward_layers((size, *self.config.hidden, 1), self.config.activation)
        if self.config.spectral:
            for layer in layers:
                if isinstance(layer, nn.Linear):
                    spectral_norm(layer)
        return layers

    def loss(self, own, expert, rng):
        """Returns the cross-entropy of policy rows against demonstration rows, plus the gradient penalty."""
        own_logit, expert_logit = self.logit(own), self.logit(expert)
        certainty = float(torch.stack([own_logit, expert_logit]).detach().abs().mean())
        if certainty > SATURATED:
            warnings.warn(
                "DiscriminatorReward: the discriminator is certain of all rows (mean absolute logit above "
                f"{SATURATED:g}), so its reward no longer says which actions are better. Raise its gradient penalty "
                f"(--reward.penalty {10 * self.config.penalty or 10:g}), or lower its learning "
                "rate (--reward.optimizer.lr).",
                DataWarning, stacklevel=2)
        loss = softplus(own_logit) + softplus(-expert_logit)
        if self.absorbing is not None:
            after = self.absorbing_logit()
            loss = loss + self.ends(own) * softplus(after) + self.ends(expert) * softplus(-after)
        if not self.config.penalty:
            return loss
        own, expert = self.read(own), self.read(expert)
        mixed = torch.rand(len(own), 1, generator=rng, device=own.device)
        return loss + self.config.penalty * self.gradient_penalty(mixed * expert + (1 - mixed) * own)

    def gradient_penalty(self, points: Tensor) -> Tensor:
        """Returns the penalty, (B,), at points that the network reads, (B, D)."""
        points = points.detach().requires_grad_()
        gradient, = torch.autograd.grad(self.layers(points).sum(), points, create_graph=True)
        excess = gradient.norm(dim=1) - self.config.target
        return (excess.clamp(min=0) if self.config.one_sided else excess).square()

    def metrics(self, batch):
        """The 95th percentile, over the rows of the policy, of the length of the reward's gradient in coded units."""
        points = self.read(batch).detach().requires_grad_()
        value = self.layers(points)
        gradient, = torch.autograd.grad((softplus(value) if self.config.form == "gail" else value).sum(), points)
        return {"slope": float(gradient.norm(dim=1).quantile(0.95))}

    def logit(self, batch) -> Tensor:
        """Returns log D - log(1 - D) of each row, (B,)."""
        value = self.value(batch)
        return value - batch.extra["log_prob"][:, 0] if self.config.form == "airl" else value

    def value(self, batch) -> Tensor:
        """Returns the logit log D - log(1 - D) of each row or, for "airl", the function f, (B,)."""
        value = self.layers(self.read(batch)).squeeze(-1)
        if self.potential is None:
            return value
        potential, next_potential = (self.potential(self.encode(obs)).squeeze(-1) for obs in (batch.obs, batch.next))
        return value + self.config.discount * ~self.ends(batch) * next_potential - potential

    def reward(self, batch, policy):
        reward = self._reward_of(self.value(batch))
        if self.absorbing is not None:
            n_later = self.config.discount / (1 - self.config.discount)
            reward = reward + n_later * self.ends(batch) * self._reward_of(self.absorbing_logit())
        return reward.unsqueeze(1)

    def _reward_of(self, value: Tensor) -> Tensor:
        return softplus(value) if self.config.form == "gail" else value

    def forward(self, obs, plan):
        if self.config.inputs == "next":
            raise Unsupported("the discriminator compares a state with the next one, which a plan does not tell",
                              where="DiscriminatorReward", hint='use inputs="action" or "state"')
        return self._reward_of(self.layers(torch.cat([self.encode(obs), self._coded(plan, obs)], -1)).squeeze(-1))

    def encode(self, obs) -> Tensor:
        """Returns the encoded observation window, (B, D)."""
        return self.encoder(self.codec.encode_obs(obs)).flat()

    def read(self, batch) -> Tensor:
        """Returns what the network reads of each row, (B, D)."""
        second = (self.encode(batch.next) if self.config.inputs == "next" else self._coded(batch.action, batch.obs))
        return torch.cat([self.encode(batch.obs), second], -1)

    def absorbing_logit(self) -> Tensor:
        """Returns the logit of the absorbing state, (). It moves faster than the weights that it is compared with."""
        assert self.absorbing is not None
        return _ABSORBING_SPEED * self.absorbing

    @staticmethod
    def ends(batch: Batch) -> Tensor:
        """Returns whether the environment ended the episode in each row's first step, (B,)."""
        return batch.extra[TERMINATED].reshape(batch.mask.shape)[:, 0].bool()

    def _coded(self, action: Tensor, obs) -> Tensor:
        coded = self.codec.encode(action, obs).flatten(1)
        return coded if self.config.inputs == "action" else coded[:, :0]
