"""One-step head: a denoiser that is called at one noise level only."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ...core import Above, UserError, part
from ..base import Head
from ..paths import EDMPath, edm_scales


@part
class OneStepGenerator(Head):
    """Head that plans by one estimate of the clean action from noise of one level.

    The network has the scales and times of `EDM`, so that it can start from the weights of such a head. Its own loss
    trains the estimate at this level, whose best value is a mean of the demonstrations. The method `onedp`
    trains it to have the distribution of a teacher instead.

    Args:
        sigma: Noise level of the network's input.
        sigma_data: Standard deviation of coded actions.
        sigma_min: Lowest noise level of the teacher.
        sigma_max: Highest noise level of the teacher.
        rho: Exponent of the teacher's levels.

    References:
        Wang et al. (2025), One-Step Diffusion Policy, arXiv:2410.21257.
    """

    sigma: float = 2.5
    sigma_data: Annotated[float, Above(0)] = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: Annotated[float, Above(0)] = 7.0

    def __post_init__(self):
        if not 0 < self.sigma_min < self.sigma <= self.sigma_max:
            raise UserError(f"sigma={self.sigma}, sigma_min={self.sigma_min}, sigma_max={self.sigma_max}",
                            where="OneStepGenerator", hint="use 0 < sigma_min < sigma <= sigma_max")

    @property
    def path(self) -> EDMPath:
        """The path of the teacher, from ``sigma_max * noise`` to the action."""
        return EDMPath(self.sigma_min, self.sigma_max, self.rho)

    def build(self, trunk, coded_dim, spec):
        return trunk.build(coded_dim, coded_dim, 1, spec)

    def loss(self, net, context, action, mask, rng):
        """Returns the squared error of the estimate from actions with noise, of weight 1 as in EDM, (B, H)."""
        noise = torch.randn(action.shape, generator=rng, device=action.device)
        _, out, _ = edm_scales(action.new_tensor(self.sigma), self.sigma_data)
        return ((self._estimate(net, context, action + self.sigma * noise) - action) / out).square().mean(-1)

    def sample(self, net, context, noise):
        return self._estimate(net, context, self.sigma * noise)

    def _estimate(self, net, context, x: Tensor) -> Tensor:
        sigma = torch.full_like(x[..., :1], self.sigma)
        skip, out, scale_in = edm_scales(sigma, self.sigma_data)
        return skip * x + out * net(scale_in * x, self.path.time_of(sigma), context)
