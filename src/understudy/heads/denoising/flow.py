"""Flow matching: regress the velocity of a straight path from noise to action."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Generator, Tensor

from ...core import AtLeast, Context, Unsupported, part
from ..base import DenoisingHead, PrefixTimes, RampTimes, check_trunk_times, sample_times
from ..coupling import optimal_transport
from ..guidance import guided_velocity
from ..paths import LinearPath
from ..solvers import Euler, Solver, check_solver, integrate

NEAR_ACTION = 0.05  # the velocity of a predicted action diverges towards t = 1: times count as at most 1 minus this
U_SHAPE = 4.0  # how much more often the ends of the path are trained than its middle: cosh(U_SHAPE / 2) times


@part
class Flow(DenoisingHead):
    """Flow matching head (rectified flow).

    The network predicts the velocity ``action - noise`` at ``x_t = t * action + (1 - t) * noise``, or the action, from
    which the velocity follows. Sampling integrates the velocity from noise (t = 0) to the action (t = 1).

    Args:
        n_steps: Number of integration steps per sampled chunk.
        solver: Integrator. `Euler` evaluates the network once per step, `Midpoint` and `Heun` twice.
        time_distribution: Distribution of training times. ``"uniform"``, which `RampTimes` need; ``"beta"`` puts more
            weight on noisy times, ``t = 0.999 (1 - u)`` with u from Beta(1.5, 1) (pi0); ``"logit_normal"`` on the
            middle of the path (Stable Diffusion 3); ``"u_shaped"`` on both ends, with a density proportional to
            ``exp(4 t) + exp(4 (1 - t))``, for pairs of noise and action that a flow made (`reflow-policy`).
        times: ``"shared"`` by all steps of a chunk, a time for ``"each"`` step (diffusion forcing), or `RampTimes` of
            a rolling buffer (streaming diffusion), or `PrefixTimes` of chunks whose first steps are given
            (training-time action conditioning).
        max_guidance_weight: Upper bound of the guidance weight, which diverges as t approaches 0.
        coupling: Which noise of a batch trains with which action. ``"optimal_transport"`` pairs them so that their
            lines are short and seldom cross, and fewer steps are needed.
        condition_weight: Weight of the difference of the observations in the optimal transport. See
            `coupling.optimal_transport`.
        prediction: What the network predicts: the ``"velocity"``, or the action (``"sample"``), which leaves out the
            noise. A small network learns precise actions in fewer updates from the action (docs/heads.md). Up to 20
            Euler steps then end at the last predicted action. More steps leave a little of the noise.

    References:
        Lipman et al. (2023), Flow Matching for Generative Modeling, arXiv:2210.02747.
        Liu et al. (2023), Flow Straight and Fast, arXiv:2209.03003.
        Black et al. (2024), pi0: A Vision-Language-Action Flow Model for General Robot Control, arXiv:2410.24164.
        Esser et al. (2024), Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, arXiv:2403.03206.
        Tong et al. (2024), Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport,
        arXiv:2302.00482.
        Lee et al. (2024), Improving the Training of Rectified Flows, arXiv:2405.20320, for times at both ends.
        Li and He (2025), Back to Basics: Let Denoising Generative Models Denoise, arXiv:2511.13720, for predicting the
        action. They weight the error of the action so that it equals the error of the velocity; here it has no weight.

    Example:
        >>> method = Method(PolicyConfig(Flow(n_steps=5), window=Window(n_obs_steps=2, horizon=16)))
    """

    n_steps: Annotated[int, AtLeast(1)] = 10
    solver: Solver = Euler()
    time_distribution: Literal["uniform", "beta", "logit_normal", "u_shaped"] = "uniform"
    times: Literal["shared", "each"] | RampTimes | PrefixTimes = "shared"
    max_guidance_weight: Annotated[float, AtLeast(0)] = 5.0
    coupling: Literal["independent", "optimal_transport"] = "independent"
    condition_weight: Annotated[float, AtLeast(0)] = 1.0
    prediction: Literal["velocity", "sample"] = "velocity"

    path = LinearPath()

    def __post_init__(self):
        check_solver(self, Solver)
        if isinstance(self.times, RampTimes) and self.time_distribution != "uniform":
            raise Unsupported(f"RampTimes are uniform, but time_distribution={self.time_distribution!r}",
                              where="Flow.time_distribution", hint="use time_distribution=\"uniform\"")

    def build(self, trunk, coded_dim, spec):
        check_trunk_times(trunk, self.times, spec.horizon)
        return trunk.build(coded_dim, coded_dim, 1, spec)

    def loss(self, net, context, action, mask, rng):
        """Returns the squared error of the prediction of each step, (B, H)."""
        noise = torch.randn(action.shape, generator=rng, device=action.device)
        if self.coupling == "optimal_transport":
            noise = noise[optimal_transport(action, noise, mask, context.flat(), self.condition_weight)]
        return self.pair_loss(net, context, action, noise, rng)

    def pair_loss(self, net, context: Context, action: Tensor, noise: Tensor, rng: Generator) -> Tensor:
        """Returns the squared error of each step, (B, H), for given pairs of noise and action, (B, H, A) each.

        Times are random. The loss is 0 at steps that are given.
        """
        t = self._time_quantile(sample_times(self.times, action, rng)).unsqueeze(-1)
        is_given = None
        if isinstance(self.times, PrefixTimes):
            is_given = self.times.draw_given(action, rng)
            t = torch.where(is_given.unsqueeze(-1), 1.0, t)
        prediction = net(self.interpolate(action, noise, t), t, context)
        target = action if self.prediction == "sample" else self.path.velocity(action, noise, t)
        error = (prediction - target).square().mean(-1)
        return error if is_given is None else error.masked_fill(is_given, 0.0)

    def sample(self, net, context, noise, cost=None):
        return integrate(self.solver, self._velocity(net, cost), net, context, noise, self.n_steps)

    def denoise_step(self, net, context, x, t, t_next, cost=None):
        velocity = self._velocity(net, cost)
        return self.solver.step(lambda x, t: velocity(x, t, context), x, t.unsqueeze(-1), t_next.unsqueeze(-1))

    def predict_clean(self, net, context, x, t):
        t = t.unsqueeze(-1)
        predicted = net(x, t, context)
        return predicted if self.prediction == "sample" else x + (1 - t) * predicted

    def _velocity(self, net, cost):
        """Returns the velocity (x, t, context) -> (B, H, A) that is integrated."""
        def unguided(x, t, context):
            predicted = net(x, t, context)
            return (predicted - x) / (1 - t).clamp(min=NEAR_ACTION) if self.prediction == "sample" else predicted

        def velocity(x, t, context):
            return guided_velocity(lambda y: unguided(y, t, context), x, t, cost, self.max_guidance_weight,
                                   1 / self.n_steps)
        return velocity

    def _time_quantile(self, u):
        """Converts uniform times u to times of the training distribution, by its inverse distribution function."""
        if self.time_distribution == "beta":
            return 0.999 * (1 - (1 - u) ** (1 / 1.5))
        if self.time_distribution == "u_shaped":
            return 0.5 + ((2 * u - 1) * math.sinh(U_SHAPE / 2)).asinh() / U_SHAPE
        return torch.special.ndtri(u).sigmoid() if self.time_distribution == "logit_normal" else u
