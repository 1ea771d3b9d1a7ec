"""Observation windows -> Context. What inference must also do (a crop) belongs here, not in an augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn

from ..core import Context, Feature, UserError
from .base import Encoder, EncoderNet
from .linear import Linear
from .text_encoder import ByteEncoder, TextEncoder
from .vision import SmallConv, VisionEncoder, crop


@dataclass(frozen=True)
class TokenEncoder(Encoder):
    """Tokens for each feature and each of its rows: one for vectors (a linear map), choices (the sum of an embedding
    for each component) and text, and as many as `vision` makes for an image.

    width: of a token. crop: pixels cut off each side of an image, at a random place in training and off the centre
    otherwise. "name?" in an observation, where it is False, masks the tokens of `name`.
    """

    width: int = 64
    crop: int = 0
    vision: VisionEncoder = field(default_factory=SmallConv)
    text: TextEncoder = field(default_factory=ByteEncoder)

    def build(self, features, n_obs_steps):
        return _TokenEncoderNet(self, features, n_obs_steps)


class _TokenEncoderNet(EncoderNet):
    def __init__(self, spec, features, rows):
        super().__init__()
        maps = {"vector": _VectorTokens, "discrete": _ClassTokens, "text": _TextTokens, "image": _ImageTokens}
        for name, f in features.items():
            if f.kind not in maps:
                raise UserError(f"expected numbers, an image or UTF-8 bytes, found {f.kind}", where=f"column {name!r}",
                                hint="relabel it (Say turns the task's words into bytes), or leave it out of inputs")
        self.names = tuple(features)
        self.maps = nn.ModuleList(maps[f.kind](f, spec, name, spec.width) for name, f in features.items())
        self.tokens, self.width = rows * sum(m.tokens for m in self.maps), spec.width

    def forward(self, obs, rng=None):
        tokens, masks = [], []
        for name, module in zip(self.names, self.maps, strict=True):
            x, here = column_and_presence(obs, name)
            made = module(x.flatten(0, 1), rng).unflatten(0, x.shape[:2])  # (B, To, n, D)
            tokens.append(made.flatten(1, 2))
            masks.append(here.unsqueeze(-1).expand(made.shape[:3]).flatten(1))
        return Context(torch.cat(tokens, 1), torch.cat(masks, 1))


def column_and_presence(obs: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """(B, To, *feature), zero where it was not sensed (it may hold anything there, NaN say), and (B, To) bool."""
    x = obs[name]
    here = obs.get(name + "?")
    if here is None:
        return x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return x.masked_fill(~here.reshape(*here.shape, *(1,) * (x.ndim - 2)), 0), here


class _VectorTokens(Linear):
    tokens = 1

    def __init__(self, feature, spec, name, width):
        super().__init__(feature.size, width)

    def forward(self, x: Tensor, rng: Generator | None) -> Tensor:
        return super().forward(x.unsqueeze(-1).flatten(1).float()).unsqueeze(1)


class _ClassTokens(nn.Module):
    """A value that the schema does not know is a vector of zeros."""

    tokens = 1

    def __init__(self, feature, spec, name, width):
        super().__init__()
        choices = num_classes_of(feature, name)
        self.register_buffer("size", torch.tensor(choices), persistent=False)
        first = torch.tensor((0, *choices)).cumsum(0)
        self.register_buffer("first", first[:-1], persistent=False)
        self.unknown_class = int(first[-1])
        self.embedding = nn.Embedding(self.unknown_class + 1, width, padding_idx=self.unknown_class)

    def forward(self, x, rng):
        x = x.unsqueeze(-1).flatten(1).long()
        known = (x >= 0) & (x < self.size)
        return self.embedding(torch.where(known, x + self.first, self.unknown_class)).sum(1, keepdim=True)


class _TextTokens(nn.Module):
    tokens = 1

    def __init__(self, feature, spec, name, width):
        super().__init__()
        self.body = spec.text.build(width)

    def forward(self, x, rng):
        return self.body(x.flatten(1)).unsqueeze(1)


class _ImageTokens(nn.Module):
    def __init__(self, feature, spec, name, width):
        super().__init__()
        h, w, channels = feature.shape
        self.crop = spec.crop
        if min(h, w) <= 2 * spec.crop:
            raise UserError(f"expected images larger than the {2 * spec.crop} pixels cut off, found {h} x {w}",
                            where=f"column {name!r}", hint="take a smaller crop")
        self.body = spec.vision.build((h - 2 * spec.crop, w - 2 * spec.crop, channels), width)
        self.tokens = self.body.tokens

    def forward(self, x, rng):
        return self.body(crop(x.permute(0, 3, 1, 2), self.crop, rng).float() / 255)


def num_classes_of(feature: Feature, name: str) -> tuple[int, ...]:
    if feature.num_classes is None:
        raise UserError("expected to know how many choices each component has, found none said",
                        where=f"column {name!r}", hint="say it in the Feature's `choices`")
    return feature.num_classes


@dataclass(frozen=True)
class ConcatEncoder(Encoder):
    """All numbers of all rows side by side as one token, nothing learned: with the MLP trunk, a plain network from
    the observation to the action; for nearest neighbors, what they compare. Choices as one-hot vectors; images by
    the features of `vision`, which does not train (VINN, Pari et al. 2021), of their centre without `crop` pixels on
    each side.

    What was not sensed reads as zeros, which may also be a value: where columns are dropped on purpose
    (classifier-free guidance), take Tokens.
    """

    vision: VisionEncoder | None = None
    crop: int = 0

    def build(self, features, n_obs_steps):
        return _ConcatEncoderNet(self, features, n_obs_steps)


class _ConcatEncoderNet(EncoderNet):
    def __init__(self, spec, features, rows):
        super().__init__()
        maps = {
            "vector": _VectorValues,
            "discrete": _OneHotValues,
            **({} if spec.vision is None else {"image": _ImageFeatures}),
        }
        for name, f in features.items():
            if f.kind not in maps:
                raise UserError(
                    f"expected numbers, found {f.kind}",
                    where=f"column {name!r}",
                    hint="take ConcatEncoder(vision=...) or the encoder Tokens for images, Tokens for text, or leave "
                    "the column out of inputs",
                )
        self.names = tuple(features)
        self.maps = nn.ModuleList(maps[f.kind](f, spec, name) for name, f in features.items()).requires_grad_(False)
        self.tokens, self.width = 1, rows * sum(m.width for m in self.maps)

    def train(self, mode=True):
        return super().train(False)  # a network that does not train has nothing to drop out either

    def forward(self, obs, rng=None):
        parts = []
        for name, module in zip(self.names, self.maps, strict=True):
            x, here = column_and_presence(obs, name)
            made = module(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            parts.append((made * here.unsqueeze(-1)).flatten(1))
        flat = torch.cat(parts, -1).unsqueeze(1)
        return Context(flat, torch.ones_like(flat[..., 0], dtype=torch.bool))


class _VectorValues(nn.Module):
    def __init__(self, feature, spec, name):
        super().__init__()
        self.width = feature.size

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1).flatten(1).float()


class _OneHotValues(nn.Module):
    def __init__(self, feature, spec, name):
        super().__init__()
        self.choices = num_classes_of(feature, name)
        self.width = sum(self.choices)

    def forward(self, x):
        x = x.unsqueeze(-1).flatten(1)
        return torch.cat([x[:, i:i + 1] == torch.arange(n, device=x.device) for i, n in enumerate(self.choices)],
                         -1).float()


class _ImageFeatures(_ImageTokens):
    def __init__(self, feature, spec, name):
        super().__init__(feature, spec, name, None)
        self.width = self.body.tokens * self.body.width

    def forward(self, x):
        return super().forward(x, None).flatten(1)
