"""Joint diffusion of actions and observations, with one diffusion time for each of the two."""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from ...core import AtLeast, UserError, part
from ...nets.base import precomputed, time_embedding, with_time_embedding
from ..base import Head, scan
from ..paths import LinearPath

# Diffusion times of (action, observation) at the start and at the end of sampling. 0 is noise and 1 is given or done.
MODES = {"joint": ((0.0, 0.0), (1.0, 1.0)), "policy": ((0.0, 0.0), (1.0, 0.0)),
         "world_model": ((1.0, 0.0), (1.0, 1.0)), "inverse_dynamics": ((0.0, 1.0), (1.0, 1.0))}


@part
class JointDiffusion(Head):
    """Unified world model head: one network for policy, world model and inverse dynamics.

    The target is the column that `ConcatColumns` makes: the action, then the later observation, then one component that
    is 1 where the action is known and 0 where it is not. The network reads both diffusion times (K = 2) and predicts
    the velocity of both parts.

    The times are drawn independently, so that any of the two can be given, be marginalized (left as noise) or be
    sampled. Where the action is unknown, it is left as noise and has no loss. The path is the straight line of flow
    matching; the paper uses DDPM. PAD draws one time for both parts, so that they are always sampled together.

    Args:
        action_size: Number of components of the action in the target. None if it is not known yet: training is then
            refused.
        mode: What `sample` does. ``"joint"`` samples action and observation. ``"policy"`` samples the action without
            the observation. ``"world_model"`` samples the observation for a given action and ``"inverse_dynamics"``
            the action for a given observation: the given part, coded, takes the place of its noise.
        n_steps: Number of Euler steps of the sampler.
        times: ``"each"`` draws a time for each part. ``"shared"`` draws one for both, which reaches the mode "joint"
            alone.

    References:
        Zhu et al. (2025), Unified World Models, arXiv:2504.02792.
        Guo et al. (2024), Prediction with Action (PAD), arXiv:2411.18179.

    Example:
        >>> target = ConcatColumns(("action", "observation.state"), offset=8, into="joint")
        >>> config = PolicyConfig(JointDiffusion(action_size=2), target="joint", window=Window(horizon=8))
        >>> world_model = replace(config.head, mode="world_model")
    """

    action_size: Annotated[int | None, AtLeast(1)]
    mode: Literal["joint", "policy", "world_model", "inverse_dynamics"] = "joint"
    n_steps: Annotated[int, AtLeast(1)] = 10
    times: Literal["each", "shared"] = "each"

    path = LinearPath()

    def __post_init__(self):
        if self.times == "shared" and self.mode != "joint":
            raise UserError(f"with one time for both parts, none of them can be given or left out, as {self.mode!r} "
                            "needs it", where="JointDiffusion.mode", hint='choose "joint", or times="each"')

    def noise(self, horizon, coded_dim):
        return (horizon, coded_dim - 1)  # of action and observation; the last component of the target is not sampled

    def build(self, trunk, coded_dim, spec):
        if self.action_size is None:
            raise UserError("the number of components of the action is not known", where="JointDiffusion.action_size",
                            hint="find the method for the columns of the data, such as "
                                 'find_method("uwm", data.features()), or set the number')
        if not 0 < self.action_size < coded_dim - 1:
            raise UserError(f"action_size={self.action_size} leaves no observation in a target of {coded_dim} "
                            "components. The last component says whether the action is known",
                            where="JointDiffusion.action_size", hint="make the target with ConcatColumns")
        return trunk.build(coded_dim - 1, coded_dim - 1, 2, spec)

    def loss(self, net, context, action, mask, rng):
        """Returns the sum of two mean squared velocity errors, of the known actions and of the observation, (B, H)."""
        has_action = action[..., -1:] >= 0  # coded: 0 is the middle between unknown and known
        known_action = torch.where(has_action, action[..., :self.action_size], 0.0)  # an unknown one may be NaN
        clean = torch.cat([known_action, action[..., self.action_size:-1]], -1)
        noise = torch.randn(clean.shape, generator=rng, device=clean.device)
        n_times = 2 if self.times == "each" else 1
        t = torch.rand(action.shape[0], 1, n_times, generator=rng, device=action.device).to(action.dtype)
        t_action = torch.where(has_action.all(1, True), t[..., :1], 0.0)
        t = torch.cat([t_action, t[..., -1:]], -1).expand(*action.shape[:2], 2)
        prediction = net(self.path.interpolate(clean, noise, self._per_component(t, clean)), t, context)
        error = (prediction - self.path.velocity(clean, noise, t)).square()
        of_action, of_observation = error[..., :self.action_size], error[..., self.action_size:]
        return of_action.mean(-1) * has_action.squeeze(-1) + of_observation.mean(-1)

    def counted(self, action):
        """Counts the observation, and the action where it is known, as the loss does."""
        counted = torch.ones_like(action, dtype=torch.bool)
        counted[..., :self.action_size] = action[..., -1:] > 0.5
        counted[..., -1] = False
        return counted

    def sample(self, net, context, noise):
        """Samples the actions, the observations, or both, as `mode` says, (B, H, A).

        A part that is not sampled is returned as it is in `noise`. The last component is 0.
        """
        context, zero = precomputed(net, context), torch.zeros_like(noise[..., :1])
        start, end = (torch.tensor(times, device=noise.device) for times in MODES[self.mode])
        times = torch.lerp(start, end, torch.linspace(0, 1, self.n_steps + 1, device=noise.device).unsqueeze(-1))

        def step(x, embedding, t, t_next):
            velocity = net(x, zero + t, with_time_embedding(net, context, embedding))
            return x + self._per_component(zero + (t_next - t), x) * velocity
        sampled = scan(step, noise, time_embedding(net, times[:-1]), times[:-1], times[1:])
        return torch.cat([sampled, zero], -1)

    def _per_component(self, t, x):
        """Repeats the two times t (B, H, 2) for the components of x that they belong to."""
        return torch.cat([t[..., :1].expand_as(x[..., :self.action_size]),
                          t[..., 1:].expand_as(x[..., self.action_size:])], -1)
