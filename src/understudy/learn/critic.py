"""Critics: scorers of a plan (Q-functions) or of an observation (value functions), for any policy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn

from ..checkpoint import Scorer, load_built, save_built
from ..core import AtLeast, Schema, part
from ..data.codec import Codec, CodecModule
from ..data.window import Window
from ..nets.base import Encoder
from ..nets.encoders import ConcatEncoder
from ..nets.feed_forward import feed_forward_layers
from ..policy import Policy


@part
class CriticConfig:
    """The networks of a critic.

    Args:
        hidden: Widths of the hidden layers.
        encoder: Encodes the observation window. Each critic has its own encoder.
        n_critics: Number of networks. A plan's score is the smallest of theirs (clipped double Q-learning).
        layer_norm: Normalize after each hidden layer.

    References:
        Fujimoto et al. (2018), Addressing Function Approximation Error in Actor-Critic Methods, arXiv:1802.09477.
    """

    hidden: Annotated[tuple[int, ...], AtLeast(1)] = (256, 256)
    encoder: Encoder = field(default_factory=ConcatEncoder)
    n_critics: Annotated[int, AtLeast(1)] = 2
    layer_norm: bool = False

    def build(self, policy: Policy, action: bool = True) -> Critic:
        """Builds a critic that reads what a policy reads.

        Args:
            policy: Its codec is shared: the critic normalizes with the same statistics.
            action: A `QFunction` of observation and plan, or a `ValueFunction` of the observation alone.
        """
        policy_config = policy.config
        spec = CriticSpec(self, policy_config.codec, policy_config.window, policy.inputs, policy_config.target)
        kind = QFunction if action else ValueFunction
        return kind(spec, policy.features, policy.codec).to(policy.device)


@dataclass(frozen=True)
class CriticSpec:
    """Everything but the weights that determines a critic. `target` is the column of the plans, such as "action"."""

    networks: CriticConfig
    codec: Codec
    window: Window
    inputs: tuple[str, ...]
    target: str


class Critic(Scorer):
    """One or several networks that score an observation window, or a plan for it.

    Args:
        features: The columns that the critic reads, and the target.
        codec: Codec module to share with a policy. None builds a new one without statistics.
    """

    def __init__(self, about: CriticSpec, features: Schema, codec: CodecModule | None = None):
        super().__init__()
        self.about, self.features, self.inputs = about, dict(features), about.inputs
        self.codec = about.codec.build(features, about.inputs, about.target) if codec is None else codec
        encoders, layers = [], []
        for _ in range(about.networks.n_critics):
            encoder = about.networks.encoder.build({k: features[k] for k in about.inputs}, about.window.n_obs_steps)
            sizes = (encoder.tokens * encoder.width + self.plan_size, *about.networks.hidden, 1)
            encoders.append(encoder)
            layers.append(feed_forward_layers(sizes, layer_norm=about.networks.layer_norm))
        self.encoders, self.layers = nn.ModuleList(encoders), nn.ModuleList(layers)

    @property
    @abstractmethod
    def plan_size(self) -> int:
        """Number of components of a plan that each network reads."""

    @abstractmethod
    def read_plan(self, obs: Mapping[str, Tensor], plan: Tensor) -> Tensor:
        """Returns the part of the networks' input that depends on the plan.

        Args:
            obs: Observation windows by column, (B, n_obs_steps, ...).
            plan: Plans in the units of the data, (B, H, A).

        Returns:
            Input of each network, (B, plan_size).
        """

    def scores(self, obs: Mapping[str, Tensor], plan: Tensor) -> Tensor:
        """Returns the score of each network. The score of the critic is their minimum.

        Args:
            obs: Observation windows by column, (B, n_obs_steps, ...).
            plan: Plans in the units of the data, (B, H, A).

        Returns:
            Scores, (n_critics, B).
        """
        coded, plan = self.codec.encode_obs(obs), self.read_plan(obs, plan)
        return torch.stack([layers(torch.cat([encoder(coded).flat(), plan], -1)).squeeze(-1)
                            for encoder, layers in zip(self.encoders, self.layers, strict=True)])

    def forward(self, obs, plan):
        return self.scores(obs, plan).amin(0)

    def save(self, folder):
        save_built(self, folder, "critic", self.about, self.features)


class QFunction(Critic):
    """Scores plans: an estimate of the return after carrying out a plan."""

    @property
    def plan_size(self):
        return self.about.window.horizon * self.codec.width

    def read_plan(self, obs, plan):
        return self.codec.encode(plan, obs).flatten(1)

    @staticmethod
    def load(folder, trust=(), device="cpu"):
        return load_built(QFunction, folder, "critic", CriticSpec, trust, device)


class ValueFunction(Critic):
    """Scores observations and ignores the plan: an estimate of the return from here."""

    plan_size = 0

    def read_plan(self, obs, plan):
        return next(iter(obs.values())).new_zeros(len(plan), 0, dtype=torch.float32)

    @staticmethod
    def load(folder, trust=(), device="cpu"):
        return load_built(ValueFunction, folder, "critic", CriticSpec, trust, device)
