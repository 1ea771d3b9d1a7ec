from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from ...core import AtLeast, Unsupported, part
from ...learn.method import Method
from ...learn.objectives.observation_decoders import ObservationDecoders
from ...learn.objectives.representation_objectives import NetworkObjective
from ...nets.unet import UNet
from ..needs import NUMBERS
from ..registry import method
from .diffusion_policy import diffusion_policy


@part
class BottleneckReconstruction(NetworkObjective):
    """Auxiliary loss that reconstructs the observation from the bottleneck of the head's U-Net.

    What denoises the action must then hold the observation, at every noise level. The target is the whole observation,
    without crops and augmentations. A column's loss is the mean squared error of coded numbers, or of pixels from -1
    to 1. The losses of columns are added. Words, classes and pictures whose features are cached are not rebuilt. Each
    observation step has its channels of the bottleneck.

    Args:
        width: Channels of the convolutions that draw pictures.
        weight: Weight of the loss of each column.

    References:
        Li et al. (2023), Crossway Diffusion: Improving Diffusion-based Visuomotor Policy via Self-supervised Learning,
        arXiv:2307.01849.
    """

    width: Annotated[int, AtLeast(1)] = 32
    weight: float = 0.1
    captures = ("trunk_bottleneck",)

    def networks(self, policy):
        trunk, own_name = policy.config.trunk, type(self).__name__
        if not isinstance(trunk, UNet):
            raise Unsupported(f"{type(trunk).__name__} has no bottleneck", where=own_name, hint="use the trunk UNet()")
        size = trunk.widths[-1] // (4 * policy.window.n_obs_steps) * 4
        return {"decoders": ObservationDecoders(policy, size, self.width, own_name)}

    def loss(self, networks, policy, batch, rng, captured):
        n_steps, first = policy.window.n_obs_steps, captured["trunk_bottleneck"][:, 0]
        parts = first[:, :first.shape[1] // (4 * n_steps) * 4 * n_steps]
        vectors = parts.reshape(len(batch), -1, n_steps, parts.shape[1] // n_steps)  # also over draws of noise
        return self.weight * networks.decoders.loss(policy, batch.obs, vectors)


@method("Li et al. 2023, arXiv 2307.01849, with smaller networks, and the action as what is predicted", rows=("269",),
        needs=(NUMBERS,),
        when="if a diffusion policy sees pictures.")
def crossway_diffusion(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8, weight: float = 0.1
                       ) -> Method:
    """Diffusion policy whose U-Net must also rebuild the observation from what it makes of noisy actions.

    Args:
        weight: Weight of the loss of each rebuilt column.
    """
    base = diffusion_policy("unet", n_obs_steps, horizon, n_action_steps)
    losses = (BottleneckReconstruction(weight=weight),)
    return replace(base, learner=replace(base.learner, auxiliary_losses=losses))
