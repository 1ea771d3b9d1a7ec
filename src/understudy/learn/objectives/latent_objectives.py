"""An objective that predicts the next encoding: dynamics with a hidden action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ...core import AtLeast, Batch, ConfigError, Context, HeadSpec, part
from ...nets.base import Trunk
from ...nets.transformer import Transformer
from ...policy import Policy
from .representation_objectives import RepresentationObjective, encoding_size


@part
class LatentDynamics(RepresentationObjective):
    """Objective that predicts each next encoding in the policy's window from the earlier ones and a hidden action.

    A causal network infers the hidden action of a step from the encodings up to the end of the step. A second network
    predicts the encoding at the end of the step from earlier encodings and hidden actions. No actions are read. The
    hidden action must be too narrow to hold the next encoding itself. It should be about as wide as the true state. The
    covariance of encodings keeps their components apart.

    The window is the sequence: ``Window(n_obs_steps=5)`` in most of the paper. The later policy may see fewer steps.
    The target is the encoder itself, without gradient, as in three of the four environments of the paper.

    Args:
        trunk: The two networks over the sequence. It must be able to be causal.
        covariance: Weight of the mean squared covariance of two different components of the encoding.
        weight: Factor of the loss.

    References:
        Cui et al. (2024), DynaMo: In-Domain Dynamics Pretraining for Visuo-Motor Control, arXiv:2409.12192.
    """

    latent: Annotated[int, AtLeast(1)] = 8
    trunk: Trunk = field(default_factory=lambda: Transformer(64, 2))
    covariance: Annotated[float, AtLeast(0)] = 0.04
    weight: float = 1.0

    def build(self, policy):
        return LatentDynamicsLoss(self, policy)


class LatentDynamicsLoss(nn.Module):
    """The loss function of `LatentDynamics`, with its inverse model and its predictor."""

    def __init__(self, config: LatentDynamics, policy: Policy):
        super().__init__()
        self.n_steps = policy.window.n_obs_steps
        if self.n_steps < 2:
            raise ConfigError("the policy sees one observation, which has no next one", where="LatentDynamics",
                              hint="use a window such as Window(n_obs_steps=5)")
        steps, size = policy.encoder.token_obs_steps, encoding_size(policy) // self.n_steps
        self.config, self.order = config, sorted(range(len(steps)), key=steps.__getitem__)
        self.inverse, self.predictor = (
            config.trunk.build(inputs, outputs, 0, HeadSpec(horizon, 0, 0, causal=True)) for horizon, inputs, outputs
            in ((self.n_steps, size, config.latent), (self.n_steps - 1, size + config.latent, size)))

    def sequence(self, captured: Mapping[str, Tensor]) -> Tensor:
        """Returns the encodings of the steps of the window, (B, T, D)."""
        return captured["context"][:, self.order].unflatten(1, (self.n_steps, -1)).flatten(2)

    def forward(self, policy: Policy, batch: Batch, rng: Generator, captured: Mapping[str, Tensor]) -> Tensor:
        encodings = self.sequence(captured)
        nothing = encodings[..., :0]
        context = Context(nothing[:, :0], nothing[:, :0].any(-1))
        hidden_actions = self.inverse(encodings, nothing, context)[:, 1:]
        predictions = self.predictor(torch.cat([encodings[:, :-1], hidden_actions], -1), nothing[:, 1:], context)
        distance = 1 - F.cosine_similarity(predictions, encodings[:, 1:].detach(), dim=-1)
        return self.config.weight * (distance.mean(1) + self.config.covariance * _covariance(encodings.flatten(0, 1)))


def _covariance(encodings: Tensor) -> Tensor:
    """Returns the mean squared covariance of two different components, from rows (N, D)."""
    size = encodings.shape[1]
    covariance = encodings.T.cov().reshape(size, size)
    off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
    return off_diagonal / max(size * (size - 1), 1)
