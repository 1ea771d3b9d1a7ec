"""Solvers: one integration step from noise (t = 0) towards the action (t = 1).

A `Solver` integrates a velocity field. A `DenoisingSolver` steps along a Gaussian path from estimates of the clean
action. Both are frozen dataclasses without state. Sampling loops call them inside `scan`, so that an exported sampler
is one loop. Shapes: actions (B, H, A), times broadcast against (B, H, 1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass

import torch
from torch import Tensor

from ..core import ConfigError, Context
from ..nets.base import precomputed, time_embedding, with_time_embedding
from .base import scan

Velocity = Callable[[Tensor, Tensor], Tensor]  # x (B, H, A), t (B, H, 1) -> (B, H, A)


def check_solver(head: object, *kinds: type) -> None:
    """Raises ConfigError if the field `solver` of a head is of no kind that its sampler calls."""
    solver = getattr(head, "solver")  # noqa: B009 (any dataclass with this field)
    if not isinstance(solver, kinds):
        *first, last = (name for name, part in globals().items()
                        if isinstance(part, type) and issubclass(part, kinds) and is_dataclass(part))
        raise ConfigError(f"solver is {solver!r}, but must be {', '.join(first)} or {last}",
                          where=f"{type(head).__name__}.solver", hint=f"such as solver={first[0]}()")


class Solver(ABC):
    """Integrator of ``dx/dt = velocity(x, t)``."""

    @abstractmethod
    def evaluation_times(self, t: Tensor, t_next: Tensor) -> tuple[Tensor, ...]:
        """Returns the times at which `step` evaluates the velocity, in order, each of the shape of t."""

    @abstractmethod
    def step(self, velocity: Velocity, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Makes one step of the state x, (B, H, A), from times t to times t_next.

        Args:
            velocity: Called as ``velocity(x, t)``, once for each of `evaluation_times`.
        """


@dataclass(frozen=True)
class Euler(Solver):
    """Explicit Euler method, of order 1. One evaluation per step."""

    def evaluation_times(self, t, t_next):
        return (t,)

    def step(self, velocity, x, t, t_next):
        return x + (t_next - t) * velocity(x, t)


@dataclass(frozen=True)
class Midpoint(Solver):
    """Midpoint method, of order 2. Two evaluations per step, at its start and in its middle."""

    def evaluation_times(self, t, t_next):
        return t, (t + t_next) / 2

    def step(self, velocity, x, t, t_next):
        middle = (t + t_next) / 2
        return x + (t_next - t) * velocity(x + (middle - t) * velocity(x, t), middle)


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's method (explicit trapezoidal rule), of order 2. Two evaluations per step, at its start and at its end."""

    def evaluation_times(self, t, t_next):
        return t, t_next

    def step(self, velocity, x, t, t_next):
        start = velocity(x, t)
        end = velocity(x + (t_next - t) * start, t_next)
        return x + (t_next - t) * (start + end) / 2


def integrate(solver: Solver, velocity: Callable[[Tensor, Tensor, Context], Tensor], net, context: Context,
              noise: Tensor, n_steps: int) -> Tensor:
    """Integrates a network's velocity from noise (B, H, A) at t = 0 to t = 1 in `n_steps` equal steps.

    Args:
        velocity: Called as ``velocity(x, t, context)``, with the context of that time. It calls `net`.
        net: Trunk module. What depends on context or time alone is computed before the loop.
    """
    context, zero = precomputed(net, context), torch.zeros_like(noise[..., :1])
    times = torch.linspace(0, 1, n_steps + 1, device=noise.device)
    t, t_next = times[:-1], times[1:]
    embeddings = [time_embedding(net, e[:, None]) for e in solver.evaluation_times(t, t_next)]

    def step(x, t, t_next, *embeddings):
        contexts = iter([with_time_embedding(net, context, e) for e in embeddings])
        return solver.step(lambda x, t: velocity(x, t, next(contexts)), x, zero + t, zero + t_next)
    return scan(step, noise, t, t_next, *embeddings)


class DenoisingSolver(ABC):
    """Base class of solvers that make steps along a Gaussian path from estimates of the clean action.

    The sampling loop carries x and the last estimate. Everything that depends on time alone is computed before the
    loop, by `prepare`.
    """

    @abstractmethod
    def n_noises(self, n_steps: int) -> int:
        """Returns the number of standard normal chunks that one plan needs, the starting point included."""

    @abstractmethod
    def prepare(self, noise: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns the starting point and the coefficients of each step.

        Args:
            noise: Randomness of the plan, (B, H, n_noises * A).
            alpha: Scale of the action at the n_steps + 1 times, (n_steps + 1,).
            sigma: Scale of the noise at these times, (n_steps + 1,).

        Returns:
            x at t = 0, (B, H, A), and the `coefficients` of `step`, with n_steps rows each.
        """

    @abstractmethod
    def step(self, x: Tensor, clean: Tensor, last_clean: Tensor, alpha: Tensor, sigma: Tensor, alpha_next: Tensor,
             guidance: Tensor | float, *coefficients: Tensor, unclipped: Tensor | None = None) -> Tensor:
        """Makes one step and returns the next state, (B, H, A).

        Args:
            x: State, (B, H, A).
            clean: Estimate of the clean action from x, (B, H, A).
            last_clean: Estimate of the step before, (B, H, A). Not used in the first step.
            alpha: Scale of the action in x.
            sigma: Scale of the noise in x.
            alpha_next: Scale of the action after the step.
            guidance: Shift of the mean of the new state.
            coefficients: This step's row of what `prepare` returned.
            unclipped: The estimate before it was clipped, (B, H, A). None if it was not.
        """


class DeterministicSolver(DenoisingSolver):
    """Base class of solvers that draw no noise in their steps, so that a step can be made outside the loop."""

    def n_noises(self, n_steps):
        return 1

    def first_order_step(self, x: Tensor, clean: Tensor, alpha: Tensor, sigma: Tensor, alpha_next: Tensor,
                         sigma_next: Tensor, guidance: Tensor | float = 0.0) -> Tensor:
        """Makes a step of order 1, without an earlier estimate.

        It has the arguments of `step`, and `sigma_next`, the scale of the noise after the step.
        """
        return alpha_next * clean + sigma_next * predict_noise(x, clean, alpha, sigma) + guidance


@dataclass(frozen=True)
class DDIM(DeterministicSolver):
    """Denoising diffusion implicit solver (DDIM) with eta = 0, of order 1.

    Args:
        clipped_noise: True computes the noise that a step keeps from x and the clipped estimate. False computes it from
            the estimate before clipping, as diffusers and LeRobot do (``use_clipped_model_output=False``). Single steps
            (`Diffusion.denoise_step`) use the clipped estimate in any case, because a step of length 0 must change
            nothing.

    References:
        Song et al. (2021), Denoising Diffusion Implicit Models, arXiv:2010.02502.
    """

    clipped_noise: bool = True

    def prepare(self, noise, alpha, sigma):
        return noise, (sigma[1:],)

    def step(self, x, clean, last_clean, alpha, sigma, alpha_next, guidance, *coefficients, unclipped=None):
        sigma_next, = coefficients
        if self.clipped_noise or unclipped is None:
            return self.first_order_step(x, clean, alpha, sigma, alpha_next, sigma_next, guidance)
        return alpha_next * clean + sigma_next * predict_noise(x, unclipped, alpha, sigma) + guidance


@dataclass(frozen=True)
class DDPM(DenoisingSolver):
    """Ancestral sampler of DDPM, which is DDIM with eta = 1. Every step but the last draws noise.

    References:
        Ho et al. (2020), Denoising Diffusion Probabilistic Models, arXiv:2006.11239.
    """

    def n_noises(self, n_steps):
        return n_steps  # the starting point, and one for each step but the last

    def prepare(self, noise, alpha, sigma):
        n_steps = alpha.shape[0] - 1
        start, *draws = noise.unflatten(-1, (n_steps, -1)).unbind(-2)
        std = (sigma[1:] / sigma[:-1]) * (1 - (alpha[:-1] / alpha[1:]).square()).clamp(min=0).sqrt()  # last: 0
        kept = (sigma[1:].square() - std.square()).clamp(min=0).sqrt()
        return start, (kept, std, torch.stack([*draws, torch.zeros_like(start)]))

    def step(self, x, clean, last_clean, alpha, sigma, alpha_next, guidance, *coefficients, unclipped=None):
        kept, std, draw = coefficients
        mean = alpha_next * clean + kept * predict_noise(x, clean, alpha, sigma) + guidance
        return mean + std * draw


@dataclass(frozen=True)
class DPMSolverPP(DeterministicSolver):
    """DPM-Solver++(2M): multistep, of order 2, with first order in the first and the last step.

    References:
        Lu et al. (2022), DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models,
        arXiv:2211.01095.
    """

    def prepare(self, noise, alpha, sigma):
        # h is the growth of log(alpha / sigma) in a step. It is infinite in the last step, which ends without noise.
        h = (alpha[1:] / sigma[1:]).log() - (alpha[:-1] / sigma[:-1]).log()
        number = torch.arange(h.shape[0], device=noise.device)
        h_used = torch.where((number > 0) & (number < h.shape[0] - 1), h, 0.0)
        return noise, (sigma[1:], h_used, torch.cat([torch.ones_like(h[:1]), h[:-1]]))

    def step(self, x, clean, last_clean, alpha, sigma, alpha_next, guidance, *coefficients, unclipped=None):
        sigma_next, h, last_h = coefficients
        extrapolated = clean + (clean - last_clean) * h / (2 * last_h)
        return self.first_order_step(x, extrapolated, alpha, sigma, alpha_next, sigma_next, guidance)


def predict_noise(x: Tensor, clean: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Returns the noise, (B, H, A), in noisy actions, given estimates of the clean action.
    """
    return (x - alpha * clean) / sigma.clamp(min=1e-6)
