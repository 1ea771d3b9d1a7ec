"""Critics: networks that score a plan (Q-functions) or an observation (value functions), for any policy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Generator, Tensor, nn

from ..checkpoint import BuiltModule, CheckpointModule, Scorer
from ..core import AtLeast, ConfigError, Schema, UserError, part
from ..data.codec import Codec, CodecModule
from ..data.window import Window
from ..nets.base import Encoder
from ..nets.encoders import ConcatEncoder
from ..nets.feed_forward import feed_forward_layers
from ..nets.quantile_layer import QuantileNet, draw_levels
from ..policy import Policy


@part
class CriticConfig:
    """Config of the networks of a critic.

    Args:
        n_critics: Number of networks. A plan's score is the smallest of the scores that they give (clipped double
            Q-learning).
        layer_norm: Normalize after each hidden layer.
        share_encoder: One encoder for all networks, in place of one for each.
        target_subset_size: Number of networks, drawn for each update, whose smallest score is the target. None for all.
        n_quantiles: Number of quantiles of the return that each network learns, with a quantile Huber loss (QR-DQN).
            A score is the mean of the quantiles. 1 learns the expected return, with a squared error.
        draw_levels: Learn the quantiles at levels that are drawn for each sample (IQN), in place of equally spaced
            levels. Targets and scores still use equally spaced levels.

    References:
        Fujimoto et al. (2018), Addressing Function Approximation Error in Actor-Critic Methods, arXiv:1802.09477.
        Chen et al. (2021), Randomized Ensembled Double Q-Learning: Learning Fast Without a Model, arXiv:2101.05982.
        Dabney et al. (2018), Distributional Reinforcement Learning with Quantile Regression, arXiv:1710.10044.
        Dabney et al. (2018), Implicit Quantile Networks for Distributional Reinforcement Learning, arXiv:1806.06923.
    """

    hidden: Annotated[tuple[int, ...], AtLeast(1)] = (256, 256)
    encoder: Encoder = field(default_factory=ConcatEncoder)
    n_critics: Annotated[int, AtLeast(1)] = 2
    layer_norm: bool = False
    share_encoder: bool = False
    target_subset_size: Annotated[int | None, AtLeast(1)] = None
    n_quantiles: Annotated[int, AtLeast(1)] = 1
    draw_levels: bool = False

    def __post_init__(self):
        if self.draw_levels and self.n_quantiles == 1:
            raise ConfigError("levels are those of quantiles, and 1 is the mean", where="CriticConfig.draw_levels",
                              hint="learn more quantiles, such as n_quantiles=32")
        if self.target_subset_size is not None and self.target_subset_size > self.n_critics:
            raise ConfigError(f"the subset has {self.target_subset_size} of {self.n_critics} networks",
                              where="CriticConfig.target_subset_size", hint="use more n_critics, or a smaller subset")

    def build(self, policy: Policy, action: bool = True) -> Critic:
        """Builds a critic that reads what a policy reads.

        Args:
            policy: Its codec is shared: the critic normalizes with the same statistics.
            action: A `QFunction` of observation and plan, or a `ValueFunction` of the observation alone.
        """
        if not action:
            self.check_no_quantiles()
        policy_config = policy.config
        spec = CriticSpec(self, policy_config.codec, policy_config.window, policy.inputs, policy_config.target)
        kind = QFunction if action else ValueFunction
        return kind(spec, policy.features, policy.codec).to(policy.device)

    def check_no_quantiles(self) -> None:
        """Raises ConfigError if there are several quantiles, for learners whose losses have none."""
        if self.n_quantiles > 1:
            raise ConfigError("this learner does not learn quantiles", where="CriticConfig.n_quantiles",
                              hint="use 1, or a method such as td3-bc, sac, cql, awac or bcq")

    def check_no_subset(self) -> None:
        """Raises ConfigError if targets should be those of a subset of the networks, for learners that read all."""
        if self.target_subset_size is not None:
            raise ConfigError("this learner's targets are those of all networks",
                              where="CriticConfig.target_subset_size",
                              hint="use None, or a method such as sac, td3 or awac")

    def check_own_encoders(self) -> None:
        """Raises ConfigError if networks should share an encoder, for learners that give each its own."""
        if self.share_encoder:
            raise ConfigError("each network of this learner has its own encoder", where="CriticConfig.share_encoder",
                              hint="use False, or a method such as gciql or hiql")

    def check_one_network(self) -> None:
        """Raises ConfigError if another number of networks than the default is asked for, for learners with one."""
        self.check_own_encoders()
        if self.n_critics not in (1, CriticConfig.n_critics):
            raise ConfigError(f"n_critics is {self.n_critics}, but this learner has one network",
                              where="CriticConfig.n_critics", hint="leave it out, or use a method such as gciql or crl")


@dataclass(frozen=True)
class CriticSpec:
    """Settings and columns that determine a critic, without its weights. `target` is the column of the plans."""

    networks: CriticConfig
    codec: Codec
    window: Window
    inputs: tuple[str, ...]
    target: str


@dataclass(frozen=True)
class EncodedObs:
    """Observation windows that a critic has encoded, to score several plans for them.

    Args:
        features: Input of each network, (B, D). One for all networks, if they share it.
        obs: The windows by column, to which a codec may relate plans.
    """

    features: tuple[Tensor, ...]
    obs: Mapping[str, Tensor]


class Critic(BuiltModule, Scorer):
    """A critic: one or several networks that score an observation window, or plans for it."""

    kind, description = "critic", CriticSpec

    def __init__(self, about: CriticSpec, features: Schema, codec: CodecModule | None = None):
        super().__init__(about, features)
        self.inputs = about.inputs
        self.codec = about.codec.build(features, about.inputs, about.target) if codec is None else codec
        networks, encoders, layers = about.networks, [], []
        for _ in range(networks.n_critics):
            # An encoder without weights is the same for all.
            if not encoders or not networks.share_encoder and encoders[0].state_dict():
                encoders.append(networks.encoder.build({k: features[k] for k in about.inputs},
                                                       about.window.n_obs_steps))
            sizes = (encoders[0].tokens * encoders[0].width + self.plan_size, *networks.hidden)
            layers.append(
                QuantileNet(sizes, networks.n_quantiles, networks.layer_norm) if networks.draw_levels else
                feed_forward_layers((*sizes, networks.n_quantiles), layer_norm=networks.layer_norm))
        self.encoders, self.layers = nn.ModuleList(encoders), nn.ModuleList(layers)

    @property
    @abstractmethod
    def plan_size(self) -> int:
        """The number of components of a plan that each network reads."""

    @abstractmethod
    def read_plan(self, obs: Mapping[str, Tensor], plan: Tensor) -> Tensor:
        """Returns the part of the networks' input that depends on the plan.

        Args:
            obs: Observation windows by column, (B, n_obs_steps, ...).
            plan: Plans in the units of the data, (B, H, A) or (B, N, H, A).

        Returns:
            Input of each network, (B, plan_size) or (B, N, plan_size).
        """

    def check_source(self, source: CheckpointModule, where: str) -> None:
        """Raises UserError if this critic could not take over the weights of a module."""
        columns, others = ({k: c.features[k].shape for k in (*c.inputs, c.about.target)}
                           if isinstance(c, Critic) else {} for c in (self, source))
        if type(source) is not type(self):
            raise UserError(f"the module of the stage is a {type(source).__name__}, but a {type(self).__name__} takes "
                            "its weights", where=where, hint="name another module of it: FromStage(STAGE, MODULE)")
        if columns != others:
            texts = [", ".join(f"{k} {shape}" for k, shape in c.items()) for c in (others, columns)]
            raise UserError(f"the critic of the stage reads {texts[0]}, but this one {texts[1]}", where=where,
                            hint="train both on the same columns, or leave this InitializeFrom out")

    def encode(self, obs: Mapping[str, Tensor]) -> EncodedObs:
        """Encodes observation windows by column, (B, n_obs_steps, ...), once for all plans."""
        coded = self.codec.encode_obs(obs)
        return EncodedObs(tuple(encoder(coded).flat() for encoder in self.encoders), obs)

    def scores(self, obs: Mapping[str, Tensor] | EncodedObs, plan: Tensor, n_critics: int | None = None) -> Tensor:
        """Returns the score of each network. The score of the critic is their minimum.

        Args:
            obs: Observation windows by column, (B, n_obs_steps, ...), or what `encode` made of them.
            plan: Plans in the units of the data, (B, H, A), or N for each observation, (B, N, H, A).
            n_critics: Number of networks that score, from the first on. None for all.

        Returns:
            Scores, (n_critics, B) or (n_critics, B, N).
        """
        return self.quantiles(obs, plan, n_critics).mean(1)

    def quantiles(self, obs: Mapping[str, Tensor] | EncodedObs, plan: Tensor, n_critics: int | None = None) -> Tensor:
        """Returns the quantiles of each network, whose means are the `scores`, (n_critics, n_quantiles, B[, N])."""
        return torch.stack(self.network_quantiles(obs, plan, n_critics))

    def training_quantiles(self, obs: Mapping[str, Tensor] | EncodedObs, plan: Tensor,
                           rng: Generator) -> tuple[Tensor, Tensor | None]:
        """Returns the `quantiles` for the `td_loss`, (n_critics, n_quantiles, B), and their levels, (n_quantiles, B).

        The levels are None if they are equally spaced.
        """
        networks = self.about.networks
        if not networks.draw_levels:
            return self.quantiles(obs, plan), None
        levels = draw_levels(len(plan), networks.n_quantiles, rng)
        return torch.stack(self.network_quantiles(obs, plan, levels=levels)), levels.T

    def network_quantiles(self, obs: Mapping[str, Tensor] | EncodedObs, plan: Tensor, n_critics: int | None = None,
                          levels: Tensor | None = None) -> list[Tensor]:
        """Returns the quantiles of each network, one tensor each, whose gradients pass through no other network.

        Args:
            levels: Levels of the quantiles, (B, n_quantiles), for networks that `draw_levels`.
        """
        encoded = obs if isinstance(obs, EncodedObs) else self.encode(obs)
        plan = self.read_plan(encoded.obs, plan)
        features, networks = encoded.features, list(self.layers)[:n_critics]
        if plan.ndim == 3:
            features = tuple(x.unsqueeze(1).expand(-1, plan.shape[1], -1) for x in features)
        inputs = [torch.cat([x, plan], -1) for x in features[:n_critics]]
        inputs = inputs * len(networks) if len(inputs) == 1 else inputs
        of_levels = () if levels is None else (levels,)
        return [layers(x, *of_levels).movedim(-1, 0) for x, layers in zip(inputs, networks, strict=True)]

    def target_score(self, obs: Mapping[str, Tensor] | EncodedObs, plan: Tensor, rng: Generator) -> Tensor:
        """Returns the smallest score, (B,) or (B, N), of `target_subset_size` networks that are drawn from all.

        With several quantiles it returns the quantiles of the network with the smallest score, (n_quantiles, B[, N]).
        """
        quantiles, size = self.quantiles(obs, plan), self.about.networks.target_subset_size
        if size is not None:
            quantiles = quantiles[torch.randperm(len(quantiles), generator=rng, device=rng.device)[:size]]
        return mix_networks(quantiles).squeeze(0)

    def score_plans(self, obs, plans):
        return self(obs, plans)

    def forward(self, obs, plan):
        return self.scores(obs, plan).amin(0)


def mix_networks(quantiles: Tensor, min_weight: float = 1.0) -> Tensor:
    """Returns the quantiles of the network with the smallest score, for each observation and plan.

    Args:
        quantiles: Quantiles of each network, (n_critics, n_quantiles, ...).
        min_weight: Weight of the network with the smallest score. The network with the largest score has the remainder.
    """
    scores = quantiles.mean(1, keepdim=True)
    low = quantiles.take_along_dim(scores.argmin(0, keepdim=True), 0)[0]
    return low if min_weight == 1 else quantiles.take_along_dim(scores.argmax(0, keepdim=True), 0)[0].lerp(
        low, min_weight)


class QFunction(Critic):
    """Critic that scores plans: an estimate of the return after carrying out a plan."""

    def check_window(self, window, where):
        own, other = ((w.n_obs_steps, w.horizon, w.action_offset) for w in (self.about.window, window))
        if own != other:
            raise UserError(f"(n_obs_steps, horizon, action_offset) of plans are {other}, but the critic was trained "
                            f"with {own}", where=where, hint="train both with the same window; a run of your own is a "
                            "stage with --stage NAME=RUN")

    @property
    def plan_size(self):
        return self.about.window.horizon * self.codec.width

    def read_plan(self, obs, plan):
        # A codec codes each step alone, so that N plans are like one with N times as many steps.
        return self.codec.encode(plan.flatten(1, -2), obs).reshape(*plan.shape[:-2], self.plan_size)


class ValueFunction(Critic):
    """Critic that scores observations and ignores the plan: an estimate of the return from here."""

    plan_size = 0

    def read_plan(self, obs, plan):
        return plan.new_zeros(*plan.shape[:-2], 0, dtype=torch.float32)

    def scores(self, obs, plan=None, n_critics=None):
        if plan is None:
            first = obs.features[0] if isinstance(obs, EncodedObs) else next(iter(obs.values()))
            plan = first.new_zeros(len(first), 1, 0)
        return super().scores(obs, plan, n_critics)

    def forward(self, obs, plan=None):
        return self.scores(obs, plan).amin(0)
