"""Minimal iterative policy head: predicts the action, then predicts it again from the noisy first prediction."""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from ...core import Above, AtLeast, Below, part
from ..base import DeterministicHead, HeadNet


@part
class MIP(DeterministicHead):
    """Minimal iterative policy head.

    The network f predicts f(0, 0), then f(first prediction, second_time). The second evaluation is trained on the
    demonstrated action with noise, not on the first prediction. Plans have no randomness: the second evaluation makes
    the prediction more accurate and does not sample a distribution.

    Args:
        second_time: Time t of the second evaluation.
        loss_balance: Weights of the two squared errors. ``"code"`` uses 1 / t^2 and 1 / (1 - t)^2, as the authors'
            code does (1 to 81 at t = 0.9). ``"equal"`` uses equal weights. They add up to 2, so that learning rate and
            gradient clipping keep their meaning.
        scale_first_target: False as in the authors' code: the first target is the action a, the second input is
            ``a + (1 - t) n`` with n standard normal. True as in the paper: the first target is ``t a``, the second
            input ``t a + (1 - t) n``.
        noise_scale: Factor of n. 0 is the ablation without noise.
        two_steps: False stops at the first prediction, which is regression with the same network.

    References:
        Pan et al. (2025), Much Ado About Noising, arXiv:2512.01809.
    """

    second_time: Annotated[float, Above(0), Below(1)] = 0.9
    loss_balance: Literal["code", "equal"] = "code"
    scale_first_target: bool = False
    noise_scale: Annotated[float, AtLeast(0)] = 1.0
    two_steps: bool = True

    def build(self, trunk, coded_dim, spec):
        return HeadNet(trunk=trunk.build(coded_dim, coded_dim, 1, spec), coded_dim=coded_dim)

    def loss(self, net, context, action, mask, rng):
        """Returns the weighted squared errors of both predictions of each step, (B, H)."""
        t = action.new_full((*action.shape[:2], 1), self.second_time)
        first_target = t * action if self.scale_first_target and self.two_steps else action
        first = (net.trunk(torch.zeros_like(action), torch.zeros_like(t), context) - first_target).square().mean(-1)
        if not self.two_steps:
            return first
        noise = self.noise_scale * torch.randn(action.shape, generator=rng, device=action.device)
        second = (net.trunk(first_target + (1 - t) * noise, t, context) - action).square().mean(-1)
        balance = self.loss_balance == "code"
        first_weight, second_weight = (self.second_time**-2, (1 - self.second_time) ** -2) if balance else (1.0, 1.0)
        return (first_weight * first + second_weight * second) * 2 / (first_weight + second_weight)

    def sample(self, net, context, noise):
        t = noise.new_zeros(*noise.shape[:2], 1)
        first = net.trunk(t.expand(-1, -1, net.coded_dim), t, context)
        return net.trunk(first, t + self.second_time, context) if self.two_steps else first
