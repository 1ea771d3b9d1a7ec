"""Networks for grids of cells, which treat all cells alike: nothing is pooled, so that what is learned is local."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import nn

from ..core import AtLeast, Context, Unsupported, UserError, part
from .base import Encoder, EncoderNet, Trunk, TrunkNet, record_intermediate
from .encoders import num_classes_of, observed_column


@part
class GridEncoder(Encoder):
    """Encoder with convolutions over a grid of cells, without pooling.

    All columns of classes of shape (W, H) become one-hot planes. Convolutions of 3 x 3 cells with ReLU follow, and the
    grid keeps its size. Cells beyond the edge are zero. The tokens of the cells (B, To * W * H, D) are recorded as
    "cells", for auxiliary losses.

    Args:
        channels: Channels of the convolutions. Empty for the planes themselves.
        at: Column with the cell of the agent, classes of shape (2,). The encoder then gives the token of this cell
            alone, one for each observation step. None gives the tokens of all cells, row by row.
        n_rounds: Number of times that the convolutions after the first run, with the same weights. Before each further
            round, the features are added to the output of the first convolution.
    """

    channels: Annotated[tuple[int, ...], AtLeast(1)] = (64, 64, 64, 64, 64)
    at: str | None = None
    n_rounds: Annotated[int, AtLeast(1)] = 1

    def build(self, features, n_obs_steps):
        return _GridEncoderNet(self, features, n_obs_steps)


class _GridEncoderNet(EncoderNet):
    def __init__(self, config, features, n_obs_steps):
        super().__init__()
        if config.at is not None and (config.at not in features or features[config.at].shape != (2,)):
            raise UserError(f"The policy does not read a column {config.at!r} of shape (2,).", where="GridEncoder.at",
                            hint="Name one of the policy's inputs, the cell of the agent.")
        self.at, self.n_rounds = config.at, config.n_rounds
        self.names = tuple(name for name in features if name != config.at)
        shapes = {features[name].shape for name in self.names}
        if len(shapes) != 1 or len(shape := shapes.pop()) != 2 or any(
                features[name].kind != "discrete" for name in self.names):
            column_kinds = ", ".join(f"{k} {features[k].kind} {features[k].shape}" for k in self.names) or "none"
            raise UserError(f"GridEncoder reads classes of cells, columns of one shape (W, H), and these are "
                            f"{column_kinds}.", where="GridEncoder",
                            hint="Name the columns that it shall read in PolicyConfig.inputs.")
        self.shape, self.n_obs_steps = shape, n_obs_steps
        self.num_classes = tuple(max(num_classes_of(features[name], name)) for name in self.names)
        sizes = (sum(self.num_classes), *config.channels)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.width, cells = sizes[-1], shape[0] * shape[1]
        self.tokens = n_obs_steps * (1 if config.at else cells)
        self.token_obs_steps = tuple(step for step in range(n_obs_steps) for _ in range(self.tokens // n_obs_steps))

    def forward(self, obs, rng=None):
        planes, masks = [], []
        for name, n in zip(self.names, self.num_classes, strict=True):
            x, is_observed = observed_column(obs, name)
            x = x.flatten(0, 1).unsqueeze(1)  # (B * To, 1, W, H)
            row_mask = is_observed.flatten()[:, None, None, None]
            planes.append(((x == torch.arange(n, device=x.device)[:, None, None]) & row_mask).float())
            masks.append(is_observed)
        tokens = self._convolve(torch.cat(planes, 1)).flatten(2).transpose(1, 2)  # (B * To, W * H, D)
        tokens = tokens.unflatten(0, (-1, self.n_obs_steps))
        record_intermediate("cells", tokens.flatten(1, 2))
        mask = torch.stack(masks).any(0)  # (B, To)
        if self.at is None:
            return Context(tokens.flatten(1, 2), mask.repeat_interleave(tokens.shape[2], 1))
        cell, cell_mask = observed_column(obs, self.at)
        index = (cell[..., 0] * self.shape[1] + cell[..., 1]).long()  # (B, To)
        tokens = tokens.gather(2, index[..., None, None].expand(-1, -1, 1, self.width)).squeeze(2)
        return Context(tokens, mask & cell_mask)

    def _convolve(self, x):
        if not self.layers:
            return x
        first = x = self.layers[0](x).relu()
        for number in range(self.n_rounds):
            x = first + x if number else x
            for layer in list(self.layers)[1:]:
                x = layer(x).relu()
        return x


@dataclass(frozen=True)
class PerToken(Trunk):
    """Trunk that applies another trunk to each token alone, with the same weights.

    Token i gives part i of each step of the output.

    With `GridEncoder`, the class of each cell is predicted from what is around it. The target needs the same number of
    components for each token.
    """

    trunk: Trunk

    def build(self, inputs, outputs, n_times, spec):
        if not spec.tokens or inputs % spec.tokens or outputs % spec.tokens:
            raise Unsupported(f"{outputs} outputs and {inputs} inputs per step cannot be divided among {spec.tokens} "
                              "tokens.", where="PerToken", hint="Predict as many classes for each token.")
        return _PerTokenNet(self, inputs, outputs, n_times, spec)


class _PerTokenNet(TrunkNet):
    def __init__(self, config, inputs, outputs, n_times, spec):
        super().__init__()
        self.tokens = spec.tokens
        num_classes = spec.num_classes[:len(spec.num_classes) // spec.tokens]
        token_spec = replace(spec, tokens=1, num_classes=num_classes, token_obs_steps=spec.token_obs_steps[-1:])
        self.trunk = config.trunk.build(inputs // spec.tokens, outputs // spec.tokens, n_times, token_spec)

    def forward(self, x, t, context):
        x = x.unflatten(-1, (self.tokens, -1)).transpose(1, 2).flatten(0, 1) if x.shape[-1] else x.repeat_interleave(
            self.tokens, 0)
        token_context = Context(context.tokens.flatten(0, 1).unsqueeze(1), context.mask.flatten().unsqueeze(1),
                                {k: v.repeat_interleave(self.tokens, 0) for k, v in context.named.items()})
        out = self.trunk(x, t.repeat_interleave(self.tokens, 0), token_context)  # (B * N, H, outputs / N)
        return out.unflatten(0, (-1, self.tokens)).transpose(1, 2).flatten(2)
