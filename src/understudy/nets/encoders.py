"""Encoders, which turn observation windows into context tokens.

A transform that inference needs as well (a crop) belongs here. A transform for training alone is an augmentation
(data/augment.py).
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import field
from itertools import chain
from typing import Annotated, Any

import torch
from torch import Generator, Tensor, nn

from ..core import AtLeast, Context, Feature, Schema, Unsupported, UserError, part, role
from ..data.codec import Codec, Normalizer
from .base import Encoder, EncoderNet, ImageFeatures
from .linear import Linear
from .point_cloud import PointEncoder, PointNet, check_point_cloud
from .text_encoder import ByteEncoder, TextEncoder
from .vision import FrozenVisionNet, SmallConv, VisionEncoder, crop


@part
class TokenEncoder(Encoder):
    """Encoder with tokens for each column and observation step.

    A vector gives one token (a linear map), a point cloud one, a class column one (the sum of an embedding per
    component), a text one, and an image as many as `vision` makes. Tokens are ordered by column, then by observation
    step. Where ``"name?"`` is False, the tokens of `name` are masked.

    Args:
        crop: Pixels that are cut off each side of an image: at a random place in training, around the center
            otherwise.
        named: Columns whose newest row is also given to the trunk by name, unchanged, as ``Context.named[name]``: the
            robot, for example, by which a trunk chooses among its parts.
        cache_features: Compute the features of images once for the training data and keep them in the cache, instead
            of once per batch. The policy is the same. This needs a frozen `vision`, and images that training does not
            change: no crop and no augmentation of images.
        point_clouds: Columns of shape (points, channels) that are sets of points. Each gives one token. The codec must
            leave them as they are, because each point has its own statistics: ``Normalizer(unscaled=...)``.
    """

    width: Annotated[int, AtLeast(1)] = 64
    crop: Annotated[int, AtLeast(0)] = 0
    vision: VisionEncoder = field(default_factory=SmallConv)
    text: TextEncoder = field(default_factory=ByteEncoder)
    named: tuple[str, ...] = ()
    cache_features: bool = False
    point_clouds: tuple[str, ...] = ()
    points: PointEncoder = field(default_factory=PointNet)

    def build(self, features, n_obs_steps):
        if self.cache_features and self.crop:
            raise UserError(f"Random crops (crop={self.crop}) change the images at every update, so their features "
                            "cannot be cached.", where="TokenEncoder.cache_features",
                            hint="Use crop=0, or cache_features=False.")
        return _TokenEncoderNet(self, features, n_obs_steps)

    def check_policy(self, codec, augmentations):
        check_unscaled(codec, self.point_clouds, "each point of", "the order of the points would matter",
                       "TokenEncoder.point_clouds")
        if self.cache_features and (changes := [a for a in augmentations if a.changes_images]):
            raise UserError(f"{type(changes[0]).__name__} changes the images at every update, so their features "
                            "cannot be cached.", where="TokenEncoder.cache_features",
                            hint="Leave the augmentation out, or use cache_features=False.")


class _TokenEncoderNet(EncoderNet):
    def __init__(self, config, features, n_obs_steps):
        super().__init__()
        kinds = {"vector": _VectorTokens, "discrete": _ClassTokens, "text": _TextTokens, "image": _ImageTokens}
        check_kinds("TokenEncoder", features, kinds,
                    "Convert it (TaskText turns the words of the task into bytes), or leave it out of inputs.")
        for field_name in ("named", "point_clouds"):
            check_inputs(features, getattr(config, field_name), f"TokenEncoder.{field_name}")
        self.names, self.named, self.caches = tuple(features), config.named, config.cache_features
        maps: list[Any] = [(_PointTokens if name in config.point_clouds else kinds[f.kind])(
            f, config, name, config.width) for name, f in features.items()]
        self.maps = nn.ModuleList(maps)
        if self.caches and any(isinstance(m, _ImageTokens) and not isinstance(m.body, FrozenVisionNet) for m in maps):
            raise UserError(f"{type(config.vision).__name__} is trained with the policy, so its features change and "
                            "cannot be cached.", where="TokenEncoder.cache_features",
                            hint="Use a frozen network, such as TransformersVision(..., frozen=True).")
        self.token_obs_steps = tuple(step for m in maps for step in range(n_obs_steps) for _ in range(m.tokens))
        self.tokens, self.width = len(self.token_obs_steps), config.width

    @property
    def cached_features(self):
        return {name: m for name, m in zip(self.names, self.maps, strict=True)
                if self.caches and isinstance(m, _ImageTokens)}

    def forward(self, obs, rng=None):
        tokens, masks = [], []
        for name, module in zip(self.names, self.maps, strict=True):
            x, present = observed_column(obs, name)
            column_tokens = module(x.flatten(0, 1), rng).unflatten(0, x.shape[:2])  # (B, To, n, D)
            tokens.append(column_tokens.flatten(1, 2))
            masks.append(present.unsqueeze(-1).expand(column_tokens.shape[:3]).flatten(1))
        return Context(torch.cat(tokens, 1), torch.cat(masks, 1), {name: obs[name][:, -1] for name in self.named})


def check_inputs(inputs: Collection[str], names: Iterable[str], where: str) -> None:
    """Raises UserError for the first name that is not an input of the policy."""
    for name in names:
        if name not in inputs:
            raise UserError(f"The policy does not read a column {name!r}. It reads {', '.join(inputs)}.", where=where,
                            hint="Name one of the policy's inputs.")


def check_unscaled(codec: Codec, names: Sequence[str], what: str, result: str, where: str) -> None:
    """Raises UserError if a codec scales one of the columns that an encoder must read as they are.

    Args:
        what: What the codec would scale, such as "each point of".
        result: What would follow from that.
    """
    if not isinstance(codec, Normalizer) or codec.obs == "identity":
        return
    if scaled := [name for name in names if name not in codec.unscaled]:
        raise UserError(f"The codec would scale {what} {scaled[0]!r} by its own statistics, so that {result}.",
                        where=where, hint=f"Use the codec Normalizer(unscaled={tuple(names)}).")


def check_kinds(encoder: str, features: Schema, kinds: Container[str], hint: str) -> None:
    """Raises UserError for the first column of a kind that an encoder cannot read."""
    for name, f in features.items():
        if f.kind not in kinds:
            raise UserError(f"{encoder} cannot read a column of kind {f.kind!r}.", where=f"column {name!r}", hint=hint)


def observed_column(obs: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Returns a column with zeros where it was not observed, and its presence mask.

    Args:
        obs: Observations, ``{name: (B, To, *feature)}``, with or without ``"name?"`` (B, To).

    Returns:
        The column (B, To, *feature), in which NaN and other placeholders are replaced by 0, and the mask (B, To) bool.
    """
    x = obs[name]
    present = obs.get(name + "?")
    if present is None:
        return x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return x.masked_fill(~present.reshape(*present.shape, *(1,) * (x.ndim - 2)), 0), present


class _VectorTokens(Linear):
    tokens = 1

    def __init__(self, feature, config, name, width):
        super().__init__(feature.size, width)

    def forward(self, x: Tensor, rng: Generator | None = None) -> Tensor:
        return super().forward(x.unsqueeze(-1).flatten(1).float()).unsqueeze(1)


class _PointTokens(nn.Module):
    tokens = 1

    def __init__(self, feature, config, name, width):
        super().__init__()
        check_point_cloud(feature.shape, name)
        self.body = config.points.build(feature.shape[1], width)

    def forward(self, x, rng):
        return self.body(x.float()).unsqueeze(1)


class _ClassTokens(nn.Module):
    """A class that the schema does not know is encoded as zeros."""

    tokens = 1

    def __init__(self, feature, config, name, width):
        super().__init__()
        num_classes = num_classes_of(feature, name)
        self.register_buffer("size", torch.tensor(num_classes), persistent=False)
        first = torch.tensor((0, *num_classes)).cumsum(0)
        self.register_buffer("first", first[:-1], persistent=False)  # each component's first row of the embedding
        self.unknown_class = int(first[-1])
        self.embedding = nn.Embedding(self.unknown_class + 1, width, padding_idx=self.unknown_class)

    def forward(self, x, rng):
        x = x.unsqueeze(-1).flatten(1).long()
        in_schema = (x >= 0) & (x < self.size)
        return self.embedding(torch.where(in_schema, x + self.first, self.unknown_class)).sum(1, keepdim=True)


class _TextTokens(nn.Module):
    tokens = 1

    def __init__(self, feature, config, name, width):
        super().__init__()
        self.body = config.text.build(width)

    def forward(self, x, rng):
        return self.body(x.flatten(1)).unsqueeze(1)


class _ImageTokens(nn.Module, ImageFeatures):
    def __init__(self, feature, config, name, width):
        super().__init__()
        h, w, channels = feature.shape
        self.crop = config.crop
        if min(h, w) <= 2 * config.crop:
            raise UserError(f"crop={config.crop} cuts {2 * config.crop} pixels off each dimension of an image of {h} x "
                            f"{w} pixels, so nothing would remain.", where=f"column {name!r}",
                            hint="Use a smaller crop.")
        self.body = config.vision.build((h - 2 * config.crop, w - 2 * config.crop, channels), width)
        self.tokens = self.body.tokens

    def forward(self, x, rng):
        if x.ndim == 3:  # the features, computed before
            return self._frozen.project(x)
        return self.body(crop(x.permute(0, 3, 1, 2), self.crop, rng).float() / 255)

    @property
    def _frozen(self) -> FrozenVisionNet:
        if not isinstance(self.body, FrozenVisionNet):  # an encoder of a critic or a discriminator
            raise Unsupported(f"{type(self.body).__name__.strip('_')} reads images, and batches have the features that "
                              "the encoder of the policy caches", where="TokenEncoder.cache_features",
                              hint="use cache_features=False, or the same frozen network")
        return self.body

    @property
    def feature_shape(self):
        return self.body.tokens, self._frozen.size

    def features(self, images):
        device = next((t.device for t in chain(self.body.parameters(), self.body.buffers())), images.device)
        return self._frozen.features(images.to(device).permute(0, 3, 1, 2).float() / 255)

    def digest(self):
        return self._frozen.digest()


def num_classes_of(feature: Feature, name: str) -> tuple[int, ...]:
    """Returns the number of classes of each component of a discrete column. Raises UserError if it is unknown."""
    if feature.num_classes is None:
        raise UserError("The number of classes is unknown.", where=f"column {name!r}",
                        hint="Give it as num_classes of the column's Feature.")
    return feature.num_classes


@part
class ConcatEncoder(Encoder):
    """Encoder that concatenates all values of the window into one token. Nothing is trained.

    With the MLP trunk this is a plain network from observation to action. For nearest neighbors it defines what is
    compared. Class columns become one-hot vectors. Images become the features of a frozen network, as in VINN.

    Values that were not observed become zeros, which a network cannot tell from an observed zero. Where columns are
    dropped on purpose (classifier-free guidance), use `TokenEncoder`.

    Args:
        vision: Encoder of images. It is not trained. None if there are no images.
        crop: Pixels that are cut off each side of an image.

    References:
        Pari et al. (2021), The Surprising Effectiveness of Representation Learning for Visual Imitation,
        arXiv:2112.01511 (VINN).
    """

    vision: VisionEncoder | None = None
    crop: Annotated[int, AtLeast(0)] = 0

    def build(self, features, n_obs_steps):
        return _ConcatEncoderNet(self, features, n_obs_steps)


def simplest_encoder(features: Schema | None) -> ConcatEncoder | TokenEncoder:
    """Returns a `ConcatEncoder` for observations that are numbers or classes, and a `TokenEncoder` for images or text.

    Args:
        features: The columns of the data. None if they are not known yet.
    """
    observed = [f.kind for name, f in (features or {}).items() if role(name) == "observation"]
    return ConcatEncoder() if {"vector", "discrete"}.issuperset(observed) else TokenEncoder()


class _ConcatEncoderNet(EncoderNet):
    def __init__(self, config, features, n_obs_steps):
        super().__init__()
        kinds = {"vector": _VectorValues, "discrete": _OneHotValues}
        if config.vision is not None:
            kinds["image"] = _ImageFeatures
        check_kinds("ConcatEncoder", features, kinds, "For images, use ConcatEncoder(vision=...) or TokenEncoder. For "
                                                      "text, use TokenEncoder. Or leave the column out of inputs.")
        self.names = tuple(features)
        maps: list[Any] = [kinds[f.kind](f, config, name) for name, f in features.items()]
        self.maps = nn.ModuleList(maps).requires_grad_(False)
        self.tokens, self.width = 1, n_obs_steps * sum(m.width for m in maps)
        self.token_obs_steps = (n_obs_steps - 1,)

    def train(self, mode=True):
        return super().train(False)  # a frozen network uses no dropout either

    def forward(self, obs, rng=None):
        parts = []
        for name, module in zip(self.names, self.maps, strict=True):
            x, present = observed_column(obs, name) if name + "?" in obs else (obs[name], None)
            values = module(x)  # (B, To, width)
            parts.append((values if present is None else values * present.unsqueeze(-1)).flatten(1))
        flat = torch.cat(parts, -1).unsqueeze(1)
        return Context(flat, torch.ones_like(flat[..., 0], dtype=torch.bool))


class _VectorValues(nn.Module):
    def __init__(self, feature, config, name):
        super().__init__()
        self.width = feature.size

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1).flatten(2).float()


class _OneHotValues(nn.Module):
    def __init__(self, feature, config, name):
        super().__init__()
        self.num_classes = num_classes_of(feature, name)
        self.width = sum(self.num_classes)

    def forward(self, x):
        x = x.unsqueeze(-1).flatten(2)
        return torch.cat([x[..., i:i + 1] == torch.arange(n, device=x.device) for i, n in enumerate(self.num_classes)],
                         -1).float()


class _ImageFeatures(_ImageTokens):
    def __init__(self, feature, config, name):
        super().__init__(feature, config, name, None)
        self.width = self.body.tokens * self.body.width

    def forward(self, x, rng=None):
        return super().forward(x.flatten(0, 1), None).flatten(1).unflatten(0, x.shape[:2])
