"""Recurrent encoder: an LSTM over the rows of an observation window."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from torch import nn

from ..core import AtLeast, Context, part
from .base import Encoder, EncoderNet, product_dtype
from .encoders import TokenEncoder


@part
class RecurrentEncoder(Encoder):
    """Encoder that reads the rows of a window with an LSTM. Its last output is the only token.

    The state is not carried between windows: the history is the window. A sequence of length 10 in BC-RNN is
    ``Window(n_obs_steps=10)``. The trunk `nets.lstm.LSTM` also gives an output, and so a loss, at every row.

    Args:
        row_encoder: Encoder of a single row.

    References:
        Mandlekar et al. (2021), What Matters in Learning from Offline Human Demonstrations, arXiv:2108.03298.
    """

    width: Annotated[int, AtLeast(1)] = 400
    layers: Annotated[int, AtLeast(1)] = 2
    row_encoder: Encoder = field(default_factory=TokenEncoder)

    def build(self, features, n_obs_steps):
        return _RecurrentEncoderNet(self, features, n_obs_steps)


class _RecurrentEncoderNet(EncoderNet):
    def __init__(self, config, features, n_obs_steps):
        super().__init__()
        self.row_encoder = config.row_encoder.build(features, 1)
        self.lstm = nn.LSTM(self.row_encoder.tokens * self.row_encoder.width, config.width, config.layers,
                            batch_first=True)
        self.tokens, self.width, self.token_obs_steps = 1, config.width, (n_obs_steps - 1,)

    @property
    def cached_features(self):
        return self.row_encoder.cached_features

    def forward(self, obs, rng=None):
        batch, rows = next(iter(obs.values())).shape[:2]
        context = self.row_encoder({k: v.flatten(0, 1).unsqueeze(1) for k, v in obs.items()}, rng)
        flat = context.flat().unflatten(0, (batch, rows))
        last = self.lstm(flat.to(product_dtype(flat)))[0][:, -1:]  # on a CPU, autocast leaves the input as it is
        named = {k: v.unflatten(0, (batch, rows))[:, -1] for k, v in context.named.items()}
        return Context(last, last.new_ones(last.shape[:2]).bool(), named)
