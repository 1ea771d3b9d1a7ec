"""Behavior transformer head: chooses a cluster of actions, then corrects its center."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from ...core import Above, AtLeast, ConfigError, part
from ..base import HeadNet, TemperatureHead, cluster_chunks, gumbel_noise


@part
class BeT(TemperatureHead):
    """Behavior transformer head, with k-means clusters of actions and an offset for each of them.

    The network predicts a distribution over clusters, and an offset from each center. The offset is trained for the
    cluster of the demonstrated action only. A plan is the center of a sampled cluster plus the offset of this cluster.
    Distances are in coded units, so that no component dominates the clusters.

    Args:
        n_clusters: Number of clusters, K.
        joint: True clusters whole chunks. False clusters single steps, as in the paper, where chunks have one step.
        gamma: Exponent of the focal loss ``-(1 - p)**gamma * log(p)``, which gives rare clusters more weight.
        offset_weight: Weight of the squared error of the offset. The paper's 1e5 is for actions of standard deviation
            0.01, which is 10 in coded units.
        temperature: Temperature of the choice of the cluster. 0 takes the most likely one.
        square: Half of the side of a square around 0, in coded units. The clusters are then its cells, row by row from
            the top, as the tokens of an image, so that with the trunk `PerToken` a cell is chosen by what is seen
            there. The target is a place, x to the right and y up. None: k-means.

    References:
        Shafiullah et al. (2022), Behavior Transformers: Cloning k Modes with One Stone, arXiv:2206.11251.
    """

    n_clusters: Annotated[int, AtLeast(1)] = 24
    joint: bool = False
    gamma: Annotated[float, AtLeast(0)] = 2.0
    offset_weight: Annotated[float, AtLeast(0)] = 10.0
    temperature: Annotated[float, AtLeast(0)] = 1.0
    square: Annotated[float | None, Above(0)] = None

    def __post_init__(self):
        if self.square and (self.joint or math.isqrt(self.n_clusters) ** 2 != self.n_clusters):
            raise ConfigError(f"{self.n_clusters} clusters, joint={self.joint}", where="BeT.square",
                              hint="use a square number of clusters, such as 144, and joint=False")

    def noise(self, horizon, coded_dim):
        return (horizon, self.n_clusters)

    def build(self, trunk, coded_dim, spec):
        if self.square and coded_dim != 2:
            raise ConfigError(f"the target has {coded_dim} components, and a place has two", where="BeT.square",
                              hint="use square=None, which finds clusters by k-means")
        steps = spec.horizon if self.joint else 1
        return HeadNet(trunk=trunk.build(0, self.n_clusters * (1 + coded_dim), 0, spec),
                       centers=torch.zeros(self.n_clusters, steps, coded_dim))

    def fit(self, net, pairs):
        net.centers.copy_(cell_centers(self.n_clusters, self.square) if self.square else
                          cluster_chunks(pairs, self.n_clusters, self.joint))

    def loss(self, net, context, action, mask, rng):
        """Returns the focal loss of the cluster and weighted squared error of the offset, (B, H)."""
        logits, offset = self._predict(net, context, action)
        step_mask = mask.unsqueeze(-1).to(action.dtype)
        gap = (action * step_mask).unsqueeze(2) - net.centers.transpose(0, 1) * step_mask.unsqueeze(2)  # (B, H, K, A)
        squared_distances = gap.square().sum(-1)
        if self.joint:
            squared_distances = squared_distances.sum(1, keepdim=True).expand(squared_distances.shape)
        nearest = squared_distances.argmin(-1, keepdim=True)
        log_p = logits.log_softmax(-1).gather(-1, nearest).squeeze(-1)
        focal = -(1 - log_p.exp()) ** self.gamma * log_p
        index = nearest.unsqueeze(-1).expand(*nearest.shape, gap.shape[-1])
        error = (gap - offset).gather(2, index).squeeze(2).square().mean(-1)
        return focal + self.offset_weight * error

    def sample(self, net, context, noise):
        logits, offset = self._predict(net, context, noise)
        gumbel = gumbel_noise(noise)
        if self.joint:
            gumbel = gumbel[:, :1].expand(gumbel.shape)
        cluster = (logits + self.temperature * gumbel).argmax(-1)[..., None, None]  # (B, H, 1, 1)
        index = cluster.expand(*cluster.shape[:3], offset.shape[-1])
        centers = net.centers.transpose(0, 1).expand(*offset.shape)
        return (centers + offset).gather(2, index).squeeze(2)

    def _predict(self, net, context, like):
        """Returns cluster logits (B, H, K), equal at all steps of a joint chunk, and offsets (B, H, K, A)."""
        out = net.trunk(like[..., :0], like[..., :0], context).unflatten(-1, (self.n_clusters, -1))
        logits = out[..., 0]
        return logits.mean(1, keepdim=True).expand(logits.shape) if self.joint else logits, out[..., 1:]


def cell_centers(n: int, half: float) -> Tensor:
    """Returns the centers of n equal cells of a square around 0, row by row from the top, (n, 1, 2)."""
    side = math.isqrt(n)
    middle = half * ((2 * torch.arange(side) + 1) / side - 1)
    return torch.stack([middle.repeat(side), -middle.repeat_interleave(side)], 1).unsqueeze(1)
