"""MLP-Mixer trunk: two MLPs take turns, one over the tokens and one over the channels."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from ..core import Above, AtLeast, Below, part
from .base import Trunk, TrunkNet, check_not_causal
from .fourier import FourierFeatures
from .linear import Linear


@part
class MLPMixer(Trunk):
    """MLP-Mixer over the tokens of the context and of the action steps, without attention.

    Each layer first mixes the tokens of one channel, then the channels of one token. Both are residual MLPs with one
    hidden layer. Times are added to the tokens of their steps. Absent tokens of the context are zeros.

    Args:
        width: Width of the tokens (C in the paper).
        token_ratio: Width of the hidden layer over the tokens, relative to `width` (D_S / C).
        feed_forward_ratio: Width of the hidden layer over the channels, relative to `width` (D_C / C).

    References:
        Tolstikhin et al. (2021), MLP-Mixer: An all-MLP Architecture for Vision, arXiv:2105.01601.
    """

    width: Annotated[int, AtLeast(1)] = 128
    depth: Annotated[int, AtLeast(1)] = 3
    token_ratio: Annotated[float, Above(0)] = 0.5
    feed_forward_ratio: Annotated[float, Above(0)] = 4
    dropout: Annotated[float, AtLeast(0), Below(1)] = 0.0
    n_frequencies: Annotated[int, AtLeast(0)] = 6

    def build(self, inputs, outputs, n_times, spec):
        check_not_causal(self, spec)
        return _MLPMixerNet(self, inputs, outputs, n_times, spec)


class _MLPMixerNet(TrunkNet):
    def __init__(self, config, inputs, outputs, n_times, spec):
        super().__init__()
        width, self.tokens = config.width, spec.tokens
        self.fourier = FourierFeatures(config.n_frequencies)
        size = inputs + 2 * config.n_frequencies * n_times
        self.input_layer = Linear(size, width) if size else None
        self.context_layer = Linear(spec.width, width) if spec.tokens else None
        self.embedding = nn.Parameter(0.02 * torch.randn(spec.tokens + spec.horizon, width))
        self.layers = nn.ModuleList(_MixerLayer(config, spec.tokens + spec.horizon) for _ in range(config.depth))
        self.output_layer = nn.Sequential(nn.LayerNorm(width), Linear(width, outputs))

    def forward(self, x, t, context):
        embedding = self.embedding.expand(x.shape[0], -1, -1)
        steps = embedding[:, self.tokens:]
        if self.input_layer is not None:
            steps = steps + self.input_layer(torch.cat([x, self.fourier(t)], -1))
        h = steps
        if self.context_layer is not None:
            tokens = (self.context_layer(context.tokens) + embedding[:, :self.tokens]) * context.mask.unsqueeze(-1)
            h = torch.cat([tokens, steps], 1)
        for layer in self.layers:
            h = layer(h)
        return self.output_layer(h[:, self.tokens:])


class _MixerLayer(nn.Module):
    def __init__(self, config, tokens):
        super().__init__()
        self.token_norm, self.channel_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        # A bias of the second layer would shift all channels of a token equally, which every LayerNorm ignores.
        self.token_mixing = _mlp(tokens, round(config.token_ratio * config.width), config.dropout, bias=False)
        self.channel_mixing = _mlp(config.width, round(config.feed_forward_ratio * config.width), config.dropout)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.token_mixing(self.token_norm(h).transpose(1, 2)).transpose(1, 2)
        return h + self.channel_mixing(self.channel_norm(h))


def _mlp(size: int, hidden: int, dropout: float, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(Linear(size, hidden), nn.GELU(), nn.Dropout(dropout), Linear(hidden, size, bias=bias))
