"""Gaussian: a mean and a spread for each component of each step, independent given the observation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.nn import functional as F

from .base import Density


@dataclass(frozen=True)
class Gaussian(Density):
    """Trained by maximum likelihood.

    std: the standard deviation in coded units; None lets the network say it, no less than `floor`, for without a
        least one the likelihood of a component that hardly varies grows without bound.
    temperature: of plans: 0 plays the mean, 1 draws from the distribution.
    """

    std: float | None = None
    floor: float = 0.01
    temperature: float = 0.0

    def build(self, trunk, dim, shape):
        return trunk.build(0, 2 * dim if self.std is None else dim, 0, shape)

    def _read(self, net, context, like):
        """Mean and standard deviation, (B, H, A) each."""
        out = net(like[..., :0], like[..., :0], context)
        if self.std is not None:
            return out, out.new_full((), self.std)
        mean, spread = out.chunk(2, -1)
        return mean, F.softplus(spread) + self.floor

    def _each(self, net, context, action):
        """(B, H): log-density of each step."""
        mean, std = self._read(net, context, action)
        return (-0.5 * ((action - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def log_prob(self, net, context, action):
        return self._each(net, context, action).sum(1)

    def loss(self, net, context, action, mask, rng):
        return -self._each(net, context, action)

    def sample(self, net, context, noise):
        mean, std = self._read(net, context, noise)
        return mean + self.temperature * std * noise
