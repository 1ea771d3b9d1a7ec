"""Gaussian: a mean and a spread for each component of each step, independent given the observation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.nn import functional as F

from .base import LikelihoodHead


@dataclass(frozen=True)
class Gaussian(LikelihoodHead):
    """Trained by maximum likelihood.

    std: the standard deviation in coded units; None lets the network say it, no less than `floor`, for without a
        least one the likelihood of a component that hardly varies grows without bound.
    temperature: of plans: 0 plays the mean, 1 draws from the distribution.
    """

    std: float | None = None
    min_std: float = 0.01
    temperature: float = 0.0

    def build(self, trunk, coded_dim, spec):
        return trunk.build(0, 2 * coded_dim if self.std is None else coded_dim, 0, spec)

    def _mean_std(self, net, context, like):
        """Mean and standard deviation, (B, H, A) each."""
        out = net(like[..., :0], like[..., :0], context)
        if self.std is not None:
            return out, out.new_full((), self.std)
        mean, spread = out.chunk(2, -1)
        return mean, F.softplus(spread) + self.min_std

    def _step_log_prob(self, net, context, action):
        """(B, H): log-density of each step."""
        mean, std = self._mean_std(net, context, action)
        return (-0.5 * ((action - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def log_prob(self, net, context, action):
        return self._step_log_prob(net, context, action).sum(1)

    def loss(self, net, context, action, mask, rng):
        return -self._step_log_prob(net, context, action)

    def sample(self, net, context, noise):
        mean, std = self._mean_std(net, context, noise)
        return mean + self.temperature * std * noise
