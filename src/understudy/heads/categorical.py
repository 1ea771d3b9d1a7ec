"""Categorical: a distribution over classes for each component of each step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..core import UserError, check_range
from ..data.one_hot import map_components
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

    def __post_init__(self):
        check_range(self, "temperature", at_least=0)

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
        return map_components(_most_likely, score, net.num_classes).to(noise.dtype)

    def _logits(self, net, context, like):
        return net.trunk(like, like, context)

    def _step_log_prob(self, net, context, action):
        log_probs = map_components(_log_softmax, self._logits(net, context, action[..., :0]), net.num_classes)
        return (log_probs * action).sum(-1)


def _log_softmax(logits):
    return logits.log_softmax(-1)


def _most_likely(score):
    return F.one_hot(score.argmax(-1), score.shape[-1])


class _CategoricalNet(torch.nn.Module):
    def __init__(self, trunk, num_classes):
        super().__init__()
        self.trunk, self.num_classes = trunk, num_classes
