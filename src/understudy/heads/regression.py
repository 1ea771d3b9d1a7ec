"""Regression: one answer per observation. The mean of two good actions may be a bad one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .base import Head


@dataclass(frozen=True)
class Regression(Head):
    """The mean ("l2") or the median ("l1") of what was shown, per component."""

    norm: Literal["l1", "l2"] = "l2"

    def noise(self, horizon, coded_dim):
        return (horizon, 0)  # no randomness; the empty tensor still carries B and H

    def build(self, trunk, coded_dim, spec):
        return trunk.build(0, coded_dim, 0, spec)

    def loss(self, net, context, action, mask, rng):
        error = self.sample(net, context, action[..., :0]) - action
        return (error.abs() if self.norm == "l1" else error.square()).mean(-1)

    def sample(self, net, context, noise):
        return net(noise, noise, context)
