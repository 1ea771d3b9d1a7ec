from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated

import torch
from torch import Tensor

from ...core import AtLeast, Context, part
from ...data.window import Window
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import AuxiliaryLoss, BehaviorCloning
from ...learn.method import Method
from ...nets.base import Encoder, EncoderNet, record_intermediate
from ...nets.encoders import TokenEncoder
from ...nets.linear import Linear
from ...policy import PolicyConfig
from ..registry import method

MIN_LOG_STD, MAX_LOG_STD = -5.0, 2.0


@part
class BottleneckEncoder(Encoder):
    """Encodes a window of observations as one Gaussian token. Training draws from it, and acting takes its mean.

    `InformationBottleneck` limits the information about the window in the code, so that
    the policy keeps what helps to predict the action and little else. Without it, the code becomes exact.

    References:
        Alemi et al. (2017), Deep Variational Information Bottleneck, arXiv:1612.00410.
        Wen et al. (2020), Fighting Copycat Agents in Behavioral Cloning from Observation Histories, arXiv:2010.14876.
    """

    width: Annotated[int, AtLeast(1)] = 32
    encoder: Encoder = field(default_factory=TokenEncoder)

    def build(self, features, n_obs_steps):
        return _BottleneckEncoderNet(self, features, n_obs_steps)


class _BottleneckEncoderNet(EncoderNet):
    def __init__(self, config, features, n_obs_steps):
        super().__init__()
        self.encoder = config.encoder.build(features, n_obs_steps)
        self.gaussian = Linear(self.encoder.tokens * self.encoder.width, 2 * config.width)
        self.tokens, self.width, self.token_obs_steps = 1, config.width, (n_obs_steps - 1,)

    @property
    def cached_features(self):
        return self.encoder.cached_features

    def forward(self, obs, rng=None):
        context = self.encoder(obs, rng)
        mean, log_std = self.gaussian(context.flat()).chunk(2, -1)
        log_std = log_std.clamp(MIN_LOG_STD, MAX_LOG_STD)
        record_intermediate("bottleneck", torch.stack([mean, log_std], 1))
        code = mean
        if rng is not None:
            code = mean + log_std.exp() * torch.randn(mean.shape, generator=rng, device=mean.device, dtype=mean.dtype)
        token = code.unsqueeze(1)
        return Context(token, token.new_ones(token.shape[:2]).bool(), context.named)


@part
class InformationBottleneck(AuxiliaryLoss):
    """Auxiliary loss that penalizes the information in the code of a `BottleneckEncoder`.

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

    def build(self, policy):
        def loss(policy, batch, rng, captured: Mapping[str, Tensor]) -> Tensor:
            mean, log_std = captured["bottleneck"].unbind(1)  # (B, D)
            divergence = 0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std
            return self.weight * divergence.sum(-1)
        return loss


@method("Alemi et al. 2017, arXiv 1612.00410; as a part of Wen et al. 2020, arXiv 2010.14876, who also train an "
        "adversary that looks for the last action in the code",
        when="if a policy with a history repeats its last action and no steps are marked; it did not help in the "
             "toy of docs/history.md.")
def bottleneck_bc(n_obs_steps: int = 5, width: int = 32, weight: float = 0.01) -> Method:
    """Behavior cloning from a history through a noisy code, which keeps little but what predicts the action.

    Args:
        weight: Weight of the penalty on the information in the code.
    """
    policy = PolicyConfig(Regression(), encoder=BottleneckEncoder(width), window=Window(n_obs_steps))
    return Method(policy, learner=BehaviorCloning(steps=5000, auxiliary_losses=(InformationBottleneck(weight),)))
