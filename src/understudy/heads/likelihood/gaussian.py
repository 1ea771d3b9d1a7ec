"""Gaussian head: mean and standard deviation of each action component, independent given the observation."""

from __future__ import annotations

import math
from typing import Annotated

from torch.nn import functional as F

from ...core import Above, AtLeast, part
from ..base import LikelihoodHead, TemperatureHead


@part
class Gaussian(LikelihoodHead, TemperatureHead):
    """Diagonal Gaussian head, trained by maximum likelihood.

    Args:
        std: Fixed standard deviation in coded units. With None the network predicts it.
        min_std: Smallest predicted standard deviation. Without a minimum, the likelihood of a component that hardly
            varies grows without bound.
        temperature: 0 plans the mean, 1 samples from the distribution.
    """

    std: Annotated[float | None, Above(0)] = None
    min_std: Annotated[float, AtLeast(0)] = 0.01
    temperature: Annotated[float, AtLeast(0)] = 0.0

    def build(self, trunk, coded_dim, spec):
        return trunk.build(0, 2 * coded_dim if self.std is None else coded_dim, 0, spec)

    def loss(self, net, context, action, mask, rng):
        """Returns the negative log-density of each step, (B, H)."""
        return self._loss(*self._mean_std(net, context, action), action)

    def sample(self, net, context, noise):
        return self._sample(*self._mean_std(net, context, noise), noise)

    def sample_and_loss(self, net, context, noise, action, mask, rng):
        mean, std = self._mean_std(net, context, noise)
        return self._sample(mean, std, noise), self._loss(mean, std, action)

    def _loss(self, mean, std, action):
        return -(-0.5 * ((action - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def _sample(self, mean, std, noise):
        return mean + self.temperature * std * noise

    def entropy(self, net, context, noise):
        std = self._mean_std(net, context, noise)[1].expand_as(noise)
        return (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def _mean_std(self, net, context, like):
        """Returns the mean and standard deviation, (B, H, A) each."""
        out = net(like[..., :0], like[..., :0], context)
        if self.std is not None:
            return out, out.new_full((), self.std)
        mean, raw_std = out.chunk(2, -1)
        return mean, F.softplus(raw_std) + self.min_std
