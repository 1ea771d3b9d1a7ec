"""Guidance of heads that sample step by step: costs of the clean action, and how their gradients change a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Cost


@dataclass(frozen=True)
class LimitedCost:
    """A cost whose gradient is limited to the step that leads to a cost of 0, for any scale of the cost.

    Without a limit, a large cost makes each sampling step overshoot further than the one before. The limit is the step
    of Newton's method along the gradient for a squared distance, which is twice the step of Polyak.

    Args:
        cost: The cost, at least 0, (B, H, A) -> (B,).

    References:
        Polyak (1969), Minimization of Unsmooth Functionals, USSR Computational Mathematics and Mathematical Physics.
        Chung et al. (2023), Diffusion Posterior Sampling for General Noisy Inverse Problems, arXiv:2209.14687, whose
        step is divided by the distance.
        Carvalho et al. (2023), Motion Planning Diffusion, arXiv:2308.01557, whose gradients are clipped by their norm.
    """

    cost: Cost

    def __call__(self, action: Tensor) -> Tensor:
        return self.cost(action)


@dataclass(frozen=True)
class DirectCost:
    """A cost whose gradient does not pass through the network.

    The estimate of the clean action counts as moving one to one with the noisy action. The gradient then needs no
    pass back through the network. It is a good approximation for flows whose paths are nearly straight.

    Args:
        cost: The cost, (B, H, A) -> (B,).

    References:
        Patel et al. (2025), FlowChef: Steering Rectified Flow Models in the Vector Field, arXiv:2412.00100.
    """

    cost: Cost

    def __call__(self, action: Tensor) -> Tensor:
        return self.cost(action)


MAX_NOISE_RATIO = 10.0  # noise per action, beyond which a network's estimate says too little about the action to guide


@dataclass(frozen=True)
class EnergyCost:
    """An energy that reweights plans, and possibly a cost besides.

    Guidance by an energy multiplies the density of plans by ``exp(-energy)``. It has this strength for any number of
    steps and for any solver. Guidance by a cost moves each step, and has a stronger effect in more steps. A head that
    does not tell them apart lowers the sum.

    Args:
        energy: The energy, (B, H, A) -> (B,). It may be minus a log-likelihood, or minus a scaled value.
        cost: The cost, if there is one.

    References:
        Dhariwal and Nichol (2021), Diffusion Models Beat GANs on Image Synthesis, arXiv:2105.05233, equation 14.
    """

    energy: Cost
    cost: Cost | None = None

    def __call__(self, action: Tensor) -> Tensor:
        return self.energy(action) if self.cost is None else self.energy(action) + self.cost(action)


def split_energy(cost: Cost | None) -> tuple[Cost | None, Cost | None]:
    """Splits guidance into the energy that reweights plans and the cost that moves each step."""
    return (cost.energy, cost.cost) if isinstance(cost, EnergyCost) else (None, cost)


def energy_shift(energy: Cost, estimate: Callable[[Tensor], Tensor], x: Tensor, alpha: Tensor,
                 sigma: Tensor) -> Tensor:
    """Returns what an energy adds to the estimate of the clean action, (B, H, A).

    The gradient of the log-density of ``x = alpha * action + sigma * noise`` determines the mean of the action, by
    Tweedie's formula. The energy of the estimate takes the place of the energy of x, which nothing has learned. The
    two gradients are equal for a Gaussian policy and an energy that is linear in the action.

    Args:
        energy: The energy, (B, H, A) -> (B,).
        estimate: Estimate of the clean action, (B, H, A) -> (B, H, A).
        x: Noisy actions, (B, H, A).
        alpha: Scale of the action in x.
        sigma: Scale of the noise in x.

    References:
        Chung et al. (2023), Diffusion Posterior Sampling for General Noisy Inverse Problems, arXiv:2209.14687.
    """
    ratio = (sigma / alpha.clamp(min=1e-9)).clamp(max=MAX_NOISE_RATIO)
    return -alpha * ratio.square() * cost_gradient(energy, estimate, x)


def cost_gradient(cost: Cost, estimate: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Returns the gradient of ``cost(estimate(x))`` with respect to x, (B, H, A).

    It works under `torch.no_grad`, and not under `torch.inference_mode`.

    Args:
        cost: Cost of the clean action, (B, H, A) -> (B,). The gradient of a `LimitedCost` is limited. The gradient of a
            `DirectCost` is taken at the estimate itself.
        estimate: Estimate of the clean action, (B, H, A) -> (B, H, A).
        x: Noisy actions, (B, H, A).
    """
    inner: Cost | None = cost
    while isinstance(inner, LimitedCost | EnergyCost):
        inner = inner.cost
    if is_direct := isinstance(inner, DirectCost):
        with torch.no_grad():
            x = estimate(x)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = cost(x if is_direct else estimate(x))
        gradient = torch.autograd.grad(value.sum(), x)[0]
    if not isinstance(cost, LimitedCost):
        return gradient
    square = gradient.square().sum((1, 2)).clamp(min=torch.finfo(gradient.dtype).tiny)
    return gradient * (2 * value.detach() / square).clamp(max=1.0)[:, None, None]


def guided_velocity(velocity: Callable[[Tensor], Tensor], x: Tensor, t: Tensor, cost: Cost | None,
                    max_weight: float, step: Tensor | float) -> Tensor:
    """Returns the velocity from noise to action, turned towards a lower cost of the clean action.

    Args:
        velocity: Velocity at x and time t, (B, H, A) -> (B, H, A).
        x: State, (B, H, A).
        t: Time, (B, H, 1).
        cost: Cost of the estimated clean action; None for no guidance.
        max_weight: Upper bound of the guidance weight, which diverges as t approaches 0.
        step: Length of the step that follows, (B, H, 1), or an upper bound of it. A `LimitedCost` leads no further than
            to a cost of 0 in it.

    References:
        Song et al. (2023), Pseudoinverse-Guided Diffusion Models for Inverse Problems, ICLR.
        Black et al. (2025), Real-Time Execution of Action Chunking Flow Policies, arXiv:2506.07339.
    """
    at_x, (energy, cost) = velocity(x), split_energy(cost)
    unguided = at_x

    def clean(y):
        return y + (1 - t) * (at_x if y is x else velocity(y))  # a `DirectCost` needs no second evaluation
    if energy is not None:
        unguided = at_x + energy_shift(energy, clean, x, t, 1 - t) / (1 - t).clamp(min=1e-6)
    if cost is None:
        return unguided
    # The pseudo-inverse weight is (1 - t) / (t r^2) with r^2 = (1 - t)^2 / (t^2 + (1 - t)^2).
    weight = ((t**2 + (1 - t) ** 2) / (t * (1 - t)).clamp(min=1e-6)).clamp(max=max_weight)
    if isinstance(cost, LimitedCost):
        weight = torch.minimum(weight, 1 / torch.as_tensor(step, device=x.device, dtype=x.dtype).clamp(min=1e-6))
    return unguided - weight * cost_gradient(cost, clean, x)
