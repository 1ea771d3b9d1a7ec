"""Encoders with a token for each place of an image: its pixels as they are, or a crop around a point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from ..core import Above, AtLeast, AtMost, Context, UserError, part
from .base import Encoder, EncoderNet
from .encoders import check_unscaled, observed_column


@dataclass(frozen=True)
class PixelEncoder(Encoder):
    """Encoder with one token for each pixel of the newest image, row by row from the top. Nothing is trained.

    Values are 1 - brightness, so that a white background is 0, like what convolutions find beyond the edge.
    """

    def build(self, features, n_obs_steps):
        """Builds the module, whose tokens have the channels of the image. The only input must be a square image."""
        square_images = {name: f for name, f in features.items() if f.kind == "image" and f.shape[0] == f.shape[1]}
        if len(features) != 1 or not square_images:
            raise UserError(f"PixelEncoder reads one square image, and the inputs are {', '.join(features)}.",
                            where="PixelEncoder", hint="Name one square image in PolicyConfig.inputs.")
        return _PixelNet(*square_images.items(), n_obs_steps)


class _PixelNet(EncoderNet):
    def __init__(self, column, n_obs_steps: int):
        super().__init__()
        self.name, feature = column
        self.tokens, self.width = feature.shape[0] * feature.shape[1], feature.shape[2]
        self.token_obs_steps = (n_obs_steps - 1,) * self.tokens

    def forward(self, obs, rng=None):
        x, present = observed_column(obs, self.name)
        tokens = (1 - x[:, -1].float() / 255).flatten(1, 2)
        return Context(tokens, present[:, -1:].expand(tokens.shape[:2]))


@part
class FocusCrop(Encoder):
    """Encoder with convolutions over a square of the newest image around a point.

    The square is divided into cells.

    The color of a cell is the mean over its area. Beyond the edges the image is white. Cells also have their position
    relative to the point, in halves of the square's side. Convolutions of 3 x 3 cells with ReLU follow, without
    pooling. There is one token for each cell, row by row from the top.

    Args:
        at: Column with the point, such as what a detector found. -1 and 1 are the edges of the image, and y goes up.
            The codec must leave it as it is: ``Normalizer(unscaled=...)``. None for the middle of the image.
        side: Side of the square as a fraction of the side of the image. 1 is the whole image, wherever the point is.
        cells: Number of cells along each side.
        channels: Channels of the convolutions. Empty for the cells themselves.

    References:
        Liu et al. (2024), VoxAct-B: Voxel-Based Acting and Stabilizing Policy for Bimanual Manipulation,
        arXiv:2407.04152, which crops voxels.
    """

    at: str | None = "observation.focus"
    side: Annotated[float, Above(0), AtMost(1)] = 0.3
    cells: Annotated[int, AtLeast(1)] = 12
    channels: Annotated[tuple[int, ...], AtLeast(1)] = (32, 32, 32)

    def build(self, features, n_obs_steps):
        """Builds the module. The inputs must be a square image and the column `at`."""
        images = [k for k, f in features.items() if f.kind == "image" and f.shape[0] == f.shape[1]]
        points = [k for k, f in features.items() if f.kind == "vector" and f.shape == (2,)]
        if len(images) != 1 or points != [self.at] * bool(self.at) or len(features) != 1 + len(points):
            raise UserError(f"FocusCrop reads one square image and a point of two numbers, and the inputs are "
                            f"{', '.join(features)}.", where="FocusCrop.at",
                            hint="Name both in PolicyConfig.inputs, and the point in `at`.")
        return _FocusCropNet(self, images[0], features[images[0]].shape, n_obs_steps)

    def check_policy(self, codec, augmentations):
        points = (self.at,) if self.at else ()
        check_unscaled(codec, points, "the point", "it would lie elsewhere in the image", "FocusCrop.at")


class _FocusCropNet(EncoderNet):
    cell: Tensor
    edges: Tensor

    def __init__(self, config: FocusCrop, image: str, shape: tuple[int, ...], n_obs_steps: int):
        super().__init__()
        self.image, self.config, n = image, config, config.cells
        self.register_buffer("cell", (2 * torch.arange(n) + 1) / n - 1, persistent=False)  # middles, left to right
        self.register_buffer("edges", torch.linspace(-1, 1, shape[0] + 1), persistent=False)  # of the pixels
        sizes = (shape[2] + 2, *config.channels)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.tokens, self.width = n * n, sizes[-1]
        self.token_obs_steps = (n_obs_steps - 1,) * self.tokens

    def forward(self, obs, rng=None):
        image, mask = observed_column(obs, self.image)
        image = 1 - image[:, -1].float() / 255
        point = torch.zeros_like(image[:, 0, 0, :1]).expand(-1, 2)  # not by the number of rows, which ONNX would fix
        if self.config.at:
            point, is_seen = observed_column(obs, self.config.at)
            point, mask = point[:, -1].float() * point.new_tensor([1, -1]), mask & is_seen  # rows go downwards
        half, n = self.config.side, self.config.cells
        middle = half * self.cell + (0 * point if half == 1 else point).unsqueeze(-1)  # (B, 2, n)
        low, high = middle.unsqueeze(-1) - half / n, middle.unsqueeze(-1) + half / n
        share = (torch.minimum(high, self.edges[1:]) - torch.maximum(low, self.edges[:-1])).clamp(min=0) * n / 2 / half
        colors = torch.einsum("brp,bpqc,bsq->bcrs", share[:, 1], image, share[:, 0])
        across, down = ((middle - point.unsqueeze(-1)) / half).unbind(1)
        x = torch.cat([colors, across[:, None, None].expand_as(colors[:, :1]),
                       -down[:, None, :, None].expand_as(colors[:, :1])], 1)
        for layer in self.layers:
            x = layer(x).relu()
        return Context(x.flatten(2).transpose(1, 2), mask[:, -1:].expand(-1, self.tokens))
