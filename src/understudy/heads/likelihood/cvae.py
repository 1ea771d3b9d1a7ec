"""Conditional variational autoencoder of chunks: a latent explains what the observation does not."""

from __future__ import annotations

from typing import Annotated

import torch

from ...core import AtLeast, part
from ...nets.base import PosteriorTrunk
from ..base import HeadNet, TemperatureHead


@part
class CVAE(TemperatureHead):
    """Conditional variational autoencoder head, as in ACT.

    The loss is the mean absolute error of the decoded chunk, plus `beta` times the KL divergence of q(z | chunk,
    observation) from a standard normal, summed over the latent dimensions.

    The posterior reads the whole context. (ACT leaves out the images to save their encoding, but here they are encoded
    for the decoder anyway.) A `PosteriorTrunk`, such as `ACTTransformer`, has its own posterior, which says what it
    reads. Padded steps are marked and do not contribute to the posterior's mean over steps.

    Args:
        latent_dim: Dimensions of the latent z.
        beta: Weight of the KL divergence.
        temperature: Scale of z in plans. 0 decodes the mean of the prior, as ACT does; 1 samples from the prior.

    References:
        Sohn et al. (2015), Learning Structured Output Representation using Deep Conditional Generative Models.
        Zhao et al. (2023), Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware, arXiv:2304.13705.
    """

    latent_dim: Annotated[int, AtLeast(1)] = 32
    beta: Annotated[float, AtLeast(0)] = 10.0
    temperature: Annotated[float, AtLeast(0)] = 0.0

    def noise(self, horizon, coded_dim):
        return (self.latent_dim,)

    def build(self, trunk, coded_dim, spec):
        decoder = trunk.build(self.latent_dim, coded_dim, 0, spec)
        if isinstance(trunk, PosteriorTrunk):
            posterior = trunk.build_posterior(coded_dim, 2 * self.latent_dim, spec)
        else:
            posterior = trunk.build(coded_dim + 1, 2 * self.latent_dim, 0, spec)
        return HeadNet(decoder=decoder, posterior=posterior, horizon=spec.horizon)

    def loss(self, net, context, action, mask, rng):
        """Returns the negative evidence lower bound of each step, (B, H), with the absolute error as reconstruction."""
        decoded, divergence = self.reconstruct(net, context, action, mask, rng)
        return (decoded - action).abs().mean(-1) + self.beta * divergence

    def reconstruct(self, net, context, action, mask, rng):
        """Returns chunks decoded from a draw of the posterior, (B, H, A), and its KL divergence, (B, 1)."""
        mean, log_std = self._posterior(net, context, action, mask)
        z = mean + log_std.exp() * torch.randn(mean.shape, generator=rng, device=action.device)
        divergence = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(-1, True)
        return self._decode(net, context, z), divergence

    def sample(self, net, context, noise):
        return self._decode(net, context, self.temperature * noise)

    def _decode(self, net, context, z):
        x = z.unsqueeze(1).expand(-1, net.horizon, -1)
        return net.decoder(x, x[..., :0], context)

    def _posterior(self, net, context, action, mask):
        """Returns the mean and log standard deviation of the latent z, (B, latent_dim) each."""
        present = mask.unsqueeze(-1).to(action.dtype)
        out = net.posterior(torch.cat([action * present, present], -1), action[..., :0], context)
        return ((out * present).sum(1) / present.sum(1).clamp(min=1)).chunk(2, -1)


def squared_error_loss(net, context, action, mask, rng, beta: float):
    """Returns the negative evidence lower bound of each step, (B, H), with squared errors and means.

    Args:
        net: The module of a `CVAE` with twice as many dimensions of its latent as a plan has.
    """
    decoded, divergence = CVAE().reconstruct(net, context, action, mask, rng)
    return (decoded - action).square().mean(-1) + beta * divergence / (2 * action[0].numel())
