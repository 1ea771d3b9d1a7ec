"""Streaming flow: a flow in action space whose trajectory is the trajectory of the actions."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated

import torch
from torch.nn import functional as F

from ...core import AtLeast, UserError, part
from ..base import StepwiseHead, scan
from ..paths import NarrowGaussianPath
from ..solvers import Euler, Solver, check_solver


@part
class StreamingFlow(StepwiseHead):
    """Streaming flow head: the flow passes through the actions of the chunk, one after another.

    The actions of a chunk are points of a trajectory: step i of H is at t = i / (H - 1). The network reads one action
    and one time, and predicts the velocity of a narrow Gaussian around this trajectory. Each integration step from one
    point to the next therefore gives the next action.

    Step 0 of a chunk is the last executed action, so that the head needs `Window(action_offset=-1)` and the executor
    `StreamingFlowExecutor`. At the start of an episode nothing was executed, and step 0 is the code 0. Actions should
    change little from step to step, as positions do.

    Args:
        sigma: Standard deviation of the Gaussian at t = 0, in coded units. Plans start from it.
        stabilization: Rate at which the flow returns to the trajectory.
        n_substeps: Solver steps per action.

    References:
        Jiang et al. (2025), Streaming Flow Policy, arXiv:2505.21851.
    """

    sigma: Annotated[float, AtLeast(0)] = 0.1
    stabilization: Annotated[float, AtLeast(0)] = 2.5
    solver: Solver = field(default_factory=Euler)
    n_substeps: Annotated[int, AtLeast(1)] = 1

    def __post_init__(self):
        check_solver(self, Solver)

    @property
    def ignores_noise(self):
        """Whether plans start exactly at the last action."""
        return self.sigma == 0

    def build(self, trunk, coded_dim, spec):
        if spec.horizon < 2:
            raise UserError("a streaming flow needs a last action and a next action, but the horizon is 1",
                            where="StreamingFlow", hint="train with Window(horizon=2) or longer")
        return trunk.build(coded_dim, coded_dim, 1, replace(spec, horizon=1))

    def loss(self, net, context, action, mask, rng):
        n = action.shape[1] - 1
        path = NarrowGaussianPath(self.sigma, self.stabilization)
        # One time within each segment of the trajectory, so that each step has its own loss.
        t = torch.rand(action.shape[0], n, 1, generator=rng, device=action.device)
        t = (torch.arange(n, device=action.device).unsqueeze(-1) + t) / n
        noise = torch.randn(action[:, 1:].shape, generator=rng, device=action.device)
        prediction = self._velocity(net, context, path.interpolate(action, noise, t), t)
        error = (prediction - path.velocity(action, noise, t)).square().mean(-1)
        return F.pad(error, (1, 0))  # step 0 is given

    def denoise_step(self, net, context, x, t, t_next):
        t, dt = t.unsqueeze(-1), (t_next - t).unsqueeze(-1) / self.n_substeps
        for i in range(self.n_substeps):
            x = self.solver.step(lambda x, t: self._velocity(net, context, x, t), x, t + i * dt, t + (i + 1) * dt)
        return x

    def sample(self, net, context, noise):
        times = torch.linspace(0, 1, noise.shape[1], device=noise.device)
        zero = torch.zeros_like(noise[:, :1, 0])

        def step(carried, t, t_next):
            x, chunk = carried
            x = self.denoise_step(net, context, x, zero + t, zero + t_next)
            return x, torch.cat([chunk[:, 1:], x], 1)
        return scan(step, (self.sigma * noise[:, :1], torch.zeros_like(noise)), times[:-1], times[1:])[1]

    def _velocity(self, net, context, x, t):
        """Calls the network with each step as a separate row, x (B, n, A), t (B, n, 1), for the velocity."""
        n, action_dim = x.shape[1:]
        context = context if n == 1 else context.repeat(n)
        return net(x.reshape(-1, 1, action_dim), t.reshape(-1, 1, 1), context).reshape(-1, n, action_dim)
