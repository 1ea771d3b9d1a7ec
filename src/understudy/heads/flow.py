"""Flow matching: the velocity of a straight line from noise to action (Lipman et al. 2023, arXiv 2210.02747; Liu et
al. 2023, arXiv 2209.03003)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..core import Unsupported
from ..nets.base import precomputed, time_embedding, with_time_embedding
from .base import DenoisingHead, check_trunk_times, cost_gradient, scan, training_times


@dataclass(frozen=True)
class Flow(DenoisingHead):
    """x_t = t action + (1 - t) noise; the network says action - noise.

    solver: "euler", or "midpoint", which asks the network twice a step.
    density: of the times trained on: "uniform"; "beta" dwells on noise: t = 0.999 (1 - u), u ~ Beta(1.5, 1) (pi0,
        Black et al. 2024, arXiv 2410.24164); "logit_normal" dwells on the middle (Esser et al. 2024, arXiv 2403.03206).
    times: "shared" by all steps of a chunk, of "each" its own (diffusion forcing), or on the "ramp" of a rolling
        buffer (streaming diffusion).
    push: the most that guidance may weigh (near t = 0 its exact weight diverges; Black et al. 2025).
    """

    n_steps: int = 10
    solver: Literal["euler", "midpoint"] = "euler"
    time_distribution: Literal["uniform", "beta", "logit_normal"] = "uniform"
    times: Literal["shared", "each", "ramp"] = "shared"
    max_guidance_weight: float = 5.0

    def __post_init__(self):
        if self.times == "ramp" and self.time_distribution != "uniform":
            raise Unsupported(f"a rolling buffer's times are even, and density={self.time_distribution!r} bends them",
                              where="Flow.density", hint="take density=\"uniform\"")

    def build(self, trunk, coded_dim, spec):
        check_trunk_times(trunk, self.times)
        return trunk.build(coded_dim, coded_dim, 1, spec)

    def interpolate(self, action, noise, t):
        return t * action + (1 - t) * noise

    def loss(self, net, context, action, mask, rng):
        noise = torch.randn(action.shape, generator=rng, device=action.device)
        t = self._time_quantile(training_times(self.times, action, rng)).unsqueeze(-1)
        velocity = net(self.interpolate(action, noise, t), t, context)
        return (velocity - (action - noise)).square().mean(-1)

    def denoise_step(self, net, context, x, t, t_next, cost=None):
        return self._step(net, context, context, x, t.unsqueeze(-1), t_next.unsqueeze(-1), cost)

    def _step(self, net, first, second, x, t, to, cost):
        """`first` and `second`: the context at t and, for the midpoint, halfway."""
        velocity = self._velocity(net, first, x, t, cost)
        if self.solver == "midpoint":
            middle = (t + to) / 2
            velocity = self._velocity(net, second, x + (middle - t) * velocity, middle, cost)
        return x + (to - t) * velocity

    def sample(self, net, context, noise, cost=None):
        if self.solver == "euler":
            return super().sample(net, context, noise, cost)
        context, zero = precomputed(net, context), torch.zeros_like(noise[..., :1])
        grid = torch.linspace(0, 1, self.n_steps + 1, device=noise.device)
        t, to = grid[:-1], grid[1:]

        def step(x, known, halfway, t, to):
            return self._step(
                net,
                with_time_embedding(net, context, known),
                with_time_embedding(net, context, halfway),
                x,
                zero + t,
                zero + to,
                cost,
            )

        return scan(step, noise, time_embedding(net, t[:, None]), time_embedding(net, (t + to)[:, None] / 2), t, to)

    def _time_quantile(self, u):
        """Uniform times into those of the density, by the inverse of its distribution function."""
        if self.time_distribution == "beta":
            return 0.999 * (1 - (1 - u) ** (1 / 1.5))
        return torch.special.ndtri(u).sigmoid() if self.time_distribution == "logit_normal" else u

    def _velocity(self, net, context, x, t, cost):
        velocity = net(x, t, context)
        if cost is None:
            return velocity
        # The pseudo-inverse weight (1-t) / (t r^2) with r^2 = (1-t)^2 / (t^2 + (1-t)^2).
        weight = ((t**2 + (1 - t) ** 2) / (t * (1 - t)).clamp(min=1e-6)).clamp(max=self.max_guidance_weight)
        return velocity - weight * cost_gradient(cost, lambda y: y + (1 - t) * net(y, t, context), x)
