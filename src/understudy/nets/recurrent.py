"""Memory over the rows of an observation window."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from ..core import Context
from .base import Encoder, EncoderNet
from .encoders import TokenEncoder


@dataclass(frozen=True)
class RecurrentEncoder(Encoder):
    """Each row encoded alone by `each`, then an LSTM over the rows; one token, its last state (BC-RNN, Mandlekar et
    al. 2021, whose sequences of 10 are windows of 10 rows here: history is the window, nothing is carried further).
    """

    width: int = 400
    layers: int = 2
    row_encoder: Encoder = field(default_factory=TokenEncoder)

    def build(self, features, n_obs_steps):
        return _RecurrentEncoderNet(self, features)


class _RecurrentEncoderNet(EncoderNet):
    def __init__(self, spec, features):
        super().__init__()
        self.row_encoder = spec.row_encoder.build(features, 1)
        self.lstm = nn.LSTM(self.row_encoder.tokens * self.row_encoder.width, spec.width, spec.layers, batch_first=True)
        self.tokens, self.width = 1, spec.width

    def forward(self, obs, rng=None):
        B, rows = next(iter(obs.values())).shape[:2]
        context = self.row_encoder({k: v.flatten(0, 1).unsqueeze(1) for k, v in obs.items()}, rng)
        last = self.lstm(context.flat().unflatten(0, (B, rows)))[0][:, -1:]
        return Context(last, last.new_ones(last.shape[:2]).bool())
