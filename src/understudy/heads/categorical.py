"""Categorical: a distribution over choices, one for each component of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..core import UserError
from .base import LikelihoodHead


@dataclass(frozen=True)
class Categorical(LikelihoodHead):
    """For targets of choices, which the codec gives as one-hot vectors side by side. Components and steps are
    independent given the observation.

    temperature: 0 takes the likeliest choice, 1 draws from the distribution (Gumbel 1954: the largest of logits plus
        Gumbel noise is such a draw).
    """

    temperature: float = 0.0

    def build(self, trunk, coded_dim, spec):
        if not spec.num_classes:
            raise UserError("expected a target of choices, found numbers", where="Categorical",
                            hint="take a head for numbers (Regression, GMM, Diffusion, ...), or mark the target's "
                               "Feature as kind=\"discrete\"")
        return _CategoricalNet(trunk.build(0, coded_dim, 0, spec), spec.num_classes)

    def _step_log_prob(self, net, context, like, action):
        """(B, H): log-probability of each step."""
        log = torch.cat([part.log_softmax(-1) for part in self._logits(net, context, like)], -1)
        return (log * action).sum(-1)

    def _logits(self, net, context, like):
        return net.trunk(like, like, context).split(net.num_classes, -1)

    def log_prob(self, net, context, action):
        return self._step_log_prob(net, context, action[..., :0], action).sum(1)

    def loss(self, net, context, action, mask, rng):
        return -self._step_log_prob(net, context, action[..., :0], action)

    def sample(self, net, context, noise):
        uniform = (0.5 * torch.erfc(-noise / math.sqrt(2))).clamp(1e-7, 1 - 1e-7)
        gumbel = -(-uniform.log()).log()
        score = torch.cat(self._logits(net, context, noise[..., :0]), -1) + self.temperature * gumbel
        picks = [
            F.one_hot(s.argmax(-1), n) for s, n in zip(score.split(net.num_classes, -1), net.num_classes, strict=True)
        ]
        return torch.cat(picks, -1).to(noise.dtype)


class _CategoricalNet(torch.nn.Module):
    def __init__(self, trunk, choices):
        super().__init__()
        self.trunk, self.num_classes = trunk, choices
