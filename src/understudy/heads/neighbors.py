"""Nearest neighbors: nothing to train, a memory of what was shown.

VINN (Pari et al. 2021, arXiv 2112.01511); locally weighted regression (Atkeson et al. 1997).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ..core import UserError
from .base import MemoryHead


@dataclass(frozen=True)
class Neighbors(MemoryHead):
    """Of the `count` windows whose contexts are nearest (Euclidean; the codec's units), the weighted chunk.

    weights: "softmax" of minus the distances times `sharpness` (VINN's, with 1), or "equal". The sharpness has the
        unit of the features: who changes the encoder must choose it anew.
    model: "mean" of the chunks, or "linear": locally weighted regression of the chunk on the context, with `ridge`
        relative to the neighbors' own spread.
    part: windows of the memory compared at a time.
    """

    n_neighbors: int = 5
    weights: Literal["softmax", "equal"] = "softmax"
    sharpness: float = 1.0
    local_model: Literal["mean", "linear"] = "mean"
    ridge: float = 0.01
    block_size: int = 2**16

    def noise(self, horizon, coded_dim):
        return (horizon, 0)

    def build(self, trunk, coded_dim, spec):
        return _NeighborMemory(coded_dim, spec)

    def fit(self, net, pairs):
        parts = [(context.flat(), action, mask.to(action.dtype)) for context, action, mask in pairs()]
        net.keys, net.values, net.known = (torch.cat(column) for column in zip(*parts, strict=True))

    def loss(self, net, context, action, mask, rng):
        """Nothing to descend; still the number to watch when choosing an encoder."""
        with torch.no_grad():
            return (self.sample(net, context, action[..., :0]) - action).square().mean(-1)

    def sample(self, net, context, noise):
        query = context.flat()
        which = self._nearest(net.keys, query)
        near = net.keys[which]  # (B, k, D)
        distance = (near - query.unsqueeze(1)).square().sum(-1).sqrt()
        sharpness = self.sharpness if self.weights == "softmax" else 0.0
        # Chunks cut short by the end of their episode speak only for the steps they have; a step that none of them
        # has is coded 0, the middle of the range.
        known = net.known[which]  # (B, k, H)
        weight = (-sharpness * distance.unsqueeze(-1) - 1e9 * (1 - known)).softmax(1) * known
        values = net.values[which]  # (B, k, H, A)
        mean = (weight.unsqueeze(-1) * values).sum(1)
        return mean if self.local_model == "mean" else mean + self._local_slope(query, near, values, mean, weight)

    def _nearest(self, keys, query):
        """(B, k) rows of `keys`. Distances by products, a part of the memory at a time: B x part numbers at most."""
        if not keys.shape[0]:
            raise UserError("expected a memory, found it empty", where="Neighbors", hint="policy.fit(data) fills it")
        best = row = None
        for i in range(0, keys.shape[0], self.block_size):
            part = keys[i:i + self.block_size]
            far = part.square().sum(1) - 2 * query @ part.T  # but for the query's own square, the same for all
            far, at = far.topk(min(self.n_neighbors, part.shape[0]), largest=False)
            if best is not None:
                far, at = torch.cat([best, far], 1), torch.cat([row, at + i], 1)
                far, order = far.topk(min(self.n_neighbors, far.shape[1]), largest=False)
                at = at.gather(1, order)
            best, row = far, at
        return row

    def _local_slope(self, query, near, values, mean, weight):
        """What the linear model adds at the query: ridge regression in its dual form, k unknowns for each step."""
        root = weight.sqrt().transpose(1, 2)  # (B, H, k)
        centre = torch.einsum("bkh,bkd->bhd", weight, near)
        x = (near.unsqueeze(1) - centre.unsqueeze(2)) * root.unsqueeze(-1)  # (B, H, k, D)
        y = (values.transpose(1, 2) - mean.unsqueeze(2)) * root.unsqueeze(-1)  # (B, H, k, A)
        gram = x @ x.transpose(-1, -2)
        size = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        gram = gram + (self.ridge * size + 1e-9) * torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype)
        toward = (x @ (query.unsqueeze(1) - centre).unsqueeze(-1)).transpose(-1, -2)  # (B, H, 1, k)
        return (toward @ torch.linalg.solve(gram, y)).squeeze(2)


class _NeighborMemory(nn.Module):
    def __init__(self, dim, shape):
        super().__init__()
        self.register_buffer("keys", torch.zeros(0, shape.tokens * shape.width))
        self.register_buffer("values", torch.zeros(0, shape.horizon, dim))
        self.register_buffer("known", torch.zeros(0, shape.horizon))
