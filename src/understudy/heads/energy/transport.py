"""Pick and place in an image (Transporter networks): where to pick, and where to place with which rotation."""

from __future__ import annotations

import math
from typing import Annotated, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import AtLeast, ConfigError, Context, HeadSpec, part
from ...nets.rotation import RotationConvNet, conv_net, disc_mask, rotation_operators
from ..base import DeterministicHead

COMPONENTS = ("pick.x", "pick.y", "place.x", "place.y", "turn")


@part
class Transport(DeterministicHead):
    """Head for one motion that picks an object and places it elsewhere, turned.

    The target has five components: pick.x, pick.y, place.x and place.y, where -1 and 1 are the edges of the image and y
    goes up, and the turn of the object from pick to place, where -1 and 1 are half a turn clockwise and
    counterclockwise. The codec leaves it as it is (``Normalizer(target="identity")``), and the encoder is a
    `PixelEncoder` of one square image. The trunk is not used, because the networks are convolutions.

    A network scores each pixel as a place to pick. The crop around the pick is turned into `n_copies` rotated copies.

    Features of each copy are a kernel, and its cross-correlation with features of the scene scores each pixel as the
    place for this rotation. (An equivariant network reads the crop once, and its features are rotated.) With
    `max_frequency`, the copies are Fourier transformed along the rotations, and the correlation is of coefficients:
    their inverse transform scores all `n_angles` angles, also angles between two copies. Position and angle of the
    place have one joint distribution.

    Args:
        crop: Width and height of the crop in pixels, odd. What is outside the largest disc in it is not read.
        n_copies: Number of rotated copies of the crop.
        max_frequency: Highest frequency along the rotations, below half the number of copies. None scores only the
            angles of the copies (Transporter networks).
        n_angles: Number of angles that are scored. Without frequencies it is the number of copies.
        equivariant: Use networks that turn with the image (`RotationConvNet`, with as many rotations as `n_rotations`).
        n_rotations: Number of rotations of these networks.
        hidden: Channels of the hidden layers, for each rotation if there are rotations.
        features: Number of features that are correlated.
        kernel: Width and height of the convolutions, odd.

    References:
        Zeng et al. (2020), Transporter Networks: Rearranging the Visual World for Robotic Manipulation,
        arXiv:2010.14406.
        Huang et al. (2024), Fourier Transporter: Bi-Equivariant Robotic Manipulation in 3D, arXiv:2401.12046, whose
        gripper also has an angle when it picks.
    """

    crop: Annotated[int, AtLeast(1)] = 17
    n_copies: Annotated[int, AtLeast(1)] = 8
    max_frequency: Annotated[int | None, AtLeast(0)] = 3
    n_angles: Annotated[int, AtLeast(1)] = 48
    equivariant: bool = True
    n_rotations: Annotated[int, AtLeast(1)] = 8
    hidden: Annotated[tuple[int, ...], AtLeast(1)] = (4, 4)
    features: Annotated[int, AtLeast(1)] = 4
    kernel: Annotated[int, AtLeast(1)] = 5

    def __post_init__(self):
        if not self.crop % 2 or not self.kernel % 2:
            raise ConfigError(f"crop={self.crop} and kernel={self.kernel} must be odd, because they have a middle",
                              where="Transport", hint="use odd numbers")
        if self.max_frequency is None and self.n_angles != self.n_copies:
            raise ConfigError(f"{self.n_copies} copies cannot score {self.n_angles} angles without frequencies",
                              where="Transport.n_angles", hint=f"use n_angles={self.n_copies}, or a max_frequency")
        if self.max_frequency is not None and 2 * self.max_frequency >= self.n_copies:
            raise ConfigError(f"{self.n_copies} copies do not determine frequencies up to {self.max_frequency}",
                              where="Transport.max_frequency", hint="use a frequency below half the number of copies")

    def build(self, trunk, coded_dim, spec):
        side = math.isqrt(spec.tokens)
        if coded_dim != len(COMPONENTS) or spec.horizon != 1 or spec.num_classes:
            raise ConfigError(f"the target has {coded_dim} components and {spec.horizon} steps, but one motion has "
                              f"the components {', '.join(COMPONENTS)}", where="Transport",
                              hint="use actions of this form, and a horizon of 1")
        if side * side != spec.tokens or side < self.crop:
            raise ConfigError(f"the encoder gives {spec.tokens} tokens, not a square image of {self.crop} x "
                              f"{self.crop} pixels or more", where="Transport", hint="use a PixelEncoder of one square "
                              "image, and a smaller crop")
        return TransportNet(self, side, spec)

    def loss(self, net, context, action, mask, rng):
        """Returns the cross-entropy of the pick and of the place, (B, 1)."""
        net, action = cast(TransportNet, net), action[:, 0]
        scene = net.scene(context)
        pick, place = net.pixel(action[:, :2]), net.pixel(action[:, 2:4])
        angle = (action[:, 4] / 2 * self.n_angles).round().long() % self.n_angles
        losses = F.cross_entropy(net.pick_logits(scene), pick, reduction="none")
        losses = losses + F.cross_entropy(net.place_logits(scene, pick).flatten(1), angle * net.side**2 + place,
                                          reduction="none")
        return losses.unsqueeze(1)

    def sample(self, net, context, noise):
        net = cast(TransportNet, net)
        scene = net.scene(context)
        pick = net.pick_logits(scene).argmax(-1)
        best = net.place_logits(scene, pick).flatten(1).argmax(-1)
        turn = torch.div(best, net.side**2, rounding_mode="floor").to(scene.dtype) * 2 / self.n_angles
        turn = torch.where(turn >= 1, turn - 2, turn).unsqueeze(1)
        return torch.cat([net.position(pick), net.position(best % net.side**2), turn], 1).unsqueeze(1)


class TransportNet(nn.Module):
    """The networks of `Transport`.

    Args:
        side: Width and height of the image in pixels (S).
    """

    rotations: Tensor
    inside: Tensor
    analysis: Tensor
    synthesis: Tensor

    def __init__(self, config: Transport, side: int, spec: HeadSpec):
        super().__init__()
        self.config, self.side = config, side
        self.pick_net, self.scene_net, self.crop_net = (
            self.build_net(spec.width, outputs) for outputs in (1, config.features, config.features))
        self.register_buffer("rotations", rotation_operators(config.crop, config.n_copies), persistent=False)
        copies, angles = (2 * math.pi * torch.arange(n) / n for n in (config.n_copies, config.n_angles))
        if config.max_frequency is None:
            analysis = synthesis = torch.eye(config.n_copies)
        else:
            order = torch.arange(config.max_frequency + 1)
            analysis, synthesis = (torch.cat([(order * at[:, None]).cos(), (order[1:] * at[:, None]).sin()], 1)
                                   for at in (copies, angles))
            factors = torch.where(torch.arange(analysis.shape[1]) > 0, 2.0, 1.0)
            analysis = (analysis * factors / config.n_copies).T
        self.register_buffer("analysis", analysis, persistent=False)  # (coefficients, copies)
        self.register_buffer("synthesis", synthesis, persistent=False)  # (angles, coefficients)
        self.register_buffer("inside", disc_mask(config.crop), persistent=False)

    def build_net(self, inputs: int, outputs: int) -> nn.Module:
        """Returns a network from images to feature maps."""
        c = self.config
        if c.equivariant:
            return RotationConvNet(inputs, c.hidden, outputs, c.n_rotations, c.kernel)
        return conv_net(inputs, c.hidden, outputs, c.kernel)

    def scene(self, context: Context) -> Tensor:
        """Returns the image of the scene, (B, C, S, S)."""
        return (context.tokens * context.mask.unsqueeze(-1)).transpose(1, 2).unflatten(-1, (self.side, self.side))

    def pixel(self, position: Tensor) -> Tensor:
        """Returns the number of the pixel at a position (B, 2), (B,). Rows of the image go downwards."""
        column, row = ((torch.stack([position[:, 0], -position[:, 1]]) + 1) / 2 * self.side).floor().long().clamp(
            0, self.side - 1)
        return row * self.side + column

    def position(self, pixel: Tensor) -> Tensor:
        """Returns the position of the middle of a pixel, (B, 2)."""
        row, column = torch.div(pixel, self.side, rounding_mode="floor"), pixel % self.side
        return torch.stack([column + 0.5, self.side - row - 0.5], 1) * 2 / self.side - 1

    def pick_logits(self, scene: Tensor) -> Tensor:
        """Returns the scores of the pixels for picking, (B, S * S)."""
        return self.pick_net(scene).flatten(1)

    def crops(self, scene: Tensor, pick: Tensor) -> Tensor:
        """Returns the crop around each pick, (B, C, crop, crop), with zeros beyond the edge of the image."""
        size = self.config.crop
        padded = F.pad(scene, [size // 2] * 4)
        offsets = torch.arange(size, device=pick.device)
        row, column = torch.div(pick, self.side, rounding_mode="floor"), pick % self.side
        padded_width = self.side + size - 1
        index = ((row[:, None] + offsets)[:, :, None] * padded_width + (column[:, None] + offsets)[:, None]).flatten(1)
        return padded.flatten(2).gather(2, index.unsqueeze(1).expand(-1, scene.shape[1], -1)).unflatten(2, (size, size))

    def kernels(self, scene: Tensor, pick: Tensor) -> Tensor:
        """Returns features of the rotated copies of the crop, (B, copies, features, crop, crop)."""
        crops = self.crops(scene, pick) * self.inside
        if self.config.equivariant:  # the features of a rotated crop are the rotated features
            return self._copies(self.crop_net(crops) * self.inside)
        copies = self._copies(crops)
        return self.crop_net(copies.flatten(0, 1)).unflatten(0, copies.shape[:2]) * self.inside

    def _copies(self, x: Tensor) -> Tensor:
        """Returns rotated copies of images (B, D, crop, crop), (B, copies, D, crop, crop)."""
        return torch.einsum("rpq,bcq->brcp", self.rotations, x.flatten(2)).unflatten(-1, x.shape[2:])

    def place_logits(self, scene: Tensor, pick: Tensor) -> Tensor:
        """Returns the joint scores of angle and pixel for placing, (B, angles, S * S)."""
        kernels = torch.einsum("mr,brdxy->bmdxy", self.analysis, self.kernels(scene, pick)).flatten(2)
        patches = F.unfold(self.scene_net(scene), self.config.crop, padding=self.config.crop // 2)
        score = kernels @ patches / math.sqrt(kernels.shape[-1])
        return torch.einsum("am,bmp->bap", self.synthesis, score)
