"""Poses and velocities in the plane, in a frame that moves with an effector or an object."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..core import Feature, Schema, UserError
from .wrappers import ActionWrapper


@dataclass(frozen=True)
class PlanarFrame(ActionWrapper):
    """Poses and velocities in the plane are given in the frame of an observed pose.

    A pose is the first three components of a column: x, y and an angle in radians. The first two components of the
    action are a velocity. With the pose of the effector as the origin, a policy sees the world as a camera at its
    wrist does, and what it does is the same at any place and angle. With the pose of an object, it acts in the
    object's frame.

    Args:
        origin: Column with the pose of the frame. It stays as it is, unless `poses` names it.
        poses: Columns whose pose is given in the frame. Further components stay as they are.
    """

    origin: str
    poses: tuple[str, ...]

    def features(self, features):
        for name in (self.origin, *self.poses):
            if name not in features:
                raise UserError(f"there is no column {name!r}; there are {', '.join(features)}", where="PlanarFrame",
                                hint="name columns of the environment")
            _check_vector(name, features[name], 3)
        _check_vector("action", features["action"], 2)
        return features

    def transform_obs(self, obs: Mapping[str, Tensor], state):
        return {**obs, **{k: self._seen(obs[k], obs[self.origin]) for k in self.poses}}, state

    def transform_action(self, obs, action, state):
        return rotate(action, obs[self.origin][:, 2]), state

    def transform_episode(self, episode):
        """Converts the poses and actions of a recorded episode."""
        self.features(episode.features())
        origin, action = (torch.from_numpy(np.array(episode.steps[k])) for k in (self.origin, "action"))
        columns = {k: self._seen(torch.from_numpy(np.array(episode.steps[k])), origin).numpy() for k in self.poses}
        columns["action"] = rotate(action, -origin[: len(action), 2]).numpy()
        names: Schema = {k: replace(episode.features()[k], names=None) for k in columns}
        return replace(episode.replace(columns), schema={**episode.schema, **names})

    def _seen(self, pose: Tensor, origin: Tensor) -> Tensor:
        place = rotate(pose[:, :2] - origin[:, :2], -origin[:, 2])
        angle = torch.remainder(pose[:, 2:3] - origin[:, 2:3] + math.pi, 2 * math.pi) - math.pi
        return torch.cat([place, angle, pose[:, 3:]], 1)


def rotate(vectors: Tensor, angle: Tensor) -> Tensor:
    """Rotates the first two components of vectors.

    Args:
        vectors: (B, D). Components after the first two stay as they are.
        angle: Angles in radians, (B,).
    """
    cos, sin, (x, y) = angle.cos(), angle.sin(), vectors[:, :2].unbind(1)
    return torch.cat([torch.stack([cos * x - sin * y, sin * x + cos * y], 1), vectors[:, 2:]], 1)


def _check_vector(name: str, feature: Feature, size: int) -> None:
    if feature.kind != "vector" or len(feature.shape) != 1 or feature.size < size:
        raise UserError(f"it has kind {feature.kind!r} and shape {feature.shape}", where=f"PlanarFrame, {name!r}",
                        hint=f"name a column with {size} or more numbers")
