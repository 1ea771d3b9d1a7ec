"""Augmentations: changes of the observations during training only.

A change that inference needs as well (a crop) belongs to the encoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

import torch
from torch import Generator, Tensor

from ..core import AtLeast, AtMost, Schema, UserError, part
from ..hints import nearest_names


class Augmentation(ABC):
    """Config of an augmentation. Subclasses are frozen dataclasses."""

    changes_images: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, obs: Mapping[str, Tensor], rng: Generator) -> Mapping[str, Tensor]:
        """Returns changed observations of the same shapes. The argument is not modified.

        Args:
            obs: ``{name: (B, To, *feature)}`` as recorded, not coded.
            rng: Source of all randomness, on the device of the observations.
        """

    @property
    def hides(self) -> tuple[str, ...]:
        """Columns that are hidden in some windows, so that a policy also learns to act without them."""
        return ()

    def check_features(self, features: Schema) -> None:
        """Raises UserError if the policy reads no column that this can change. By default all features fit."""


class _ColumnAugmentation(Augmentation):
    """Base class of augmentations that change the columns named by their first field."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    kind: ClassVar[str | None] = None  # kind that the columns must have

    @property
    def columns(self) -> tuple[str, ...]:
        named = getattr(self, fields(self)[0].name)
        return (named,) if isinstance(named, str) else named

    def check_features(self, features):
        usable = [k for k, f in features.items() if self.kind in (None, f.kind)]
        for key in self.columns:
            if key not in usable:
                raise self._refuse(key, usable, features)

    def _refuse(self, key: str, usable: list[str], features: Schema) -> UserError:
        """Builds the error about a column that the policy does not read, or that is of the wrong kind."""
        name, kind_plural = type(self).__name__, f"{self.kind or 'column'}s"
        column_list = ", ".join(f"{k!r} ({f.kind} of shape {f.shape})" for k, f in sorted(features.items()))
        suggestions = nearest_names(key, usable) or usable[:len(usable) == 1]
        problem = f"The policy reads no column {key!r}. It" if key not in features else (
            f"{name} changes {kind_plural}, and {key!r} has the kind {features[key].kind!r}. The policy")
        return UserError(
            f"{problem} reads {column_list or 'nothing'}.", where=f"{name}.{fields(self)[0].name}",
            hint=f"Did you mean {suggestions[0]!r}?" if suggestions else f"Name one of these {kind_plural}." if usable
            else f"Leave the augmentation out: the policy reads no {kind_plural}.")


class _MaskAugmentation(_ColumnAugmentation):
    """Base class of augmentations that hide columns by setting their mask ``"<key>?"`` to False."""

    changes_images: ClassVar[bool] = False  # only the masks

    @property
    def hides(self):
        return self.columns


@part
class ConditionDropout(_MaskAugmentation):
    """Hides a column in a fraction of the windows, all rows at once, by setting ``"<key>?"`` to False.

    The policy then also learns to act without it, for classifier-free guidance or for a sensor that may fail.

    Args:
        p: Fraction of windows.

    References:
        Ho and Salimans (2022), Classifier-Free Diffusion Guidance, arXiv:2207.12598.
    """

    key: str
    p: Annotated[float, AtLeast(0), AtMost(1)] = 0.1

    def __call__(self, obs, rng):
        x = obs[self.key]
        keep = torch.rand(x.shape[0], 1, generator=rng, device=x.device) >= self.p
        return {**obs, self.key + "?": _presence(obs, self.key) & keep}


@dataclass(frozen=True)
class ModalityDropout(_MaskAugmentation):
    """Shows one of several columns in each window, and hides all other columns by setting ``"<key>?"`` to False.

    The policy then learns to act with any one of them, such as a goal that is an observation or a sentence. The column
    is drawn from the columns that are present at the newest row, each with the same probability.

    References:
        Reuss et al. (2024), Multimodal Diffusion Transformer: Learning Versatile Behavior from Multimodal Goals,
        arXiv:2407.05996. There, each batch has one kind of goal.
    """

    keys: tuple[str, ...]

    def __call__(self, obs, rng):
        present = torch.stack([_presence(obs, key) for key in self.keys])  # (keys, B, To)
        draw = torch.rand(present.shape[:2], generator=rng, device=present.device)
        visible_key = draw.masked_fill(~present[:, :, -1], -1).argmax(0)
        return {**obs, **{key + "?": present[i] & (visible_key == i).unsqueeze(1) for i, key in enumerate(self.keys)}}


@part
class SensorDropout(_ColumnAugmentation):
    """Marks one number as missing in a fraction of the windows, at all rows, by setting its flag to 0.

    The number is drawn from the numbers that are given at the newest row. Use it with an encoder that reads flags, such
    as `ComponentTokenEncoder`. The policy then learns to act while a sensor has failed.

    Args:
        flags: Column of flags: 1 where a number is given, 0 where it is missing.
        p: Fraction of windows.
    """

    flags: str
    p: Annotated[float, AtLeast(0), AtMost(1)] = 0.5

    changes_images: ClassVar[bool] = False  # only the flags

    def __call__(self, obs, rng):
        flags = obs[self.flags]
        newest = flags[:, -1].flatten(1)
        draw = torch.rand(newest.shape, generator=rng, device=flags.device).masked_fill(newest < 0.5, -1)
        failed = draw == draw.amax(1, keepdim=True)
        failed &= torch.rand(len(flags), 1, generator=rng, device=flags.device) < self.p
        return {**obs, self.flags: flags.masked_fill(failed.view(len(flags), 1, *flags.shape[2:]), 0)}


@dataclass(frozen=True)
class RandomMasking(_MaskAugmentation):
    """Hides random entries of a window, at other rows for each column, by setting ``"<key>?"`` to False.

    An entry is one column at one row, such as the state or the action at one step. Each window draws one of the ratios,
    and then which entries to hide, all with the same probability. Entries that are absent already are hidden first. A
    policy that predicts all entries then learns to complete a trajectory from any of them.

    Args:
        ratios: Fractions of hidden entries, from 0 to 1. At least one entry is shown.

    References:
        He et al. (2022), Masked Autoencoders Are Scalable Vision Learners, arXiv:2111.06377.
        Liu et al. (2022), Masked Autoencoding for Scalable and Generalizable Decision Making, arXiv:2211.12740
        (MaskDP), which draws one ratio for each batch.
    """

    keys: tuple[str, ...]
    ratios: tuple[float, ...] = (0.15, 0.35, 0.55, 0.75, 0.95)

    def __post_init__(self):
        if not self.ratios or not all(0 <= ratio <= 1 for ratio in self.ratios):
            raise UserError(f"The ratios are fractions of hidden entries, but they are {self.ratios}.",
                            where="RandomMasking.ratios", hint="Use (0.15, 0.55, 0.95), for example.")

    def __call__(self, obs, rng):
        present = torch.cat([_presence(obs, key) for key in self.keys], 1)  # (B, keys * To)
        device = present.device
        ratio = torch.tensor(self.ratios, device=device)[
            torch.randint(len(self.ratios), (len(present), 1), generator=rng, device=device)]
        n_visible = (present.shape[1] * (1 - ratio)).round().clamp(min=1)
        draw = torch.rand(present.shape, generator=rng, device=device).masked_fill(~present, 2.0)
        visible = present & (draw.argsort(1).argsort(1) < n_visible)
        return {**obs, **{key + "?": mask for key, mask in
                          zip(self.keys, visible.chunk(len(self.keys), 1), strict=True)}}


@part
class GaussianNoise(_ColumnAugmentation):
    """Adds Gaussian noise to every row of a vector.

    Args:
        std: Standard deviation in the units of the data: one number, or one per component.
    """

    key: str
    std: Annotated[float | tuple[float, ...], AtLeast(0)] = 0.01

    changes_images: ClassVar[bool] = False
    kind: ClassVar[str] = "vector"

    def __call__(self, obs, rng):
        x = obs[self.key]
        noise = torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
        return {**obs, self.key: x + torch.as_tensor(self.std, device=x.device, dtype=x.dtype) * noise}


@part
class ColorJitter(_ColumnAugmentation):
    """Changes brightness, contrast and saturation of images, in this order, clipping to [0, 255] after each.

    Each factor is drawn once per window from [1 - value, 1 + value], because light does not change between two frames.

    Args:
        brightness: Scales the pixels.
        contrast: Scales the distance of the pixels from the mean gray of the image.
        saturation: Scales the distance of the pixels from their own gray (weights of ITU-R BT.601).
    """

    key: str
    brightness: Annotated[float, AtLeast(0)] = 0.3
    contrast: Annotated[float, AtLeast(0)] = 0.3
    saturation: Annotated[float, AtLeast(0)] = 0.3

    kind: ClassVar[str] = "image"

    def __call__(self, obs, rng):
        image = obs[self.key]  # (B, To, h, w, C) uint8
        draw = 2 * torch.rand(3, image.shape[0], 1, 1, 1, 1, generator=rng, device=image.device) - 1
        x = (image * (1 + self.brightness * draw[0])).clamp(0, 255)
        x = _scale_around(x, _grayscale(x).mean((2, 3), keepdim=True), 1 + self.contrast * draw[1])
        x = _scale_around(x, _grayscale(x), 1 + self.saturation * draw[2])
        return {**obs, self.key: x.round().to(image.dtype)}


@part
class RandomShift(_ColumnAugmentation):
    """Shifts images by up to some pixels in each direction. Pixels at the border are repeated where nothing is known.

    The shift is drawn once per window, the same for all of its frames, as DrQ does with stacked frames. It is padding
    by `pixels` and a random crop to the old size. Unlike `TokenEncoder.crop`, it keeps the size of the images, so it
    needs no center crop when acting.

    Args:
        pixels: Largest shift. DrQ uses 4 for images of 84 x 84 pixels.

    References:
        Kostrikov et al. (2020), Image Augmentation Is All You Need: Regularizing Deep Reinforcement Learning from
        Pixels, arXiv:2004.13649 (DrQ).
    """

    key: str
    pixels: Annotated[int, AtLeast(1)] = 4

    kind: ClassVar[str] = "image"

    def check_features(self, features):
        super().check_features(features)
        height, width = features[self.key].shape[:2]
        if self.pixels >= min(height, width):
            raise UserError(f"A shift by up to {self.pixels} pixels can move the whole image out of view: the images "
                            f"of {self.key!r} have {height} x {width} pixels.", where="RandomShift.pixels",
                            hint="Use fewer pixels. DrQ uses 4 for images of 84 x 84 pixels.")

    def __call__(self, obs, rng):
        image = obs[self.key]  # (B, To, h, w, C)
        n, _, h, w, _ = image.shape
        down, right = torch.randint(-self.pixels, self.pixels + 1, (2, n, 1), generator=rng, device=image.device)
        row = (torch.arange(h, device=image.device) + down).clamp(0, h - 1)[:, :, None]  # (B, h, 1)
        column = (torch.arange(w, device=image.device) + right).clamp(0, w - 1)[:, None]  # (B, 1, w)
        window = torch.arange(n, device=image.device)[:, None, None]
        return {**obs, self.key: image.transpose(1, 3).transpose(1, 2)[window, row, column].movedim(3, 1)}


def camera_jitter(features: Schema | None) -> tuple[ColorJitter, ...]:
    """Builds a `ColorJitter` for each camera. `features` is None if the columns are not known yet."""
    return tuple(ColorJitter(k) for k, f in (features or {}).items() if f.kind == "image")


def _presence(obs: Mapping[str, Tensor], key: str) -> Tensor:
    """Returns the mask of a column, (B, To). It is True everywhere if there is none."""
    return obs.get(key + "?", torch.ones(obs[key].shape[:2], dtype=torch.bool, device=obs[key].device))


def _scale_around(x: Tensor, origin: Tensor, factor: Tensor) -> Tensor:
    return (origin + factor * (x - origin)).clamp(0, 255)


def _grayscale(x: Tensor) -> Tensor:
    if x.shape[-1] != 3:
        return x.mean(-1, keepdim=True)
    return (x * x.new_tensor((0.299, 0.587, 0.114))).sum(-1, keepdim=True)
