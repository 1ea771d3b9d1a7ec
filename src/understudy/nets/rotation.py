"""Convolutions that commute with rotations of the image by multiples of 360 degrees / n (the cyclic group C_n)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def disc_mask(size: int) -> Tensor:
    """Returns a mask of the pixels of the largest disc in a square of `size` x `size` pixels."""
    coordinates = torch.arange(size) - (size - 1) / 2
    return (coordinates[:, None] ** 2 + coordinates**2).sqrt() <= size / 2


def rotation_operators(size: int, n: int) -> Tensor:
    """Returns the matrices that rotate a square image about its center, with bilinear interpolation.

    Pixels outside the largest disc become 0. Rotations by 90 degrees only move pixels.

    Args:
        size: Width and height of the image in pixels.
        n: Number of rotations: by 0, 1/n, 2/n, ... of a full turn, counterclockwise. Rows of an image go downwards.

    Returns:
        (n, size * size, size * size). `operators[i] @ image.flatten()` is the image after i rotations.
    """
    coordinates = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    x, y = coordinates.repeat(size), -coordinates.repeat_interleave(size)  # of the pixels, row by row; y goes up
    inside = disc_mask(size).flatten()
    operators = torch.zeros(n, size * size, size * size, dtype=torch.float64)
    for i in range(n):
        cos, sin = math.cos(2 * math.pi * i / n), math.sin(2 * math.pi * i / n)
        source_x, source_y = cos * x + sin * y, cos * y - sin * x  # where a pixel was before the rotation
        # Rounded, so that a rotation by 90 degrees does not read neighbors with weights of 1e-16.
        column, row = ((v + (size - 1) / 2).round(decimals=9) for v in (source_x, -source_y))
        floor_column, floor_row = column.floor(), row.floor()
        for dx, dy in ((0, 0), (0, 1), (1, 0), (1, 1)):
            weight = (1 - (column - floor_column - dx).abs()) * (1 - (row - floor_row - dy).abs())
            near_column, near_row = floor_column + dx, floor_row + dy
            exists = inside & (near_column >= 0) & (near_column < size) & (near_row >= 0) & (near_row < size)
            source = (near_row.clamp(0, size - 1) * size + near_column.clamp(0, size - 1)).long()
            operators[i, torch.arange(size * size), source] += weight * exists
    return operators.float() * inside.float()


class RotationConv(nn.Module):
    """Convolution of a feature for each rotation (a regular representation of C_n), followed by a bias.

    Output r is the correlation with the kernel rotated r times. If the input has no rotations, it is lifted.

    Args:
        inputs: Number of input channels, for each rotation if there are rotations.
        outputs: Number of output channels for each rotation.
        n_rotations: Number of rotations n.
        size: Width and height of the kernel, odd.
        lift: Whether the input has no rotations.
    """

    operators: Tensor

    def __init__(self, inputs: int, outputs: int, n_rotations: int, size: int, lift: bool):
        super().__init__()
        self.n, self.size, self.lift = n_rotations, size, lift
        read = inputs * (1 if lift else n_rotations)
        bound = 1 / math.sqrt(read * size * size)
        self.weight = nn.Parameter((2 * torch.rand(outputs, inputs, read // inputs, size * size) - 1) * bound * 3**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("operators", rotation_operators(size, n_rotations), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolves (B, inputs * n, S, S), or (B, inputs, S, S) if it is lifted, to (B, outputs * n, S, S)."""
        rotated = torch.einsum("rpq,oigq->roigp", self.operators, self.weight)
        if not self.lift:  # a rotation of the input also moves its rotations, by one place each
            rotated = torch.stack([kernel.roll(r, 2) for r, kernel in enumerate(rotated)])
        kernels = rotated.transpose(0, 1).flatten(0, 1).flatten(1, 2).unflatten(-1, (self.size, self.size))
        return F.conv2d(x, kernels, self.bias.repeat_interleave(self.n), padding=self.size // 2)


class RotationConvNet(nn.Module):
    """Convolutional network whose output turns with its input: f(R x) = R f(x).

    It is exact for rotations by multiples of 90 degrees, if n is a multiple of 4, and approximate for all other angles.

    Args:
        hidden: Channels of the hidden layers, for each rotation.
        outputs: Number of output channels, which have no direction: the maximum over the rotations.
        size: Width and height of the kernels, odd.
    """

    def __init__(self, inputs: int, hidden: tuple[int, ...], outputs: int, n_rotations: int, size: int):
        super().__init__()
        sizes = (inputs, *hidden, outputs)
        self.n = n_rotations
        self.layers = nn.ModuleList(RotationConv(a, b, n_rotations, size, lift=i == 0)
                                    for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, inputs, S, S) to (B, outputs, S, S)."""
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x).relu()
        return last(x).unflatten(1, (-1, self.n)).amax(2)


def conv_net(inputs: int, hidden: tuple[int, ...], outputs: int, size: int) -> nn.Sequential:
    """Builds a convolutional network without pooling, whose output has the size of its input.

    Args:
        size: Width and height of the kernels, odd.
    """
    sizes = (inputs, *hidden, outputs)
    layers: list[nn.Module] = []
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Conv2d(a, b, size, padding=size // 2), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
