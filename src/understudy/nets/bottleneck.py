"""Bottleneck encoder: a noisy code of the observation, whose information can be limited."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..core import Context, check_range
from .base import Encoder, EncoderNet, record_intermediate
from .encoders import TokenEncoder
from .linear import Linear

MIN_LOG_STD, MAX_LOG_STD = -5.0, 2.0


@dataclass(frozen=True)
class BottleneckEncoder(Encoder):
    """Encodes a window as a Gaussian. Training draws a code from it, and acting takes its mean. It is the only token.

    `learn.information_bottleneck.InformationBottleneck` limits the information about the window in the code, so that
    the policy keeps what helps to predict the action and little else. Without it, the code becomes exact.

    Args:
        width: Width of the code.
        encoder: Encoder of the window.

    References:
        Alemi et al. (2017), Deep Variational Information Bottleneck, arXiv:1612.00410.
        Wen et al. (2020), Fighting Copycat Agents in Behavioral Cloning from Observation Histories, arXiv:2010.14876.
    """

    width: int = 32
    encoder: Encoder = field(default_factory=TokenEncoder)

    def __post_init__(self):
        check_range(self, "width", at_least=1)

    def build(self, features, n_obs_steps):
        return _BottleneckEncoderNet(self, features, n_obs_steps)

    def check_policy(self, codec, augmentations):
        self.encoder.check_policy(codec, augmentations)


class _BottleneckEncoderNet(EncoderNet):
    def __init__(self, config, features, n_obs_steps):
        super().__init__()
        self.encoder = config.encoder.build(features, n_obs_steps)
        self.gaussian = Linear(self.encoder.tokens * self.encoder.width, 2 * config.width)
        self.tokens, self.width, self.token_obs_steps = 1, config.width, (n_obs_steps - 1,)

    @property
    def cached_features(self):
        return self.encoder.cached_features

    def forward(self, obs, rng=None):
        context = self.encoder(obs, rng)
        mean, log_std = self.gaussian(context.flat()).chunk(2, -1)
        log_std = log_std.clamp(MIN_LOG_STD, MAX_LOG_STD)
        record_intermediate("bottleneck", torch.stack([mean, log_std], 1))
        code = mean
        if rng is not None:
            code = mean + log_std.exp() * torch.randn(mean.shape, generator=rng, device=mean.device, dtype=mean.dtype)
        token = code.unsqueeze(1)
        return Context(token, token.new_ones(token.shape[:2]).bool(), context.named)
