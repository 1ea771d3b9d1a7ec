"""Environment wrappers that change the observations."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..core import Feature, Schema, UserError, normal
from ..data.episode import Episode
from .base import Env, EnvWrapper, Obs

Pairs = Sequence[tuple[int, int]]
NOISE_STREAM = 17  # so that a wrapper draws other noise than its environment


class ObservationTransform(EnvWrapper):
    """Changes observations, and possibly coordinates of actions. Each step is changed alone, without randomness.

    `transform_episode` changes episodes that were recorded in `env` in the same way. The demonstrations of an expert of
    `env` thereby become demonstrations in the wrapped environment.
    """

    def __init__(self, env: Env):
        super().__init__(env)
        self.features = self.transform_features(env.features)

    @abstractmethod
    def transform_features(self, features: Schema) -> dict[str, Feature]:
        """Returns the columns that are observed, and the action."""

    @abstractmethod
    def transform_obs(self, obs: Obs) -> Obs:
        """Returns the changed observations of the given columns, (rows, ...)."""

    def transform_action(self, action: Tensor) -> Tensor:
        """Returns the action of `env` for an action in the wrapped environment, (rows, A)."""
        return action

    def inverse_action(self, action: Tensor) -> Tensor:
        """Returns the action in the wrapped environment for an action of `env`, (rows, A)."""
        return action

    def transform_episode(self, episode: Episode) -> Episode:
        """Returns an episode that was recorded in `env`, as it would be in the wrapped environment."""
        read = [k for k in self.env.features if k in episode.steps and k != "action"]
        obs = {k: torch.from_numpy(np.array(episode.steps[k])) for k in read}
        transformed = {k: v.numpy() for k, v in self.transform_obs(obs).items()}
        action = self.inverse_action(torch.from_numpy(np.array(episode.steps["action"]))).numpy()
        episode = episode.replace({**dict.fromkeys(read), **transformed, "action": action})
        return replace(episode, schema={**episode.schema, **{k: self.features[k] for k in (*transformed, "action")}})

    def reset(self, which, key):
        return self.transform_obs(self.env.reset(which, key))

    def step(self, action):
        out = self.env.step(self.transform_action(action))
        return replace(out, obs=self.transform_obs(out.obs))


class RandomFeatureObs(ObservationTransform):
    """Wraps an environment so that a column of numbers is observed through a fixed random network.

    Args:
        scale: Standard deviation of the first layer's inputs, if each component has a standard deviation of 1. Larger
            values make the observation less linear.
    """

    def __init__(self, env: Env, size: int = 64, column: str = "observation.state", scale: float = 1.0, seed: int = 0):
        feature = _vector(env, column, "RandomFeatureObs")
        rng = np.random.default_rng(seed)
        inputs = feature.size
        self.column, self.size = column, size
        self.weights = [torch.from_numpy(rng.normal(size=shape) / math.sqrt(shape[1]))
                        for shape in ((size, inputs), (size, size))]
        self.weights[0] *= scale
        self.bias = torch.from_numpy(rng.uniform(-1, 1, size))
        super().__init__(env)

    def transform_features(self, features):
        return {**features, self.column: Feature("float32", (self.size,))}

    def transform_obs(self, obs):
        hidden = (_rowwise(obs[self.column].double(), self.weights[0]) + self.bias).tanh()
        return {**obs, self.column: _rowwise(hidden, self.weights[1]).tanh().float()}


class RotatedFrame(ObservationTransform):
    """Wraps an environment so that positions and directions in the plane are given in a rotated frame.

    Args:
        angle: Angle of the rotation, in radians.
        points: For each column, the pairs of components that are a position.
        directions: For each column, the pairs of components that are a direction: velocities, displacements.
        center: The position that stays where it is.

    Example:
        >>> RotatedFrame(make("fork"), math.pi / 2, {"observation.state": [(0, 1)]}, {"action": [(0, 1)]})
    """

    def __init__(self, env: Env, angle: float, points: Mapping[str, Pairs],
                 directions: Mapping[str, Pairs] | None = None, center: tuple[float, float] = (0.0, 0.0)):
        self.angle, self.center = angle, center
        self.pairs = [(column, i, j, shift) for group, shift in ((points, True), (directions or {}, False))
                      for column, pairs in group.items() for i, j in pairs]
        for column, i, j, _ in self.pairs:
            if not 0 <= min(i, j) <= max(i, j) < _vector(env, column, "RotatedFrame").size or i == j:
                raise UserError(f"{column!r} has no components {i} and {j}", where="RotatedFrame",
                                hint=f"it has {env.features[column].size} components, counted from 0")
        super().__init__(env)
        if any(column == "action" for column, *_ in self.pairs):  # limits of each component do not rotate
            self.metadata = {k: v for k, v in self.metadata.items() if k not in ("low", "high")}

    def transform_features(self, features):
        return dict(features)

    def transform_obs(self, obs):
        changed = {column for column, *_ in self.pairs if column != "action"}
        return {**obs, **{k: self._rotate(k, obs[k], self.angle) for k in changed}}

    def transform_action(self, action):
        return self._rotate("action", action, -self.angle)

    def inverse_action(self, action):
        return self._rotate("action", action, self.angle)

    def _rotate(self, column: str, value: Tensor, angle: float) -> Tensor:
        out, (cos, sin) = value.clone(), (math.cos(angle), math.sin(angle))
        for name, i, j, shift in self.pairs:
            if name == column:
                x0, y0 = self.center if shift else (0.0, 0.0)
                x, y = value[:, i].double() - x0, value[:, j].double() - y0
                out[:, i] = (cos * x - sin * y + x0).to(value.dtype)
                out[:, j] = (sin * x + cos * y + y0).to(value.dtype)
        return out


class HiddenObs(ObservationTransform):
    """Wraps an environment so that some components of the observation are hidden.

    Args:
        hidden: For each column, the components that are hidden: names or numbers. None hides the whole column.

    Example:
        >>> HiddenObs(make("particle"), {"observation.state": ("speed.x", "speed.y")})
    """

    def __init__(self, env: Env, hidden: Mapping[str, Sequence[str | int] | None]):
        self.kept: dict[str, list[int] | None] = {}
        for column, components in hidden.items():
            if components is None:
                if column not in env.features or column == "action":
                    raise UserError(f"there is no observation {column!r}", where="HiddenObs",
                                    hint=f"there are {', '.join(sorted(set(env.features) - {'action'}))}")
                self.kept[column] = None
                continue
            feature = _vector(env, column, "HiddenObs")
            names = [*(feature.names or ())]
            for component in components:
                if component not in names and component not in range(feature.size):
                    raise UserError(f"{column!r} has no component {component!r}", where="HiddenObs",
                                    hint=f"it has {', '.join(names) or f'0 to {feature.size - 1}'}")
            hidden_indices = {names.index(c) if isinstance(c, str) else c for c in components}
            self.kept[column] = [i for i in range(feature.size) if i not in hidden_indices]
        super().__init__(env)

    def transform_features(self, features):
        changed = {column: replace(features[column], shape=(len(kept),), names=features[column].names and tuple(
            features[column].names[i] for i in kept)) for column, kept in self.kept.items() if kept is not None}
        return {k: changed.get(k, f) for k, f in features.items() if self.kept.get(k, ()) is not None}

    def transform_obs(self, obs):
        visible = {k: v for k, v in obs.items() if self.kept.get(k, ()) is not None}
        return {k: v[:, self.kept[k]] if k in self.kept else v for k, v in visible.items()}


class NoiseColumns(EnvWrapper):
    """Wraps an environment to add a column of autoregressive noise that has nothing to do with the task.

    The key of an episode and the number of the step decide the noise.

    Args:
        correlation: Of each component with itself one step later, from 0 to below 1.
    """

    def __init__(self, env: Env, size: int = 16, correlation: float = 0.9, into: str = "observation.noise"):
        if not 0 <= correlation < 1:
            raise UserError(f"the correlation is {correlation}", where="NoiseColumns", hint="use 0 or more, below 1")
        if into in env.features:
            raise UserError(f"there is a column {into!r} already", where="NoiseColumns", hint="choose another name")
        super().__init__(env)
        self.size, self.correlation, self.into = size, correlation, into
        self.features = {**env.features, into: Feature("float32", (size,))}
        self.key, self.clock = (torch.zeros(env.rows, dtype=torch.int64) for _ in range(2))
        self.value = torch.zeros(env.rows, size)

    def reset(self, which, key):
        self.key[which], self.clock[which] = key, 0
        return self._observe(self.env.reset(which, key), which)

    def step(self, action):
        out = self.env.step(action)
        self.clock = self.clock + 1
        return replace(out, obs=self._observe(out.obs, torch.arange(self.rows)))

    def _observe(self, obs: Obs, which: Tensor) -> Obs:
        """Adds new noise only to the rows `which`, because `reset` also returns rows that it did not start."""
        noise = normal(self.key[which], self.clock[which], (self.size,), stream=NOISE_STREAM)
        following = self.correlation * self.value[which] + math.sqrt(1 - self.correlation**2) * noise
        self.value = self.value.clone()
        self.value[which] = torch.where((self.clock[which] == 0)[:, None], noise, following)
        return {**obs, self.into: self.value}


def _vector(env: Env, column: str, where: str) -> Feature:
    feature = env.features.get(column)
    if feature is None or feature.kind != "vector" or len(feature.shape) != 1:
        problem = "is not there" if feature is None else f"has kind {feature.kind!r} and shape {feature.shape}"
        raise UserError(f"column {column!r} {problem}", where=where,
                        hint=f"use a vector; {env.metadata['env']} has {', '.join(sorted(env.features))}")
    return feature


def _rowwise(x: Tensor, weight: Tensor) -> Tensor:
    """Computes a matrix product row by row, so that a result does not depend on the number of rows, (rows, outputs)."""
    return torch.stack([(x * w).sum(-1) for w in weight], -1)
