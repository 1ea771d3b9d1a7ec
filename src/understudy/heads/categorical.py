"""Categorical: a distribution over classes for each component of each step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..core import UserError
from .base import LikelihoodHead, TemperatureHead, gumbel_noise


@dataclass(frozen=True)
class Categorical(LikelihoodHead, TemperatureHead):
    """Head for discrete targets, which the codec gives as one-hot vectors side by side.

    Components and steps are independent given the observation.

    Args:
        temperature: 0 plans the most likely class, 1 samples from the distribution, as the largest sum of logit and
            Gumbel noise.

    References:
        Gumbel (1954), Statistical Theory of Extreme Values and Some Practical Applications.
    """

    temperature: float = 0.0

    def build(self, trunk, coded_dim, spec):
        if not spec.num_classes:
            raise UserError("the Categorical head needs a discrete target, but this one is continuous",
                            where="Categorical", hint="use a head for continuous targets (Regression, GMM, "
                            "Diffusion, ...), or mark the target's Feature as kind=\"discrete\"")
        return _CategoricalNet(trunk.build(0, coded_dim, 0, spec), spec.num_classes)

    def loss(self, net, context, action, mask, rng):
        """Cross-entropy of each step, (B, H)."""
        return -self._step_log_prob(net, context, action)

    def log_prob(self, net, context, action):
        return self._step_log_prob(net, context, action).sum(1)

    def sample(self, net, context, noise):
        score = self._logits(net, context, noise[..., :0]) + self.temperature * gumbel_noise(noise)
        return _by_component(_most_likely, score, net.num_classes).to(noise.dtype)

    def _logits(self, net, context, like):
        return net.trunk(like, like, context)

    def _step_log_prob(self, net, context, action):
        log_probs = _by_component(_log_softmax, self._logits(net, context, action[..., :0]), net.num_classes)
        return (log_probs * action).sum(-1)


def _log_softmax(logits):
    return logits.log_softmax(-1)


def _most_likely(score):
    return F.one_hot(score.argmax(-1), score.shape[-1])


def _by_component(function, x, num_classes: tuple[int, ...]):
    """Applies a function to the classes of each component of (B, H, sum(num_classes)).

    Components with as many classes, such as the cells of a map, are computed at once.
    """
    if len(set(num_classes)) == 1:
        return function(x.unflatten(-1, (-1, num_classes[0]))).flatten(-2)
    return torch.cat([function(part) for part in x.split(num_classes, -1)], -1)


class _CategoricalNet(torch.nn.Module):
    def __init__(self, trunk, num_classes):
        super().__init__()
        self.trunk, self.num_classes = trunk, num_classes
