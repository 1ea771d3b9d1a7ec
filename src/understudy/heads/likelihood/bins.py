"""Bins: a distribution over intervals of each action component."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from torch import nn

from ...core import AtLeast, part
from ...nets.feed_forward import feed_forward_layers
from ..base import LikelihoodHead, TemperatureHead, uniform_noise


@part
class Bins(LikelihoodHead, TemperatureHead):
    """Head that divides the range of each action component into bins, and predicts which bin.

    The density is constant within a bin. A plan is the center of the chosen bin. Steps are independent given the
    observation.

    Args:
        n_bins: Number of bins of each component.
        edges: Where bins part: ``"uniform"`` between the smallest and the largest value in the data, or ``"quantile"``
            with equally many values in each.
        autoregressive: True predicts each component from the components before it, so that components are drawn
            jointly. False treats them as independent.
        width: Width of the layers that join the components. For `autoregressive`.
        temperature: 0 plans the most likely bin, 1 samples from the distribution.

    References:
        Metz et al. (2017), Discrete Sequential Prediction of Continuous Actions for Deep RL, arXiv:1705.05035.
        Brohan et al. (2022), RT-1: Robotics Transformer for Real-World Control at Scale, arXiv:2212.06817 (256
        uniform bins).
    """

    n_bins: Annotated[int, AtLeast(2)] = 32
    edges: Literal["uniform", "quantile"] = "uniform"
    autoregressive: bool = True
    width: Annotated[int, AtLeast(1)] = 64
    temperature: Annotated[float, AtLeast(0)] = 1.0

    def build(self, trunk, coded_dim, spec):
        outputs = self.width if self.autoregressive else coded_dim * self.n_bins
        return _BinNet(trunk.build(0, outputs, 0, spec), coded_dim, self)

    def fit(self, net, pairs):
        actions = np.concatenate([action[mask].double().cpu().numpy() for _, action, mask in pairs()])
        share = np.linspace(0, 1, self.n_bins + 1)
        low, high = actions.min(0), actions.max(0)
        edges = low + share[:, None] * (high - low) if self.edges == "uniform" else np.quantile(actions, share, axis=0)
        # A constant component, and repeated values, keep bins of positive width, in which their density is finite.
        reach = high - low
        least = np.where(reach > 0, np.maximum(1e-3 * np.minimum(reach, 1), 1e-6 * reach), 1e-3) / self.n_bins
        widths = np.maximum(np.diff(edges, axis=0), least)
        edges = edges[0] + np.concatenate([np.zeros_like(edges[:1]), widths.cumsum(0)])
        net.edges.copy_(torch.from_numpy(edges.T))

    def loss(self, net, context, action, mask, rng):
        """Returns the negative log-density of each step, (B, H)."""
        features = net.trunk(action[..., :0], action[..., :0], context)
        centers, total = (net.edges[:, 1:] + net.edges[:, :-1]) / 2, torch.zeros_like(action[..., 0])
        chosen = []
        for i in range(action.shape[-1]):
            bin_number = torch.bucketize(action[..., i].contiguous(), net.edges[i, 1:-1])
            log_p = net.component_logits(features, chosen, i).log_softmax(-1)
            density = log_p.gather(-1, bin_number.unsqueeze(-1)).squeeze(-1)
            total = total + density - net.edges[i].diff()[bin_number].log()
            chosen.append(centers[i][bin_number])
        return -total

    def sample(self, net, context, noise):
        uniform = uniform_noise(noise)
        features = net.trunk(noise[..., :0], noise[..., :0], context)
        centers, chosen = (net.edges[:, 1:] + net.edges[:, :-1]) / 2, []
        for i in range(noise.shape[-1]):
            log_p = net.component_logits(features, chosen, i).log_softmax(-1)
            if self.temperature:
                p = (log_p / self.temperature).softmax(-1).cumsum(-1)
                bin_number = (uniform[..., i, None] > p[..., :-1]).sum(-1)
            else:
                bin_number = log_p.argmax(-1)
            chosen.append(centers[i][bin_number])
        return torch.stack(chosen, -1)


class _BinNet(nn.Module):
    def __init__(self, trunk, coded_dim, config: Bins):
        super().__init__()
        self.trunk, self.n_bins = trunk, config.n_bins
        self.register_buffer("edges", torch.linspace(-1, 1, config.n_bins + 1).repeat(coded_dim, 1))
        self.layers = nn.ModuleList(
            feed_forward_layers((config.width + i, config.width, config.n_bins), "silu")
            for i in range(coded_dim)) if config.autoregressive else None

    def component_logits(self, features, chosen, i):
        """Returns the logits of component i, (B, H, n_bins), given the values of the earlier components."""
        if self.layers is None:
            return features[..., i * self.n_bins:(i + 1) * self.n_bins]
        return self.layers[i](torch.cat([features, *(c.unsqueeze(-1) for c in chosen)], -1))
