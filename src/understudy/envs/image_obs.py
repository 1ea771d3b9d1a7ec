"""Adds images as observations to environments that show numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..core import Feature, Schema, UserError
from ..data.episode import Episode
from ..data.video import resize
from ..execute.actor import Actor
from .base import Env, EnvWrapper, HasCameras, HasExpert, HasProprioception, Obs, Renderable, Restorable

SIZE = 96  # pixels a side, as in Diffusion Policy
HIDDEN = "simulator."  # before the name of a column that only a simulator knows


class ImageObs(EnvWrapper, Renderable):
    """Wraps an environment so that images of cameras are also observed, and the simulator's own state is hidden.

    The columns are `observation.images.CAMERA`, or `observation.images.camera` if the environment has one view without
    a name. If the environment says what a robot's own sensors measure (`HasProprioception`), only this is left in the
    columns of numbers, and the whole columns stay for the expert and for restored states, as
    `simulator.observation.state` and so on. In other environments all columns stay. Use `HiddenObs`, or
    `PolicyConfig.inputs`, if they say too much.

    `with_images` makes it.

    Args:
        size: Width and height of the images, in pixels.
        cameras: Names of cameras. Empty for the environment's first.
        drawn: The environment inside `env` that is drawn, if `env` changes what is observed or done, and has the same
            columns. None draws `env` itself.
    """

    def __init__(self, env: Env, size: int = SIZE, cameras: Sequence[str] = (), drawn: Env | None = None):
        super().__init__(env)
        self.drawn = env if drawn is None else drawn
        name = self.drawn.metadata["env"]
        if not isinstance(self.drawn, Renderable):
            raise UserError("it cannot be drawn", where=name, hint="images need an environment with a picture")
        if size < 8:
            raise UserError(f"the images need at least 8 pixels a side, but size={size}", where=name,
                            hint=f"such as {name}@images={SIZE}")
        env_cameras = _cameras(self.drawn)
        if unknown := [camera for camera in cameras if camera not in env_cameras]:
            raise UserError(f"there is no camera {unknown[0]!r}", where=name, hint=f"it has {', '.join(env_cameras)}")
        self.size, self.cameras = size, tuple(dict.fromkeys(cameras)) or env_cameras[:1]
        own = self.drawn.proprioception if isinstance(self.drawn, HasProprioception) else {}
        self.own = {column: list(components) for column, components in own.items()}
        self.features = self._transform_features(env.features)
        change = env.metadata["env"].removeprefix(name)
        self.metadata = {**env.metadata, "env": _name(self.drawn, size, self.cameras) + change}
        self._images = {c: np.zeros((self.rows, size, size, 3), np.uint8) for c in self.cameras}

    def _transform_features(self, features: Schema) -> dict[str, Feature]:
        new_features = {f"observation.images.{camera}": Feature("uint8", (self.size, self.size, 3), "image")
                        for camera in self.cameras}
        for column, f in features.items():
            if column in self.own:
                names = f.names and tuple(f.names[i] for i in self.own[column])
                new_features |= {column: replace(f, shape=(len(self.own[column]),), names=names), HIDDEN + column: f}
            else:
                new_features[column] = f
        return new_features

    def _observe(self, obs: Obs, rows: Sequence[int]) -> dict[str, Tensor]:
        """Adds images to the observation. Only the images of some rows are drawn again."""
        for camera, images in self._images.items():
            for row in rows:
                images[row] = self._view(row, camera)
        pictures = {f"observation.images.{c}": torch.from_numpy(images.copy()) for c, images in self._images.items()}
        own = {column: obs[column][:, components] for column, components in self.own.items()}
        return {**pictures, **obs, **own, **{HIDDEN + column: obs[column] for column in own}}

    def _view(self, row: int, camera: str) -> np.ndarray:
        if isinstance(self.drawn, HasCameras):
            return self.drawn.view(row, camera, self.size)
        return resize(self.frame(row)[None], (self.size, self.size))[0]

    def reset(self, which, key):
        return self._observe(self.env.reset(which, key), which.tolist())

    def step(self, action):
        out = self.env.step(action)
        return replace(out, obs=self._observe(out.obs, range(self.rows)))

    def frame(self, row):
        assert isinstance(self.drawn, Renderable)
        return self.drawn.frame(row)

    def shifted(self, env: Env) -> ImageObs:
        """Wraps an environment that steps the same simulator in another way, with the same images.

        Args:
            env: An environment around `env` with the same columns, such as a `shifts.Shifted`.
        """
        return ImageObs(env, self.size, self.cameras, self.drawn)


class _WithExpert(ImageObs, HasExpert):
    def expert(self):
        assert isinstance(self.env, HasExpert)
        return _ExpertOfAll(self.env.expert(), tuple(self.own))


class _WithRestore(ImageObs, Restorable):
    def restore(self, which, steps, key=None):
        assert isinstance(self.env, Restorable)
        return self._observe(self.env.restore(which, _whole_columns(steps, tuple(self.own)), key), which.tolist())

    def transform_episode(self, episode: Episode) -> Episode:
        """Draws an episode that was recorded in `env` without images, with what `env` can be restored from."""
        recorded = {k: torch.from_numpy(np.array(v)) for k, v in episode.steps.items()
                    if k in self.env.features and k != "action"}
        steps = max(len(v) for v in recorded.values())
        recorded = {k: v for k, v in recorded.items() if len(v) == steps}
        batches: list[Obs] = []
        for first in range(0, steps, self.rows):
            rows = torch.arange(min(self.rows, steps - first))
            obs = self.restore(rows, {k: v[first:first + self.rows] for k, v in recorded.items()})
            batches.append({k: v[:len(rows)] for k, v in obs.items()})
        drawn = {k: torch.cat([obs[k] for obs in batches]).numpy() for k in batches[0]
                 if k.startswith("observation.images.") or k.removeprefix(HIDDEN) in self.own}
        return replace(episode.replace(drawn), schema={**episode.schema, **{k: self.features[k] for k in drawn}},
                       metadata={**episode.metadata, "env": self.metadata["env"]})


class _WithBoth(_WithExpert, _WithRestore):
    pass


def with_images(env: Env, size: int = SIZE, cameras: Sequence[str] = ()) -> ImageObs:
    """Wraps an environment so that images of cameras are observed.

    The result has an expert and can be restored if the environment does and can.

    Args:
        size: Width and height of the images, in pixels.
        cameras: Names of cameras. Empty for the environment's first.

    Returns:
        The environment with images. `make(f"{name}@images={size},{camera}")` makes the same.

    Example:
        >>> with_images(make("metaworld/door-open-v3"), 128, ("corner2", "gripperPOV"))
    """
    kinds = {(False, False): ImageObs, (True, False): _WithExpert, (False, True): _WithRestore,
             (True, True): _WithBoth}
    return kinds[isinstance(env, HasExpert), isinstance(env, Restorable)](env, size, cameras)


def check_images(features: Schema, env: Env) -> None:
    """Raises an error if an environment lacks the images that a policy reads."""
    missing = {k: f for k, f in features.items() if f.kind == "image" and k not in env.features}
    if not missing or not isinstance(env, Renderable) or isinstance(env, ImageObs):
        return
    cameras = tuple(k.removeprefix("observation.images.") for k in missing)
    if set(cameras) <= set(_cameras(env)):
        size = max(f.shape[0] for f in missing.values())
        raise UserError(f"the policy reads images ({', '.join(missing)}), and this environment shows none by itself",
                        where=env.metadata["env"], hint=f"name it {_name(env, size, cameras)}")


def _cameras(env: Env) -> tuple[str, ...]:
    """Returns the names of the cameras of an environment, or "camera" if it names none."""
    return env.cameras if isinstance(env, HasCameras) else ("camera",)


def _name(env: Env, size: int, cameras: tuple[str, ...]) -> str:
    """Returns the shortest name by which `make` makes the environment with these images."""
    options = [str(size)] * (size != SIZE) + list(cameras) * (cameras != _cameras(env)[:1])
    return f"{env.metadata['env']}@images" + ("=" + ",".join(options) if options else "")


@dataclass(frozen=True)
class _ExpertOfAll(Actor):
    """Wraps an expert so that it reads the whole columns, of which policies see only a part."""

    actor: Actor
    columns: tuple[str, ...]

    def start(self, obs, key):
        return self.actor.start(_whole_columns(obs, self.columns), key)

    def act(self, obs, state):
        return self.actor.act(_whole_columns(obs, self.columns), state)


def _whole_columns(steps: Mapping[str, Tensor], columns: tuple[str, ...]) -> dict[str, Tensor]:
    """Returns columns of which policies see a part as whole columns."""
    return {**steps, **{column: steps[HIDDEN + column] for column in columns if HIDDEN + column in steps}}
