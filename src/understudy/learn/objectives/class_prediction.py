"""Auxiliary loss that predicts a column of classes, which is not used for acting."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

import torch

from ...core import AtLeast, Context, HeadSpec, UserError, part
from ...data.one_hot import encode_classes
from ...heads.likelihood.categorical import Categorical
from ...nets.base import Trunk
from ...nets.feed_forward import FeedForward
from .representation_objectives import NetworkObjective


@part
class ClassPrediction(NetworkObjective):
    """Auxiliary loss that predicts a column of classes, such as a subgoal or a map, from the encoded observation.

    The loss is the negative log-likelihood of all components at the first step that the policy predicts, summed over
    the components. The prediction shapes the encoder, and nothing reads it.

    Args:
        captured: Activation that is read, (B, N, D): "context", or another that a network records, such as "cells" of
            `GridEncoder` and "hidden" of `FeedForward`.
        shape: N and D of this activation. None for the shape of the encoder's output.

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

    def networks(self, policy):
        tokens, width = self.shape or (policy.encoder.tokens, policy.encoder.width)
        spec = HeadSpec(1, tokens, width, self.num_classes, token_obs_steps=(0,) * tokens)
        return {"net": Categorical().build(self.trunk, sum(self.num_classes), spec)}

    def loss(self, networks, policy, batch, rng, captured):
        tokens, num_classes = captured[self.captured], self.num_classes
        mask = captured.get("context_mask") if self.captured == "context" else None
        context = Context(tokens, torch.ones_like(tokens[..., 0], dtype=torch.bool) if mask is None else mask)
        label = batch.extra[self.column][:, 0].reshape(len(batch), -1).long()  # (B, components)
        if label.shape[1] != len(num_classes) or label.min() < 0 or (label >= label.new_tensor(num_classes)).any():
            raise UserError(f"the column has {label.shape[1]} components with classes from {label.min().item():g} to "
                            f"{label.max().item():g}, but num_classes is {num_classes}",
                            where=f"column {self.column!r}", hint="give ClassPrediction.num_classes one number "
                            "for each component, above its largest class")
        coded = encode_classes(label, num_classes).unsqueeze(1)
        loss = Categorical().loss(networks.net, context, coded, batch.mask[:, :1], rng)[:, 0]
        return self.weight * loss * batch.mask[:, 0]
