"""Encoder that attends to one of several objects, the one that words ask for."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

import torch

from ..core import AtLeast, Context, Feature, UserError, part
from .base import Encoder, EncoderNet, record_intermediate
from .encoders import TokenEncoder, check_inputs, check_unscaled, observed_column
from .linear import Linear


@part
class ObjectAttentionEncoder(Encoder):
    """Encoder with tokens of all columns, and one token of the attended object for each observation step.

    A query, such as the words of the task, gives each object a logit: ``w * (tanh(a) * sigmoid(b))``, where a and b
    are linear in the query's token and the features of the object. The attended object is the mean of the features,
    weighted by the softmax of the logits. It does not depend on the order of the objects.

    `learn.cloning.attention_supervision.AttentionSupervision` trains the logits with the number of the object that was
    meant. Without it they are trained through the action alone.

    Args:
        objects: Column of shape (objects, features), such as the detections of a camera. The codec must leave it as it
            is, because its rows are in no order: ``Normalizer(unscaled=...)``.
        query: Column that says which object matters: a text, a vector or classes.
        hidden: Number of hidden units of the attention.
        encoder: Encoder of all columns but the objects, the query included.

    References:
        Stepputtis et al. (2020), Language-Conditioned Imitation Learning for Robot Manipulation Tasks,
        arXiv:2010.12083.
    """

    objects: str = "observation.objects"
    query: str = "observation.task"
    hidden: Annotated[int, AtLeast(1)] = 64
    encoder: TokenEncoder = field(default_factory=TokenEncoder)

    def build(self, features, n_obs_steps):
        for name, column in (("objects", self.objects), ("query", self.query)):
            check_inputs(features, (column,), f"ObjectAttentionEncoder.{name}")
        check_objects(features[self.objects], self.objects, "ObjectAttentionEncoder.objects")
        if features[self.query].kind not in ("text", "vector", "discrete") or self.query == self.objects:
            raise UserError(f"{self.query!r}, a column of kind {features[self.query].kind!r}, cannot be the query.",
                            where="ObjectAttentionEncoder.query", hint="Name a text, a vector or a class column.")
        return _ObjectAttentionNet(self, features, n_obs_steps)

    def check_policy(self, codec, augmentations):
        check_unscaled(codec, (self.objects,), "each row of", "the order of the objects would matter",
                       "ObjectAttentionEncoder.objects")
        super().check_policy(codec, augmentations)


def check_objects(feature: Feature, column: str, where: str) -> None:
    """Raises UserError if a column does not have one row of numbers per object."""
    if len(feature.shape) != 2 or feature.kind != "vector":
        raise UserError(f"The column {column!r} has the shape {feature.shape}, not (objects, features).", where=where,
                        hint="Name a column with one row per object.")


class _ObjectAttentionNet(EncoderNet):
    def __init__(self, config, features, n_obs_steps):
        super().__init__()
        size = features[config.objects].shape[1]
        # The query comes first, so that its tokens are the first: one for each observation step.
        others = {config.query: features[config.query],
                  **{name: f for name, f in features.items() if name not in (config.query, config.objects)}}
        self.objects, self.n_obs_steps = config.objects, n_obs_steps
        self.encoder = config.encoder.build(others, n_obs_steps)
        self.width = self.encoder.width
        self.query_layer = Linear(self.width, 2 * config.hidden)
        self.object_layer = Linear(size, 2 * config.hidden, bias=False)
        self.logit_layer = Linear(config.hidden, 1, bias=False)  # softmax would cancel a bias
        self.output_layer = Linear(size, self.width)
        self.token_obs_steps = (*self.encoder.token_obs_steps, *range(n_obs_steps))
        self.tokens = len(self.token_obs_steps)

    @property
    def cached_features(self):
        return self.encoder.cached_features

    def forward(self, obs, rng=None):
        context = self.encoder(obs, rng)
        query = (context.tokens * context.mask.unsqueeze(-1))[:, :self.n_obs_steps]
        objects, present = observed_column(obs, self.objects)
        objects = objects.float()  # (B, To, objects, features)
        value, gate = (self.query_layer(query).unsqueeze(2) + self.object_layer(objects)).chunk(2, -1)
        logits = self.logit_layer(value.tanh() * gate.sigmoid()).squeeze(-1)  # (B, To, objects)
        record_intermediate("object_attention", logits)
        attended = (logits.softmax(-1).unsqueeze(-1) * objects).sum(2)
        return Context(torch.cat([context.tokens, self.output_layer(attended)], 1),
                       torch.cat([context.mask, present], 1), context.named)
