"""Anything that acts: a policy with an executor, an expert, a person, or a gate over both."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..core import Feature, State, UserError, normal
from ..data.video import resize
from ..policy import Planner
from .base import Executor
from .chunking import RecedingHorizon


class Actor(ABC):
    @abstractmethod
    def start(self, obs: Mapping[str, Tensor], key: Tensor) -> State:
        """obs (B, ...): the first observation of each row. key (B,) int64: all the randomness of each row."""

    @abstractmethod
    def act(self, obs: Mapping[str, Tensor], state: State) -> tuple[Tensor, State]:
        """(B, A) actions, on the CPU. What `state["record"]` holds is written into the episode beside the action."""


class NonFiniteAction(UserError, FloatingPointError):
    """What was seen or is to be done in `row` is no number: an environment would count it as a failure, quietly.
    of: the observation's column; place: what to say in the place of the row."""

    def __init__(self, problem: str, row: int, column: str = "", *, place: str = "", hint: str | None = None):
        super().__init__(
            problem, where=(place or f"row {row}") + (f", observation {column!r}" if column else ""), hint=hint
        )
        self.row, self.column = row, column


def check_action(action: Tensor) -> None:
    """Raises NotFinite for the first row of (B, A) that is no action."""
    if not (good := action.isfinite()).all():
        row = int((~good.flatten(1).all(1)).nonzero()[0])
        raise NonFiniteAction(f"expected a finite action, found {action[row].tolist()}", row,
                        hint="the policy has diverged: look at its training curve, or take another checkpoint")


@dataclass(frozen=True)
class PolicyActor(Actor):
    """A planner with an executor; keeps the observation history. Observations may be arrays; they are moved to the
    planner's device, actions come back from it. frames: (height, width) to which a camera's frames are brought first,
    by the rule that training data was (`Policy.image_sizes`)."""

    planner: Planner
    executor: Executor = RecedingHorizon()
    image_sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @torch.no_grad()
    def start(self, obs, key):
        """The state before the first action; the history is the first observation, as often as it takes.

        obs: {column: (B, *shape)} with every column in `policy.inputs`, of the shape and kind in `policy.features`;
            one robot is a batch of one. Others are not read. key (B,) int64: see core.keys.

        Raises UserError for a column that is missing or of another shape or kind, NotFinite for one that holds NaN or
        infinity, each naming column and row.
        """
        rows, seen = self.planner.window.n_obs_steps, self._checked_obs(obs)
        first = next(iter(seen.values()))
        if not isinstance(key, Tensor) or key.dtype != torch.int64 or key.shape != first.shape[:1]:
            raise UserError(
                f"expected int64 numbers of shape ({len(first)},), one for each row, found {_describe_value(key)}",
                where="key",
                hint="understudy.core.keys(seed, range(rows)) makes them",
            )
        seen = {k: v.unsqueeze(1).expand(-1, rows, *v.shape[1:]).clone() for k, v in seen.items()}
        first = seen
        if self.planner.window.obs_pad_mask:  # so far, all rows are before the start of the episode
            seen = {k: torch.zeros_like(v) if k.endswith("?") else v for k, v in seen.items()}
            first = {k: torch.cat([v[:, 1:], first[k][:, -1:]], 1) for k, v in seen.items()}
        return {"seen": seen, "run": self.executor.start(self.planner, first, key.to(self.planner.device))}

    @torch.no_grad()
    def act(self, obs, state):
        """((B, A) float32 in world units, on the CPU; the next state). obs: as in `start`, of as many rows; state:
        what `start` or the last `act` gave, which stays as it is.

        Raises UserError as `start` does, and NotFinite for an action that is not finite.
        """
        if not isinstance(state, Mapping) or "seen" not in state:
            raise UserError(f"expected the state that start or the last act gave, found {_describe_value(state)}",
                            where="state", hint="state = a.start(obs, key), then action, state = a.act(obs, state)")
        now = self._checked_obs(obs, next(iter(state["seen"].values())).shape[0])
        seen = {k: torch.cat([v[:, 1:], now[k].unsqueeze(1)], 1) for k, v in state["seen"].items()}
        action, run = self.executor.act(self.planner, seen, state["run"])
        action = action.cpu()
        check_action(action)
        return action, {"seen": seen, "run": run}

    def _checked_obs(self, obs: Mapping[str, Tensor], rows: int | None = None) -> dict[str, Tensor]:
        """What the policy reads, checked, on its device. rows: how many there must be; by default any, but as many in
        each column."""
        _check_names(obs, self.planner.inputs)
        seen = {}
        for name in self.planner.inputs:
            seen[name] = value = self._checked_column(name, _tensor(name, obs[name]))
            if value.shape[0] != (rows := value.shape[0] if rows is None else rows):
                raise UserError(f"expected {rows} rows, found {value.shape[0]}", where=f"observation {name!r}",
                                hint="every column has a row for each environment, and as many at every step")
        for name, value in seen.items():
            # What was not sensed may hold anything.
            if value.is_floating_point() and name + "?" not in seen and not (good := value.isfinite()).all():
                row, *at = (~good).nonzero()[0].tolist()
                raise NonFiniteAction(f"expected finite numbers, found {value[row, *at].item()} in "
                                f"{_component_name(self.planner.features[name], at)}", row, name,
                                hint="mend what gave it: whatever the policy answered would be chance")
        if self.planner.window.obs_pad_mask:  # these rows are within the episode
            present = torch.ones(rows, dtype=torch.bool)
            seen |= {k + "?": present for k in self.planner.inputs if not k.endswith("?") and k + "?" not in seen}
        return {k: v.to(self.planner.device) for k, v in seen.items()}

    def _checked_column(self, name: str, value: Tensor) -> Tensor:
        """`value` (B, *shape) as the policy was trained to read it."""
        feature, shape = self.planner.features[name], tuple(value.shape)
        wanted: tuple[int | str, ...] = ("rows", *feature.shape)
        if name in self.image_sizes and len(shape) == 4:
            wanted = (*wanted[:1], *shape[1:3], *wanted[3:])
        elif feature.kind == "text" and len(shape) == 2:  # its padding changes nothing
            wanted = (*wanted[:1], *shape[1:])
        if shape[1:] != wanted[1:] or not shape or not _dtype_fits(feature.kind, value):
            raise UserError(
                f"expected {VALUE_NAMES[feature.kind]} of shape ({', '.join(map(str, ('rows', *feature.shape)))}"
                f"{',' * (not feature.shape)}), found {_describe_value(value)}",
                where=f"observation {name!r}",
                hint=_shape_hint(name, feature, value),
            )
        if shape[1:] != feature.shape and feature.kind == "image":
            value = torch.as_tensor(resize(np.asarray(value.cpu()), self.image_sizes[name]))
        return value.float() if feature.kind == "vector" and value.dtype != torch.bool else value


VALUE_NAMES = {"vector": "numbers", "image": "uint8 pixels", "text": "uint8 bytes", "discrete": "integers"}


def _check_names(obs, names) -> None:
    if not isinstance(obs, Mapping):
        raise UserError(f"expected observations by column, found {_describe_value(obs)}", where="obs",
                        hint=f"give {{{', '.join(f'{n!r}: ...' for n in names)}}}")
    if missing := [n for n in names if n not in obs]:
        near = difflib.get_close_matches(missing[0], (str(k) for k in obs if k not in names), 1)
        raise UserError(f"expected an observation {missing[0]!r}, found {', '.join(sorted(map(str, obs))) or 'none'}",
                        where="obs", hint=(f"did you mean {near[0]!r}? " if near else "")
                        + f"The policy reads the columns it was trained with: {', '.join(names)}")


def _tensor(name: str, value) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return torch.as_tensor(np.asarray(value, order="C"))  # mirrored views, for one, are no tensors as they are
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"expected numbers, found {_describe_value(value)}", where=f"observation {name!r}",
                        hint="give a tensor or an array, rows first") from None


def _dtype_fits(kind: str, value: Tensor) -> bool:
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
    said = f": {', '.join(feature.names)}" if feature.names and len(feature.names) <= 12 else ""
    return f"give what the policy was trained to read, rows first{said}"


def _component_name(feature: Feature, at: Sequence[int]) -> str:
    if feature.names and len(at) == 1:
        return f"component {feature.names[at[0]]!r}"
    return f"component {at[0] if len(at) == 1 else tuple(at)}" if at else "it"


def _describe_value(value) -> str:
    """For a message: what there is, in few words."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return "None" if value is None else type(value).__name__


@dataclass(frozen=True)
class ObservationWrapper(Actor):
    """Adds columns that the environment does not show: a goal, a task in words, a wanted return. The run-time twin
    of a relabeling."""

    actor: Actor
    columns: Mapping[str, Tensor]  # name -> (*feature)

    def _add_columns(self, obs):
        _check_names(obs, ())
        rows = next(iter(obs.values())).shape[0]
        return {**obs, **{k: v.expand(rows, *v.shape) for k, v in self.columns.items()}}

    def start(self, obs, key):
        return self.actor.start(self._add_columns(obs), key)

    def act(self, obs, state):
        return self.actor.act(self._add_columns(obs), state)


@dataclass(frozen=True)
class NoisyActor(Actor):
    """Explores: Gaussian noise around an actor, or, without one, nothing but noise."""

    actor: Actor | None
    dim: int
    std: float = 1.0

    def start(self, obs, key):
        inner = {} if self.actor is None else self.actor.start(obs, key)
        return {"inner": inner, "key": key, "count": torch.zeros_like(key)}

    def act(self, obs, state):
        noise = self.std * normal(state["key"], state["count"], (self.dim,), stream=5)
        action, inner = (0.0, {}) if self.actor is None else self.actor.act(obs, state["inner"])
        inner, state = dict(inner), {**state, "count": state["count"] + 1}
        if (record := inner.pop("record", None)) is not None:  # what the inner actor writes down is written down
            state["record"] = record
        return action + noise, {**state, "inner": inner}
