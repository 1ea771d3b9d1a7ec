"""Shortcut head: one network whose flow can be integrated in any power of two of steps."""

from __future__ import annotations

from typing import Annotated

import torch

from ...core import AtLeast, AtMost, UserError, part
from ..base import DenoisingHead, TargetNetworkHead
from ..guidance import guided_velocity
from ..paths import LinearPath


@part
class Shortcut(DenoisingHead, TargetNetworkHead):
    """Shortcut head: a flow whose network also reads the size of the step.

    The network reads the time t and the step size d, and predicts the average velocity from t to t + d. Part of each
    batch trains the velocity itself (d = 0), as flow matching does. The rest trains a step of size 2d to equal two
    steps of size d, predicted by the target network.

    Args:
        n_steps: Number of sampling steps, a power of two. It can be changed after training.
        n_train_steps: The smallest trained step size is 1 / n_train_steps. A power of two.
        self_consistency_fraction: Probability that a window trains self-consistency and not the velocity.
        max_guidance_weight: Upper bound of the guidance weight, which diverges as t approaches 0.
        target_decay: Fraction of the target network that an update keeps. The paper has 0.999 and 800,000 updates. In a
            few thousand, such a target network would lag too far behind.

    References:
        Frans et al. (2024), One Step Diffusion via Shortcut Models, arXiv:2410.12557.
    """

    n_steps: int = 1
    n_train_steps: int = 128
    self_consistency_fraction: Annotated[float, AtLeast(0), AtMost(1)] = 0.25
    max_guidance_weight: Annotated[float, AtLeast(0)] = 5.0
    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.99

    path = LinearPath()

    def __post_init__(self):
        if any(n < 1 or n & (n - 1) for n in (self.n_steps, self.n_train_steps)) or self.n_steps > self.n_train_steps:
            raise UserError(f"n_steps={self.n_steps} and n_train_steps={self.n_train_steps} must be powers of two, and "
                            "n_steps must not be larger", where="Shortcut.n_steps", hint="use 1, 2, 4 or 8 steps")

    def build(self, trunk, coded_dim, spec):
        return trunk.build(coded_dim, coded_dim, 2, spec)

    def loss(self, net, context, action, mask, rng, target_net=None):
        """Returns the squared error of the velocity, or of a step of size 2d against two steps of size d, (B, H)."""
        noise = torch.randn(action.shape, generator=rng, device=action.device)
        rows, n_sizes = action[:, :1, :1], self.n_train_steps.bit_length() - 1
        uniform, size, consistent = torch.rand(3, *rows.shape, generator=rng, device=action.device).to(action.dtype)
        consistent = consistent < self.self_consistency_fraction
        double = 0.5 ** (size * n_sizes).floor()                        # 2d = 1, 1/2, ..., 2 / n_train_steps
        t = torch.where(consistent, (uniform / double).floor() * double, uniform)   # multiples of 2d
        x = self.path.interpolate(action, noise, t)
        with torch.no_grad():
            target = self._two_steps(net if target_net is None else target_net, context, x, t, t + double)
        target = torch.where(consistent, target, self.path.velocity(action, noise, t))
        prediction = self._velocity(net, context, x, t, torch.where(consistent, t + double, t))
        return (prediction - target).square().mean(-1)

    def denoise_step(self, net, context, x, t, t_next, cost=None):
        t, t_next = t.unsqueeze(-1), t_next.unsqueeze(-1)
        return x + (t_next - t) * guided_velocity(lambda y: self._velocity(net, context, y, t, t_next), x, t, cost,
                                                  self.max_guidance_weight, t_next - t)

    def predict_clean(self, net, context, x, t):
        t = t.unsqueeze(-1)
        return x + (1 - t) * self._velocity(net, context, x, t, t)

    def network_times(self, t, t_next):
        d = t_next - t
        # The smallest step is not trained: d = 0 stands for it, as in the paper.
        return torch.stack([t, torch.where(d * self.n_train_steps > 1.5, d, 0.0)], -1)

    def _two_steps(self, net, context, x, t, t_next):
        """Returns the average velocity of two steps of half the size."""
        middle = (t + t_next) / 2
        first = self._velocity(net, context, x, t, middle)
        return (first + self._velocity(net, context, x + (middle - t) * first, middle, t_next)) / 2

    def _velocity(self, net, context, x, t, t_next):
        times = self.network_times(t.squeeze(-1), t_next.squeeze(-1))
        return net(x, times.expand(*x.shape[:2], 2), context)
