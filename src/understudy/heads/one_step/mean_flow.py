"""MeanFlow head: learns the average velocity between two times, so that one step is enough."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...core import Above, AtLeast, AtMost, part
from ..base import DenoisingHead
from ..guidance import guided_velocity
from ..paths import LinearPath


@part
class MeanFlow(DenoisingHead):
    """MeanFlow head, which samples in one step.

    The network reads times t and r >= t, and predicts the average velocity u from t to r on the way from noise to
    action. Differentiating ``(r - t) u = integral of the velocity v from t to r`` with respect to t gives the target
    ``u = v + (r - t) du/dt``, whose total derivative is one Jacobian-vector product of the network.

    Needs a trunk that reads two times and that PyTorch can differentiate in forward mode: the MLP or the Transformer.

    Args:
        n_steps: Number of sampling steps. One is enough if the network has learned the average velocity.
        velocity_fraction: Probability that a window trains r = t, where u is the velocity itself.
        time_mean: Mean of the logit of a training time.
        time_std: Standard deviation of the logit of a training time.
        adaptive_power: Power p of the adaptive weight 1 / (e + c)^p of a chunk, where e is the sum of its squared
            errors. 0 weights nothing. With 1, all chunks count about the same, however large their errors are.
        adaptive_constant: Constant c of the adaptive weight.
        max_guidance_weight: Upper bound of the guidance weight, which diverges as t approaches 0.

    References:
        Geng et al. (2025), Mean Flows for One-step Generative Modeling, arXiv:2505.13447.
    """

    n_steps: Annotated[int, AtLeast(1)] = 1
    velocity_fraction: Annotated[float, AtLeast(0), AtMost(1)] = 0.75
    time_mean: float = 0.4
    time_std: Annotated[float, AtLeast(0)] = 1.0
    adaptive_power: Annotated[float, AtLeast(0)] = 1.0
    adaptive_constant: Annotated[float, Above(0)] = 1e-3
    max_guidance_weight: Annotated[float, AtLeast(0)] = 5.0

    path = LinearPath()

    def build(self, trunk, coded_dim, spec):
        return trunk.build(coded_dim, coded_dim, 2, spec)

    def loss(self, net, context, action, mask, rng):
        """Returns the weighted squared error of the average velocity of each step, (B, H)."""
        noise = torch.randn(action.shape, generator=rng, device=action.device)
        normal = torch.randn(2, *action[:, :1, :1].shape, generator=rng, device=action.device).to(action.dtype)
        one, other = (self.time_mean + self.time_std * normal).sigmoid()
        equal = torch.rand(one.shape, generator=rng, device=action.device) < self.velocity_fraction
        t = torch.minimum(one, other)
        r = torch.where(equal, t, torch.maximum(one, other))
        velocity = self.path.velocity(action, noise, t)
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention have no derivative in forward mode
            prediction, derivative = torch.func.jvp(  # ty: ignore[invalid-assignment]  (two, without has_aux)
                lambda x, t: self._average_velocity(net, context, x, t, r),
                (self.path.interpolate(action, noise, t), t), (velocity, torch.ones_like(t)))
        target = velocity + (r - t) * derivative.detach()
        return self._weighted((prediction - target).square(), mask)

    def denoise_step(self, net, context, x, t, t_next, cost=None):
        t, r = t.unsqueeze(-1), t_next.unsqueeze(-1)
        return x + (r - t) * guided_velocity(lambda y: self._average_velocity(net, context, y, t, r), x, t, cost,
                                             self.max_guidance_weight, r - t)

    def predict_clean(self, net, context, x, t):
        t = t.unsqueeze(-1)
        return x + (1 - t) * self._average_velocity(net, context, x, t, t)

    def network_times(self, t, t_next):
        return torch.stack([t, t_next], -1)

    def _weighted(self, error: Tensor, mask: Tensor) -> Tensor:
        """Weights the squared error (B, H, A) of each step by its chunk, without a gradient of the weight, (B, H)."""
        chunk = (error.detach().sum(-1) * mask).sum(1, keepdim=True)
        return error.mean(-1) / (chunk + self.adaptive_constant) ** self.adaptive_power

    def _average_velocity(self, net, context, x, t, r):
        return net(x, torch.cat([t, r], -1).expand(*x.shape[:2], 2), context)
