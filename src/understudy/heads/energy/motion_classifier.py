"""Head that predicts the encoding after each of a few motions, and takes the one nearest to the goal."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from ...core import Above, AtLeast, Context, Unsupported, part
from ..base import DeterministicHead, cluster_chunks


@part
class MotionClassifier(DeterministicHead):
    """Head that predicts the encoding after each of a few motions, and takes the one that comes nearest to the goal.

    The first half of the context's tokens encodes the observation, the second half the goal. Motions are the centers
    of clusters of the demonstrated chunks (k-means). The logit of a motion is the cosine of the encodings of prediction
    and goal, divided by the temperature. Training classifies the motion nearest to the demonstrated chunk.

    Args:
        temperature: Temperature of the classification. Acting takes the most likely motion at any temperature.

    References:
        Wang et al. (2023), Manipulate by Seeing: Creating Manipulation Controllers from Pre-Trained Representations,
        arXiv:2303.08135.
    """

    n_motions: Annotated[int, AtLeast(1)] = 64
    temperature: Annotated[float, Above(0)] = 0.1

    def build(self, trunk, coded_dim, spec):
        n = spec.tokens // 2
        if spec.tokens % 2:
            raise Unsupported(f"{spec.tokens} tokens cannot be those of an observation and as many of a goal",
                              where="MotionClassifier", hint="use an encoder such as that of manipulate-by-seeing")
        half = replace(spec, tokens=n, token_obs_steps=spec.token_obs_steps[:n])
        net = trunk.build(coded_dim, n * spec.width, 0, half)
        net.register_buffer("motions", torch.zeros(self.n_motions, spec.horizon, coded_dim))
        return net

    def fit(self, net, pairs):
        net.motions.copy_(cluster_chunks(pairs, self.n_motions, joint=True))

    def loss(self, net, context, action, mask, rng):
        """Returns the cross-entropy of the motion nearest to the demonstrated chunk, at each of its steps, (B, H)."""
        gap = (action.unsqueeze(1) - net.motions) * mask[:, None, :, None]
        nearest = gap.square().sum((2, 3)).argmin(1)
        return cross_entropy(self.logits(net, context), nearest, reduction="none").unsqueeze(1).expand(mask.shape)

    def sample(self, net, context, noise):
        return net.motions[self.logits(net, context).argmax(1)]

    def logits(self, net, context: Context) -> Tensor:
        """Returns the logits of the motions, (B, n_motions): cosines of goal and predicted encoding."""
        motions = net.motions.expand(context.tokens.shape[0], -1, -1, -1).flatten(0, 1)
        prediction = self.predict(net, context.repeat(self.n_motions), motions).unflatten(0, (-1, self.n_motions))
        return (prediction * encodings(context)[1].unsqueeze(1)).sum(-1) / self.temperature

    def predict(self, net, context: Context, action: Tensor) -> Tensor:
        """Returns the predicted encoding after coded chunks (B, H, A), of unit length, (B, D)."""
        tokens, mask = context.tokens.chunk(2, 1)[0], context.mask.chunk(2, 1)[0]
        return normalize(net(action, action[..., :0], replace(context, tokens=tokens, mask=mask)).mean(1), dim=-1)


def encodings(context: Context) -> tuple[Tensor, Tensor]:
    """Returns the encodings of observation and goal, of unit length, (B, D) each."""
    now, goal = (normalize(flat, dim=-1) for flat in context.flat().chunk(2, 1))
    return now, goal
