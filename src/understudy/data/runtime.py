"""Columns that are computed while acting: the runtime counterparts of relabelings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import State, UserError


@dataclass(frozen=True)
class LastStep:
    """The step before the current one.

    Attributes:
        exists: False at the first step of an episode, (B,) bool.
        action: The action that was executed, (B, A); zeros at the first step. None if it is not known.
        reward: The reward, (B,); zeros at the first step. None where no reward is known, as on a robot.
    """

    exists: Tensor
    action: Tensor | None = None
    reward: Tensor | None = None


class RuntimeTransform(ABC):
    """Computes columns while acting that a relabeling computes from recorded episodes. Subclasses are frozen
    dataclasses.
    """

    def start(self, obs: Mapping[str, Tensor], key: Tensor) -> State:
        """Return the state before the first step: nested dicts of tensors, rows first.

        Args:
            obs: The first observation of each row, (B, ...). It includes columns from an `ObservationWrapper`, such as
                the target return.
            key: Source of all randomness of each row, (B,) int64.
        """
        return {}

    @abstractmethod
    def step(self, obs: Mapping[str, Tensor], last: LastStep, state: State) -> tuple[Mapping[str, Tensor], State]:
        """Return the columns that are added or replaced, and the next state.

        Args:
            obs: The current observation, (B, ...).
            last: The step before.
            state: What `start` or the last `step` returned. It is not changed in place.

        Raises:
            UserError: A value that is needed is not known, such as the reward on a robot.
        """

    def transform_action(self, action: Tensor, size: int | None) -> Tensor:
        """Return the action for the environment.

        Args:
            action: The action of the policy, (B, A).
            size: Number of action components of the environment. None if it is not known.
        """
        return action


@dataclass(frozen=True)
class ConstantColumns(RuntimeTransform):
    """Adds columns whose values stay the same.

    Args:
        columns: {name: value of shape (*feature)}.
    """

    columns: Mapping[str, Tensor]

    def step(self, obs, last, state):
        rows = len(last.exists)
        return {k: v.expand(rows, *v.shape) for k, v in self.columns.items()}, state


@dataclass(frozen=True)
class GivenColumn(RuntimeTransform):
    """Checks that the environment or an `ObservationWrapper` gives a column.

    Args:
        column: Name of the column.
        hint: How to give it, for the error message.
        max_bytes: Longest text, where the column is a text. Longer text is cut. None for other columns.
    """

    column: str
    hint: str
    max_bytes: int | None = None

    def step(self, obs, last, state):
        if self.column not in obs:
            raise UserError(f"nothing gives the column {self.column!r}, which the policy reads", where="obs",
                            hint=self.hint)
        return ({} if self.max_bytes is None else {self.column: _cut_text(obs[self.column], self.max_bytes)}), state


@dataclass(frozen=True)
class OptionalColumnMask(RuntimeTransform):
    """Tells whether a column is given. See `relabel.OptionalColumn`.

    Args:
        column: Name of the column.
        like: A column of the same shape and type. Zeros of this shape take the place of a missing column.
    """

    column: str
    like: str

    def step(self, obs, last, state):
        mask, given = self.column + "?", self.column in obs
        if given and mask in obs:
            return {}, state
        value = obs[self.column] if given else torch.zeros_like(obs[self.like])
        return {self.column: value, mask: torch.full((len(last.exists),), given)}, state


@dataclass(frozen=True)
class OptionalText(RuntimeTransform):
    """Tells whether a text is given and not empty. See `relabel.TaskText`.

    Args:
        column: Name of the column.
        max_bytes: Number of bytes of the column.
    """

    column: str
    max_bytes: int

    def step(self, obs, last, state):
        mask, rows = self.column + "?", len(last.exists)
        if self.column not in obs:
            return {self.column: torch.zeros(rows, self.max_bytes, dtype=torch.uint8),
                    mask: torch.zeros(rows, dtype=torch.bool)}, state
        text = _cut_text(obs[self.column], self.max_bytes)
        return {self.column: text, **({} if mask in obs else {mask: (text != 0).any(1)})}, state


@dataclass(frozen=True)
class ReturnToGoUpdate(RuntimeTransform):
    """Return to go while acting: the target return at the first step, then reduced by each reward.

    Args:
        into: Name of the column, (B, 1). If the first observation has it, it is the target return.
        discount: Discount of the return.
        target: Target return if the first observation does not have the column.
    """

    into: str
    discount: float = 1.0
    target: float | None = None

    def start(self, obs, key):
        return {"value": _target_return(obs, self.into, self.target, len(key))}

    def step(self, obs, last, state):
        if last.reward is None:
            raise UserError("the reward of the last step is not known here, and the return to go depends on it",
                            where=f"observation {self.into!r}",
                            hint="act in an environment with rewards, or put 'last.reward' into each observation")
        value = state["value"]
        value = torch.where(last.exists[:, None], (value - last.reward.to(value)[:, None]) / self.discount, value)
        return {self.into: value}, {"value": value}


@dataclass(frozen=True)
class HeldReturn(RuntimeTransform):
    """The target return, the same at every step.

    Args:
        into: Name of the column, (B, 1). If the first observation has it, it is the target return.
        target: Target return if the first observation does not have the column.
    """

    into: str
    target: float | None = None

    def start(self, obs, key):
        return {"value": _target_return(obs, self.into, self.target, len(key))}

    def step(self, obs, last, state):
        return {self.into: state["value"]}, state


@dataclass(frozen=True)
class Countdown(RuntimeTransform):
    """Number of steps that are left, at least 0.

    Args:
        into: Name of the column, (B, 1). If the first observation has it, it is the first value.
        length: First value if the first observation does not have the column.
    """

    into: str
    length: float | None = None

    def start(self, obs, key):
        value = _first_value(obs, self.into, self.length, len(key), "the number of steps of the episode",
                             "TimeLeft(length=...)")
        if (value < 0).any():
            raise UserError(f"the number of steps of the episode is {value.min():g}, below 0",
                            where=f"observation {self.into!r}", hint="give the number of steps that are left, such as "
                            "the length of an episode")
        return {"value": value}

    def step(self, obs, last, state):
        value = torch.where(last.exists[:, None], (state["value"] - 1).clamp(min=0), state["value"])
        return {self.into: value}, {"value": value}


@dataclass(frozen=True)
class ProgressCount(RuntimeTransform):
    """Elapsed fraction of an episode of known length, at most 1.

    Args:
        into: Name of the column, (B, 1).
        length: Number of steps of the episode.
    """

    into: str
    length: int | None = None

    def start(self, obs, key):
        if self.length is None:
            raise UserError("how long the episode will be is not known while acting",
                            where=f"observation {self.into!r}", hint="set Progress(length=...), a number of steps")
        return {"steps": torch.zeros(len(key), 1)}

    def step(self, obs, last, state):
        assert self.length is not None  # `start` refuses it
        steps = torch.where(last.exists[:, None], state["steps"] + 1, state["steps"])
        return {self.into: (steps / max(self.length, 1)).clamp(max=1)}, {"steps": steps}


@dataclass(frozen=True)
class LastActionColumn(RuntimeTransform):
    """Action of the step before. Discrete actions count from 1, and 0 means that there is no action yet.

    Args:
        into: Name of the column, (B, A).
    """

    into: str

    def step(self, obs, last, state):
        if last.action is None:
            raise UserError("the last action is not known here", where=f"observation {self.into!r}",
                            hint="act with the actor that build_actor or load_actor gives")
        action = last.action if last.action.is_floating_point() else last.action + 1
        return {self.into: torch.where(last.exists[:, None], action, torch.zeros_like(action))}, state


@dataclass(frozen=True)
class RenamedColumn(RuntimeTransform):
    """A column of the environment under another name.

    Args:
        column: Its name in the environment.
        into: Its new name.
    """

    column: str
    into: str

    def step(self, obs, last, state):
        return ({self.into: obs[self.column]} if self.column in obs else {}), state


@dataclass(frozen=True)
class PaddedColumn(RuntimeTransform):
    """Pads an observation with zeros, and cuts actions to the width of the environment.

    Args:
        column: Name of the column.
        size: Number of components after padding.
        is_action: Whether the column is the action.
    """

    column: str
    size: int
    is_action: bool

    def step(self, obs, last, state):
        if self.column not in obs:
            return {}, state
        value = obs[self.column]
        if value.shape[-1] > self.size:
            raise UserError(f"the column has {value.shape[-1]} components, but the policy reads {self.size}",
                            where=f"observation {self.column!r}", hint="act with a robot that the policy was trained "
                            "for")
        return {self.column: torch.nn.functional.pad(value, (0, self.size - value.shape[-1]))}, state

    def transform_action(self, action, size):
        if not self.is_action:
            return action
        if size is None:
            raise UserError(f"the policy gives {self.size} padded action components, and how many the robot has is not "
                            "known", where=f"column {self.column!r}", hint="pass features=env.features to load_actor")
        return action[:, :size]


@dataclass(frozen=True)
class SelectedComponents(RuntimeTransform):
    """Keeps some components of an observation.

    Args:
        column: Name of the column.
        components: Numbers of the components.
    """

    column: str
    components: tuple[int, ...]

    def step(self, obs, last, state):
        if self.column not in obs:
            return {}, state
        value = obs[self.column]
        if value.shape[-1] <= (last_read := max(self.components)):
            raise UserError(f"the column has {value.shape[-1]} components, but the policy reads component "
                            f"{last_read}", where=f"observation {self.column!r}",
                            hint="act where the observations are those of the training data")
        return {self.column: value[..., list(self.components)]}, state


def _cut_text(text, max_bytes: int) -> Tensor:
    """Texts as the training data had them: those of more bytes are cut after a complete character, (B, max_bytes)."""
    text = torch.as_tensor(text)
    if text.dim() != 2 or text.shape[1] <= max_bytes:
        return text
    kept, is_cut = text[:, :max_bytes].clone(), _continues_character(text[:, max_bytes])
    for i in reversed(range(max(max_bytes - 3, 0), max_bytes)):  # a character has at most 4 bytes
        is_first = ~_continues_character(kept[:, i])
        kept[is_cut, i] = 0
        is_cut = is_cut & ~is_first
    return kept


def _continues_character(byte: Tensor) -> Tensor:
    """Whether each byte of UTF-8 is not the first of its character."""
    return (byte & 0xC0) == 0x80


def _first_value(obs, name: str, default: float | None, rows: int, what: str, field: str) -> Tensor:
    """(B, 1) float32: the column of the first observation, or the default."""
    if name in obs:
        value = torch.as_tensor(obs[name]).float()
        if value.numel() != rows:
            raise UserError(f"{what} is one number, but this is of shape {tuple(value.shape)}",
                            where=f"observation {name!r}", hint="give one number for each row")
        return value.reshape(rows, 1)
    if default is None:
        short = name.removeprefix("observation.")
        raise UserError(f"{what} is not known", where=f"observation {name!r}",
                        hint=f"give it: --condition {short}=NUMBER on the command line, {field} in the method, or "
                             f"ObservationWrapper(actor, {{{name!r}: value}})")
    return torch.full((rows, 1), float(default))


def _target_return(obs, name: str, default: float | None, rows: int) -> Tensor:
    return _first_value(obs, name, default, rows, "the return that the policy shall reach", "ReturnToGo(target=...)")
