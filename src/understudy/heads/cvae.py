"""A conditional variational autoencoder of chunks: z explains what the observation does not.

Sohn et al. 2015; for robots: ACT (Zhao et al. 2023, arXiv 2304.13705).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .base import Head


@dataclass(frozen=True)
class CVAE(Head):
    """Mean absolute error of the decoded chunk, plus `beta` times the divergence of q(z | chunk, observation) from a
    standard normal, summed over the `latent` dimensions.

    q reads the whole context. (ACT leaves the images out of it to save their encoding; here they are encoded already
    for the decoder.) Padded steps are marked as such and leave no trace in its mean over steps.

    temperature: of z in plans: 0 decodes its prior mean, as ACT does, 1 draws from the prior.
    """

    latent_dim: int = 32
    beta: float = 10.0
    temperature: float = 0.0

    def noise(self, horizon, coded_dim):
        return (self.latent_dim,)

    def build(self, trunk, coded_dim, spec):
        return _CVAENet(
            trunk.build(self.latent_dim, coded_dim, 0, spec),
            trunk.build(coded_dim + 1, 2 * self.latent_dim, 0, spec),
            spec.horizon,
        )

    def _decode(self, net, context, z):
        x = z.unsqueeze(1).expand(-1, net.horizon, -1)
        return net.decoder(x, x[..., :0], context)

    def _posterior(self, net, context, action, mask):
        """Mean and log standard deviation, (B, latent) each."""
        here = mask.unsqueeze(-1).to(action.dtype)
        said = net.posterior(torch.cat([action * here, here], -1), action[..., :0], context)
        return ((said * here).sum(1) / here.sum(1).clamp(min=1)).chunk(2, -1)

    def loss(self, net, context, action, mask, rng):
        mean, log = self._posterior(net, context, action, mask)
        z = mean + log.exp() * torch.randn(mean.shape, generator=rng, device=action.device)
        divergence = 0.5 * (mean.square() + (2 * log).exp() - 1 - 2 * log).sum(-1, True)
        return (self._decode(net, context, z) - action).abs().mean(-1) + self.beta * divergence

    def sample(self, net, context, noise):
        return self._decode(net, context, self.temperature * noise)


class _CVAENet(nn.Module):
    def __init__(self, decoder, posterior, horizon):
        super().__init__()
        self.decoder, self.posterior, self.horizon = decoder, posterior, horizon
