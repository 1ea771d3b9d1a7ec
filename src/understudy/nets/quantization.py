"""Quantization: turns vectors into numbers of codes, from a learned codebook or from rounded components."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Generator, Tensor, nn

from ..core import AtLeast, ConfigError, part

MARGIN = 1e-3  # by which the outermost levels can be passed, so that rounding reaches them


@part
class FSQ:
    """Finite scalar quantization: each component of a vector is rounded to one of a few levels.

    A code is the vector of rounded components, which lie in [-1, 1]. There is no codebook and nothing to learn, so no
    loss is needed to keep codes in use. If the number of levels is even, the components are shifted by half a level
    before they are rounded. Otherwise one more level would be reached.

    Args:
        levels: Number of levels of each component. Their product is the number of codes.

    References:
        Mentzer et al. (2023), Finite Scalar Quantization: VQ-VAE Made Simple, arXiv:2309.15505.

    Example:
        >>> FSQ((3, 5, 4)).quantize(torch.tensor([0.25, 0.6, -7.0]))
        tensor([ 0.0000,  0.5000, -1.0000])
    """

    levels: Annotated[tuple[int, ...], AtLeast(2)]

    def __post_init__(self):
        if not self.levels:
            raise ConfigError("there are no levels, so a code has no components", where="FSQ.levels",
                              hint="give the number of levels of each component, such as (8, 8, 8, 6, 5)")

    def quantize(self, x: Tensor) -> Tensor:
        """Bounds and rounds each component of vectors (..., D) of any size. The codes are from -1 to 1.

        The gradient is the gradient of the bounded, unrounded vector (straight-through).
        """
        n = self._counts(x)
        half, offset = (n - 1) * (1 + MARGIN) / 2, (n % 2 == 0) * 0.5
        bounded = (x + (offset / half).atanh()).tanh() * half - offset
        return (bounded + (bounded.round() - bounded).detach()) / n.div(2, rounding_mode="floor")

    def to_levels(self, code: Tensor) -> Tensor:
        """Returns the number of the level of each component of codes (..., D), from 0, (..., D) int64."""
        middle = self._counts(code).div(2, rounding_mode="floor")
        return (code * middle + middle).round().long()

    def from_levels(self, level: Tensor) -> Tensor:
        """Returns the codes, (..., D) float32, of numbers of levels from 0, (..., D): the inverse of `to_levels`."""
        middle = self._counts(level).div(2, rounding_mode="floor")
        return (level - middle) / middle

    @property
    def n_codes(self) -> int:
        """The number of codes."""
        return math.prod(self.levels)

    def _counts(self, like: Tensor) -> Tensor:
        return torch.tensor(self.levels, dtype=torch.float32, device=like.device)


class ResidualVQ(nn.Module):
    """Residual vector quantization, with a learned codebook for each level.

    The first level quantizes the vector, and each further level quantizes what the levels before it left over. The
    codebooks are moving averages of the vectors that they stand for, so no gradient reaches them.

    Args:
        n_levels: Number of codebooks, L.
        n_codes: Number of codes of each codebook, K.
        dim: Width of the vectors, D.

    References:
        van den Oord et al. (2017), Neural Discrete Representation Learning, arXiv:1711.00937 (moving averages).
        Zeghidour et al. (2021), SoundStream: An End-to-End Neural Audio Codec, arXiv:2107.03312 (residual levels).
    """

    codes: Tensor
    counts: Tensor

    def __init__(self, n_levels: int, n_codes: int, dim: int):
        super().__init__()
        self.register_buffer("codes", torch.zeros(n_levels, n_codes, dim))
        self.register_buffer("counts", torch.zeros(n_levels, n_codes))  # moving averages; 0 before the first update

    def encode(self, x: Tensor) -> Tensor:
        """Returns the numbers of the codes nearest to vectors (B, D), level by level, (B, L) int64."""
        chosen = []
        for codebook in self.codes:
            chosen.append(_nearest(x, codebook))
            x = x - codebook[chosen[-1]]
        return torch.stack(chosen, 1)

    def decode(self, index: Tensor) -> Tensor:
        """Returns the sums of codes, (B, D), given the number of a code of each level, (B, L)."""
        parts = [codebook[number] for codebook, number in zip(self.codes, index.unbind(1), strict=True)]
        return torch.stack(parts).sum(0)

    def commitment(self, x: Tensor, index: Tensor) -> Tensor:
        """Returns the squared distance of each level's vector from its code, summed over the levels, (B,).

        Args:
            x: Vectors, (B, D). Gradients reach them.
            index: The result of `encode`, (B, L).
        """
        total = torch.zeros_like(x[:, 0])
        for codebook, number in zip(self.codes, index.unbind(1), strict=True):
            x = x - codebook[number]
            total = total + x.square().mean(1)
        return total

    @torch.no_grad()
    def update(self, x: Tensor, decay: float, rng: Generator, dead_fraction: float = 1 / 32) -> None:
        """Moves the codes towards the vectors that they stand for.

        A code that hardly stands for any vector is replaced with a random vector of the batch. In the first update, all
        codes are replaced so.

        Args:
            x: Vectors, (B, D).
            decay: Fraction of the moving averages that an update keeps.
            rng: Source of the replacements, on the CPU.
            dead_fraction: A code is replaced if its average count is below this fraction of the mean count ``B / K``.
        """
        n_codes = self.codes.shape[1]
        for codebook, counts in zip(self.codes, self.counts, strict=True):
            dead = counts < dead_fraction * len(x) / n_codes
            replacement = x[torch.randint(len(x), (n_codes,), generator=rng).to(x.device)]
            codebook.copy_(torch.where(dead.unsqueeze(1), replacement, codebook))
            counts.copy_(torch.where(dead, len(x) / n_codes, counts))
            number = _nearest(x, codebook)
            one_hot = nn.functional.one_hot(number, n_codes).to(x.dtype)
            sums = decay * counts.unsqueeze(1) * codebook + (1 - decay) * one_hot.T @ x
            counts.mul_(decay).add_(one_hot.sum(0), alpha=1 - decay)
            codebook.copy_(sums / counts.unsqueeze(1))
            x = x - codebook[number]


def _nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """Returns the row of the codebook (K, D) that is nearest to each vector (B, D)."""
    return (codebook.square().sum(1) - 2 * x @ codebook.T).argmin(1)
