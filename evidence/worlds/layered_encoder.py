"""An encoder of numbers that has layers to train."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from understudy.core import Context
from understudy.nets.base import Encoder, EncoderNet
from understudy.nets.feed_forward import feed_forward_layers


@dataclass(frozen=True)
class LayeredEncoder(Encoder):
    """All columns as one vector, through layers to one token of 32 numbers."""

    hidden: tuple[int, ...] = (128, 128)

    def build(self, features, n_obs_steps):
        return _LayeredEncoderNet(self, features)


class _LayeredEncoderNet(EncoderNet):
    tokens, width, token_obs_steps = 1, 32, (0,)

    def __init__(self, config, features):
        super().__init__()
        self.names = tuple(features)
        self.layers = feed_forward_layers((sum(f.size for f in features.values()), *config.hidden, self.width))

    def forward(self, obs, rng=None):
        tokens: Tensor = self.layers(torch.cat([obs[name].flatten(1) for name in self.names], -1)).unsqueeze(1)
        return Context(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool))
