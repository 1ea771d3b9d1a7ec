"""Auxiliary prediction of a column of classes from what a network computes, which nothing that acts reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated

import torch
from torch import Tensor, nn

from ..core import AtLeast, Context, HeadSpec, UserError, part
from ..data.one_hot import encode_classes
from ..heads.categorical import Categorical
from ..nets.base import Trunk
from ..nets.feed_forward import FeedForward
from .behavior_cloning import AuxiliaryLoss


@part
class ClassPrediction(AuxiliaryLoss):
    """Predicts a column of classes from the encoded observation, such as a subgoal, a thought or a map.

    The loss is the negative log-likelihood of all components at the first step that the policy predicts, summed over
    the components. What is predicted shapes the encoder and is not an input of anything.

    Args:
        captured: Activation that is read, (B, N, D): "context", or another that a network records, such as "cells" of
            `GridEncoder` and "hidden" of `FeedForward`.
        shape: N and D of this activation. None for those of the encoder.

    References:
        Hu and Clune (2023), Thought Cloning, arXiv:2306.00323, whose losses of words are summed (weight 2).
    """

    column: str
    num_classes: Annotated[tuple[int, ...], AtLeast(1)]
    trunk: Trunk = field(default_factory=FeedForward)
    weight: float = 1.0
    captured: str = "context"
    shape: Annotated[tuple[int, int] | None, AtLeast(1)] = None

    @property
    def captures(self):
        return (self.captured, "context_mask") if self.captured == "context" else (self.captured,)

    @property
    def columns(self):
        return (self.column,)

    def build(self, policy):
        return _ClassPredictionLoss(self, policy)


class _ClassPredictionLoss(nn.Module):
    def __init__(self, config, policy):
        super().__init__()
        tokens, width = config.shape or (policy.encoder.tokens, policy.encoder.width)
        self.config = config
        spec = HeadSpec(1, tokens, width, config.num_classes, token_obs_steps=(0,) * tokens)
        self.net = Categorical().build(config.trunk, sum(config.num_classes), spec)

    def forward(self, policy, batch, rng, captured: Mapping[str, Tensor]) -> Tensor:
        tokens = captured[self.config.captured]
        mask = captured.get("context_mask") if self.config.captured == "context" else None
        context = Context(tokens, torch.ones_like(tokens[..., 0], dtype=torch.bool) if mask is None else mask)
        num_classes = self.config.num_classes
        label = batch.extra[self.config.column][:, 0].reshape(len(batch), -1).long()  # (B, components)
        if label.shape[1] != len(num_classes) or label.min() < 0 or (label >= label.new_tensor(num_classes)).any():
            raise UserError(f"the column has {label.shape[1]} components with classes from {label.min().item():g} to "
                            f"{label.max().item():g}, but num_classes is {num_classes}",
                            where=f"column {self.config.column!r}", hint="give ClassPrediction.num_classes one number "
                            "for each component, above its largest class")
        coded = encode_classes(label, num_classes).unsqueeze(1)
        loss = Categorical().loss(self.net, context, coded, batch.mask[:, :1], rng)[:, 0]
        return self.config.weight * loss * batch.mask[:, 0]
