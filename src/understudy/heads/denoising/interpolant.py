"""Stochastic interpolant: a flow that starts at the last action instead of at pure noise."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ...core import Above, AtLeast, Context, UserError, part
from ..base import StepwiseHead
from ..paths import StochasticInterpolant
from ..solvers import Euler, Solver, check_solver, integrate


@part
class Interpolant(StepwiseHead):
    """Stochastic interpolant head: a flow from the last action, instead of noise, to the chunk.

    Each step of a chunk starts at the last executed action plus Gaussian noise, and moves to its own action along the
    path `StochasticInterpolant`. The network predicts the velocity. The start is near the actions, so that the path is
    shorter than one from pure noise.

    The last action is a column of the observation. `LastAction` adds it, `TokenEncoder(named=...)` gives
    it to the head, and `Normalizer(obs="minmax")` scales it as the actions are scaled.

    Args:
        source: Column of the last action, as wide as a coded action.
        source_std: Standard deviation of the noise that is added to the last action, in coded units. Without it, the
            same observation would always give the same plan.
        scale: Scale of the noise in the middle of the path.
        n_steps: Number of integration steps. It can be changed after training.

    References:
        Albergo et al. (2023), Stochastic Interpolants: A Unifying Framework for Flows and Diffusions,
        arXiv:2303.08797.
        Chen et al. (2024), Don't Start from Scratch: Behavioral Refinement via Interpolant-based Policy Diffusion
        (BRIDGeR), arXiv:2402.16075, whose source is another policy.
    """

    source: str = "observation.last_action"
    source_std: Annotated[float, Above(0)] = 0.2
    scale: Annotated[float, AtLeast(0)] = 0.1
    n_steps: Annotated[int, AtLeast(1)] = 5
    solver: Solver = Euler()

    @property
    def path(self) -> StochasticInterpolant:
        """The path from the source to the action."""
        return StochasticInterpolant(self.scale)

    def __post_init__(self):
        check_solver(self, Solver)

    def build(self, trunk, coded_dim, spec):
        return trunk.build(coded_dim, coded_dim, 1, spec)

    def loss(self, net, context, action, mask, rng):
        """Returns the squared velocity error of each step, (B, H)."""
        noise, latent = torch.randn(2, *action.shape, generator=rng, device=action.device)
        t = torch.rand(action[:, :1, :1].shape, generator=rng, device=action.device).expand(*action.shape[:2], 1)
        ends = torch.cat([self._start(context, noise), latent], -1)
        prediction = net(self.path.interpolate(action, ends, t), t, context)
        return (prediction - self.path.velocity(action, ends, t)).square().mean(-1)

    def sample(self, net, context, noise):
        def velocity(x, t, context):
            return net(x, t, context)
        return integrate(self.solver, velocity, net, context, self._start(context, noise), self.n_steps)

    def denoise_step(self, net, context, x, t, t_next):
        return self.solver.step(lambda x, t: net(x, t, context), x, t.unsqueeze(-1), t_next.unsqueeze(-1))

    def _start(self, context: Context, noise: Tensor) -> Tensor:
        """Returns the state at t = 0, (B, H, A): the last action and noise, (B, H, A)."""
        if self.source not in context.named:
            raise UserError(f"the encoder gives no column {self.source!r} to the head", where="Interpolant.source",
                            hint=f"use TokenEncoder(named=({self.source!r},)), and LastAction among the transforms")
        last = context.named[self.source]
        if last.shape[-1] != noise.shape[-1]:
            raise UserError(f"the column {self.source!r} has {last.shape[-1]} numbers, and a coded action has "
                            f"{noise.shape[-1]}", where="Interpolant.source",
                            hint="name the column of the last action, and use actions that are numbers")
        return last.to(noise.dtype).unsqueeze(1) + self.source_std * noise
