"""Squashed Gaussian: a Gaussian whose samples tanh brings into the range of the actions in the data."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import AtLeast, Unsupported, part
from ..base import HeadNet, LikelihoodHead, TemperatureHead

LOG_STD_RANGE = (-20.0, 2.0)
BORDER = 1e-6  # actions at the border of the range have no finite preimage, and are moved inwards by this


@part
class SquashedGaussian(LikelihoodHead, TemperatureHead):
    """Gaussian head for reinforcement learning. Its actions stay within the range of the actions in the data.

    An action is ``bound * tanh(u)`` with u from a diagonal Gaussian, independent for each step given the observation.

    Args:
        log_std: ``"state"`` predicts the standard deviation from the observation. ``"free"`` learns one for each
            component, which is the same for all observations.
        temperature: 0 plans the squashed mean, 1 samples from the distribution.

    References:
        Haarnoja et al. (2018), Soft Actor-Critic Algorithms and Applications, arXiv:1812.05905.
    """

    log_std: Literal["state", "free"] = "state"
    temperature: Annotated[float, AtLeast(0)] = 0.0

    def build(self, trunk, coded_dim, spec):
        if spec.num_classes or not spec.bound or spec.bound == math.inf:
            raise Unsupported("actions are squashed into a range, and these have none", where="SquashedGaussian",
                              hint='use actions that are numbers, with the codec Normalizer(target="minmax")')
        is_free = self.log_std == "free"
        return HeadNet(trunk=trunk.build(0, coded_dim if is_free else 2 * coded_dim, 0, spec), bound=spec.bound,
                       log_std=nn.Parameter(torch.zeros(coded_dim)) if is_free else None)

    def loss(self, net, context, action, mask, rng):
        """Returns the negative log-density of each step, (B, H)."""
        u = (action / net.bound).clamp(-1 + BORDER, 1 - BORDER).atanh()
        return -_log_density(u, *self._mean_log_std(net, context, action), net.bound)

    def sample(self, net, context, noise):
        mean, log_std = self._mean_log_std(net, context, noise)
        return net.bound * (mean + self.temperature * log_std.exp() * noise).tanh()

    def sample_log_prob(self, net, context, noise):
        mean, log_std = self._mean_log_std(net, context, noise)
        u = mean + log_std.exp() * noise
        return net.bound * u.tanh(), _log_density(u, mean, log_std, net.bound)

    def _mean_log_std(self, net, context, like):
        """Returns the mean and logarithm of the standard deviation before squashing, (B, H, A) each."""
        out = net.trunk(like[..., :0], like[..., :0], context)
        mean, log_std = (out, net.log_std.expand_as(out)) if self.log_std == "free" else out.chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD_RANGE)


def _log_density(u: Tensor, mean: Tensor, log_std: Tensor, bound: float) -> Tensor:
    """Returns the log-density of the actions bound * tanh(u) for each step, (B, H).

    It is the log-density of u minus the logarithm of the slope of ``bound * tanh(u)``. A factor of this slope is 1 -
    tanh(u)^2 = (2 / (e^u + e^-u))^2.
    """
    gaussian = -0.5 * ((u - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)
    log_slope = 2 * (math.log(2) - u - F.softplus(-2 * u)) + math.log(bound)
    return (gaussian - log_slope).sum(-1)
