"""Encoders of point clouds: sets of points to one token."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Annotated

from torch import Tensor, nn

from ..core import AtLeast, Schema, UserError, part, role
from .linear import Linear

_CLOUD_NAME = re.compile(r"(?<![a-z])(point_?clouds?|points)(?![a-z])")


class PointEncoder(ABC):
    """Config of an encoder of point clouds. Subclasses are frozen dataclasses."""

    @abstractmethod
    def build(self, channels: int, width: int) -> nn.Module:
        """Builds the module.

        Args:
            channels: Numbers per point: 3 for positions, more with colors, intensities or normals.

        Returns:
            A module from point clouds (N, points, channels) to (N, width). The order of the points does not matter.
        """


@part
class PointNet(PointEncoder):
    """PointNet encoder of 3D Diffusion Policy: an MLP for each point, and the maximum over the points.

    Each linear layer of the MLP is followed by LayerNorm and ReLU. With more channels than positions, such as colors,
    there is one more linear layer, twice as wide as the last. After the maximum, a linear layer with LayerNorm gives
    the token.

    Points that are repeated to fill a cloud of fixed size change nothing. The channels are read as they are, so they
    should be of similar size: positions in m, and colors or intensities from 0 to 1.

    Args:
        widths: Widths of the layers of the MLP.

    References:
        Ze et al. (2024), 3D Diffusion Policy: Generalizable Visuomotor Policy Learning via Simple 3D Representations,
        arXiv:2403.03954.
        Qi et al. (2017), PointNet: Deep Learning on Point Sets for 3D Classification and Segmentation,
        arXiv:1612.00593.
    """

    widths: Annotated[tuple[int, ...], AtLeast(1)] = (64, 128, 256)

    def build(self, channels, width):
        return _PointNet(self, channels, width)


class _PointNet(nn.Module):
    def __init__(self, config, channels, width):
        super().__init__()
        sizes = (channels, *config.widths)
        layers = [part for a, b in zip(sizes, sizes[1:], strict=False)
                  for part in (Linear(a, b), nn.LayerNorm(b), nn.ReLU())]
        size = sizes[-1]
        if channels > 3:
            layers, size = [*layers, Linear(size, 2 * size)], 2 * size
        self.body = nn.Sequential(*layers)
        self.leave = nn.Sequential(Linear(size, width), nn.LayerNorm(width))

    def forward(self, points: Tensor) -> Tensor:
        return self.leave(self.body(points).amax(1))


def point_cloud_columns(features: Schema | None) -> tuple[str, ...]:
    """Returns the observations that look like point clouds.

    They have the shape (points, 3) or (points, 6), or (points, 3 or more) and a name such as `observation.point_cloud`
    or `observation.points`. Other matrices, such as poses, do not look different from clouds with further channels.

    Args:
        features: The columns of the data. None if they are not known yet.
    """
    return tuple(name for name, f in (features or {}).items() if role(name) == "observation" and f.kind == "vector"
                 and len(f.shape) == 2
                 and (f.shape[1] in (3, 6) or f.shape[1] > 3 and _CLOUD_NAME.search(name) is not None))


def check_point_cloud(shape: tuple[int, ...], name: str) -> None:
    """Raises UserError if one row of a column does not have the shape of a point cloud, (points, channels)."""
    if len(shape) != 2 or shape[1] < 2:
        raise UserError(f"A point cloud has the shape (points, channels), and this is {shape}.",
                        where=f"column {name!r}", hint="Leave the column out of TokenEncoder.point_clouds.")
