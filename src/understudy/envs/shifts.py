"""Shifts: changes of an environment by a measured amount (severity), for tests of robustness.

Every shift has a severity in natural units. Severity 0 is the environment itself, bit for bit. What is drawn for it is
decided by each row's key (stream 7 what is drawn at every step, 9 what is drawn once an episode), so that an episode
meets the same world whatever runs at the same time.
"""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..core import UserError, normal, put, role, uniform
from ..execute.actor import Actor
from ..execute.latency import DroppedObservation, delay_actor
from .base import Env, EnvWrapper, Obs
from .image_obs import ImageObs
from .toy import Toy, distance
from .toys.arms import Arms
from .toys.blocks import CENTERS, SPREAD, Blocks
from .toys.fork import Fork
from .toys.particle import Particle
from .toys.push import DISC, HALF, Push

if TYPE_CHECKING:
    from .gymnasium_adapter import GymVector
    from .mujoco import MujocoVector


@dataclass(frozen=True)
class Shift:
    """A change of the environment or of the actor, with a severity in natural units.

    Args:
        levels: Severities that are tried by default, in increasing order, without 0.
        world: Returns the environment at a severity. Severity 0 must behave like the original.
        actor: Returns the actor at a severity. Severity 0 must behave like the original.
    """

    name: str
    description: str  # in words
    unit: str  # of the severity
    levels: tuple[float, ...]
    world: Callable[[Any, float], Env] = lambda env, severity: env
    actor: Callable[[Actor, Any], Actor] = lambda actor, severity: actor


class Shiftable(Env):
    """An environment that offers its own shifts, such as other starts, goals or dynamics."""

    @abstractmethod
    def shifts(self) -> tuple[Shift, ...]:
        """Shifts that only this environment can make. `Shift.world` receives a new copy of the environment and may
        change it."""


# -- what can be done to any environment --------------------------------------------------------------------------


class Shifted(EnvWrapper):
    """Base class of environments that change the observations or actions of another by a severity.

    Args:
        severity: How strong the change is. 0 changes nothing.

    Attributes:
        max_severity: Largest severity. If `is_integer`, severities are whole numbers.
    """

    name: str
    max_severity, is_integer = math.inf, False

    def __init__(self, env: Env, severity: float):
        if not 0 <= severity <= self.max_severity or math.isinf(severity) or self.is_integer and severity % 1:
            room = "0 or more" if math.isinf(self.max_severity) else f"from 0 to {self.max_severity:g}"
            raise UserError(f"the level must be {'a whole number, ' * self.is_integer}{room}, not {severity:g}",
                            where=f"shift {self.name!r} of {env.metadata['env']}", hint="0 is the world as it was")
        self.env, self.severity, self.rows = env, severity, env.rows
        self.features, self.key = env.features, torch.zeros(env.rows, dtype=torch.int64)
        self.metadata = (
            {**env.metadata, "env": f"{env.metadata['env']}+{self.name}:{severity:g}"} if severity else env.metadata
        )
        self.count = torch.zeros_like(self.key)

    def reset(self, which, key):
        obs = self.env.reset(which, key)
        self.key, self.count = self.key.clone(), self.count.clone()
        self.key[which], self.count[which] = key, 0
        return self.on_reset(obs, which) if self.severity else obs

    def step(self, action):
        out = self.env.step(self.shift_action(action) if self.severity else action)
        self.count = self.count + 1
        return replace(out, obs=self.shift_obs(out.obs)) if self.severity else out

    def on_reset(self, obs: Obs, which: Tensor) -> Obs:
        """Changes the observations after a reset.

        Args:
            which: Rows that have just been reset, (n,).
        """
        return self.shift_obs(obs)

    def shift_obs(self, obs: Obs) -> Obs:
        """Changes the observations of all rows by the severity."""
        return obs

    def shift_action(self, action: Tensor) -> Tensor:
        """Changes actions, (rows, A), by the severity before they are executed."""
        return action

    def _columns(self, kind: str) -> list[str]:
        """Returns the observation columns of a kind, but not columns with other roles, such as simulator.state."""
        return [k for k, f in self.features.items() if role(k) == "observation" and f.kind == kind]


class SensorNoise(Shifted):
    """Shift that adds Gaussian noise to every observed number at every step.

    Args:
        severity: Standard deviation of the noise, in units of `spread`.
        spread: Unit of each component, by column.
    """

    name = "noise"

    def __init__(self, env, severity, spread: Mapping[str, Tensor]):
        super().__init__(env, severity)
        self.spread = spread

    def shift_obs(self, obs):
        names = self._columns("vector")
        drawn = normal(self.key, self.count, (sum(self.features[k].size for k in names),), stream=7)
        parts = drawn.split([self.features[k].size for k in names], 1)
        return {**obs, **{k: obs[k] + (self.severity * self.spread[k] * n.view(obs[k].shape)).to(obs[k].dtype)
                          for k, n in zip(names, parts, strict=True)}}


class ObservationDelay(Shifted):
    """Shift by which every observation is `severity` steps old."""

    name, is_integer = "delay", True

    def __init__(self, env, severity):
        super().__init__(env, severity)
        self.past: dict[str, Tensor] = {}  # the last severity + 1 of each column, oldest first

    def on_reset(self, obs, which):
        long = int(self.severity) + 1
        for k in filter(lambda k: role(k) == "observation", obs):
            first = obs[k].unsqueeze(1).expand(-1, long, *obs[k].shape[1:])
            self.past[k] = put(self.past[k], which, first[which]) if k in self.past else first.clone()
        return self._oldest(obs)

    def shift_obs(self, obs):
        self.past = {k: torch.cat([v[:, 1:], obs[k].unsqueeze(1)], 1) for k, v in self.past.items()}
        return self._oldest(obs)

    def _oldest(self, obs):
        return {**obs, **{k: v[:, 0].clone() for k, v in self.past.items()}}


class ActionLag(Shifted):
    """Shift by which each executed action was chosen `severity` steps earlier."""

    name, is_integer = "lag", True

    def __init__(self, env, severity):
        super().__init__(env, severity)
        self.past = torch.zeros(self.rows, int(severity) + 1, env.features["action"].size)  # oldest first

    def shift_action(self, action):
        first = action.unsqueeze(1).expand_as(self.past)
        began = (self.count == 0).view(-1, 1, 1)
        self.past = torch.where(began, first, torch.cat([self.past.to(action.dtype)[:, 1:], action.unsqueeze(1)], 1))
        return self.past[:, 0].clone()


class WeakActuators(Shifted):
    """Shift by which every action, within its limits, is reduced by the fraction `severity`."""

    name, max_severity = "weak", 1.0

    def shift_action(self, action):
        low, high = (torch.as_tensor(self.metadata[k], dtype=action.dtype) for k in ("low", "high"))
        return (1 - self.severity) * torch.minimum(torch.maximum(action, low), high)


class ImageShift(Shifted):
    """Base class of shifts that change the images of cameras."""

    def shift_obs(self, obs):
        return {**obs, **{k: self.shift_image(obs[k]) for k in self._columns("image")}}

    @abstractmethod
    def shift_image(self, image: Tensor) -> Tensor:
        """Changes images, (rows, H, W, C) uint8, by the severity."""


class Brightness(ImageShift):
    """Shift that darkens images: the fraction `severity` of the light is missing."""

    name, max_severity = "light", 1.0

    def shift_image(self, image):
        return ((1 - self.severity) * image.float()).round().to(torch.uint8)


class CameraOffset(ImageShift):
    """Shift that moves images by `severity` of its width, in a random direction of the episode. Its edge pixels are
    repeated."""

    name, max_severity = "camera", 1.0

    def shift_image(self, image):
        rows, height, width = image.shape[:3]
        angle = 2 * torch.pi * uniform(self.key, torch.zeros_like(self.key), (1,), stream=9)
        offset = (self.severity * width * torch.cat([angle.sin(), angle.cos()], 1)).round().long()
        line = (torch.arange(height) - offset[:, :1]).clamp(0, height - 1)
        column = (torch.arange(width) - offset[:, 1:]).clamp(0, width - 1)
        return image[torch.arange(rows)[:, None, None], line[:, :, None], column[:, None, :]]


class Distractors(ImageShift):
    """`severity` discs drift over the picture, each as wide as a sixth of it, with colors and ways of the episode's
    own; they bounce off its edges."""

    name, is_integer = "distractors", True
    radius, speed = 1 / 12, 0.01  # in heights of the picture; speed per step

    def shift_image(self, image):
        rows, height, width = image.shape[:3]
        n = int(self.severity)
        drawn = uniform(self.key, torch.zeros_like(self.key), (n, 6), stream=9)
        angle = 2 * torch.pi * drawn[..., 5:]
        way = self.count.view(-1, 1, 1) * self.speed * torch.cat([angle.cos(), angle.sin()], -1)
        centers = 1 - ((drawn[..., :2] + way) % 2 - 1).abs()  # there and back between 0 and 1
        centers = (centers * torch.tensor([width, height]) - 0.5).unsqueeze(-1)
        color = (255 * drawn[..., 2:5]).round().to(torch.uint8)[..., :image.shape[3]]
        image = image.clone()
        for i in range(n):
            x, y = torch.arange(width) - centers[:, i, 0], torch.arange(height) - centers[:, i, 1]
            inside = x[:, None, :] ** 2 + y[:, :, None] ** 2 < (self.radius * height) ** 2
            image = torch.where(inside.unsqueeze(-1), color[:, i, None, None, :], image)
        return image


# -- what takes knowing the environment ------------------------------------------------------------------------------

StateMove = Callable[[dict[str, np.ndarray], Tensor, float], dict[str, np.ndarray]]


class MovedState(Shifted):
    """Shift by which the episodes of a toy start from changed states.

    Args:
        move: ``move(state, key, severity)`` returns the changed entries of the state (name -> (n, ...)) of the rows
            that begin, with the keys (n,).
        most: Largest severity.
    """

    env: Toy

    def __init__(self, env: Toy, severity: float, name: str, move: StateMove, most: float = math.inf):
        self.name, self.max_severity, self.move = name, most, move
        super().__init__(env, severity)

    def on_reset(self, obs, which):
        rows, state = which.numpy(), self.env.state
        moved = self.move({k: v[rows] for k, v in state.items()}, self.key[which], self.severity)
        for k, v in moved.items():
            state[k][rows] = v
        return {k: torch.from_numpy(v.copy()) for k, v in self.env.observe().items()}


class Gusts(Shifted):
    """Shift of the toy "fork" with more wind."""

    name = "gust"

    def __init__(self, env: Fork, severity: float):
        super().__init__(env, severity)
        env.gust = float(np.hypot(env.gust, severity))


class WeakSpring(Shifted):
    """Shift of the toy "particle" that moves its target towards it, as if the spring were weaker."""

    name, max_severity = "weak", 1.0
    env: Particle

    def shift_action(self, action):
        position = torch.from_numpy(self.env.state["at"])
        return position + (1 - self.severity) * (action.clamp(self.env.low, self.env.high) - position)


class PhysicsShift(Shifted):
    """Shift that changes physics parameters of MuJoCo models.

    Args:
        change: Called as ``change(model, severity)``. It changes the model in place.
        most: Largest severity.
    """

    env: GymVector

    def __init__(self, env: Env, severity: float, name: str, change: Callable, most: float = math.inf):
        from .mujoco import MujocoVector

        self.name, self.max_severity, self.change = name, most, change
        super().__init__(env, severity)
        self.anew = not isinstance(env, MujocoVector)
        if severity and isinstance(env, MujocoVector):
            for model, _ in env.models:
                change(model, severity)

    def on_reset(self, obs, which):
        if self.anew:
            for row in which.tolist():
                self.change(self.env.vec.envs[row].env.model, self.severity)
        return obs


class InitialVelocity(Shifted):
    """Shift by which the joints of a MuJoCo environment start with other, random velocities."""

    env: MujocoVector
    name = "start"

    def on_reset(self, obs, which):
        model, _ = self.env.models[0]
        state = obs["simulator.state"][which].clone()
        speed = slice(1 + model.nq, 1 + model.nq + model.nv)  # after the time and the positions
        key = self.key[which]
        state[:, speed] += self.severity * normal(key, torch.zeros_like(key), (model.nv,), stream=9).double()
        return self.env.restore(which, {"simulator.state": state})


def _scale_mass(model, severity):
    import mujoco

    model.body_mass *= 1 + severity
    model.body_inertia *= 1 + severity
    mujoco.mj_setConst(model, mujoco.MjData(model))


def _scale_friction(model, severity):
    model.geom_friction[:, 0] *= 1 - severity
    model.pair_friction[:, :2] *= 1 - severity


def _scale_gravity(model, severity):
    model.opt.gravity *= 1 + severity


def _move_start_back(state, key, severity):
    """Moves the start of the toy "fork" away from the pillar, within 45 degrees of straight back."""
    angle = np.pi + np.pi / 2 * (uniform(key, torch.zeros_like(key), (1,), stream=9).numpy() - 0.5)
    return {"at": state["at"] + (severity * np.concatenate([np.cos(angle), np.sin(angle)], 1)).astype(np.float32)}


def _widen_range(name: str, half, state, key, severity, middle=0.5):
    """Widens the range from which a position is drawn by the severity on every side."""
    middle, half = np.float32(middle), np.float32(half)
    return {name: middle + (state[name] - middle) * ((half + np.float32(severity)) / half)}


def _widen_block_range(state, key, severity):
    """Widens the range of start positions of the block in a pushing toy, out of the disc's way."""
    new = _widen_range("block", 0.3, state, key, severity)
    overlaps = distance(state["disc"], new["block"]) < 1.5 * HALF + DISC
    return {**new, "disc": np.where(overlaps[:, None], 1 - state["disc"], state["disc"])}


def _move_goals_to_corners(state, key, severity):
    """Moves both goals of a toy by the fraction `severity` of their way to the next corner."""
    return {k: state[k] + severity * (np.rint(state[k]) - state[k]) for k in ("first", "second")}


def env_shifts(env: Env) -> tuple[Shift, ...]:
    """Returns the shifts that are specific to this environment."""
    if isinstance(env, Shiftable):
        return env.shifts()
    if isinstance(env, ImageObs):
        return tuple(replace(shift, world=partial(_behind_images, shift.world)) for shift in env_shifts(env.env))
    for world, shifts in _TOY_SHIFTS.items():
        if isinstance(env, world):
            return shifts
    return _simulator_shifts(env)


def _simulator_shifts(env: Env) -> tuple[Shift, ...]:
    """Returns the shifts of MuJoCo environments whose state can be set, and of Meta-World."""
    if "mujoco" not in sys.modules:  # then no environment of MuJoCo was made
        return ()
    from .mujoco import MujocoCameras, MujocoVector

    if not isinstance(env, MujocoCameras):
        return ()
    kick = (
        Shift("start", "joints that start with another velocity", "m/s, rad/s", (0.1, 0.3, 1.0, 3.0), InitialVelocity),
    )
    return (*(kick if isinstance(env, MujocoVector) else ()),
            Shift("mass", "heavier bodies", "of the mass on top", (0.25, 0.5, 1.0, 2.0),
                  lambda env, s: PhysicsShift(env, s, "mass", _scale_mass)),
            Shift("friction", "less friction", "of it away", (0.2, 0.4, 0.6, 0.8),
                  lambda env, s: PhysicsShift(env, s, "friction", _scale_friction, 1.0)),
            Shift("gravity", "stronger gravity", "of it on top", (0.1, 0.2, 0.4, 0.8),
                  lambda env, s: PhysicsShift(env, s, "gravity", _scale_gravity)))


def _behind_images(world: Callable[[Any, float], Env], env: ImageObs, severity: float) -> Env:
    return env.shifted(world(env.env, severity))


def available_shifts(env: Env, spread: Callable[[], Mapping[str, Tensor]]) -> dict[str, Shift]:
    """Returns all shifts of an environment by name: its own ones, and general ones that its columns allow.

    Args:
        spread: Returns the unit of each observed component, see `SensorNoise`. It is called when it is needed.
    """
    kinds = {f.kind for k, f in env.features.items() if role(k) == "observation"}
    shifts = list(env_shifts(env))
    low, high = (np.asarray(env.metadata.get(k, 0.0)) for k in ("low", "high"))
    if env.features["action"].kind == "vector" and (low < 0).all() and (high > 0).all():  # 0 is: nothing
        shifts.append(
            Shift("weak", "actions that come out weaker", "of every action", (0.1, 0.2, 0.4, 0.8), WeakActuators)
        )
    if "vector" in kinds:
        shifts.append(Shift("noise", "noise on what is sensed", "standard deviations", (0.03, 0.1, 0.3, 1.0),
                            lambda env, s: SensorNoise(env, s, spread())))
    if "image" in kinds:
        shifts += [Shift("light", "less light", "of the light", (0.2, 0.4, 0.6, 0.8), Brightness),
                   Shift("camera", "a camera that has moved", "of the width", (0.02, 0.05, 0.1, 0.2), CameraOffset),
                   Shift("distractors", "things in the picture that do not matter", "discs", (1, 2, 4, 8), Distractors)]
    steps = (1, 2, 4, 8)
    shifts += [Shift("delay", "observations that are old", "steps", steps, ObservationDelay),
               Shift("lag", "actions that come out late", "steps", steps, ActionLag),
               Shift("dropped", "observations that do not come", "of the observations", (0.1, 0.3, 0.6, 0.9),
                     actor=lambda actor, s: DroppedObservation(actor, s) if s else actor),
               Shift("slow", "plans that come late, while the clock runs on", "steps", steps, actor=delay_actor)]
    by_name: dict[str, Shift] = {}
    for shift in shifts:
        by_name.setdefault(shift.name, shift)  # an environment's own comes first
    return by_name


# -- the shifts of toys -----------------------------------------------------------------------------------------------


def _moved(name: str, description: str, unit: str, levels: tuple[float, ...], move: StateMove, most: float = math.inf
           ) -> Shift:
    """Builds a shift of a toy whose episodes start from changed states."""
    return Shift(name, description, unit, levels, lambda env, s: MovedState(env, s, name, move, most))


_TOY_SHIFTS: dict[type[Env], tuple[Shift, ...]] = {
    Fork: (
        _moved("start", "starts farther back", "m", (0.1, 0.2, 0.4, 0.8), _move_start_back),
        Shift("gust", "gusts of wind", "m/s", (0.25, 0.5, 1.0, 2.0), Gusts),
    ),
    Particle: (
        _moved("start", "starts drawn from a wider range", "sides of the cube", (0.1, 0.2, 0.4, 0.8),
               partial(_widen_range, "at", 0.5)),
        _moved("goal", "goals nearer to the corners", "of the way there", (0.25, 0.5, 0.75, 1.0),
               _move_goals_to_corners, 1.0),
        Shift("weak", "a weaker spring", "of its strength", (0.1, 0.2, 0.4, 0.8), WeakSpring),
    ),
    Push: (
        _moved("start", "blocks drawn from a wider range", "m", (0.02, 0.04, 0.06, 0.08), _widen_block_range, 0.08),
        _moved("goal", "goals drawn from a wider range", "m", (0.02, 0.04, 0.06, 0.08),
               partial(_widen_range, "goal", 0.3), 0.08),
    ),
    Blocks: (
        _moved("start", "blocks drawn from a wider range", "m", (0.015, 0.03, 0.045, 0.06),
               partial(_widen_range, "blocks", SPREAD[1:3, None], middle=CENTERS[1:3]), 0.06),
        _moved("goal", "targets drawn from a wider range", "m", (0.02, 0.04, 0.06, 0.08),
               partial(_widen_range, "targets", SPREAD[3:, None], middle=CENTERS[3:]), 0.08),
    ),
    Arms: (
        _moved("start", "hands drawn from a wider range", "m", (0.025, 0.05, 0.075, 0.1),
               partial(_widen_range, "hands", 0.2, middle=[[0.3, 0.8], [1.7, 0.8]]), 0.1),
        _moved("goal", "goals drawn from a wider range", "m", (0.05, 0.1, 0.2, 0.3),
               partial(_widen_range, "goal", [0.4, 0.15], middle=[1.0, 0.75]), 0.3),
    ),
}
