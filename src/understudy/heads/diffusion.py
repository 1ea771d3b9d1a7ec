"""Denoising diffusion over a chunk of actions: DDPM in training, one of three samplers.

Ho et al. 2020 (arXiv 2006.11239); for policies: Chi et al. 2023 (arXiv 2303.04137).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from ..core import Unsupported, UserError
from ..nets.base import precomputed, time_embedding, with_time_embedding
from .base import DenoisingHead, check_trunk_times, cost_gradient, scan, training_times


@dataclass(frozen=True)
class Diffusion(DenoisingHead):
    """x_k = sqrt(ab_k) action + sqrt(1 - ab_k) noise, ab_k the product of 1 - beta over levels 1..k.

    Level k of `train_steps` N is the time t = 1 - k/N, and ab_0 = 1. Times in between count as the nearest level.

    sampler: "ddim" (Song et al. 2021), "ddpm" (ancestral: draws noise in every step but the last) or "dpmpp"
        (DPM-Solver++ of second order, multistep; Lu et al. 2022, arXiv 2211.01095); each over `steps` levels evenly
        spaced from pure noise to action.
    schedule: "squaredcos_cap_v2" (Nichol and Dhariwal 2021) or "linear" (Ho et al. 2020, its betas times 1000/N so
        that any N ends in noise).
    prediction: what the network says: the noise ("epsilon"), the action ("sample"), or
        v = sqrt(ab) noise - sqrt(1 - ab) action (Salimans and Ho 2022).
    clip: the estimate of the clean action stays within +-clip, the range of the codec's "minmax"; 0 for no clipping,
        as codecs without a bound ("zscore", "quantile") need it.
    times: "shared" by all steps of a chunk, of "each" its own (diffusion forcing), or on the "ramp" of a rolling
        buffer (streaming diffusion).
    push: how firmly guides pull; 1 is the pseudo-inverse guidance of Song et al. 2023.
    """

    n_steps: int = 10
    sampler: Literal["ddim", "ddpm", "dpmpp"] = "ddim"
    n_train_steps: int = 100
    schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    prediction: Literal["epsilon", "sample", "v"] = "epsilon"
    clip_sample: float = 1.0
    times: Literal["shared", "each", "ramp"] = "shared"
    guidance_weight: float = 1.0

    def __post_init__(self):
        if not 1 <= self.n_steps <= self.n_train_steps:
            raise UserError(f"expected 1 to train_steps={self.n_train_steps} sampling steps, found {self.n_steps}",
                            where="Diffusion.steps", hint="sample in fewer steps, or train with more levels")

    def noise(self, horizon, coded_dim):
        # The ancestral sampler's draws stand beside the first, in the order of its steps; its last step draws none.
        return (horizon, coded_dim * self.n_steps if self.sampler == "ddpm" else coded_dim)

    def build(self, trunk, coded_dim, spec):
        check_trunk_times(trunk, self.times)
        if self.clip_sample and spec.bound is not None and self.clip_sample < spec.bound:
            raise UserError(f"clip={self.clip_sample:g} would cut off actions that the codec leaves larger",
                            where="Diffusion.clip", hint="take clip=0, or a codec with a bound: target=\"minmax\"")
        return trunk.build(coded_dim, coded_dim, 1, spec)

    def interpolate(self, action, noise, t):
        alpha, sigma = self._alpha_sigma(torch.as_tensor(t, device=action.device))
        return alpha * action + sigma * noise

    def loss(self, net, context, action, mask, rng):
        noise = torch.randn(action.shape, generator=rng, device=action.device)
        # Levels 1..N are equally likely; at level 0 there is nothing to learn.
        level = ((1 - training_times(self.times, action, rng)) * self.n_train_steps).ceil().clamp(1, self.n_train_steps)
        t = (1 - level / self.n_train_steps).unsqueeze(-1)
        alpha, sigma = self._alpha_sigma(t)
        said = net(alpha * action + sigma * noise, t, context)
        wanted = {"epsilon": noise, "sample": action, "v": alpha * noise - sigma * action}[self.prediction]
        return (said - wanted).square().mean(-1)

    def denoise_step(self, net, context, x, t, t_next, cost=None):
        """A step of DDIM, which is also DPM-Solver++ of first order."""
        if self.sampler == "ddpm":
            raise Unsupported("the ancestral sampler draws noise in every step, and a single step has none to draw "
                              "from", where="Diffusion.sampler", hint="take sampler=\"ddim\" or \"dpmpp\"")
        t, (alpha2, sigma2) = t.unsqueeze(-1), self._alpha_sigma(t_next.unsqueeze(-1))
        here = self._alpha_sigma(t)
        clean, pull = self._guided_clean(net, context, x, t, here, cost)
        return alpha2 * clean + sigma2 * self._noise_of(x, clean, here) + pull

    def sample(self, net, context, noise, cost=None):
        """The same steps with all that depends on time alone worked out beforehand, with draws ("ddpm": DDIM of eta
        1, from the posterior of the forward process) or of second order ("dpmpp")."""
        context, zero = precomputed(net, context), torch.zeros_like(noise[..., :1])
        grid = torch.linspace(0, 1, self.n_steps + 1, device=noise.device)
        alphas, sigmas = self._alpha_sigma(grid)
        columns = time_embedding(net, grid[:-1, None]), grid[:-1], alphas[:-1], sigmas[:-1], alphas[1:]
        x, more = self._initial_sample_and_columns(noise, alphas, sigmas)

        def step(carried, known, t, alpha, sigma, alpha2, kept, *more):
            x, before = carried
            here = alpha, sigma
            clean, pull = self._guided_clean(net, with_time_embedding(net, context, known), x, zero + t, here, cost)
            later = clean
            if self.sampler == "dpmpp":
                span, span_before = more
                later = clean + (clean - before) * span / (2 * span_before)
            x = alpha2 * later + kept * self._noise_of(x, later, here) + pull
            if self.sampler == "ddpm":
                spread, draw = more
                x = x + spread * draw
            return x, clean
        return scan(step, (x, x), *columns, *more)[0]

    # -- the schedule ---------------------------------------------------------------------------------------------

    def _alpha_sigma(self, t):
        """sqrt(ab), sqrt(1 - ab) of times t, of its shape."""
        # What is made while a compiler or an exporter watches is theirs: no table may keep it.
        table = (_schedule_table.__wrapped__ if torch.compiler.is_compiling() else _schedule_table)(
            self.schedule, self.n_train_steps, t.device
        )
        return table[:, ((1 - t) * self.n_train_steps).round().long()].unbind()

    def _initial_sample_and_columns(self, noise, alphas, sigmas):
        """Where sampling starts; and for each step how much of its noise is kept, with what else the sampler needs."""
        alpha, sigma, alpha2, sigma2 = alphas[:-1], sigmas[:-1], alphas[1:], sigmas[1:]
        if self.sampler == "ddim":
            return noise, (sigma2,)
        if self.sampler == "ddpm":
            first, *draws = noise.unflatten(-1, (self.n_steps, -1)).unbind(-2)
            spread = (sigma2 / sigma) * (1 - (alpha / alpha2).square()).clamp(min=0).sqrt()  # 0 in the last step
            kept = (sigma2.square() - spread.square()).clamp(min=0).sqrt()
            return first, (kept, spread, torch.stack([*draws, torch.zeros_like(first)]))
        # How much log(alpha / sigma) grows. The first step knows no earlier estimate, and the last ends at no noise at
        # all, where second order has no meaning.
        grown = (alpha2 / sigma2).log() - (alpha / sigma).log()
        number = torch.arange(self.n_steps, device=noise.device)
        span = torch.where((number > 0) & (number < self.n_steps - 1), grown, 0.0)
        return noise, (sigma2, span, torch.cat([torch.ones_like(grown[:1]), grown[:-1]]))

    # -- one step -------------------------------------------------------------------------------------------------

    def _predict_clean(self, net, context, x, t, here):
        """The action that x is thought to come from, and the same within the clip."""
        alpha, sigma = here
        said = net(x, t, context)
        if self.prediction == "epsilon":
            said = (x - sigma * said) / alpha
        elif self.prediction == "v":
            said = alpha * x - sigma * said
        return said, said.clamp(-self.clip_sample, self.clip_sample) if self.clip_sample else said

    def _guided_clean(self, net, context, x, t, here, cost):
        """The clean action, and what guides add to the step. t (B, H, 1)."""
        clean = self._predict_clean(net, context, x, t, here)[1]
        if cost is None:
            return clean, 0.0

        def estimate(y):
            # Early estimates lie far outside the clip: their cost is taken inside it, its slope as if not clipped.
            free, clipped = self._predict_clean(net, context, y, t, here)
            return free + (clipped - free).detach()
        return clean, -self.guidance_weight * here[0] * cost_gradient(cost, estimate, x)

    def _noise_of(self, x, clean, here):
        """What is left of x without that action."""
        alpha, sigma = here
        return (x - alpha * clean) / sigma.clamp(min=1e-6)


@lru_cache
def _schedule_table(schedule: str, levels: int, device: torch.device) -> torch.Tensor:
    """`path` as (2, levels + 1)."""
    return torch.tensor(noise_schedule(schedule, levels), device=device)


@lru_cache
def noise_schedule(schedule: str, levels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """sqrt(ab_k) and sqrt(1 - ab_k) for k = 0..levels."""
    if schedule == "linear":
        betas = [min(1000 / levels * (1e-4 + (0.02 - 1e-4) * i / max(1, levels - 1)), 0.999) for i in range(levels)]
    else:
        def bar(u):
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = [min(1 - bar((i + 1) / levels) / bar(i / levels), 0.999) for i in range(levels)]
    product = [1.0]
    for beta in betas:
        product.append(product[-1] * (1 - beta))
    return tuple(math.sqrt(p) for p in product), tuple(math.sqrt(1 - p) for p in product)
