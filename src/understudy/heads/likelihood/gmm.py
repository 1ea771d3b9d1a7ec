"""Gaussian mixture head: several modes, by default of the whole chunk, so that a chunk stays in one of them."""

from __future__ import annotations

import math
from typing import Annotated

from torch.nn import functional as F

from ...core import AtLeast, part
from ..base import LikelihoodHead, TemperatureHead, uniform_noise


@part
class GMM(LikelihoodHead, TemperatureHead):
    """Head with a mixture of diagonal Gaussians (mixture density network).

    Args:
        n_components: Number of Gaussians.
        joint: True draws one component for all steps of a chunk. False draws one for each step, as robomimic does,
            where chunks have one step and both are the same.
        min_std: Smallest standard deviation in coded units. Without a minimum the likelihood grows without bound.
        temperature: Scale of the sampled Gaussian, not of the choice of a component. 0 plans the mean of the sampled
            component (robomimic's "low-noise evaluation").

    References:
        Bishop (1994), Mixture Density Networks.
        Mandlekar et al. (2021), What Matters in Learning from Offline Human Demonstrations for Robot Manipulation,
        arXiv:2108.03298.
    """

    n_components: Annotated[int, AtLeast(1)] = 5
    joint: bool = True
    min_std: Annotated[float, AtLeast(0)] = 0.01
    temperature: Annotated[float, AtLeast(0)] = 0.0

    @property
    def ignores_noise(self):
        """Whether the temperature is 0 and there is one component. Otherwise the noise chooses the component."""
        return self.temperature == 0 and self.n_components == 1

    def noise(self, horizon, coded_dim):
        return (horizon, coded_dim + 1)  # the last column picks components: if joint, its first row picks for all steps

    def build(self, trunk, coded_dim, spec):
        return trunk.build(0, self.n_components * (2 * coded_dim + 1), 0, spec)

    def loss(self, net, context, action, mask, rng):
        """Returns the negative log-density of each step, (B, H). If joint, the chunk's is spread over its steps."""
        return -self._step_log_prob(net, context, action, mask)

    def sample(self, net, context, noise):
        log_weight, mean, std = self._mixture(net, context, noise)
        picking = noise[:, :1, -1:].expand(-1, noise.shape[1], -1) if self.joint else noise[..., -1:]
        component = (uniform_noise(picking) > log_weight.exp().cumsum(-1)[..., :-1]).sum(-1)  # (B, H)
        index = component[..., None, None].expand(-1, -1, 1, mean.shape[-1])
        mean, std = mean.gather(2, index).squeeze(2), std.gather(2, index).squeeze(2)
        return mean + self.temperature * std * noise[..., :-1]

    def _mixture(self, net, context, like):
        """Returns the mixture: log-weights (B, H, M), and means and standard deviations (B, H, M, A)."""
        out = net(like[..., :0], like[..., :0], context).unflatten(-1, (self.n_components, -1))
        mean, raw_std = out[..., 1:].chunk(2, -1)
        logits = out[..., 0].mean(1, keepdim=True).expand(out.shape[:3]) if self.joint else out[..., 0]
        return logits.log_softmax(-1), mean, F.softplus(raw_std) + self.min_std

    def _step_log_prob(self, net, context, action, mask):
        log_weight, mean, std = self._mixture(net, context, action)
        z = (action.unsqueeze(2) - mean) / std
        component = (-0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)  # (B, H, M)
        if not self.joint:
            return (log_weight + component).logsumexp(-1)
        chunk = (log_weight[:, 0] + (component * mask.unsqueeze(-1)).sum(1)).logsumexp(-1)
        return (chunk / mask.sum(1).clamp(min=1)).unsqueeze(1).expand(mask.shape)
