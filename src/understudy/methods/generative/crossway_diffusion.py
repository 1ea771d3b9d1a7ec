from __future__ import annotations

from dataclasses import replace
from math import ceil, gcd
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import AtLeast, Feature, Unsupported, part
from ...learn.method import Method
from ...learn.representation_objectives import NetworkObjective
from ...nets.encoders import observed_column
from ...nets.feed_forward import feed_forward_layers
from ...nets.fourier import FourierFeatures
from ...nets.unet import UNet
from ...nets.vision import Residual
from ..needs import NUMBERS
from ..registry import method
from .diffusion_policy import diffusion_policy

LONGEST = 96  # side of rebuilt pictures, in pixels


class PictureDecoder(nn.Module):
    """Draws pictures of this shape (h, w, C), or smaller ones, from vectors: (N, size) to (N, C, h, w).

    Each quarter of a vector is a pixel. These 2 x 2 pixels, repeated, are half as many along each side as those of the
    picture. Convolutions read them together with Fourier features of the position, and a finer one follows.
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


@part
class BottleneckReconstruction(NetworkObjective):
    """Rebuilds the observation from the first step of a U-Net's bottleneck, in the forward pass of the head's loss.

    What denoises the action must then hold the observation, at every noise level. The target is the whole observation,
    without crops and augmentations. A column's loss is the mean squared error of coded numbers, or of pixels from -1
    to 1. The losses of columns are added. Words, classes and pictures whose features are cached are not rebuilt. Each
    observation step has its channels of the bottleneck.

    Args:
        width: Channels of the convolutions that draw pictures.
        weight: Weight of the loss of each column.

    References:
        Li et al. (2023), Crossway Diffusion: Improving Diffusion-based Visuomotor Policy via Self-supervised Learning,
        arXiv:2307.01849.
    """

    width: Annotated[int, AtLeast(1)] = 32
    weight: float = 0.1
    captures = ("trunk_bottleneck",)

    def networks(self, policy):
        trunk, own_name = policy.config.trunk, type(self).__name__
        if not isinstance(trunk, UNet):
            raise Unsupported(f"{type(trunk).__name__} has no bottleneck", where=own_name, hint="use the trunk UNet()")
        if not (features := _rebuilt(policy)):
            raise Unsupported(f"there are no numbers or pictures to rebuild in {', '.join(policy.inputs)}",
                              where=own_name, hint="read one of either, whose features are not cached")
        size = trunk.widths[-1] // (4 * policy.window.n_obs_steps) * 4
        return {"decoders": nn.ModuleList(
            PictureDecoder(size, f.shape, self.width) if f.kind == "image" else
            feed_forward_layers((size, 4 * f.size, 2 * f.size, f.size), "silu") for f in features.values())}

    def loss(self, networks, policy, batch, rng, captured):
        coded, n_steps, losses = policy.codec.encode_obs(batch.obs), policy.window.n_obs_steps, []
        first = captured["trunk_bottleneck"][:, 0]
        parts = first[:, :first.shape[1] // (4 * n_steps) * 4 * n_steps].reshape(len(first) * n_steps, -1)
        for (name, f), decoder in zip(_rebuilt(policy).items(), networks.decoders, strict=True):
            target, present = observed_column(coded, name)
            target = target.flatten(0, 1)
            if f.kind == "image":
                target = target.permute(0, 3, 1, 2) / 127.5 - 1
                target = target if target.shape[2:] == decoder.shape else F.adaptive_avg_pool2d(target, decoder.shape)
            rebuilt = decoder(parts).view(len(batch), -1, n_steps, target[0].numel())  # over draws of noise
            error = (rebuilt - target.reshape(len(batch), 1, n_steps, -1)).square().mean((1, 3)) * present
            losses.append(error.sum(1) / present.sum(1).clamp(min=1))
        return self.weight * torch.stack(losses).sum(0)


def _rebuilt(policy) -> dict[str, Feature]:
    """The inputs of numbers and pictures. Pictures whose features are cached are not in batches."""
    return {name: f for name, f in policy.features.items() if name in policy.inputs
            and f.kind in ("vector", "image") and name not in policy.encoder.cached_features}


@method("Li et al. 2023, arXiv 2307.01849, with smaller networks, and the action as what is predicted", rows=("269",),
        needs=(NUMBERS,),
        when="if a diffusion policy sees pictures; in its claim it succeeded as often without the decoder.")
def crossway_diffusion(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8, weight: float = 0.1
                       ) -> Method:
    """Diffusion policy whose U-Net must also rebuild the observation from what it makes of noisy actions.

    Args:
        weight: Weight of the loss of each rebuilt column.
    """
    base = diffusion_policy("unet", n_obs_steps, horizon, n_action_steps)
    losses = (BottleneckReconstruction(weight=weight),)
    return replace(base, learner=replace(base.learner, auxiliary_losses=losses))
