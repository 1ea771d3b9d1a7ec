"""Actors: everything that chooses actions, such as a policy with an executor, an expert, or a person."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..core import AtLeast, DataWarning, Feature, NonFiniteAction, State, UserError, normal, part, put, uniform
from ..data.column_changes import ColumnChange, LastStep
from ..data.video import resize
from ..hints import did_you_mean
from ..policy import Planner
from .base import Executor
from .chunking import RecedingHorizon

LAST_REWARD = "last.reward"  # (B,): the reward of the step before, which rollouts show to actors and do not record


class Actor(ABC):
    """An actor chooses actions: a policy, an expert or a person. Its state has one row per environment."""

    @abstractmethod
    def start(self, obs: Mapping[str, Tensor], key: Tensor) -> State:
        """Returns the state before the first action.

        Args:
            obs: The first observation of each row, (B, ...).
            key: Source of all randomness of each row, (B,) int64. See `understudy.core.keys`.
        """

    @abstractmethod
    def act(self, obs: Mapping[str, Tensor], state: State) -> tuple[Tensor, State]:
        """Returns the actions and the next state.

        Args:
            obs: The current observation of each row, (B, ...).
            state: What `start` or the last `act` returned. It is not changed in place.

        Returns:
            The actions, (B, A), on the CPU, and the next state. The columns in its entry "record", if there is one,
            are written into the episode together with the action.
        """


class CountingActor(Actor):
    """Base class of actors whose state is their key and the number of steps so far, from which noise is drawn."""

    def start(self, obs, key):
        return {"key": key, "count": torch.zeros_like(key)}


def check_action(action: Tensor) -> None:
    """Raises NonFiniteAction for the first row of (B, A) that contains NaN or infinity."""
    if not (good := action.isfinite()).all():
        row = int((~good.flatten(1).all(1)).nonzero()[0])
        raise NonFiniteAction(f"the action is not finite: {action[row].tolist()}", row,
                              hint="the policy has diverged: look at its training curve, or take another checkpoint")


@dataclass(frozen=True)
class PolicyActor(Actor):
    """The actor of a policy: a planner with an executor. It checks observations and keeps their history.

    Observations may be tensors, arrays or lists. They are moved to the planner's device.

    Args:
        image_sizes: (height, width) of each camera. Images of other sizes are resized as the training data was. See
            `Policy.image_sizes`.
    """

    planner: Planner
    executor: Executor = RecedingHorizon()
    image_sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @torch.no_grad()
    def start(self, obs, key):
        """Returns the state before the first action. The history consists of copies of the first observation.

        Args:
            obs: {column: (B, *shape)} with every column in `planner.inputs`, of the shape and kind in
                `planner.features`. One robot is a batch of one. Other columns are ignored.

        Raises:
            NonFiniteAction: If an observation is NaN or infinite.
        """
        windows, history = self.first_windows(obs, key)
        return {"seen": history, "run": self.executor.start(self.planner, windows, key.to(self.planner.device))}

    def first_windows(self, obs, key) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the windows of the first step, and the history that `next_windows` takes. Arguments as in `start`."""
        rows, columns = self.planner.window.n_obs_steps, self._checked_obs(obs)
        first = next(iter(columns.values()))
        if not isinstance(key, Tensor) or key.dtype != torch.int64 or key.shape != first.shape[:1]:
            raise UserError(
                f"the keys must be int64 numbers of shape ({len(first)},), one for each row, but this is "
                f"{_describe_value(key)}",
                where="key",
                hint="understudy.core.keys(seed, range(rows)) makes them",
            )
        windows = history = {k: v.unsqueeze(1).expand(-1, rows, *v.shape[1:]).clone() for k, v in columns.items()}
        if self.planner.window.obs_pad_mask:  # so far, all rows are before the start of the episode
            history = {k: torch.zeros_like(v) if k.endswith("?") else v for k, v in windows.items()}
            windows = {k: torch.cat([v[:, 1:], windows[k][:, -1:]], 1) for k, v in history.items()}
        return windows, history

    def next_windows(self, obs, history: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the observation windows of the current step, which are also the history of the next step."""
        now = self._checked_obs(obs, next(iter(history.values())).shape[0])
        return {k: torch.cat([v[:, 1:], now[k].unsqueeze(1)], 1) for k, v in history.items()}

    @torch.no_grad()
    def act(self, obs, state):
        """Returns the actions, (B, A) float32 in world units on the CPU, and the next state.

        The observation is as in `start`, with the same number of rows.

        Raises:
            NonFiniteAction: If an observation or an action is NaN or infinite.
        """
        if not isinstance(state, Mapping) or "seen" not in state:
            raise UserError(f"the state must be what start or act returned, but this is {_describe_value(state)}",
                            where="state", hint="state = a.start(obs, key), then action, state = a.act(obs, state)")
        windows = self.next_windows(obs, state["seen"])
        action, run = self.executor.act(self.planner, windows, state["run"])
        action = action.cpu()
        check_action(action)
        return action, {"seen": windows, "run": run}

    def _checked_obs(self, obs: Mapping[str, Tensor], rows: int | None = None) -> dict[str, Tensor]:
        """Returns the columns that the planner reads, checked and on its device. rows: the required number, or None."""
        _check_names(obs, self.planner.inputs)
        columns = {}
        for name in self.planner.inputs:
            columns[name] = value = self._checked_column(name, _tensor(name, obs[name]))
            if value.shape[0] != (rows := value.shape[0] if rows is None else rows):
                raise UserError(f"it has {value.shape[0]} rows instead of {rows}", where=f"observation {name!r}",
                                hint="give one row per environment in every column, and the same number at every step")
        for name, value in columns.items():
            # A column with a mask may contain anything where it was not sensed.
            if value.is_floating_point() and name + "?" not in columns and not (good := value.isfinite()).all():
                row, *at = (~good).nonzero()[0].tolist()
                raise NonFiniteAction(f"{_component_name(self.planner.features[name], at)} is not finite: "
                                      f"{value[row, *at].item()}", row, name,
                                      hint="fix the sensor or program that it comes from")
        assert rows is not None  # a policy reads something
        for mask in self.planner.window.pad_masks(self.planner.inputs):  # these rows are within the episode
            columns[mask] = torch.ones(rows, dtype=torch.bool)
        device = self.planner.device  # looks through the modules
        return {k: v.to(device) for k, v in columns.items()}

    def _checked_column(self, name: str, value: Tensor) -> Tensor:
        """Returns `value` (B, *shape) in the dtype and size that the policy was trained with."""
        feature = self.planner.features[name]
        if {tuple(value.shape[1:]), feature.shape} == {(), (1,)} and value.ndim:  # one number, stored without an axis
            value = value.reshape(-1, *feature.shape)
        shape = tuple(value.shape)
        expected_shape: tuple[int | str, ...] = ("rows", *feature.shape)
        if name in self.image_sizes and len(shape) == 4:
            expected_shape = (*expected_shape[:1], *shape[1:3], *expected_shape[3:])
        elif feature.kind == "text" and len(shape) == 2:  # any amount of padding
            expected_shape = (*expected_shape[:1], *shape[1:])
        if shape[1:] != expected_shape[1:] or not shape or not dtype_fits(feature.kind, value):
            raise UserError(
                f"the policy reads {VALUE_NAMES[feature.kind]} of shape "
                f"({', '.join(map(str, ('rows', *feature.shape)))}{',' * (not feature.shape)}), but this is "
                f"{_describe_value(value)}",
                where=f"observation {name!r}",
                hint=_shape_hint(name, feature, value),
            )
        if shape[1:] != feature.shape and feature.kind == "image":
            value = torch.as_tensor(resize(np.asarray(value.cpu()), self.image_sizes[name]))
        if feature.kind == "discrete" and feature.num_classes and name + "?" not in self.planner.inputs:
            _warn_of_unknown_class(name, feature, value)
        return value.float() if feature.kind == "vector" and value.dtype != torch.bool else value


def _warn_of_unknown_class(name: str, feature: Feature, value: Tensor) -> None:
    """Warns of a class in an observation that the training data did not have. The policy reads it as no class."""
    is_unknown = (value < 0) | (value >= torch.tensor(feature.num_classes, device=value.device).reshape(feature.shape))
    if is_unknown.any():
        row, *at = is_unknown.nonzero()[0].tolist()
        warnings.warn(f"observation {name!r}: {_component_name(feature, at)} is the class {value[row, *at].item()}, "
                      "which the training data do not have. The policy reads it as none", DataWarning, stacklevel=2)


VALUE_NAMES = {"vector": "numbers", "image": "uint8 pixels", "text": "uint8 bytes", "discrete": "integers"}


def _check_names(obs, names) -> None:
    if not isinstance(obs, Mapping):
        raise UserError(f"observations must be a dict of columns, but this is {_describe_value(obs)}", where="obs",
                        hint=f"give {{{', '.join(f'{n!r}: ...' for n in names)}}}")
    if missing := [n for n in names if n not in obs]:
        suggestion = did_you_mean(missing[0], (k for k in obs if k not in names))
        column_list = ", ".join(sorted(map(str, obs))) or "no columns"
        raise UserError(f"there is no column {missing[0]!r}; there are {column_list}", where="obs",
                        hint=f"{suggestion} The policy reads the columns it was trained with: "
                             f"{', '.join(names)}".strip())


def _tensor(name: str, value) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return torch.as_tensor(np.asarray(value, order="C"))  # a tensor cannot have negative strides
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"this is not an array of numbers but {_describe_value(value)}", where=f"observation {name!r}",
                        hint="give a tensor or an array, rows first") from None


def dtype_fits(kind: str, value: Tensor) -> bool:
    """Returns whether values of a column of a kind may have this dtype. Images need whole numbers."""
    if kind in ("image", "text"):
        return value.dtype == torch.uint8
    return not (value.is_complex() or kind == "discrete" and value.is_floating_point())


def _shape_hint(name: str, feature: Feature, value: Tensor) -> str:
    shape = tuple(value.shape)
    if shape == feature.shape:
        return f"one robot is a batch of one: obs[{name!r}][None]"
    if feature.kind == "image":
        if len(shape) == 4 and shape[1] == feature.shape[2] and shape[3] != feature.shape[2]:
            return "channels come last: (rows, height, width, channels)"
        if len(shape) == 4 and shape[3] == feature.shape[2] and value.dtype == torch.uint8:
            return "PolicyActor(policy, executor, policy.image_sizes) brings frames to the policy's size"
        return "give frames as cameras do, whole numbers from 0 to 255, rows first and channels last"
    component_names = f": {', '.join(feature.names)}" if feature.names and len(feature.names) <= 12 else ""
    return f"give what the policy was trained to read, rows first{component_names}"


def _component_name(feature: Feature, at: Sequence[int]) -> str:
    if feature.names and len(at) == 1:
        return f"component {feature.names[at[0]]!r}"
    return f"component {at[0] if len(at) == 1 else tuple(at)}" if at else "it"


def _describe_value(value) -> str:
    """Describes a value briefly for a message."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return "None" if value is None else type(value).__name__


@dataclass(frozen=True)
class ObservationWrapper(Actor):
    """Wraps an actor to add constant columns that the environment does not provide: a goal, an instruction, ...

    Args:
        columns: {name: value of shape (*feature)}.
    """

    actor: Actor
    columns: Mapping[str, Tensor]

    def _add_columns(self, obs):
        _check_names(obs, ())
        rows = len(next(iter(obs.values())))
        return {**obs, **{name: value.expand(rows, *value.shape) for name, value in self.columns.items()}}

    def start(self, obs, key):
        return self.actor.start(self._add_columns(obs), key)

    def act(self, obs, state):
        return self.actor.act(self._add_columns(obs), state)


T = TypeVar("T")


@dataclass(frozen=True)
class RenamedColumns(Actor):
    """Wraps an actor so that it observes columns under the names that it knows.

    Args:
        names: The name that `actor` knows, by the name of the environment.
    """

    actor: Actor
    names: Mapping[str, str]

    def start(self, obs, key):
        return self.actor.start(rename_columns(obs, self.names), key)

    def act(self, obs, state):
        return self.actor.act(rename_columns(obs, self.names), state)


def rename_columns(columns: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    """Renames columns, or features of columns. Columns that are not named stay."""
    return {names.get(name, name): value for name, value in columns.items()}


@dataclass(frozen=True)
class TransformedActor(Actor):
    """Wraps an actor to add columns that are computed while acting, such as the last action.

    For constant columns, use `ObservationWrapper`. The reward of the last step is the column `last.reward`, which
    rollouts provide and robots do not.

    Args:
        transforms: The column changes, in order. Each change sees the columns that earlier changes have added.
        action: The feature of the actor's actions. None if no transform reads actions.
        action_size: Number of action components of the environment, for transforms that change actions. None if it is
            not known.
    """

    actor: Actor
    transforms: tuple[ColumnChange, ...]
    action: Feature | None = None
    action_size: int | None = None

    def start(self, obs, key):
        last = {"exists": torch.zeros(len(key), dtype=torch.bool)}
        if self.action is not None:
            last["action"] = torch.zeros(len(key), self.action.size, dtype=self.action.torch_dtype)
        states, steps = {}, self._last_steps(obs, last)
        for i, (transform, step) in enumerate(zip(self.transforms, steps, strict=True)):
            states[str(i)] = transform.start(obs, key)
            obs = {**obs, **transform.step(obs, step, states[str(i)])[0]}
        return {"inner": self.actor.start(obs, key), "transforms": states, "last": last}

    def act(self, obs, state):
        states = {}
        for i, step in enumerate(self._last_steps(obs, state["last"])):
            added, states[str(i)] = self.transforms[i].step(obs, step, state["transforms"][str(i)])
            obs = {**obs, **added}
        action, inner = self.actor.act(obs, state["inner"])
        last = {"exists": torch.ones_like(state["last"]["exists"])}
        if self.action is not None:  # a policy plans classes as float32
            last["action"] = action.to(self.action.torch_dtype)
        return self._actions(action)[0], pass_record({"transforms": states, "last": last}, inner)

    def _actions(self, action: Tensor) -> list[Tensor]:
        """Returns the actor's action as each transform sees it, before its own change. The first is executed."""
        actions = []
        for transform in reversed(self.transforms):
            action = transform.transform_action(action, self.action_size)
            actions.insert(0, action)
        return actions or [action]

    def _last_steps(self, obs, last) -> list[LastStep]:
        """Returns the last step, with its action as each transform sees it."""
        reward = obs.get(LAST_REWARD)
        if self.action is None:
            return [LastStep(last["exists"], None, reward) for _ in self.transforms]
        actions = self._actions(last["action"])[: len(self.transforms)]
        return [LastStep(last["exists"], action, reward) for action in actions]


def pass_record(state: State, inner: State, columns: Mapping[str, Tensor] = MappingProxyType({})) -> State:
    """Adds the inner actor's state to the state of a wrapper, and moves its record for the episode to the top."""
    inner = dict(inner)
    record = {**inner.pop("record", {}), **columns}
    return {**state, "inner": inner, **({"record": record} if record else {})}


def with_new_plans(state: State, fresh: State, rows: Tensor) -> State:
    """Returns the state of an actor in which some rows drop their plans, and remember what they have seen.

    Args:
        fresh: What `start` returned for these rows, (R, ...).
        rows: Which rows, (R,).
    """
    if {"seen", "run"} <= state.keys():  # the state of a `PolicyActor`
        return {**state, "run": put(state["run"], rows, fresh["run"])}
    return {k: with_new_plans(v, fresh[k], rows) if isinstance(v, Mapping) and k in fresh else v
            for k, v in state.items()}


@part
class NoisyActor(Actor):
    """Wraps an actor to add Gaussian noise to its actions, for exploration.

    Args:
        actor: The actor; None for noise alone.
        limits: Lowest and highest noisy actions, (dim,) each. None for no limits.
    """

    actor: Actor | None
    dim: Annotated[int, AtLeast(1)]
    std: Annotated[float, AtLeast(0)] = 1.0
    limits: tuple[Tensor, Tensor] | None = None

    def start(self, obs, key):
        inner = {} if self.actor is None else self.actor.start(obs, key)
        return {"inner": inner, "key": key, "count": torch.zeros_like(key)}

    def act(self, obs, state):
        noise = self.std * normal(state["key"], state["count"], (self.dim,), stream=5)
        action, inner = (0.0, {}) if self.actor is None else self.actor.act(obs, state["inner"])
        noisy = action + noise if self.limits is None else (action + noise).clamp(*self.limits)
        return noisy, pass_record({**state, "count": state["count"] + 1}, inner)


@dataclass(frozen=True)
class RandomClassActor(Actor):
    """Wraps an actor to replace its action by a random class in a fraction of the steps, for exploration."""

    actor: Actor
    num_classes: tuple[int, ...]
    fraction: float

    def start(self, obs, key):
        return {"inner": self.actor.start(obs, key), "key": key, "count": torch.zeros_like(key)}

    def act(self, obs, state):
        drawn = uniform(state["key"], state["count"], (1 + len(self.num_classes),), stream=5)
        action, inner = self.actor.act(obs, state["inner"])
        classes = (drawn[:, 1:] * torch.tensor(self.num_classes)).floor().to(action).reshape(action.shape)
        is_random = (drawn[:, 0] < self.fraction).to(action.device).reshape(-1, *[1] * (action.ndim - 1))
        return torch.where(is_random, classes, action), pass_record({**state, "count": state["count"] + 1}, inner)
