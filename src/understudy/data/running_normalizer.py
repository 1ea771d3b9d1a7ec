"""A normalizer of observations. Its statistics are updated while a policy learns from new steps."""

from __future__ import annotations

import copy

import torch

from ..core import Unsupported, part
from .codec import Normalizer, _NormalizerModule
from .running_statistics import constant_floor

LARGEST_CODE = 10.0  # cuts components that hardly varied so far, as in VecNormalize of stable-baselines3


@part
class RunningNormalizer(Normalizer):
    """Normalizes observations to mean 0 and standard deviation 1 over all steps so far, new ones included.

    Random actions reach a small part of what a policy meets later, so that scales of the first episodes alone make
    later inputs large, and hide components that did not vary at first. Codes are cut off at -10 and 10. The scales of
    the target stay as the first episodes gave them.

    References:
        Andrychowicz et al. (2021), What Matters for On-Policy Deep Actor-Critic Methods?, arXiv:2006.05990.
    """

    def __post_init__(self):
        if self.obs != "zscore" or self.group_by is not None:
            raise Unsupported("only a mean and a standard deviation over all steps are kept", where="RunningNormalizer",
                              hint='use obs="zscore" without group_by, or the codec Normalizer')

    def build(self, features, inputs, target):
        return _RunningNormalizerModule(self, features, inputs, target)


class _RunningNormalizerModule(_NormalizerModule):
    def extend_statistics(self, scan):
        new = copy.deepcopy(self)
        new.fit_statistics(scan)
        weight = float(new.count / (self.count + new.count))
        for own, other in zip(self.obs_transforms, new.obs_transforms, strict=True):
            gap = other.offset - own.offset
            variance = torch.lerp(own.scale.square(), other.scale.square(), weight) + weight * (1 - weight) * gap**2
            offset, scale = own.offset + weight * gap, variance.sqrt()
            # Constant components deviate by half of their largest range at most.
            floor = constant_floor(offset.abs() + scale, self.config.min_scale) / 2
            own.set_statistics(offset, torch.where(scale > floor, scale, 0.0))
        self.count += new.count

    def encode_obs(self, obs):
        coded = super().encode_obs(obs)
        return {**coded, **{name: coded[name].clamp(-LARGEST_CODE, LARGEST_CODE) for name in self.names}}
