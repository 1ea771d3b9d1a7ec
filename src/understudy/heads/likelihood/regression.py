"""Regression head: predicts one chunk of actions for each observation."""

from __future__ import annotations

from typing import Annotated, Literal

from torch.nn.functional import huber_loss

from ...core import Above, part
from ..base import DeterministicHead


@part
class Regression(DeterministicHead):
    """Regression head, which predicts one chunk of actions without randomness.

    It predicts one chunk per observation. Where demonstrations solve a task in several ways, the average of two good
    actions may be a bad one: use a `GMM`, a `Flow` or a `Diffusion` head there.

    Args:
        norm: ``"l2"`` trains the mean of the demonstrated actions, ``"l1"`` their median. ``"huber"`` is squared for
            errors up to `delta` and linear beyond, so that few large errors count less.
        delta: The bound of ``"huber"``, in coded actions.

    References:
        Huber (1964), Robust Estimation of a Location Parameter, Annals of Mathematical Statistics.
    """

    norm: Literal["l1", "l2", "huber"] = "l2"
    delta: Annotated[float, Above(0)] = 0.1

    def build(self, trunk, coded_dim, spec):
        return trunk.build(0, coded_dim, 0, spec)

    def loss(self, net, context, action, mask, rng):
        """Returns the mean absolute, squared or Huber error of each step, (B, H)."""
        planned = self.sample(net, context, action[..., :0])
        if self.norm == "huber":
            return huber_loss(planned, action, reduction="none", delta=self.delta).mean(-1)
        error = planned - action
        return (error.abs() if self.norm == "l1" else error.square()).mean(-1)

    def sample(self, net, context, noise):
        return net(noise, noise, context)
