"""Normalizing flow: an invertible map between Gaussian noise and a chunk, with an exact likelihood."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from ...core import Above, AtLeast, Below, part
from ...nets.base import precomputed
from ..base import LikelihoodHead, TemperatureHead


@part
class NormalizingFlow(LikelihoodHead, TemperatureHead):
    """Normalizing flow head of affine coupling layers, trained by maximum likelihood.

    Each layer keeps every other number of a chunk, as on a chessboard. From the kept numbers and the observation, the
    network of the layer predicts how the remaining numbers are shifted and scaled. The next layer keeps these and
    changes the numbers that this layer kept. Padded steps are hidden from all layers, so that they do not count in the
    likelihood.

    Args:
        n_layers: Number of coupling layers, each with a separate trunk.
        min_std: Smallest factor, and the inverse of the largest, by which all layers together scale a component.
            Without a minimum, the likelihood of a component that hardly varies grows without bound.
        temperature: Scale of the noise in plans. 1 samples from the distribution, 0 plans the image of zero noise.

    References:
        Dinh et al. (2017), Density Estimation Using Real NVP, arXiv:1605.08803.
        Ghugare and Eysenbach (2025), Normalizing Flows are Capable Models for RL, arXiv:2505.23527.
    """

    n_layers: Annotated[int, AtLeast(2)] = 6
    min_std: Annotated[float, Above(0), Below(1)] = 0.01
    temperature: Annotated[float, AtLeast(0)] = 1.0

    def build(self, trunk, coded_dim, spec):
        return nn.ModuleList(trunk.build(coded_dim + 1, 2 * coded_dim, 0, spec) for _ in range(self.n_layers))

    def loss(self, net, context, action, mask, rng):
        """Returns what each step adds to the negative log-density of its chunk, (B, H)."""
        x, log_scales = action, torch.zeros_like(action)
        for number, layer in enumerate(net):
            shift, log_scale = self._shift_scale(layer, number, context, x, mask.unsqueeze(-1))
            x, log_scales = (x - shift) * (-log_scale).exp(), log_scales + log_scale
        return (0.5 * x.square() + 0.5 * math.log(2 * math.pi) + log_scales).sum(-1)

    def sample(self, net, context, noise):
        x, present = self.temperature * noise, torch.ones_like(noise[..., :1], dtype=torch.bool)
        for number, layer in reversed(list(enumerate(net))):
            shift, log_scale = self._shift_scale(layer, number, precomputed(layer, context), x, present)
            x = x * log_scale.exp() + shift
        return x

    def _shift_scale(self, layer, number: int, context, x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Returns shift and logarithm of the scale, (B, H, A) each. Both are 0 where the layer keeps x."""
        step, component = (torch.arange(n, device=x.device) for n in x.shape[1:])
        kept = (step.unsqueeze(1) + component + number) % 2 == 0
        inputs = torch.cat([torch.where(kept & present, x, 0.0), present.to(x.dtype)], -1)
        shift, raw = layer(inputs, x[..., :0], context).chunk(2, -1)
        largest = -math.log(self.min_std) / ((self.n_layers + 1) // 2)  # a component is scaled in every other layer
        return torch.where(kept, 0.0, shift), torch.where(kept, 0.0, largest * torch.tanh(raw / largest))
