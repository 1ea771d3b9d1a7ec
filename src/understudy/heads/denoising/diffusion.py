"""Denoising diffusion: predict the noise, the action or a mixture of both from a noisy action."""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from ...core import AtLeast, Unsupported, UserError, part
from ...nets.base import precomputed, time_embedding, with_time_embedding
from ..base import DenoisingHead, RampTimes, check_trunk_times, sample_times, scan
from ..guidance import cost_gradient, energy_shift, split_energy
from ..paths import VariancePreservingPath
from ..solvers import DDIM, DenoisingSolver, DeterministicSolver, check_solver


@part
class Diffusion(DenoisingHead):
    """Diffusion head (DDPM training with a choice of samplers).

    The network sees ``x_k = sqrt(alpha_bar_k) * action + sqrt(1 - alpha_bar_k) * noise``, where alpha_bar_k is the
    product of ``1 - beta`` over the levels 1 to k. Level k of N is the time ``t = 1 - k / N``. Other times use the
    nearest level.

    Args:
        n_steps: Number of sampling steps, at evenly spaced levels. At most `n_train_steps`.
        solver: `DDIM`, `DDPM` (ancestral, draws noise in every step but the last) or `DPMSolverPP` (second order).
        n_train_steps: Number of noise levels N.
        schedule: Noise schedule, see `VariancePreservingPath`.
        prediction: What the network predicts: the noise (``"epsilon"``), the action (``"sample"``), or
            ``sqrt(alpha_bar) * noise - sqrt(1 - alpha_bar) * action`` (``"v"``, Salimans and Ho 2022).
        clip_sample: Estimates of the clean action are clipped to [-clip_sample, clip_sample], which is the range of
            the codec's "minmax". 0 does not clip, as codecs without a bound ("zscore", "quantile") need it.
        times: ``"shared"`` by all steps of a chunk, a time for ``"each"`` step (diffusion forcing), or `RampTimes` of
            a rolling buffer (streaming diffusion).
        spacing: Where the sampling steps begin. ``"trailing"``: at level N, the noisiest one. ``"leading"``: the last
            step begins at level 1, and each earlier step ``N // n_steps`` levels higher. Sampling then treats its noise
            as if it came from a lower level than N. This is the default of diffusers, and LeRobot uses it. Both names
            come from Lin et al. (2023).
        guidance_weight: Weight of the guidance gradient. 1 is the pseudo-inverse guidance of Song et al. (2023).
        n_extra_steps: Number of further steps at level 1, without noise, after the sampling steps. They move a plan
            towards the nearest likely one (Diffusion-X).

    References:
        Ho et al. (2020), Denoising Diffusion Probabilistic Models, arXiv:2006.11239.
        Chi et al. (2023), Diffusion Policy, arXiv:2303.04137.
        Salimans and Ho (2022), Progressive Distillation for Fast Sampling of Diffusion Models, arXiv:2202.00512.
        Lin et al. (2023), Common Diffusion Noise Schedules and Sample Steps are Flawed, arXiv:2305.08891.
        Song et al. (2023), Pseudoinverse-Guided Diffusion Models for Inverse Problems, ICLR.
        Pearce et al. (2023), Imitating Human Behaviour with Diffusion Models, arXiv:2301.10677.
    """

    n_steps: int = 10
    solver: DenoisingSolver = DDIM()
    n_train_steps: int = 100
    schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    prediction: Literal["epsilon", "sample", "v"] = "epsilon"
    clip_sample: Annotated[float, AtLeast(0)] = 1.0
    times: Literal["shared", "each"] | RampTimes = "shared"
    guidance_weight: Annotated[float, AtLeast(0)] = 1.0
    spacing: Literal["trailing", "leading"] = "trailing"
    n_extra_steps: Annotated[int, AtLeast(0)] = 0

    def __post_init__(self):
        check_solver(self, DenoisingSolver)
        if not 1 <= self.n_steps <= self.n_train_steps:
            raise UserError(f"n_steps must be 1 to n_train_steps={self.n_train_steps}, but it is {self.n_steps}",
                            where="Diffusion.n_steps", hint="sample in fewer steps, or train with more levels")

    @property
    def max_coded_action(self):
        return self.clip_sample or None

    @property
    def path(self) -> VariancePreservingPath:
        """The path of the noise schedule."""
        return VariancePreservingPath(self.schedule, self.n_train_steps)

    def noise(self, horizon, coded_dim):
        return (horizon, coded_dim * self.solver.n_noises(self.n_steps))

    def build(self, trunk, coded_dim, spec):
        check_trunk_times(trunk, self.times, spec.horizon)
        if self.clip_sample and spec.bound is not None and self.clip_sample < spec.bound:
            raise UserError(f"clip_sample={self.clip_sample:g} would cut off larger coded actions",
                            where="Diffusion.clip_sample",
                            hint="use clip_sample=0, or a codec with a bound: target=\"minmax\"")
        return trunk.build(coded_dim, coded_dim, 1, spec)

    def loss(self, net, context, action, mask, rng):
        """Returns the squared prediction error of each step, (B, H)."""
        noise = torch.randn(action.shape, generator=rng, device=action.device)
        # Levels 1 to N are equally likely. At level 0 there is nothing to learn.
        level = ((1 - sample_times(self.times, action, rng)) * self.n_train_steps).ceil().clamp(1, self.n_train_steps)
        t = (1 - level / self.n_train_steps).unsqueeze(-1)
        alpha, sigma = self.path.alpha_sigma(t)
        prediction = net(alpha * action + sigma * noise, t, context)
        target = {"epsilon": noise, "sample": action, "v": alpha * noise - sigma * action}[self.prediction]
        return (prediction - target).square().mean(-1)

    def sample(self, net, context, noise, cost=None):
        context, zero = precomputed(net, context), torch.zeros_like(noise[..., :1])
        t = self._sampling_times(noise.device)
        alpha, sigma = self.path.alpha_sigma(t)
        x, coefficients = self.solver.prepare(noise, alpha, sigma)

        def step(carried, embedding, t, alpha, sigma, alpha_next, *coefficients):
            x, last_clean = carried
            clean, unclipped, guidance = self._guided_clean(net, with_time_embedding(net, context, embedding), x,
                                                            zero + t, alpha, sigma, cost)
            return self.solver.step(x, clean, last_clean, alpha, sigma, alpha_next, guidance, *coefficients,
                                    unclipped=unclipped), clean
        plan = scan(step, (x, x), time_embedding(net, t[:-1, None]), t[:-1], alpha[:-1], sigma[:-1], alpha[1:],
                    *coefficients)[0]
        if not self.n_extra_steps:
            return plan
        t = torch.full((self.n_extra_steps,), 1 - 1 / self.n_train_steps, device=noise.device)
        alpha, sigma = self.path.alpha_sigma(t)

        def extra_step(x, embedding, t, alpha, sigma):
            clean, _, guidance = self._guided_clean(net, with_time_embedding(net, context, embedding), x, zero + t,
                                                    alpha, sigma, cost)
            return clean + guidance  # a step to level 0, where no noise is left
        return scan(extra_step, plan, time_embedding(net, t[:, None]), t, alpha, sigma)

    def _sampling_times(self, device) -> torch.Tensor:
        """Returns the times of the levels at which sampling stands before and after its steps, (n_steps + 1,)."""
        if self.spacing == "trailing":
            return torch.linspace(0, 1, self.n_steps + 1, device=device)
        steps = torch.arange(self.n_steps - 1, -1, -1, device=device)
        levels = torch.cat([steps * (self.n_train_steps // self.n_steps) + 1, torch.zeros_like(steps[:1])])
        return 1 - levels / self.n_train_steps

    def denoise_step(self, net, context, x, t, t_next, cost=None):
        """Makes a step of DDIM, which is also DPM-Solver++ of first order. Raises Unsupported for other solvers."""
        if not isinstance(self.solver, DeterministicSolver):
            raise Unsupported(f"{type(self.solver).__name__} draws noise in every step, so that it has no single steps",
                              where="Diffusion.solver", hint="use solver=DDIM() or DPMSolverPP()")
        t, t_next = t.unsqueeze(-1), t_next.unsqueeze(-1)
        alpha, sigma = self.path.alpha_sigma(t)
        clean, _, guidance = self._guided_clean(net, context, x, t, alpha, sigma, cost)
        return self.solver.first_order_step(x, clean, alpha, sigma, *self.path.alpha_sigma(t_next), guidance)

    def predict_clean(self, net, context, x, t):
        t = t.unsqueeze(-1)
        return self._clip(self._predict_clean(net, context, x, t, *self.path.alpha_sigma(t)))

    def _predict_clean(self, net, context, x, t, alpha, sigma):
        prediction = net(x, t, context)
        if self.prediction == "epsilon":
            return (x - sigma * prediction) / alpha
        return prediction if self.prediction == "sample" else alpha * x - sigma * prediction

    def _clip(self, clean):
        return clean.clamp(-self.clip_sample, self.clip_sample) if self.clip_sample else clean

    def _guided_clean(self, net, context, x, t, alpha, sigma, cost):
        """Returns the estimate of the clean action, the same before clipping, and what guidance adds to the step."""
        predicted = self._predict_clean(net, context, x, t, alpha, sigma)
        energy, cost = split_energy(cost)

        def straight_through(y):
            # Early estimates are far outside the clip: the cost is evaluated inside it, its gradient as if not clipped.
            unclipped = self._predict_clean(net, context, y, t, alpha, sigma)
            return unclipped + (self._clip(unclipped) - unclipped).detach()
        if energy is not None:
            predicted = predicted + energy_shift(energy, straight_through, x, alpha, sigma)
        clean = self._clip(predicted)
        if cost is None:
            return clean, predicted, 0.0
        return clean, predicted, -self.guidance_weight * alpha * cost_gradient(cost, straight_through, x)
