"""A multilayer perceptron over everything at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .base import Trunk, TrunkNet
from .waves import Waves


@dataclass(frozen=True)
class MLP(Trunk):
    """The whole chunk, its times and the flat context in, the whole chunk out, through `depth` residual blocks of two
    layers each with normalised input (as in IDQL, Hansen-Estruch et al. 2023).

    waves: octaves by which each time is told (only of heads that know time).
    """

    width: int = 256
    depth: int = 2
    dropout: float = 0.0
    waves: int = 6

    def build(self, inputs, outputs, times, shape):
        return _MLP(self, inputs, outputs, times, shape)


class _MLP(TrunkNet):
    def __init__(self, spec, inputs, outputs, times, shape):
        super().__init__()
        self.waves = Waves(spec.waves)
        self.horizon, self.outputs = shape.horizon, outputs
        size = shape.horizon * (inputs + 2 * spec.waves * times) + shape.tokens * shape.width
        self.enter = nn.Linear(size, spec.width)
        self.blocks = nn.ModuleList(_block(spec.width, spec.dropout) for _ in range(spec.depth))
        self.leave = nn.Sequential(nn.LayerNorm(spec.width), nn.SiLU(), nn.Linear(spec.width, shape.horizon * outputs))

    def forward(self, x, t, context):
        h = self.enter(torch.cat([x.flatten(1), self.waves(t).flatten(1), context.flat()], -1))
        for block in self.blocks:
            h = h + block(h)
        return self.leave(h).unflatten(-1, (self.horizon, self.outputs))


def _block(width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout),
                         nn.Linear(width, width))
