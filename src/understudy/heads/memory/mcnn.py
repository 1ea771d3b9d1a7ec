"""Memory-consistent head: near a stored example it plans its action, farther away a network decides."""

from __future__ import annotations

import math
import warnings
from typing import Annotated

import numpy as np
import torch

from ...core import Above, AtLeast, AtMost, ConfigError, Unsupported, UserError, part
from ..base import DeterministicHead, HeadNet, repeat_into_padding


@part
class MCNN(DeterministicHead):
    """Memory-consistent head (MCNN).

    Some windows of the data are memories. With the distance d from the context to the nearest memory and w = exp(-decay
    * d), the plan is ``w * action of the memory + (1 - w) * limit * clip(network, -1, 1)``.

    At a memory it is exactly the memory's action. Everywhere it stays within ``(1 - w) * limit`` of w times that
    action, for all weights of the network, and far from all memories it is the clipped network.

    The memories are the windows that are nearest to the centers of k-means. They are chosen before training, so the
    encoder must not be trained: use `ConcatEncoder`, whose context is the normalized observation, or one that a stage
    trained. Distances are Euclidean between contexts, both for choosing the nearest memory and for its weight. The
    authors choose it by distances in the units of the data.

    Args:
        memory_fraction: Number of memories, as a fraction of the windows of the data.
        decay: Inverse distance at which the weight of a memory is 1 / e. The authors' code has 10 times its lambda,
            which is 0.01, 0.1 or 1. Distances grow with the number of columns: if the weight is close to 0 at all new
            observations, the memories have no influence.
        limit: Largest output of the network, relative to the bound of coded actions.

    References:
        Sridhar et al. (2024), Memory-Consistent Neural Networks for Imitation Learning, arXiv:2310.06171. Memories are
        chosen there by growing neural gas, and the slope of the clip falls to 0 in the first 100 updates.
    """

    memory_fraction: Annotated[float, Above(0), AtMost(1)] = 0.1
    decay: Annotated[float, AtLeast(0)] = 10.0
    limit: Annotated[float, Above(0)] = 1.0

    def build(self, trunk, coded_dim, spec):
        if spec.bound is None or math.isinf(spec.bound):
            raise ConfigError("the plans are bounded, but the coded actions are not", where="MCNN",
                              hint='use Normalizer(target="minmax")')
        return HeadNet(trunk=trunk.build(0, coded_dim, 0, spec), limit=self.limit * spec.bound,
                       keys=torch.zeros(0, spec.tokens * spec.width), values=torch.zeros(0, spec.horizon, coded_dim))

    def fit(self, net, pairs):
        from scipy.cluster.vq import kmeans2
        from scipy.spatial import KDTree

        batches = [(context.flat(), repeat_into_padding(action, mask)) for context, action, mask in pairs()]
        keys, values = (torch.cat(column) for column in zip(*batches, strict=True))
        points = keys.double().cpu().numpy()
        different = np.unique(points, axis=0)
        k = min(max(round(self.memory_fraction * len(points)), 1), len(different))
        with warnings.catch_warnings():  # a cluster without points keeps its center
            warnings.simplefilter("ignore", UserWarning)
            centers = kmeans2(different, k, minit="points", seed=np.random.default_rng(0))[0]
        rows = torch.from_numpy(np.unique(KDTree(points).query(centers)[1])).to(keys.device)
        net.keys, net.values = keys[rows], values[rows]

    def loss(self, net, context, action, mask, rng):
        """Returns the squared error of each step, (B, H)."""
        if context.tokens.requires_grad:
            raise Unsupported("the encoder is trained, but the memories are encoded once, before training",
                              where="MCNN", hint="use ConcatEncoder(), or take an encoder from a stage and freeze it")
        return (self._mix(net, context, action[..., :0], straight_through=True) - action).square().mean(-1)

    def sample(self, net, context, noise):
        return self._mix(net, context, noise)

    def memory_weight(self, net, context):
        """Returns the number of the memory nearest to each context, (B,), and its weight in the plan, (B,).
        """
        if not net.keys.shape[0]:
            raise UserError("there are no memories", where="MCNN", hint="choose them with policy.fit_statistics(data)")
        query = context.flat()
        # Squared distance without the square of the query, which is equal for all memories.
        nearest = (net.keys.square().sum(1) - 2 * query @ net.keys.T).argmin(1)
        return nearest, (-self.decay * (net.keys[nearest] - query).square().sum(1).sqrt()).exp()

    def _mix(self, net, context, like, straight_through=False):
        nearest, weight = self.memory_weight(net, context)
        prediction = net.trunk(like[..., :0], like[..., :0], context)
        clipped = prediction.clamp(-1, 1)
        if straight_through:  # the gradient of the clip would be 0 outside, where the network could then not return
            clipped = clipped.detach() + (prediction - prediction.detach())
        weight = weight[:, None, None]
        return weight * net.values[nearest] + (1 - weight) * net.limit * clipped
