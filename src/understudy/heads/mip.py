"""Minimal iterative policy: regress, then regress again from a noised first answer. No noise in plans: its gain is
the second look, not a distribution.

Pan et al. 2025, arXiv 2512.01809.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from .base import Head


@dataclass(frozen=True)
class MIP(Head):
    """f(x, t): a first answer f(0, 0), then f(first answer, `second`). The second look is trained on the shown action
    under noise, never on the first answer.

    origin: False as in the authors' code: first target a, second input a + (1 - t) n. True as in the paper: first
        target t a, second input t a + (1 - t) n. (t is `second`, n standard normal.)
    balance: of the two squared errors: "code" weighs them 1 / t^2 to 1 / (1 - t)^2, as the authors' code does (1 to 81
        at t = 0.9), "equal" alike. The weights add up to 2 in either case, so that rates and clipping mean the same.
    spread: what n is multiplied by; 0 is the ablation without noise.
    again: False stops at the first answer: plain regression with the very same network.
    """

    second_time: float = 0.9
    loss_balance: Literal["code", "equal"] = "code"
    scale_first_target: bool = False
    noise_scale: float = 1.0
    two_steps: bool = True

    def noise(self, horizon, coded_dim):
        return (horizon, 0)

    def build(self, trunk, coded_dim, spec):
        return _MIPNet(trunk.build(coded_dim, coded_dim, 1, spec), coded_dim)

    def loss(self, net, context, action, mask, rng):
        t = action.new_full((*action.shape[:2], 1), self.second_time)
        shown = t * action if self.scale_first_target and self.two_steps else action
        first = (net.trunk(torch.zeros_like(action), torch.zeros_like(t), context) - shown).square().mean(-1)
        if not self.two_steps:
            return first
        noise = self.noise_scale * torch.randn(action.shape, generator=rng, device=action.device)
        again = (net.trunk(shown + (1 - t) * noise, t, context) - action).square().mean(-1)
        one, two = (self.second_time**-2, (1 - self.second_time) ** -2) if self.loss_balance == "code" else (1.0, 1.0)
        return (one * first + two * again) * 2 / (one + two)

    def sample(self, net, context, noise):
        t = noise.new_zeros(*noise.shape[:2], 1)
        first = net.trunk(t.expand(-1, -1, net.dim), t, context)
        return net.trunk(first, t + self.second_time, context) if self.two_steps else first


class _MIPNet(nn.Module):
    def __init__(self, trunk, dim):
        super().__init__()
        self.trunk, self.dim = trunk, dim
