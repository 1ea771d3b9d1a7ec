"""Probability paths between noise (t = 0) and action (t = 1).

A path is tested once, in closed form, and used by every head that moves noise to an action. Shapes: actions and noise
are (B, H, A), times broadcast against (B, H, 1).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..core import AtLeast, part


class ProbabilityPath(ABC):
    """A curve from noise to action for each pair of them. Subclasses are frozen dataclasses."""

    @abstractmethod
    def interpolate(self, action: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Returns the point of the curve at time t.

        Args:
            action: Coded actions, (B, H, A).
            noise: Standard normal noise, (B, H, A), unless the path says otherwise.
            t: Times in [0, 1], broadcast against (B, H, 1).

        Returns:
            Noisy actions, (B, H, A). At t = 1 they equal `action` exactly, unless the path says otherwise.
        """

    @abstractmethod
    def velocity(self, action: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Returns the derivative of `interpolate` with respect to t, (B, H, A). Arguments as there."""


@dataclass(frozen=True)
class LinearPath(ProbabilityPath):
    """Straight line from noise to action: ``x_t = t * action + (1 - t) * noise``.

    References:
        Lipman et al. (2023), Flow Matching for Generative Modeling, arXiv:2210.02747.
        Liu et al. (2023), Flow Straight and Fast, arXiv:2209.03003.
    """

    def interpolate(self, action, noise, t):
        return t * action + (1 - t) * noise

    def velocity(self, action, noise, t):
        return action - noise


class GaussianPath(ProbabilityPath):
    """A path of the form ``x_t = alpha(t) * action + sigma(t) * noise``."""

    @abstractmethod
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the scales of action and noise at times t, each of the shape of t."""

    @abstractmethod
    def alpha_sigma_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the derivatives of both scales with respect to t, each of the shape of t."""

    def interpolate(self, action, noise, t):
        alpha, sigma = self.alpha_sigma(torch.as_tensor(t, device=action.device))
        return alpha * action + sigma * noise

    def velocity(self, action, noise, t):
        alpha_rate, sigma_rate = self.alpha_sigma_rates(t)
        return alpha_rate * action + sigma_rate * noise


@part
class VariancePreservingPath(GaussianPath):
    """Noise schedule of DDPM: ``alpha**2 + sigma**2 = 1`` on `n_train_steps` discrete levels.

    Level k of N is the time ``t = 1 - k / N``. Level 0 is the clean action. Other times use the nearest level, and
    their velocity is the velocity of a straight step from this level to the next cleaner one.

    Args:
        schedule: ``"squaredcos_cap_v2"`` (Nichol and Dhariwal 2021) or ``"linear"`` (Ho et al. 2020). The betas of
            ``"linear"`` are multiplied by 1000 / n_train_steps, so that every number of levels ends in noise.
        n_train_steps: Number of noise levels.

    References:
        Ho et al. (2020), Denoising Diffusion Probabilistic Models, arXiv:2006.11239.
        Nichol and Dhariwal (2021), Improved Denoising Diffusion Probabilistic Models, arXiv:2102.09672.
    """

    schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    n_train_steps: Annotated[int, AtLeast(1)] = 100

    def alpha_sigma(self, t):
        return self._table(t.device)[:, self._level(t)].unbind()

    def alpha_sigma_rates(self, t):
        table = self._table(t.device)
        rates = torch.cat([torch.zeros_like(table[:, :1]), table[:, :-1] - table[:, 1:]], 1) * self.n_train_steps
        return rates[:, self._level(t)].unbind()

    def _level(self, t):
        return ((1 - t) * self.n_train_steps).round().long()

    def _table(self, device):
        # Tensors made while a compiler or exporter traces belong to the trace and must not be cached.
        table = _schedule_table.__wrapped__ if torch.compiler.is_compiling() else _schedule_table
        return table(self.schedule, self.n_train_steps, device)


@lru_cache
def _schedule_table(schedule: str, n_levels: int, device: torch.device) -> Tensor:
    """Returns `noise_schedule` as a tensor, (2, n_levels + 1)."""
    return torch.tensor(noise_schedule(schedule, n_levels), device=device)


@lru_cache
def noise_schedule(schedule: str, n_levels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns ``sqrt(alpha_bar)`` and ``sqrt(1 - alpha_bar)``, the scales of action and noise, at all noise levels.

    Each has n_levels + 1 values. Level 0 is the clean action. `VariancePreservingPath` describes the schedules.
    """
    if schedule == "linear":
        betas = [min(1000 / n_levels * (1e-4 + (0.02 - 1e-4) * i / max(1, n_levels - 1)), 0.999)
                 for i in range(n_levels)]
    else:
        def alpha_bar(u):
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = [min(1 - alpha_bar((i + 1) / n_levels) / alpha_bar(i / n_levels), 0.999) for i in range(n_levels)]
    products = [1.0]
    for beta in betas:
        products.append(products[-1] * (1 - beta))
    return tuple(math.sqrt(p) for p in products), tuple(math.sqrt(1 - p) for p in products)


@part
class EDMPath(GaussianPath):
    """Path of EDM: ``x_t = action + sigma(t) * noise``.

    sigma falls from `sigma_max` at t = 0 towards `sigma_min` and is 0 at t = 1. At t = 0 the path is not pure noise:
    ``interpolate(action, noise, 0) = action + sigma_max * noise``, so that a sampler starts at ``sigma_max * noise``.

    Args:
        sigma_min: Noise level that t approaches before 1.
        sigma_max: Noise level at t = 0.
        rho: Exponent of the schedule. Larger values spend more of the time at low noise.

    References:
        Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models, arXiv:2206.00364.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def alpha_sigma(self, t):
        return torch.ones_like(t), torch.where(t < 1, self._root(t) ** self.rho, 0.0)

    def alpha_sigma_rates(self, t):
        slope = self.sigma_min ** (1 / self.rho) - self.sigma_max ** (1 / self.rho)
        return torch.zeros_like(t), self.rho * self._root(t) ** (self.rho - 1) * slope

    def time_of(self, sigma: Tensor) -> Tensor:
        """Returns the times, in [0, 1), at which the path has these noise levels, or the nearest times."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        level = sigma.clamp(self.sigma_min, self.sigma_max) ** (1 / self.rho)
        return ((high - level) / (high - low)).clamp(max=1 - 1e-6)

    def _root(self, t):
        """Returns ``sigma(t) ** (1 / rho)``, which is linear in t."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return high + t * (low - high)


def edm_scales(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the scales of EDM's preconditioning, ``clean = c_skip * x + c_out * network(c_in * x)``.

    They give the network inputs and targets of variance 1 at every noise level. Without noise the estimate is x itself.
    c_skip, c_out and c_in each have the shape of `sigma`.

    Args:
        sigma_data: Standard deviation of coded actions.

    References:
        Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models, arXiv:2206.00364.
    """
    variance = sigma**2 + sigma_data**2
    return sigma_data**2 / variance, sigma * sigma_data / variance.sqrt(), variance.rsqrt()


@part
class StochasticInterpolant(ProbabilityPath):
    """Path from a sample of any source distribution to the action, with noise in between.

    ``x_t = t * action + (1 - t) * source + scale * t * (1 - t) * latent``. The argument `noise` is (B, H, 2A): the
    source sample (such as the last action) and the standard normal latent, side by side. At t = 0 the path equals the
    source.

    Args:
        scale: Scale of the latent noise. 0 gives a straight line from source to action.

    References:
        Albergo et al. (2023), Stochastic Interpolants: A Unifying Framework for Flows and Diffusions,
        arXiv:2303.08797.
    """

    scale: Annotated[float, AtLeast(0)] = 1.0

    def interpolate(self, action, noise, t):
        source, latent = noise.chunk(2, -1)
        return t * action + (1 - t) * source + self.scale * t * (1 - t) * latent

    def velocity(self, action, noise, t):
        source, latent = noise.chunk(2, -1)
        return action - source + self.scale * (1 - 2 * t) * latent


@part
class NarrowGaussianPath(ProbabilityPath):
    """Path along a demonstrated trajectory with a narrow Gaussian around it (streaming flow).

    ``x_t = trajectory(t) + std * exp(-stabilization * t) * noise``. The trajectory connects the rows of `action` by
    straight lines: row i of H is the position at time ``i / (H - 1)``, so that H must be 2 or more. Unlike other paths,
    this one neither starts at the noise nor ends at the action. Its velocity pulls back to the trajectory:
    ``velocity = trajectory'(t) - stabilization * (x_t - trajectory(t))``.

    Args:
        std: Standard deviation at t = 0, in coded units.
        stabilization: Rate at which the flow returns to the trajectory.

    References:
        Jiang et al. (2025), Streaming Flow Policy, arXiv:2505.21851.
    """

    std: Annotated[float, AtLeast(0)] = 0.1
    stabilization: Annotated[float, AtLeast(0)] = 2.5

    def interpolate(self, action, noise, t):
        start, end, position = self._segment(action, t)
        return start + position * (end - start) + self._std(t) * noise

    def velocity(self, action, noise, t):
        start, end, _ = self._segment(action, t)
        return (action.shape[1] - 1) * (end - start) - self.stabilization * self._std(t) * noise

    def _std(self, t):
        return self.std * torch.exp(-self.stabilization * t)

    def _segment(self, trajectory, t):
        """Returns both ends of the segment that t (B, n, 1) is in, (B, n, A) each, and the position in it."""
        scaled = t * (trajectory.shape[1] - 1)
        row = scaled.detach().floor().clamp(0, trajectory.shape[1] - 2)
        index = row.long().expand(-1, -1, trajectory.shape[-1])
        return trajectory.gather(1, index), trajectory.gather(1, index + 1), scaled - row
