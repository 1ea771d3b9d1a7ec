"""Correction head: a Gaussian whose mean stays within -1 and 1 and is 0 before any training."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from ...core import Above, AtLeast, part
from ...nets.linear import Linear
from ..base import HeadNet, LikelihoodHead, TemperatureHead

WIDTH = 64  # components of a step that the last layer reads


@part
class Correction(LikelihoodHead, TemperatureHead):
    """Head of a policy that corrects another one, for reinforcement learning with `ResidualWrapper`.

    The mean is the tanh of the network's output, whose last layer begins with zeros: untrained, it corrects nothing.
    Use it with the codec ``Normalizer(target="identity")``, since corrections have units of their own.

    Args:
        std: Standard deviation of the samples, which is not learned.
        temperature: 0 plans the mean, 1 samples from the distribution.

    References:
        Ankile et al. (2024), From Imitation to Refinement: Residual RL for Precise Assembly, arXiv:2407.16677.
        Ankile et al. (2025), Residual Off-Policy RL for Finetuning Behavior Cloning Policies, arXiv:2509.19301.
    """

    std: Annotated[float, Above(0)] = 0.25
    temperature: Annotated[float, AtLeast(0)] = 0.0

    def build(self, trunk, coded_dim, spec):
        trunk_net, output = trunk.build(0, WIDTH, 0, spec), Linear(WIDTH, coded_dim)
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)
        return HeadNet(trunk=trunk_net, output=output)

    def loss(self, net, context, action, mask, rng):
        """Returns the negative log-density of each step, (B, H)."""
        error = (action - self._mean(net, context, action)) / self.std
        return (0.5 * error.square() + math.log(self.std) + 0.5 * math.log(2 * math.pi)).sum(-1)

    def sample(self, net, context, noise):
        return self._mean(net, context, noise) + self.temperature * self.std * noise

    def entropy(self, net, context, noise):
        return torch.full_like(noise, math.log(self.std) + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def _mean(self, net, context, like: Tensor) -> Tensor:
        return net.output(net.trunk(like[..., :0], like[..., :0], context)).tanh()
