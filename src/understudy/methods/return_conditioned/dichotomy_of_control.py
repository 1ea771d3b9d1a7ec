from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ...core import AtLeast, Batch, ConfigError, Schema, Unsupported, part
from ...data.batch_sampler import BatchSampler
from ...data.codec import Normalizer
from ...data.column_changes import ConstantColumn, Rename, ReturnToGo
from ...data.episode import Dataset
from ...data.window import SamplingWeights
from ...execute.planners import BestOfN, Hierarchical
from ...heads.base import LikelihoodHead
from ...heads.likelihood.categorical import Categorical, choose_head
from ...heads.likelihood.gaussian import Gaussian
from ...heads.likelihood.gmm import GMM
from ...learn.algorithm import Algorithm, Net, loss
from ...learn.critic import CriticConfig
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...learn.preflight import tell
from ...learn.targets import REWARD, return_findings
from ...nets.encoders import ConcatEncoder
from ...nets.feed_forward import FeedForward, feed_forward_layers
from ...nets.linear import Linear
from ...nets.mlp import MLP
from ...policy import Policy, PolicyConfig
from ..needs import NUMBERS_OR_CLASSES, OBSERVED_NUMBERS, REWARDS
from ..registry import method

FUTURE = "observation.future"  # the column of the latent, unless another is named
RETURN = "return_to_go"
MIN_STD = 1e-2  # of a latent, given its future


@method("Yang et al. 2023, arXiv 2210.13435, with a transformer over the history, and latents of the whole future",
        rows=("165",), needs=(NUMBERS_OR_CLASSES, REWARDS, OBSERVED_NUMBERS),
        when="if rewards depend on luck that no action can change; its gain in the toy here is undecided.")
@part
class DichotomyOfControl(Algorithm):
    """Dichotomy of Control: a policy reads a latent of the future that holds what actions decide, and not luck.

    Five networks are trained together. The posterior reads the next steps of an episode and gives a distribution of
    their latent. The policy reads the observation and the latent. The energy bounds the information that the latent has
    about the reward and the next observation of a step beyond what observation and action say.

    The posterior makes this information small, while the energy, with its own optimizer, makes the bound tight. The
    prior predicts the latent from the observation, and the value predicts the return to go from observation and latent.

    While acting, ``Hierarchical(BestOfN("prior", "value", n), as_key=FUTURE)`` draws latents from the prior and
    takes the one of the highest value. The value is an estimate of the return that will be reached. If the latent
    contained luck, the value would promise too much, as policies that are conditioned on returns do.

    The policy reads the latent in a column of the same width. The data need this column, with any values, and rewards:
    ``ConstantColumn(FUTURE, (0.0,) * 4)`` adds the column. The codec must leave the latent as it is:
    ``Normalizer(unscaled=(FUTURE,))``.

    Args:
        lookahead: Number of steps that the latent describes.
        information_weight: Weight of the information about rewards and transitions. 0 removes the constraint.
        prior_weight: Weight of the KL divergence of the posterior from the prior. With 0 the latent could hide
            information at a scale that the energy does not resolve.
        value_weight: Weight of the value's error in the loss of the posterior. 0 as in the paper. Above 0 the latent
            shall also say what return follows, as in the authors' tabular code, and only the constraint keeps luck out
            of it. Its ratio to `information_weight` decides.
        prior: The prior. Its head is a distribution. It reads the policy's observations without the latent.
        hidden: Widths of the hidden layers of posterior, energy and value.
        n_negatives: Number of rewards and observations of other windows that the energy compares with each.
        energy_updates: Updates of the energy per update of the policy.
        column: Column in which the policy reads the latent.
        extra: The column of the rewards.
        optimizer: Optimizer of all modules.

    References:
        Yang et al. (2023), Dichotomy of Control: Separating What You Can Control from What You Cannot,
        arXiv:2210.13435. The authors' code minimizes all terms with one optimizer, so that its energy term makes
        rewards more predictable from the latent instead of less. Here the energy is an adversary, as in the paper.
    """

    lookahead: Annotated[int, AtLeast(1)] = 1
    information_weight: Annotated[float, AtLeast(0)] = 1.0
    prior_weight: Annotated[float, AtLeast(0)] = 0.01
    value_weight: Annotated[float, AtLeast(0)] = 0.0
    prior: PolicyConfig = field(default_factory=lambda: PolicyConfig(
        GMM(temperature=1.0), MLP(128, 1), ConcatEncoder(), Normalizer(target="identity")))
    hidden: Annotated[tuple[int, ...], AtLeast(1)] = (128, 128)
    n_negatives: Annotated[int, AtLeast(1)] = 16
    energy_updates: Annotated[int, AtLeast(1)] = 1
    column: str = FUTURE
    extra: tuple[str, ...] = (REWARD,)
    steps: Annotated[int, AtLeast(0)] = 5000
    batch_size: Annotated[int, AtLeast(1)] = 128
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self):
        if not isinstance(self.prior.head, LikelihoodHead):
            raise ConfigError(f"the head of the prior is {type(self.prior.head).__name__}, which has no density",
                              where="DichotomyOfControl.prior", hint="use GMM or Gaussian")

    def method(self, features: Schema | None = None, latent_dim: int = 4, n: int = 100) -> Method:
        """Returns the method of this learner.

        Args:
            n: Number of latents that are compared while acting.
        """
        head = choose_head(features, Gaussian(temperature=1.0), Categorical(temperature=1.0))
        policy = PolicyConfig(head, FeedForward((128, 128)), ConcatEncoder(), Normalizer(unscaled=(self.column,)))
        return Method(policy, learner=self, transforms=(ConstantColumn(self.column, (0.0,) * latent_dim),),
                      inference=(Hierarchical(BestOfN("prior", "value", n), as_key=self.column),))

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        tell(return_findings(data, REWARD))
        _check_policy(self, policy)
        latent = policy.features[self.column]
        columns = {k: policy.features[k] for k in policy.inputs if k != self.column}
        prior = Policy(self.prior, {**columns, "action": latent})
        prior.fit_statistics(data.map(Rename(self.column, "action"))).to(policy.device)
        posterior = _Posterior(self, policy, latent.size)
        posterior.fit_rewards(data.map(ReturnToGo(into=RETURN)))
        energy = _Energy(posterior.width + policy.codec.width + latent.size, 1 + posterior.width, self.hidden)
        value = CriticConfig(self.hidden, self.prior.encoder, n_critics=1).build(prior)
        return {"policy": Net(policy, self.optimizer), "posterior": Net(posterior, trained_with="policy"),
                "prior": Net(prior, self.optimizer), "value": Net(value, self.optimizer),
                "energy": Net(energy, self.optimizer)}

    def sampler(self, policy: Policy, data: Dataset, weights: SamplingWeights | None) -> BatchSampler:
        columns = (k for k in policy.inputs if k != self.column)
        return policy.window.windows(data.map(ReturnToGo(into=RETURN)), policy.inputs, policy.config.target,
                                     extra=(REWARD, RETURN, policy.config.target, *columns), sampling_weights=weights,
                                     lookahead=self.lookahead + 1)

    @loss("energy", times="energy_updates")
    def energy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns minus the bound of the information, (B,)."""
        with torch.no_grad():
            latent, _ = self.latent(nets, batch, rng)
        return -self.information_bound(nets, latent, batch, rng)

    @loss("policy")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Any, ...]:
        """Returns the loss of the policy (B, H), and what the latent costs, (B,) each."""
        latent, std = self.latent(nets, batch, rng)
        cloning = nets.policy.loss(batch.replace(obs={**batch.obs, self.column: latent[:, None]}), rng)
        entropy = (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
        terms, logged = [cloning, self.prior_weight * (self._surprise(nets, latent, batch, rng) - entropy)], {}
        if self.information_weight:
            logged["information"] = information = self.information_bound(nets, latent, batch, rng)
            terms.append(self.information_weight * information)
        if self.value_weight:
            terms.append(self.value_weight * self._value_error(nets, latent, batch))
        return *terms, logged

    @loss("prior")
    def prior_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the negative log-density of the latents under the prior, (B,)."""
        with torch.no_grad():
            latent, _ = self.latent(nets, batch, rng)
        return self._surprise(nets, latent, batch, rng)

    @loss("value")
    def value_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the squared error of the return to go, in units of its variance, (B,)."""
        with torch.no_grad():
            latent, _ = self.latent(nets, batch, rng)
        return self._value_error(nets, latent, batch)

    def latent(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, Tensor]:
        """Draws the latent of each window, and returns it with its standard deviation, (B, D) each."""
        mean, std = nets.posterior(batch)
        return mean + std * torch.randn(mean.shape, generator=rng, device=mean.device), std

    def information_bound(self, nets: Any, latent: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """Returns a bound of how much better a reward and the next observation are known with the latent, (B,).

        The comparison is with their distribution in the batch. The bound therefore also contains what observation and
        action say about them, which is a constant that no latent changes. One step of the lookahead is drawn for each
        window.

        Args:
            latent: Latents, (B, D).
        """
        obs, action, reward, mask = nets.posterior.future(batch)
        length = mask.sum(1).clamp(min=1)
        step = (torch.rand(length.shape, generator=rng, device=length.device) * length).long()
        rows = torch.arange(len(step), device=step.device)
        cause = torch.cat([obs[rows, step], action[rows, step], latent], -1)
        effect = torch.cat([reward[rows, step, None], obs[rows, step + 1]], -1)
        shape = len(step), self.n_negatives
        others = torch.randint(len(step), shape, generator=rng, device=length.device)
        energy = nets.energy(cause[:, None], torch.cat([effect[:, None], effect[others]], 1))
        return energy[:, 0] - (energy[:, 1:].logsumexp(1) - math.log(shape[1]))

    def _value_error(self, nets: Any, latent: Tensor, batch: Batch) -> Tensor:
        error = nets.value(batch.obs, latent[:, None]) - batch.extra[RETURN].flatten(1)[:, 0]
        return (error / nets.posterior.return_std).square()

    def _surprise(self, nets: Any, latent: Tensor, batch: Batch, rng: Generator) -> Tensor:
        obs = {k: batch.obs[k] for k in nets.posterior.columns}
        return nets.prior.loss(Batch(obs, latent[:, None], torch.ones_like(batch.mask[:, :1])), rng).sum(1)


class _Posterior(nn.Module):
    """Network that infers the latent from observations, actions and rewards of the next steps."""

    reward_mean: Tensor
    reward_std: Tensor
    return_std: Tensor

    def __init__(self, config: DichotomyOfControl, policy: Policy, latent: int):
        super().__init__()
        self.config = config
        self._policy = (policy,)  # its codec is used, not trained twice
        self.columns = tuple(k for k in policy.inputs if k != config.column)
        self.width = sum(policy.features[k].size for k in self.columns)
        size = (config.lookahead + 1) * self.width + config.lookahead * (policy.codec.width + 2)
        self.net = feed_forward_layers((size, *config.hidden, 2 * latent), "silu")
        for name in ("reward_mean", "reward_std", "return_std"):
            self.register_buffer(name, torch.ones(()))

    def fit_rewards(self, data: Dataset) -> None:
        """Computes the statistics of rewards and returns to go."""
        reward, returns = (torch.from_numpy(np.concatenate([np.ravel(e.steps[k][: len(e)]) for e in data])).double()
                           for k in (REWARD, RETURN))
        self.reward_mean.fill_(reward.mean())
        self.reward_std.fill_(reward.std(correction=0).clamp(min=1e-6))
        self.return_std.fill_(returns.std(correction=0).clamp(min=1e-6))

    def future(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns coded observations (B, L + 1, O), actions (B, L, A), rewards (B, L) and which steps exist (B, L)."""
        codec, config, L = self._policy[0].codec, self._policy[0].config, self.config.lookahead
        rows = {k: batch.extra[k] for k in self.columns}
        latent = batch.obs[self.config.column][:, :1]
        coded = codec.encode_obs({**rows, self.config.column: latent.expand(-1, L + 1, -1)})
        mask = batch.extra["lookahead_mask"][:, :L]
        action = batch.extra[config.target][:, :L]
        action = action if action.ndim == 3 else action.flatten(2) if action.ndim > 3 else action[..., None]
        action = codec.encode(action, batch.obs) * mask[..., None]
        reward = (batch.extra[REWARD].flatten(1)[:, :L].float() - self.reward_mean) / self.reward_std * mask
        states = [coded[k].reshape(*coded[k].shape[:2], -1).float() for k in self.columns]
        return torch.cat(states, -1), action, reward, mask

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        obs, action, reward, mask = self.future(batch)
        out = self.net(torch.cat([part.flatten(1) for part in (obs, action, reward, mask.float())], -1))
        mean, raw_std = out.chunk(2, -1)
        return mean, nn.functional.softplus(raw_std) + MIN_STD


class _Energy(nn.Module):
    """Network that scores each cause with each of its effects: (B, 1, C) and (B, N, E) to (B, N)."""

    def __init__(self, cause: int, effect: int, hidden: Sequence[int]):
        super().__init__()
        self.cause, self.effect = Linear(cause, hidden[0]), Linear(effect, hidden[0], bias=False)
        self.net = nn.Sequential(nn.SiLU(), feed_forward_layers((*hidden, 1), "silu"))

    def forward(self, cause: Tensor, effect: Tensor) -> Tensor:
        return self.net(self.cause(cause) + self.effect(effect)).squeeze(-1)


def _check_policy(config: DichotomyOfControl, policy: Policy) -> None:
    name = config.column
    if name not in policy.inputs:
        raise ConfigError(f"the policy does not read {name!r}; it reads {', '.join(policy.inputs)}",
                          where="DichotomyOfControl.column",
                          hint=f"add the column to the data: ConstantColumn({name!r}, (0.0,) * 4)")
    if policy.window.n_obs_steps != 1 or policy.window.action_offset != 0 or policy.window.goals:
        raise Unsupported(f"the latent describes what follows one observation, but the window is {policy.window}",
                          where="PolicyConfig.window", hint="use Window(1, horizon) without goals")
    if other := [(k, policy.features[k].kind) for k in policy.inputs if policy.features[k].kind != "vector"]:
        raise Unsupported(f"the posterior reads numbers, but {other[0][0]!r} is of kind {other[0][1]!r}",
                          where="DichotomyOfControl", hint="name columns of numbers as inputs of the policy")
