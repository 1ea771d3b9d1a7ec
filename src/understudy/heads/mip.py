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

    second: float = 0.9
    balance: Literal["code", "equal"] = "code"
    origin: bool = False
    spread: float = 1.0
    again: bool = True

    def noise(self, horizon, dim):
        return (horizon, 0)

    def build(self, trunk, dim, shape):
        return _Sized(trunk.build(dim, dim, 1, shape), dim)

    def loss(self, net, context, action, mask, rng):
        t = action.new_full((*action.shape[:2], 1), self.second)
        shown = t * action if self.origin and self.again else action
        first = (net.trunk(torch.zeros_like(action), torch.zeros_like(t), context) - shown).square().mean(-1)
        if not self.again:
            return first
        noise = self.spread * torch.randn(action.shape, generator=rng, device=action.device)
        again = (net.trunk(shown + (1 - t) * noise, t, context) - action).square().mean(-1)
        one, two = (self.second**-2, (1 - self.second) ** -2) if self.balance == "code" else (1.0, 1.0)
        return (one * first + two * again) * 2 / (one + two)

    def sample(self, net, context, noise):
        t = noise.new_zeros(*noise.shape[:2], 1)
        first = net.trunk(t.expand(-1, -1, net.dim), t, context)
        return net.trunk(first, t + self.second, context) if self.again else first


class _Sized(nn.Module):
    def __init__(self, trunk, dim):
        super().__init__()
        self.trunk, self.dim = trunk, dim
