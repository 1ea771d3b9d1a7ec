"""Coarse-to-fine Q: values of action intervals, which are narrowed down level by level."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core import AtLeast, ConfigError, Context, Unsupported, part
from ..base import DeterministicHead, HeadNet


@part
class CoarseToFineQ(DeterministicHead):
    """Value head that zooms into the range of the actions in the data, for each component of each step on its own.

    A level divides an interval into bins and gives each a distribution of returns over fixed atoms. The bin with the
    highest mean is the interval of the next level. A plan is the center of the last one. The network reads the centers
    of the present intervals of all components and steps, and the number of the level.

    The loss clones: the distribution of the demonstrated action's bin shall dominate the distributions of all other
    bins, and its mean shall be higher by `margin`.

    Args:
        n_atoms: Number of returns, equally spaced from `low` to `high`. Larger returns count as `high`, and smaller
            ones as `low`.

    References:
        Seo et al. (2024), Continuous Control with Coarse-to-fine Reinforcement Learning, arXiv:2407.07787.
        Bellemare et al. (2017), A Distributional Perspective on Reinforcement Learning, arXiv:1707.06887.
    """

    n_levels: Annotated[int, AtLeast(1)] = 3
    n_bins: Annotated[int, AtLeast(2)] = 5
    n_atoms: Annotated[int, AtLeast(2)] = 51
    low: float = -2.0
    high: float = 2.0
    margin: Annotated[float, AtLeast(0)] = 0.01

    def __post_init__(self):
        if self.low >= self.high:
            raise ConfigError(f"low ({self.low}) must be below high ({self.high})", where="CoarseToFineQ",
                              hint="give the least and the greatest return that an episode can have")

    def build(self, trunk, coded_dim, spec):
        if spec.num_classes or not spec.bound or spec.bound == math.inf:
            raise Unsupported("bins divide a range of actions, and these have none", where="CoarseToFineQ",
                              hint='use actions that are numbers, with the codec Normalizer(target="minmax")')
        outputs = coded_dim * (self.n_bins + 1) * self.n_atoms
        return HeadNet(trunk=trunk.build(coded_dim + self.n_levels, outputs, 0, spec), bound=spec.bound, dim=coded_dim)

    def loss(self, net, context, action, mask, rng):
        """Returns the dominance and margin loss of each step, (B, H)."""
        return self.cloning_loss(*self.evaluate(net, context, action))

    def cloning_loss(self, log_probs: Tensor, chosen: Tensor) -> Tensor:
        """Returns the dominance and margin loss of each step, (B, H), given what `evaluate` returns."""
        own = of_chosen(log_probs, chosen).unsqueeze(-2)
        above = (own.exp().cumsum(-1) - log_probs.exp().cumsum(-1)).clamp(min=0).sum(-1)
        below = (self.margin - self.mean(own) + self.mean(log_probs)).clamp(min=0)
        return (above + below).mean((2, 3, 4))

    def evaluate(self, net, context: Context, action: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the log-probabilities of the atoms of all bins next to coded actions, and the bins of the actions.

        Args:
            action: Coded actions, (B, H, A).

        Returns:
            Log-probabilities, (B, H, levels, A, bins, atoms), and numbers of bins, (B, H, levels, A).
        """
        center, width, centers, bins = torch.zeros_like(action), 2 * net.bound, [], []
        for _ in range(self.n_levels):
            width /= self.n_bins
            centers.append(center)
            bins.append(((action - center) / width + self.n_bins / 2).floor().clamp(0, self.n_bins - 1))
            center = center + (bins[-1] - (self.n_bins - 1) / 2) * width
        levels = torch.arange(self.n_levels, device=action.device).repeat(len(action))
        log_probs = self._log_probs(net, context.repeat(self.n_levels), torch.stack(centers, 1).flatten(0, 1), levels)
        return log_probs.unflatten(0, (-1, self.n_levels)).transpose(1, 2), torch.stack(bins, 2).long()

    def sample(self, net, context, noise):
        """Zooms into the bins with the highest mean."""
        center, width = F.pad(noise, (0, net.dim)), 2 * net.bound
        for level in range(self.n_levels):
            width /= self.n_bins
            levels = torch.full_like(center[:, 0, 0], level, dtype=torch.int64)
            best = self.mean(self._log_probs(net, context, center, levels)).argmax(-1)
            center = center + (best - (self.n_bins - 1) / 2) * width
        return center

    def _log_probs(self, net, context: Context, center: Tensor, levels: Tensor) -> Tensor:
        """Returns the log-probabilities of return atoms of the bins around centers (B, H, A), (B, H, A, bins, atoms).
        """
        level = F.one_hot(levels, self.n_levels).to(center).unsqueeze(1).expand(-1, center.shape[1], -1)
        inputs = torch.cat([center, level], -1)
        value = net.trunk(inputs, inputs[..., :0], context).unflatten(-1, (net.dim, self.n_bins + 1, self.n_atoms))
        advantage = value[..., 1:, :] - value[..., 1:, :].mean(-2, keepdim=True)
        return (value[..., :1, :] + advantage).log_softmax(-1)

    def mean(self, log_probs: Tensor) -> Tensor:
        """Returns the expected return, (...), of distributions over atoms, (..., atoms)."""
        return (log_probs.exp() * self.atoms(log_probs)).sum(-1)

    def atoms(self, like: Tensor) -> Tensor:
        """Returns the returns that the atoms stand for, (atoms,), with the type and on the device of a tensor."""
        return torch.linspace(self.low, self.high, self.n_atoms, dtype=like.dtype, device=like.device)


def of_chosen(log_probs: Tensor, chosen: Tensor) -> Tensor:
    """Returns the entries of chosen bins, (..., atoms), of log-probabilities (..., bins, atoms)."""
    return log_probs.gather(-2, chosen[..., None, None].expand_as(log_probs[..., :1, :])).squeeze(-2)
