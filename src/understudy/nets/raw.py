"""Nothing learned: what methods that compare observations need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ..core import Context, UserError
from .base import Encoder, EncoderNet
from .encoders import choices_of, sensed
from .vision import Vision, crop


@dataclass(frozen=True)
class Raw(Encoder):
    """One token: every coded number as it is, choices as one-hot vectors, and images by the features of a network that
    does not train (VINN, Pari et al. 2021, whose network was trained on pictures alone).

    features: how many numbers `vision` makes of each of its tokens. crop: pixels cut off each side of an image.
    """

    vision: Vision | None = None
    features: int = 64
    crop: int = 0

    def build(self, features, rows):
        return _Raw(self, features, rows)


class _Raw(EncoderNet):
    def __init__(self, spec, features, rows):
        super().__init__()
        self.spec, self.kinds = spec, {k: f.kind for k, f in features.items()}
        self.choices = {k: choices_of(f, k) for k, f in features.items() if f.kind == "choice"}
        self.bodies = nn.ModuleDict()
        size = 0
        for name, f in features.items():
            if f.kind == "image" and spec.vision is not None:
                h, w, channels = f.shape
                body = spec.vision.build((h - 2 * spec.crop, w - 2 * spec.crop, channels), spec.features)
                self.bodies[name.replace(".", "/")] = body.requires_grad_(False)
                size += body.tokens * spec.features
            elif f.kind in ("vector", "choice"):
                size += sum(self.choices[name]) if f.kind == "choice" else f.size
            else:
                raise UserError(f"expected numbers to compare, found {f.kind}", where=f"column {name!r}",
                                do="give the encoder a network for images, Raw(vision=...), or name other inputs")
        self.tokens, self.width = 1, rows * size

    def forward(self, obs, rng=None):
        parts = []
        for name, kind in self.kinds.items():
            x, here = sensed(obs, name)
            B, rows = x.shape[:2]
            if kind == "image":
                body = self.bodies[name.replace(".", "/")].eval()
                x = crop(x.flatten(0, 1).permute(0, 3, 1, 2), self.spec.crop, None).float() / 255
                with torch.no_grad():
                    x = body(x).reshape(B, rows, -1) * here.unsqueeze(-1)
            elif kind == "choice":
                x = torch.cat([F.one_hot(c, n) for c, n in zip(x.flatten(2).long().unbind(-1), self.choices[name],
                                                               strict=True)], -1) * here.unsqueeze(-1)
            parts.append(x.reshape(B, -1).float())
        token = torch.cat(parts, -1).unsqueeze(1)
        return Context(token, torch.ones_like(token[..., 0], dtype=torch.bool))
