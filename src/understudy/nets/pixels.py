"""Encoder that gives the pixels of an image as they are, for heads that are convolutions themselves."""

from __future__ import annotations

from dataclasses import dataclass

from ..core import Context, UserError
from .base import Encoder, EncoderNet
from .encoders import observed_column


@dataclass(frozen=True)
class PixelEncoder(Encoder):
    """One token for each pixel of the newest image, row by row from the top. Nothing is trained.

    Values are 1 - brightness, so that a white background is 0, like what convolutions find beyond the edge.
    """

    def build(self, features, n_obs_steps):
        """Build the module, whose tokens have the channels of the image. The only input must be a square image."""
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
