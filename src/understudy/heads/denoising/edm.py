"""EDM: diffusion whose network is preconditioned for every noise level."""

from __future__ import annotations

from typing import Annotated

import torch

from ...core import AtLeast, part
from ...nets.base import precomputed, time_embedding, with_time_embedding
from ..base import PreconditionedHead, scan
from ..guidance import cost_gradient, energy_shift, split_energy
from ..paths import edm_scales
from ..solvers import DeterministicSolver, Euler, Solver, check_solver


@part
class EDM(PreconditionedHead):
    """Diffusion head with the preconditioning of Karras et al.

    The network sees ``c_in * x`` with ``x = action + sigma * noise``, and the estimate of the clean action is
    ``c_skip * x + c_out * network``. The scales are chosen so that the network's input and target have variance 1 at
    every noise level. Sampling integrates ``dx/dsigma = (x - clean) / sigma`` over the levels of `EDMPath`, from
    `sigma_max` to `sigma_min`, and ends with the estimate of the clean action.

    Args:
        n_steps: Number of sampling steps. It can be changed after training.
        solver: Integrator over the noise level. `Heun` is the paper's and evaluates the network twice per step but the
            last. `DPMSolverPP` is of order 2 too, and evaluates it once per step.
        sigma_data: Standard deviation of coded actions.
        sigma_min: Lowest noise level of the sampler.
        sigma_max: Highest noise level.
        rho: Exponent of the levels. Larger values put more of them at low noise.
        log_sigma_mean: Mean of the logarithm of a training noise level.
        log_sigma_std: Standard deviation of the logarithm of a training noise level.
        guidance_weight: Weight of the guidance gradient.

    References:
        Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models, arXiv:2206.00364.
        Lu et al. (2022), DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models,
        arXiv:2211.01095.
        Reuss et al. (2023), Goal-Conditioned Imitation Learning using Score-based Diffusion Policies, arXiv:2304.02532.
    """

    n_steps: int = 10
    solver: Solver | DeterministicSolver = Euler()
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    log_sigma_mean: float = -1.2
    log_sigma_std: Annotated[float, AtLeast(0)] = 1.2
    guidance_weight: Annotated[float, AtLeast(0)] = 1.0

    def __post_init__(self):
        check_solver(self, Solver, DeterministicSolver)
        super().__post_init__()

    def loss(self, net, context, action, mask, rng):
        """Returns the squared error of the network's preconditioned target, (B, H)."""
        noise = torch.randn(action.shape, generator=rng, device=action.device)
        normal = torch.randn(action[:, :1, :1].shape, generator=rng, device=action.device).to(action.dtype)
        t = self.path.time_of((self.log_sigma_mean + self.log_sigma_std * normal).exp()).expand(*action.shape[:2], 1)
        _, sigma = self.path.alpha_sigma(t)
        x = action + sigma * noise
        skip, out, scale_in = edm_scales(sigma, self.sigma_data)
        return (net(scale_in * x, t, context) - (action - skip * x) / out).square().mean(-1)

    def sample(self, net, context, noise, cost=None):
        context, zero = precomputed(net, context), torch.zeros_like(noise[..., :1])
        # At 1 - 1e-6 the path is at sigma_min. A single step starts, and ends, at sigma_max.
        t = torch.linspace(0, 1, self.n_steps, device=noise.device).clamp(max=1 - 1e-6)
        sigma = self.path.alpha_sigma(t)[1]
        solver = self.solver
        if isinstance(solver, DeterministicSolver):
            return self._sample_estimates(solver, net, context, noise, t, sigma, cost)
        # The integration variable is -sigma, so that a solver steps forward.
        times = [self.path.time_of(-s)[:, None] for s in solver.evaluation_times(-sigma[:-1], -sigma[1:])]
        embeddings = [time_embedding(net, e) for e in times]

        def step(x, sigma, sigma_next, *columns):
            evaluations = iter(zip(columns[:len(times)], columns[len(times):], strict=True))

            def velocity(x, minus_sigma):
                t, embedding = next(evaluations)
                clean, guidance = self._guided_clean(net, with_time_embedding(net, context, embedding), x,
                                                     -minus_sigma, zero + t, cost)
                return (clean - x) / -minus_sigma + guidance
            return solver.step(velocity, x, zero - sigma, zero - sigma_next)
        x = sigma[0] * noise
        if self.n_steps > 1:
            x = scan(step, x, sigma[:-1], sigma[1:], *times, *embeddings)
        final = with_time_embedding(net, context, time_embedding(net, t[-1:, None])[0])
        clean, guidance = self._guided_clean(net, final, x, zero + sigma[-1], zero + t[-1], cost)
        return clean + sigma[-1] * guidance

    def _sample_estimates(self, solver, net, context, noise, t, sigma, cost):
        """Samples with a solver that makes its steps from estimates of the clean action.

        Actions have the scale 1.
        """
        zero, one = torch.zeros_like(noise[..., :1]), torch.ones_like(sigma[0])
        levels = torch.cat([sigma, torch.zeros_like(sigma[:1])])
        x, coefficients = solver.prepare(sigma[0] * noise, torch.ones_like(levels), levels)

        def step(carried, embedding, t, sigma, sigma_next, *coefficients):
            x, last_clean = carried
            clean, guidance = self._guided_clean(net, with_time_embedding(net, context, embedding), x, zero + sigma,
                                                 zero + t, cost)
            return solver.step(x, clean, last_clean, one, sigma, one, (sigma - sigma_next) * guidance,
                               *coefficients), clean
        return scan(step, (x, x), time_embedding(net, t[:, None]), t, levels[:-1], levels[1:], *coefficients)[0]

    def denoise_step(self, net, context, x, t, t_next, cost=None):
        sigma, sigma_next = (self.path.alpha_sigma(time.unsqueeze(-1))[1] for time in (t, t_next))
        clean, guidance = self._guided_clean(net, context, x, sigma, t.unsqueeze(-1), cost)
        kept = sigma_next / sigma.clamp(min=1e-9)
        return torch.where(sigma > 0, kept * x + (1 - kept) * clean + (sigma - sigma_next) * guidance, x)

    def predict_clean(self, net, context, x, t):
        t = t.unsqueeze(-1)
        return self._clean(net, context, x, self.path.alpha_sigma(t)[1], t)

    def _guided_clean(self, net, context, x, sigma, t, cost):
        """Returns the estimate of the clean action, and what guidance adds to the velocity."""
        energy, cost = split_energy(cost)

        def estimate(y):
            return self._clean(net, context, y, sigma, t)
        clean = estimate(x)
        if energy is not None:
            clean = clean + energy_shift(energy, estimate, x, torch.ones_like(sigma), sigma)
        if cost is None:
            return clean, 0.0
        return clean, -self.guidance_weight * cost_gradient(cost, estimate, x)
