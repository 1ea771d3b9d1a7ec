"""Networks that reconstruct observations from vectors, and their error."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, gcd

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import Feature, Unsupported
from ...nets.encoders import observed_column
from ...nets.feed_forward import feed_forward_layers
from ...nets.fourier import FourierFeatures
from ...nets.vision import Residual
from ...policy import Policy

LONGEST = 96  # side of rebuilt pictures, in pixels


class PictureDecoder(nn.Module):
    """Network that draws pictures of shape (h, w, C), or smaller ones, from vectors: (N, size) to (N, C, h, w).

    Each quarter of a vector is a pixel. These 2 x 2 pixels are repeated to a map of half the width and height of the
    picture. Convolutions read the map together with Fourier features of the position, and a convolution at full size
    follows.
    """

    def __init__(self, size: int, shape: tuple[int, ...], width: int):
        super().__init__()
        self.shape = tuple(ceil(side * min(1, LONGEST / max(shape[:2]))) for side in shape[:2])
        self.fourier, group = FourierFeatures(3), lambda n: nn.GroupNorm(gcd(8, n), n)
        self.coarse = nn.Sequential(Residual(size // 4 + 12, width, group, 1), Residual(width, width, group, 1))
        self.fine = nn.Conv2d(width, shape[2], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h, w = (ceil(side / 4) for side in self.shape)
        x = x.unflatten(1, (-1, 2, 2)).repeat(1, 1, h, w)
        grid = torch.cartesian_prod(*(torch.linspace(-1, 1, 2 * side, device=x.device) for side in (h, w)))
        at = self.fourier(grid).T.unflatten(1, (2 * h, 2 * w)).expand(len(x), -1, -1, -1)
        return self.fine(F.interpolate(self.coarse(torch.cat([x, at], 1)), self.shape))


class ObservationDecoders(nn.ModuleList):
    """A network for each input of numbers and for each camera of a policy. Cached features are not drawn.

    Args:
        size: Width of the vectors that are read. A multiple of 4.
        width: Channels of the convolutions that draw pictures.
        where: What an error names.

    Raises:
        Unsupported: The policy has no such input.
    """

    def __init__(self, policy: Policy, size: int, width: int, where: str):
        if not (features := _drawn(policy)):
            raise Unsupported(f"there are no numbers or pictures to rebuild in {', '.join(policy.inputs)}",
                              where=where, hint="read one of either, whose features are not cached")
        super().__init__(
            PictureDecoder(size, f.shape, width) if f.kind == "image" else
            feed_forward_layers((size, 4 * f.size, 2 * f.size, f.size), "silu") for f in features.values())

    def loss(self, policy: Policy, obs: Mapping[str, Tensor], vectors: Tensor) -> Tensor:
        """Returns the sum over columns of the mean squared error of coded numbers, and of pixels from -1 to 1, (B,).

        Args:
            vectors: What each step of the observation is drawn from, N times: (B, N, To, size).
        """
        coded, (n, _, n_steps, _), losses = policy.codec.encode_obs(obs), vectors.shape, []
        for (name, f), decoder in zip(_drawn(policy).items(), self, strict=True):
            target, present = observed_column(coded, name)
            target = target.flatten(0, 1)
            if f.kind == "image":
                target = target.permute(0, 3, 1, 2) / 127.5 - 1
                target = target if target.shape[2:] == decoder.shape else F.adaptive_avg_pool2d(target, decoder.shape)
            drawn = decoder(vectors.flatten(0, 2)).view(n, -1, n_steps, target[0].numel())
            error = (drawn - target.reshape(n, 1, n_steps, -1)).square().mean((1, 3)) * present
            losses.append(error.sum(1) / present.sum(1).clamp(min=1))
        return torch.stack(losses).sum(0)


def _drawn(policy: Policy) -> dict[str, Feature]:
    """Returns the inputs that are reconstructed: numbers, and pictures whose features are not cached."""
    return {name: f for name, f in policy.features.items() if name in policy.inputs
            and f.kind in ("vector", "image") and name not in policy.encoder.cached_features}
