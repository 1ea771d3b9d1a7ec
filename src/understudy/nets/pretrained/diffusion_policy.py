"""The observation encoder of Diffusion Policy as LeRobot builds it, for its weights."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ...core import AtLeast, Context, UserError, part
from ..base import Encoder, EncoderNet
from ..encoders import check_kinds, observed_column
from ..linear import Linear
from ..vision import PixelNormalizer, ResNetBody, crop_to, spatial_softargmax


@part
class DiffusionPolicyEncoder(Encoder):
    """Encoder with one token per observation step: all vectors and the features of all images, side by side.

    Columns stand in the order of the policy's inputs. Values that were not observed become zeros. The features of an
    image are the keypoints of a ResNet-18 after a linear layer and ReLU.

    Args:
        crop: Height and width to which images are cropped, at a random place in training and around the center
            otherwise. None for whole images.
        resize: Height and width to which images are resized before that. None for their own size.
        keypoints: Number of keypoints (spatial soft-argmax).
        group_norm: GroupNorm in the ResNet-18 (16 channels per group). False for BatchNorm with fixed statistics.
        shared: All cameras share one network. Otherwise each has its own.

    References:
        Chi et al. (2023), Diffusion Policy: Visuomotor Policy Learning via Action Diffusion, arXiv:2303.04137.
        Cadene et al. (2024), LeRobot: State-of-the-art Machine Learning for Real-World Robotics in PyTorch.
    """

    crop: Annotated[tuple[int, int] | None, AtLeast(1)] = None
    resize: Annotated[tuple[int, int] | None, AtLeast(1)] = None
    keypoints: Annotated[int, AtLeast(1)] = 32
    group_norm: bool = True
    shared: bool = True

    def build(self, features, n_obs_steps):
        return _DiffusionPolicyEncoderNet(self, features, n_obs_steps)


class _DiffusionPolicyEncoderNet(EncoderNet):
    def __init__(self, config, features, n_obs_steps):
        super().__init__()
        check_kinds("DiffusionPolicyEncoder", features, ("vector", "image"),
                    "Leave the column out of inputs, or use TokenEncoder.")
        self.names, self.shared = tuple(features), config.shared
        self.images = tuple(k for k, f in features.items() if f.kind == "image")
        for name in self.images:
            h, w = config.resize or features[name].shape[:2]
            if config.crop is not None and (config.crop[0] > h or config.crop[1] > w):
                raise UserError(f"The crop of {config.crop[0]} x {config.crop[1]} pixels is larger than the image of "
                                f"{h} x {w} pixels.", where=f"column {name!r}", hint="Use a smaller crop.")
        channels = [features[k].shape[2] for k in self.images]
        if config.shared and len(set(channels)) > 1:
            raise UserError(f"The cameras share one network, but have {sorted(set(channels))} channels.",
                            where="DiffusionPolicyEncoder.shared", hint="Use shared=False.")
        self.pixels = nn.ModuleList(PixelNormalizer(n) for n in channels)
        self.cameras = nn.ModuleList(_CameraNet(config, n) for n in (channels[:1] if config.shared else channels))
        self.tokens, self.token_obs_steps = n_obs_steps, tuple(range(n_obs_steps))
        self.width = sum(2 * config.keypoints if f.kind == "image" else f.size for f in features.values())

    def forward(self, obs, rng=None):
        parts = []
        for name in self.names:
            x, present = observed_column(obs, name)
            if name in self.images:
                number = self.images.index(name)
                image = self.pixels[number](x.flatten(0, 1).permute(0, 3, 1, 2))
                values = self.cameras[0 if self.shared else number](image, rng).unflatten(0, x.shape[:2])
            else:
                values = x.unsqueeze(-1).flatten(2).float()
            parts.append(values * present.unsqueeze(-1))
        tokens = torch.cat(parts, -1)
        return Context(tokens, torch.ones_like(tokens[..., 0], dtype=torch.bool))


class _CameraNet(nn.Module):
    def __init__(self, config, channels):
        super().__init__()
        self.resize, self.crop = config.resize, config.crop
        self.backbone = ResNetBody(channels, fixed=not config.group_norm)
        self.points = nn.Conv2d(512, config.keypoints, 1)
        self.output_layer = Linear(2 * config.keypoints, 2 * config.keypoints)

    def forward(self, image: Tensor, rng: Generator | None) -> Tensor:
        if self.resize is not None:
            image = F.interpolate(image, self.resize, mode="bilinear", antialias=True)
        if self.crop is not None:
            image = crop_to(image, self.crop, rng)
        return F.relu(self.output_layer(spatial_softargmax(self.points(self.backbone(image)))))
