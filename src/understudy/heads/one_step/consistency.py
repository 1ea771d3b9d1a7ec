"""Consistency models: a network that jumps from any noise level to the end of the flow."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ...core import Above, AtLeast, AtMost, Unsupported, part
from ...nets.base import precomputed, time_embedding, with_time_embedding
from ..base import PreconditionedHead, TargetNetworkHead, scan
from ..guidance import cost_gradient


@part
class Consistency(PreconditionedHead, TargetNetworkHead):
    """Consistency head, trained without a teacher (improved consistency training).

    All points of a trajectory of the probability flow have the same end. The network is trained to give the same
    estimate of this end at two neighboring noise levels of the same action and noise. At noise 0 the preconditioning
    makes the estimate equal to its input, and from there it spreads to all levels. The method `consistency-policy`
    trains the same head from a teacher.

    One step gives a plan. With more steps, the estimate is noised again to the next lower level, and the network jumps
    again.

    Args:
        n_steps: Number of sampling steps. It can be changed after training.
        n_train_levels: Number of noise levels whose neighbors are compared. The paper raises it from 10 to 1280 during
            training. Consistency Policy has 80.
        initial_scale: Scale of the noise that a plan starts from, relative to `sigma_max`. Consistency Policy starts
            from 1 / 80, which makes plans less diverse.
        sigma_data: Standard deviation of coded actions.
        sigma_min: Noise level that the levels approach before 0.
        sigma_max: Highest noise level.
        rho: Exponent of the levels. Larger values put more of them at low noise.
        huber_constant: Constant c of the distance ``sqrt(d**2 + c**2) - c``, where d is the root mean square difference
            of a step. The paper has 0.00054 for images. With the few numbers of an action, such a distance is the
            absolute error, whose best estimate is a median: plans then drift away from the demonstrations.
        guidance_weight: Weight of the guidance gradient.
        target_decay: Fraction of the target network that an update keeps. With 0, the target is the network itself,
            which the paper found to be better than an average.

    References:
        Song et al. (2023), Consistency Models, arXiv:2303.01469.
        Song and Dhariwal (2023), Improved Techniques for Training Consistency Models, arXiv:2310.14189.
        Prasad et al. (2024), Consistency Policy, arXiv:2405.07503.
        Geng et al. (2024), Consistency Models Made Easy, arXiv:2406.14548, for the boundary at noise 0.
    """

    n_steps: int = 1
    n_train_levels: Annotated[int, AtLeast(2)] = 80
    initial_scale: Annotated[float, Above(0)] = 1.0
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    huber_constant: Annotated[float, Above(0)] = 0.1
    guidance_weight: Annotated[float, AtLeast(0)] = 1.0
    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.0

    def noise(self, horizon, coded_dim):
        return (horizon, coded_dim * self.n_steps)

    def loss(self, net, context, action, mask, rng, target_net=None):
        """Returns the weighted distance between the estimates at two neighboring levels, (B, H)."""
        noise = torch.randn(action.shape, generator=rng, device=action.device)
        t, t_next = self.training_times(action, rng)
        with torch.no_grad():
            target = self.predict_clean(net if target_net is None else target_net, context,
                                        self.interpolate(action, noise, t_next.unsqueeze(-1)), t_next)
        prediction = self.predict_clean(net, context, self.interpolate(action, noise, t.unsqueeze(-1)), t)
        return self.distance(prediction, target, t, t_next)

    def training_times(self, action: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws two neighboring levels per chunk of coded actions (B, H, A), equally likely as in Consistency Policy.

        Returns:
            Time of the noisier level, in [0, 1), and of the next cleaner one, in (0, 1]. (B, H) each.
        """
        uniform = torch.rand(action[:, :1, 0].shape, generator=rng, device=action.device).to(action.dtype)
        level = (uniform * self.n_train_levels).floor().clamp(max=self.n_train_levels - 1).expand(action.shape[:2])
        return level / self.n_train_levels, (level + 1) / self.n_train_levels

    def distance(self, prediction: Tensor, target: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Returns the pseudo-Huber distance of each step, (B, H), divided by the difference of the noise levels.

        Args:
            prediction: Estimate of the clean action at the noisier level, (B, H, A).
            target: Estimate at the cleaner level, (B, H, A).
            t: Time of the noisier level, (B, H).
            t_next: Time of the cleaner level, (B, H).
        """
        c = self.huber_constant
        gap = self.path.alpha_sigma(t)[1] - self.path.alpha_sigma(t_next)[1]
        return (((prediction - target).square().mean(-1) + c**2).sqrt() - c) / gap

    def sample(self, net, context, noise, cost=None):
        context, (first, *draws) = precomputed(net, context), noise.unflatten(-1, (self.n_steps, -1)).unbind(-2)
        t, zero = torch.linspace(0, 1, self.n_steps + 1, device=noise.device)[:-1], torch.zeros_like(first[..., :1])
        embedding, sigma = time_embedding(net, t[:, None]), self.path.alpha_sigma(t)[1]

        def jump(clean, embedding, t, sigma, draw):
            x, context_now = clean + sigma * draw, with_time_embedding(net, context, embedding)
            return self._guided_clean(net, context_now, x, zero + t, zero + sigma, cost)
        start = torch.zeros_like(first), embedding[0], t[0], sigma[0], self.initial_scale * first
        return scan(jump, jump(*start), embedding[1:], t[1:], sigma[1:], torch.stack(draws)) if draws else jump(*start)

    def denoise_step(self, net, context, x, t, t_next, cost=None):
        raise Unsupported("a consistency model jumps to the action and draws noise for each further step, so that it "
                          "has no single steps", where="Consistency", hint="use Flow, EDM or Diffusion with this "
                                                                           "executor, or RecedingHorizon")

    def predict_clean(self, net, context, x, t):
        """Returns the estimate of the end of the flow from x, (B, H, A). At t = 1 it is x."""
        t = t.unsqueeze(-1)
        return self._clean(net, context, x, self.path.alpha_sigma(t)[1], t)

    def _guided_clean(self, net, context, x, t, sigma, cost):
        clean = self._clean(net, context, x, sigma, t)
        if cost is None:
            return clean
        gradient = cost_gradient(cost, lambda y: self._clean(net, context, y, sigma, t), x)
        return clean - self.guidance_weight * sigma * gradient
