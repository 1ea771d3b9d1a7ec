"""Objectives that predict the next encoding: self-prediction, and dynamics with a hidden action."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..core import Above, AtLeast, AtMost, Batch, part
from ..policy import Policy
from .behavior_cloning import LaggedAuxiliaryLoss
from .representation_objectives import (
    RepresentationObjective,
    TargetEncoder,
    encoding_size,
    flat_encoding,
    projector_layers,
)


@part
class SelfPrediction(RepresentationObjective):
    """Predicts the encoding of a later observation by a linear map of the present encoding.

    What keeps encodings from shrinking to a constant is that the target has no gradient, and that the predictor learns
    faster than the encoder. `encoding_std` in the metrics of training shows whether they shrink.

    Args:
        predictor_rate: Learning rate of the predictor, in learning rates of the encoder.
        target: Encodings that are predicted. ``"stop"`` are those of the encoder, without gradient. ``"full"`` have
            the gradient too, which lets them shrink, to compare with.
        two_way: A second encoder of the same kind encodes the later observation, and is predicted from it back. The
            two learn the left and the right singular vectors of the transitions.

    References:
        Tang et al. (2023), Understanding Self-Predictive Learning for Reinforcement Learning, arXiv:2212.03319.
    """

    predictor_rate: Annotated[float, Above(0)] = 10.0
    target: Literal["stop", "full"] = "stop"
    two_way: bool = False
    weight: float = 1.0

    next_obs = True

    def build(self, policy):
        return _SelfPredictionLoss(self, policy)


class _SelfPredictionLoss(nn.Module):
    def __init__(self, config: SelfPrediction, policy: Policy):
        super().__init__()
        size = encoding_size(policy)
        self.config, self.forward_map = config, _FastLinear(size, config.predictor_rate)
        if config.two_way:
            self.backward_map, self.later_encoder = _FastLinear(size, config.predictor_rate), copy.deepcopy(
                policy.encoder)

    def forward(self, policy: Policy, batch: Batch, rng: Generator, captured: Mapping[str, Tensor]) -> Tensor:
        assert batch.next is not None
        now = flat_encoding(captured)
        if self.config.two_way:
            coded = policy.codec.encode_obs(policy.augment(batch.next, rng))
            later = self.later_encoder(coded, rng if policy.training else None).flat()
            back = (self.backward_map(later) - now.detach()).square().mean(-1)
        else:
            later, back = policy.training_context(batch.next, rng).flat(), 0.0
        target = later.detach() if self.config.target == "stop" else later
        return self.config.weight * ((self.forward_map(now) - target).square().mean(-1) + back)


class _FastLinear(nn.Module):
    """A square matrix, first the identity, that an optimizer such as Adam moves `rate` times as fast."""

    def __init__(self, size: int, rate: float):
        super().__init__()
        self.rate, self.weight = rate, nn.Parameter(torch.eye(size) / rate)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.rate * self.weight)


@part
class LatentDynamics(RepresentationObjective):
    """Predicts the next encoding from the present one and a hidden action, which is told from both encodings.

    No actions are read. The hidden action must be too narrow to hold the next encoding itself. Its width should be
    about that of the true state. The covariance of encodings keeps their components apart.

    It differs from the paper in the length of the sequence, which is two observations, as in its kitchen. Its
    transformers are therefore networks with one hidden layer.

    Args:
        covariance: Weight of the mean squared covariance of two different components of the encoding.
        target_decay: Fraction of the target encoder that each update keeps. 0 takes the encoder itself, without
            gradient.
        weight: Factor of the loss.

    References:
        Cui et al. (2024), DynaMo: In-Domain Dynamics Pretraining for Visuo-Motor Control, arXiv:2409.12192.
    """

    latent: Annotated[int, AtLeast(1)] = 8
    hidden: Annotated[int, AtLeast(1)] = 256
    covariance: Annotated[float, AtLeast(0)] = 0.04
    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.0
    weight: float = 1.0

    next_obs = True

    def build(self, policy):
        return _LatentDynamicsLoss(self, policy)


class _LatentDynamicsLoss(LaggedAuxiliaryLoss):
    def __init__(self, config: LatentDynamics, policy: Policy):
        super().__init__()
        size = encoding_size(policy)
        self.config, self.target = config, TargetEncoder(policy, config.target_decay)
        self.inverse = projector_layers(2 * size, config.hidden, config.latent)
        self.predictor = projector_layers(size + config.latent, config.hidden, size)

    def forward(self, policy: Policy, batch: Batch, rng: Generator, captured: Mapping[str, Tensor]) -> Tensor:
        assert batch.next is not None
        now, later = flat_encoding(captured), policy.training_context(batch.next, rng).flat()
        hidden_action = self.inverse(torch.cat([now, later], -1))
        prediction = self.predictor(torch.cat([now, hidden_action], -1))
        distance = 1 - F.cosine_similarity(prediction, self.target(policy, batch.next, rng), dim=-1)
        return self.config.weight * (distance + self.config.covariance * _covariance(torch.cat([now, later])))

    def after_update(self, policy):
        self.target.update(policy)


def _covariance(encodings: Tensor) -> Tensor:
    """The mean squared covariance of two different components, from rows (N, D)."""
    size = encodings.shape[1]
    covariance = encodings.T.cov().reshape(size, size)
    off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
    return off_diagonal / max(size * (size - 1), 1)
