"""Information bottleneck: a limit on what the code of an observation tells about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..core import check_range
from .behavior_cloning import AuxiliaryLoss


@dataclass(frozen=True)
class InformationBottleneck(AuxiliaryLoss):
    """Penalizes the information in the code of a `nets.bottleneck.BottleneckEncoder`.

    The loss is the Kullback-Leibler divergence of the code's Gaussian from the standard normal distribution. Its mean
    over the data is an upper bound of the mutual information between observation and code, in nats.

    Args:
        weight: Weight of the loss. 0 trains the same noisy encoder without a limit.

    References:
        Alemi et al. (2017), Deep Variational Information Bottleneck, arXiv:1612.00410.
        Wen et al. (2020), Fighting Copycat Agents in Behavioral Cloning from Observation Histories, arXiv:2010.14876.
    """

    weight: float = 0.01
    captures = ("bottleneck",)

    def __post_init__(self):
        check_range(self, "weight")

    def build(self, policy):
        def loss(policy, batch, rng, captured: Mapping[str, Tensor]) -> Tensor:
            mean, log_std = captured["bottleneck"].unbind(1)  # (B, D)
            divergence = 0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std
            return self.weight * divergence.sum(-1)
        return loss
