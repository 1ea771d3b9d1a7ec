"""AdaFlow: a flow that takes few sampling steps where the action is certain, and more where it is not."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ...core import Above, AtLeast, Context, part
from ...nets.base import precomputed
from ..base import DenoisingHead, scan
from ..guidance import guided_velocity
from ..paths import LinearPath


@part
class AdaFlow(DenoisingHead):
    """Flow matching head (AdaFlow) that chooses its step sizes by the predicted uncertainty.

    Besides the velocity, the network predicts the standard deviation of ``action - noise`` around it. Where that is 0,
    the flow is a straight line, and one step is exact. Where it is large, the error of a step is large. A step has the
    size ``max_error / std``, but at least ``1 / n_steps``.

    The paper trains both by one likelihood, which gives uncertain actions little weight. Here the velocity has the loss
    of `Flow`, and the likelihood trains the standard deviation only.

    Args:
        n_steps: Largest number of steps.
        max_error: Bound of the product of step size and standard deviation, per component in coded units. The paper
            bounds it for a whole chunk, which is larger by the square root of the number of components.
        max_guidance_weight: Upper bound of the guidance weight, which diverges as t approaches 0.

    References:
        Hu et al. (2024), AdaFlow: Imitation Learning with Variance-Adaptive Flow-Based Policies, arXiv:2402.04292.
    """

    n_steps: Annotated[int, AtLeast(1)] = 5
    max_error: Annotated[float, Above(0)] = 0.1
    max_guidance_weight: Annotated[float, AtLeast(0)] = 5.0

    path = LinearPath()

    def build(self, trunk, coded_dim, spec):
        return trunk.build(coded_dim, coded_dim + 1, 1, spec)

    def loss(self, net, context, action, mask, rng):
        """Returns the squared velocity error of each step plus its negative log-likelihood, (B, H)."""
        noise = torch.randn(action.shape, generator=rng, device=action.device)
        t = torch.rand(action[:, :1, :1].shape, generator=rng, device=action.device).expand(*action.shape[:2], 1)
        velocity, log_std = self._velocity_log_std(net(self.interpolate(action, noise, t), t, context))
        error = (velocity - self.path.velocity(action, noise, t)).square().mean(-1)
        return error + 0.5 * error.detach() * (-2 * log_std).exp() + log_std

    def sample(self, net, context, noise, cost=None):
        return self._integrate(net, context, noise, cost)[0]

    def count_steps(self, net, context: Context, noise: Tensor) -> Tensor:
        """Returns the number of steps from noise (B, H, A) to action that each row of a batch needs, (B,)."""
        return self._integrate(net, context, noise, None)[2]

    def denoise_step(self, net, context, x, t, t_next, cost=None):
        t, t_next = t.unsqueeze(-1), t_next.unsqueeze(-1)
        return x + (t_next - t) * self._guided(net, context, x, t, cost)[0]

    def predict_clean(self, net, context, x, t):
        t = t.unsqueeze(-1)
        return x + (1 - t) * self._velocity_log_std(net(x, t, context))[0]

    def _integrate(self, net, context, noise, cost):
        """Integrates noise to actions. Returns actions (B, H, A), their times, and the number of steps, (B,)."""
        context, zero = precomputed(net, context), torch.zeros_like(noise[..., 0])

        def step(carried, number):
            x, t, count = carried
            if _can_stop(x) and bool((t == 1).all()):
                return carried
            velocity, log_std = self._guided(net, context, x, t.unsqueeze(-1), cost)
            std = (2 * log_std).exp().mean(1, keepdim=True).sqrt()  # of the whole chunk
            longest = (self.max_error / std).clamp(min=1 / self.n_steps)
            t_next = torch.where((t + longest > 1 - 1e-4) | (number == self.n_steps - 1), 1.0, t + longest)
            return x + (t_next - t).unsqueeze(-1) * velocity, t_next, count + (t[:, 0] < 1)
        return scan(step, (noise, zero, zero[:, 0]), torch.arange(self.n_steps, device=noise.device))

    def _guided(self, net, context, x, t, cost):
        out = self._velocity_log_std(net(x, t, context))
        if cost is None:
            return out
        return guided_velocity(lambda y: self._velocity_log_std(net(y, t, context))[0], x, t, cost,
                               self.max_guidance_weight, 1 - t), out[1]

    def _velocity_log_std(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Returns velocity (B, H, A) and logarithm of the standard deviation (B, H), of any size below about 1000."""
        return out[..., :-1], out[..., -1].clamp(-7, 7)


def _can_stop(x: Tensor) -> bool:
    """Returns whether values may decide the number of steps, which tracing and CUDA graphs do not allow."""
    return not torch.compiler.is_compiling() and not (x.is_cuda and torch.cuda.is_current_stream_capturing())
