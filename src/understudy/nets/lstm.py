"""LSTM trunk: one recurrent pass over the observation steps and the action steps."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import AtLeast, part
from .base import Trunk, TrunkNet, check_alignment, product_dtype
from .fourier import FourierFeatures
from .linear import Linear


@part
class LSTM(Trunk):
    """Long short-term memory over time.

    The sequence begins at observation step 0 and ends at the last action step. Each position reads the tokens of its
    observation step and, from ``spec.action_start`` on, the input and the times of its action step.

    Output i is a linear map of the hidden state at position ``spec.action_start + i``, so it depends only on
    observation steps up to its own and on action steps 0 to i. ``Window(n_obs_steps=K, horizon=K, action_offset=1 -
    K)`` trains a loss at every position, as BC-RNN does.

    The state is not carried from plan to plan: each plan reads the whole window.

    References:
        Hochreiter and Schmidhuber (1997), Long Short-Term Memory.
        Mandlekar et al. (2021), What Matters in Learning from Offline Human Demonstrations, arXiv:2108.03298.
    """

    width: Annotated[int, AtLeast(1)] = 400
    depth: Annotated[int, AtLeast(1)] = 2
    n_frequencies: Annotated[int, AtLeast(0)] = 6

    def build(self, inputs, outputs, n_times, spec):
        check_alignment(self, spec)
        return _LSTMNet(self, inputs, outputs, n_times, spec)


class _LSTMNet(TrunkNet):
    token_numbers: Tensor

    def __init__(self, config, inputs, outputs, n_times, spec):
        super().__init__()
        self.start, self.horizon = spec.action_start, spec.horizon
        of_step: list[list[int]] = [[] for _ in range(spec.action_start + spec.horizon)]
        for token, step in enumerate(spec.token_obs_steps):
            if step < len(of_step):  # tokens of later steps are not read: no action happens there
                of_step[step].append(token)
        per_step = max(map(len, of_step))
        # The number of each position's tokens. Number spec.tokens stands for an absent token.
        self.register_buffer("token_numbers", torch.tensor(
            [row + [spec.tokens] * (per_step - len(row)) for row in of_step], dtype=torch.int64), persistent=False)
        self.fourier = FourierFeatures(config.n_frequencies)
        size = per_step * (spec.width + 1) + inputs + 2 * config.n_frequencies * n_times
        self.lstm = nn.LSTM(size, config.width, config.depth, batch_first=True)
        self.output_layer = Linear(config.width, outputs)

    def forward(self, x, t, context):
        present = context.mask.unsqueeze(-1).to(context.tokens.dtype)
        tokens = F.pad(torch.cat([context.tokens * present, present], -1), (0, 0, 0, 1))
        observed = tokens[:, self.token_numbers].flatten(2)  # (B, positions, tokens of a position * (D + 1))
        steps = F.pad(torch.cat([x, self.fourier(t)], -1), (0, 0, self.start, 0))
        inputs = torch.cat([observed, steps], -1)
        hidden = self.lstm(inputs.to(product_dtype(inputs)))[0]  # on a CPU, autocast leaves the input as it is
        return self.output_layer(hidden[:, self.start:])
