"""A mixture of diagonal Gaussians, by default over the whole chunk, so that a chunk keeps to one mode.

Bishop 1994 (mixture density networks); for robots: Mandlekar et al. 2021, arXiv 2108.03298.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .base import LikelihoodHead


@dataclass(frozen=True)
class GMM(LikelihoodHead):
    """joint: one mode for all steps of a chunk; False draws a mode for every step, as robomimic's does (whose chunks
    are one step long, where the two are the same).

    floor: least standard deviation, in coded units: without one the likelihood runs away.
    temperature: of the Gaussians in plans, not of the choice of mode. 0 plays the mean of the drawn mode: the
        "low-noise evaluation" of robomimic.
    """

    n_components: int = 5
    joint: bool = True
    min_std: float = 0.01
    temperature: float = 0.0

    def noise(self, horizon, coded_dim):
        return (horizon, coded_dim + 1)  # the last column picks the mode, for a joint one that of the first step

    def build(self, trunk, coded_dim, spec):
        return trunk.build(0, self.n_components * (2 * coded_dim + 1), 0, spec)

    def _mixture(self, net, context, like):
        """Log-weights (B, H, M), over a joint chunk the same at every step; means and deviations (B, H, M, A)."""
        out = net(like[..., :0], like[..., :0], context).unflatten(-1, (self.n_components, -1))
        mean, spread = out[..., 1:].chunk(2, -1)
        weight = out[..., 0].mean(1, keepdim=True).expand(out.shape[:3]) if self.joint else out[..., 0]
        return weight.log_softmax(-1), mean, F.softplus(spread) + self.min_std

    def _step_log_prob(self, net, context, action, mask):
        """(B, H): log-density of each step. Of a joint chunk, each unpadded step's equal share of it."""
        weight, mean, std = self._mixture(net, context, action)
        z = (action.unsqueeze(2) - mean) / std
        each = (-0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
        if not self.joint:
            return (weight + each).logsumexp(-1)
        whole = (weight[:, 0] + (each * mask.unsqueeze(-1)).sum(1)).logsumexp(-1)
        return (whole / mask.sum(1).clamp(min=1)).unsqueeze(1).expand(mask.shape)

    def log_prob(self, net, context, action):
        return self._step_log_prob(net, context, action, torch.ones_like(action[..., 0])).sum(1)

    def loss(self, net, context, action, mask, rng):
        return -self._step_log_prob(net, context, action, mask)

    def sample(self, net, context, noise):
        weight, mean, std = self._mixture(net, context, noise)
        lot = noise[:, :1, -1:].expand(-1, noise.shape[1], -1) if self.joint else noise[..., -1:]
        uniform = 0.5 * torch.erfc(-lot / math.sqrt(2))
        mode = (uniform > weight.exp().cumsum(-1)[..., :-1]).sum(-1)  # (B, H)
        pick = mode[..., None, None].expand(-1, -1, 1, mean.shape[-1])
        mean, std = mean.gather(2, pick).squeeze(2), std.gather(2, pick).squeeze(2)
        return mean + self.temperature * std * noise[..., :-1]
