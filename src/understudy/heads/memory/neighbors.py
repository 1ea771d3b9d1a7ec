"""Nearest-neighbor head: no training, only a memory of the demonstrations."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from ...core import AtLeast, UserError, part
from ..base import DeterministicHead, HeadNet, MemoryHead


@part
class Neighbors(MemoryHead, DeterministicHead):
    """Nearest-neighbor head: a weighted average of the chunks whose observations are nearest.

    Distances are Euclidean, in the units of the codec.

    Args:
        weights: ``"softmax"`` of minus the distances times `sharpness` (VINN uses sharpness 1), or ``"equal"``.
        sharpness: Inverse temperature of the weights, in inverse units of the features. Choose it again after changing
            the encoder.
        local_model: ``"mean"`` of the chunks, or ``"linear"``: locally weighted regression of the chunk on the context.
        ridge: Regularization of the linear model, relative to the spread of the neighbors.
        block_size: Number of stored windows that are compared at a time. It bounds the memory that a plan needs.

    References:
        Pari et al. (2021), The Surprising Effectiveness of Representation Learning for Visual Imitation,
        arXiv:2112.01511.
        Atkeson et al. (1997), Locally Weighted Learning.
    """

    n_neighbors: Annotated[int, AtLeast(1)] = 5
    weights: Literal["softmax", "equal"] = "softmax"
    sharpness: Annotated[float, AtLeast(0)] = 1.0
    local_model: Literal["mean", "linear"] = "mean"
    ridge: Annotated[float, AtLeast(0)] = 0.01
    block_size: Annotated[int, AtLeast(1)] = 2**16

    def build(self, trunk, coded_dim, spec):
        return HeadNet(keys=torch.zeros(0, spec.tokens * spec.width), values=torch.zeros(0, spec.horizon, coded_dim),
                       known=torch.zeros(0, spec.horizon))

    def fit(self, net, pairs):
        batches = [(context.flat(), action, mask.to(action.dtype)) for context, action, mask in pairs()]
        net.keys, net.values, net.known = (torch.cat(column) for column in zip(*batches, strict=True))

    def loss(self, net, context, action, mask, rng):
        """Returns the squared error of each step, (B, H), without gradient: a measure for choosing an encoder."""
        with torch.no_grad():
            return (self.sample(net, context, action[..., :0]) - action).square().mean(-1)

    def sample(self, net, context, noise):
        rows, distance = self.nearest(net, context)
        sharpness = self.sharpness if self.weights == "softmax" else 0.0
        # Chunks cut off by the end of their episode count only for the steps that they have. A step that no neighbor
        # has is coded 0, the middle of the range.
        has_step = net.known[rows]  # (B, k, H)
        weight = (-sharpness * distance.unsqueeze(-1) - 1e9 * (1 - has_step)).softmax(1) * has_step
        values = net.values[rows]  # (B, k, H, A)
        mean = (weight.unsqueeze(-1) * values).sum(1)
        if self.local_model == "mean":
            return mean
        return mean + self._local_slope(context.flat(), net.keys[rows], values, mean, weight)

    def nearest(self, net, context):
        """Returns the stored windows nearest to each context, in order, and their Euclidean distances, (B, k) each."""
        query = context.flat()
        rows = self._nearest(net.keys, query)
        return rows, (net.keys[rows] - query.unsqueeze(1)).square().sum(-1).sqrt()

    def _nearest(self, keys, query):
        """Returns the row numbers of the nearest keys, (B, k). It compares a block of the memory at a time."""
        if not keys.shape[0]:
            raise UserError("the memory is empty", where="Neighbors", hint="fill it with policy.fit_statistics(data)")
        best: Tensor | None = None
        rows: Tensor | None = None
        for start in range(0, keys.shape[0], self.block_size):
            block = keys[start:start + self.block_size]
            # Squared distance without the square of the query, which is equal for all keys.
            distances = block.square().sum(1) - 2 * query @ block.T
            distances, indices = distances.topk(min(self.n_neighbors, block.shape[0]), largest=False)
            if best is not None and rows is not None:
                distances, indices = torch.cat([best, distances], 1), torch.cat([rows, indices + start], 1)
                distances, order = distances.topk(min(self.n_neighbors, distances.shape[1]), largest=False)
                indices = indices.gather(1, order)
            best, rows = distances, indices
        return rows

    def _local_slope(self, query, neighbors, values, mean, weight):
        """Returns the correction at the query by a local linear model, (B, H, A): ridge regression in its dual form."""
        root = weight.sqrt().transpose(1, 2)  # (B, H, k)
        center = torch.einsum("bkh,bkd->bhd", weight, neighbors)
        x = (neighbors.unsqueeze(1) - center.unsqueeze(2)) * root.unsqueeze(-1)  # (B, H, k, D)
        y = (values.transpose(1, 2) - mean.unsqueeze(2)) * root.unsqueeze(-1)  # (B, H, k, A)
        gram = x @ x.transpose(-1, -2)
        spread = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        # Where no neighbor has the step, the spread is 0. Exporters leave out the addition of so small a number.
        ridge = (self.ridge * spread).clamp(min=1e-9)
        gram = gram + ridge * torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype)
        products = (x @ (query.unsqueeze(1) - center).unsqueeze(-1)).transpose(-1, -2)  # (B, H, 1, k)
        return (products @ _solve(gram, y)).squeeze(2)


def _solve(gram, y):
    """Solves positive definite systems with matrices (..., k, k) and right sides (..., k, A).

    ONNX has no operator for it, so that an exported graph has the steps of Gauss-Jordan elimination. They need no
    pivots.
    """
    if not torch.compiler.is_compiling():
        return torch.linalg.solve(gram, y)
    rows, k = torch.cat([gram, y], -1), gram.shape[-1]
    for i in range(k):
        pivot = rows[..., i:i + 1, :] / rows[..., i:i + 1, i:i + 1]
        others = (torch.arange(k, device=gram.device) != i).to(gram.dtype).unsqueeze(-1)
        rows = rows * others + pivot * (1 - others) - others * rows[..., i:i + 1] * pivot
    return rows[..., k:]
