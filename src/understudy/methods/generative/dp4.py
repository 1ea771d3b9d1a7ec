from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from torch import nn

from ...core import AtLeast, part
from ...learn.method import Method
from ...learn.objectives.observation_decoders import ObservationDecoders
from ...learn.objectives.representation_objectives import NetworkObjective, encoding_size, flat_encoding
from ..needs import NUMBERS
from ..registry import method
from .diffusion_policy import diffusion_policy


@part
class ScenePrediction(NetworkObjective):
    """Auxiliary loss that reconstructs the present observation, and predicts the one after the chunk.

    The encoder must then hold the scene and what actions do to it. Targets are without crops and augmentations. A
    column's loss is the mean squared error of coded numbers, or of pixels from -1 to 1. The losses of columns are
    added. Windows at whose end the episode is over have no future.

    The paper draws color and depth from 3-D Gaussians, which a network places and moves. Here a picture is drawn.

    Args:
        width: Channels of the convolutions that draw pictures, from vectors of four times as many numbers.
        present: Weight of the loss of the present. 0 leaves it out.
        future: Weight of the loss of the future. 0 leaves it out.

    References:
        Liu et al. (2025), Spatial-Temporal Aware Visuomotor Diffusion Policy Learning, arXiv:2507.06710.
    """

    width: Annotated[int, AtLeast(1)] = 32
    present: Annotated[float, AtLeast(0)] = 0.1
    future: Annotated[float, AtLeast(0)] = 0.1

    next_obs = reads_actions = True

    def networks(self, policy):
        n_steps, size, networks = policy.window.n_obs_steps, encoding_size(policy), {}
        n_read = {"present": size, "future": size + policy.window.horizon * policy.codec.width}
        for scene in (name for name in n_read if getattr(self, name)):
            layer = nn.Linear(n_read[scene], 4 * self.width * n_steps)
            networks[scene] = nn.Sequential(layer, nn.ReLU(), nn.Unflatten(1, (1, n_steps, -1)))
            networks[f"{scene}_decoders"] = ObservationDecoders(policy, 4 * self.width, self.width, type(self).__name__)
        return networks

    def loss(self, networks, policy, batch, rng, captured):
        encoding = flat_encoding(captured)
        total = encoding.new_zeros(len(batch))
        if self.present:
            total = self.present * networks.present_decoders.loss(policy, batch.obs, networks.present(encoding))
        if self.future:
            moved = networks.future(torch.cat([encoding, policy.encode_batch(batch).flatten(1)], 1))
            later = networks.future_decoders.loss(policy, batch.next, moved)
            total = total + self.future * later * batch.mask[:, -1]
        return total


@method("Liu et al. 2025, arXiv 2507.06710, with pictures drawn by convolutions in place of 3-D Gaussians, and smaller "
        "networks", rows=("279",), needs=(NUMBERS,),
        when="if few demonstrations have pictures.")
def dp4(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8, present: float = 0.1, future: float = 0.1
        ) -> Method:
    """Diffusion policy whose encoding must also draw the present picture and, with the actions, the later one.

    Args:
        present: Weight of the loss of the present observation.
        future: Weight of the loss of the observation after the chunk.
    """
    base = diffusion_policy("unet", n_obs_steps, horizon, n_action_steps)
    losses = (ScenePrediction(present=present, future=future),)
    return replace(base, learner=replace(base.learner, auxiliary_losses=losses))
