"""Column changes: columns added or changed in recorded episodes, and in the same way in observations while acting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from ..core import AtLeast, AtMost, ConfigError, Feature, Schema, State, Unsupported, UserError, part, role
from .episode import Episode

EpisodeTransform = Callable[[Episode], Episode]  # a frozen dataclass or a module-level function


@dataclass(frozen=True)
class LastStep:
    """The last step, as column changes get it while acting: the action and the reward.

    Attributes:
        exists: False at the first step of an episode, (B,) bool.
        action: The action that was executed, (B, A); zeros at the first step. None if it is not known.
        reward: The reward, (B,); zeros at the first step. None where no reward is known, as on a robot.
    """

    exists: Tensor
    action: Tensor | None = None
    reward: Tensor | None = None


class ColumnChange(ABC):
    """Adds or changes columns of recorded episodes, and in the same way of observations while acting.

    Subclasses are frozen dataclasses. What a policy never observes, such as a reward, needs no class: a function from
    episode to episode is enough.
    """

    @property
    def open_condition(self) -> str | None:
        """Column of which the user must give the first value while acting, such as the desired return. None if none."""
        return None

    @abstractmethod
    def __call__(self, episode: Episode) -> Episode:
        """Returns a recorded episode with the columns added or changed."""

    def check_online(self) -> None:
        """Raises UserError before acting if a setting fits only recorded episodes, and not acting."""

    def start(self, obs: Mapping[str, Tensor], key: Tensor) -> State:
        """Returns the state before the first step: nested dicts of tensors, rows first.

        Args:
            obs: The first observation of each row, (B, ...). It includes columns from an `ObservationWrapper`, such as
                the target return.
            key: Source of all randomness of each row, (B,) int64.
        """
        return {}

    @abstractmethod
    def step(self, obs: Mapping[str, Tensor], last: LastStep, state: State) -> tuple[Mapping[str, Tensor], State]:
        """Returns the columns that are added or replaced while acting, and the next state.

        Args:
            obs: The current observation, (B, ...).
            state: What `start` or the last `step` returned. It is not changed in place.
        """

    def transform_action(self, action: Tensor, size: int | None) -> Tensor:
        """Converts the action of the policy to the action for the environment.

        Args:
            action: The action of the policy, (B, A).
            size: Number of action components of the environment. None if it is not known.
        """
        return action


def changed_features(features: Schema, changes: Iterable[EpisodeTransform]) -> dict[str, Feature]:
    """Returns the columns of an environment after column changes.

    A change that does not fit the columns leaves them as they are.
    """
    def zeros(f: Feature, rows: int):
        return np.zeros((rows, *f.shape), "U1" if f.kind == "string" else f.dtype)
    features = {"next.reward": Feature("float32", ()), **features}
    steps = {k: zeros(f, 2 + (role(k) == "observation")) for k, f in features.items()}
    episode = Episode(steps, schema=features)
    for change in changes:
        try:
            episode = change(episode)
        except UserError:
            continue
    return episode.features()


@part
class ReturnToGo(ColumnChange):
    """Adds the return to go, (T+1, 1): the sum of this and all later rewards of the episode. After the last step it is
    0.

    While acting, it is the target return at the first step, then reduced by each reward.

    What comes after a timeout is not recorded, so the return to go of an episode that was cut short is what was
    received until then, as in the code of Chen et al. (2021).

    Args:
        discount: Each reward is weighted by `discount` to the power of its distance.
        target: Target return while acting. None: `--condition` or an `ObservationWrapper` gives it as the column
            `into`.
        subtract_rewards: While acting, subtract each received reward from the target. False asks for the same return
            at every step, as Decision Diffuser does.

    References:
        Chen et al. (2021), Decision Transformer: Reinforcement Learning via Sequence Modeling, arXiv:2106.01345,
        without discount.
    """

    discount: Annotated[float, AtLeast(0), AtMost(1)] = 1.0
    column: str = "next.reward"
    into: str = "observation.return_to_go"
    target: float | None = None
    subtract_rewards: bool = True

    @property
    def open_condition(self):
        return self.into if self.target is None else None

    def __call__(self, episode: Episode) -> Episode:
        column = get_column(episode, self.column, "a return to go needs rewards: use data that have them, name their "
                             "column (--columns reward=NAME), or train a method without returns, such as bc")
        reward = np.asarray(column[: len(episode)], np.float64).reshape(len(episode), -1)
        if reward.shape[1] != 1:
            raise UserError(f"there are {reward.shape[1]} numbers per step, but a reward is one",
                            where=f"column {self.column!r}", hint="store one, such as the sum of all rewards")
        total = np.zeros(len(episode) + 1)
        for t in reversed(range(len(episode))):
            total[t] = reward[t, 0] + self.discount * total[t + 1]
        return with_column(episode, self.into, total.astype(np.float32)[:, None])

    def check_online(self):
        if self.subtract_rewards and self.column != "next.reward":
            raise Unsupported(f"{self.column!r} is not known while acting", where="ReturnToGo.column",
                              hint="use 'next.reward', which environments give")
        if self.subtract_rewards and not self.discount:
            raise ConfigError("with a discount of 0, no return asks for what comes after the first reward",
                              where="ReturnToGo.discount",
                              hint="use a larger discount, or subtract_rewards=False to ask for the same at every step")

    def start(self, obs, key):
        return {"value": target_return(obs, self.into, self.target, len(key))}

    def step(self, obs, last, state):
        if not self.subtract_rewards:
            return {self.into: state["value"]}, state
        if last.reward is None:
            raise UserError("the reward of the last step is not known here, and the return to go depends on it",
                            where=f"observation {self.into!r}",
                            hint="act in an environment with rewards, or put 'last.reward' into each observation")
        value = state["value"]
        value = torch.where(last.exists[:, None], (value - last.reward.to(value)[:, None]) / self.discount, value)
        return {self.into: value}, {"value": value}


@part
class TimeLeft(ColumnChange):
    """Adds the number of steps until the end of the episode, (T+1, 1): T at the first step and 0 after the last.

    Args:
        length: Number of steps of an episode while acting. None: `--condition` or an `ObservationWrapper` gives it as
            the column `into`.
    """

    into: str = "observation.time_left"
    length: float | None = None

    @property
    def open_condition(self):
        return self.into if self.length is None else None

    def __call__(self, episode: Episode) -> Episode:
        return with_column(episode, self.into, np.arange(len(episode), -1, -1, dtype=np.float32)[:, None])

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


@part
class Progress(ColumnChange):
    """Adds the elapsed fraction of the episode, (T+1, 1): 0 at the first step and 1 after the last.

    Args:
        length: Number of steps of an episode while acting.
    """

    into: str = "observation.progress"
    length: Annotated[int | None, AtLeast(1)] = None

    def __call__(self, episode: Episode) -> Episode:
        n = len(episode)
        return with_column(episode, self.into, (np.arange(n + 1) / max(n, 1)).astype(np.float32)[:, None])

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
class LastAction(ColumnChange):
    """Adds the action of the previous step, (T+1, ...), as an observation.

    Before the first step it is zero. For discrete actions each value is increased by one, and 0 means that there was no
    action yet.
    """

    column: str = "action"
    into: str = "observation.last_action"

    def __call__(self, episode: Episode) -> Episode:
        action = get_column(episode, self.column)[: len(episode)]
        feature = episode.features()[self.column]
        if feature.kind == "discrete":
            action = action + 1
            feature = replace(feature, num_classes=feature.num_classes and tuple(n + 1 for n in feature.num_classes))
        return with_column(episode, self.into, np.concatenate([np.zeros_like(action[:1]), action]), feature)

    def check_online(self):
        if role(self.column) != "action":
            raise Unsupported(f"{self.column!r} is not an action, so that it is not known while acting",
                              where="LastAction.column", hint="use the policy's action")

    def step(self, obs, last, state):
        if last.action is None:
            raise UserError("the last action is not known here", where=f"observation {self.into!r}",
                            hint="act with the actor that build_actor or load_actor gives")
        action = last.action if last.action.is_floating_point() else last.action + 1
        return {self.into: torch.where(last.exists[:, None], action, torch.zeros_like(action))}, state


@part
class ConstantColumn(ColumnChange):
    """Adds a column with the same numbers at every step, such as an index of the data set, the robot or the operator.

    Args:
        into: Name of the new column, (T+1, D).
        value: The number, or one number per component. At least one.
    """

    into: str
    value: float | tuple[float, ...]

    def __post_init__(self):
        if np.size(self.value) == 0:
            raise ConfigError(f"the column {self.into!r} has 0 components, but must have at least 1",
                              where="ConstantColumn.value",
                              hint="give one number or more; a method has one per --latent-dim")

    def __call__(self, episode: Episode) -> Episode:
        value = np.atleast_1d(np.asarray(self.value, np.float32))
        return with_column(episode, self.into, np.broadcast_to(value, (len(episode) + 1, len(value))))

    def step(self, obs, last, state):
        value = torch.atleast_1d(torch.tensor(self.value, dtype=torch.float32))
        return {self.into: value.expand(len(last.exists), -1)}, state


@dataclass(frozen=True)
class OptionalColumn(ColumnChange):
    """Adds ``"<column>?"``, which tells whether a column is given, so that a policy can act without it.

    In the data the column is given everywhere. It may also be a goal that a `Window` draws. While acting it is given
    where an environment or an `ObservationWrapper` provides it. If they provide ``"<column>?"`` too, they decide.

    Train with `augment.ConditionDropout` or `augment.ModalityDropout`. For texts use ``TaskText(optional=True)``.

    Args:
        like: An observed column of the same shape and type. Zeros of this shape take the place of a missing column.
    """

    column: str
    like: str

    def __call__(self, episode: Episode) -> Episode:
        return with_column(episode, self.column + "?", np.ones(len(episode) + 1, bool), Feature("bool", ()))

    def step(self, obs, last, state):
        mask, is_given = self.column + "?", self.column in obs
        if is_given and mask in obs:
            return {}, state
        value = obs[self.column] if is_given else torch.zeros_like(obs[self.like])
        return {self.column: value, mask: torch.full((len(last.exists),), is_given)}, state


@dataclass(frozen=True)
class ColumnPadding(ColumnChange):
    """Pads a vector column with zeros, so that robots of different widths share one policy.

    While acting, what is observed is padded, and actions are cut back to the width of the robot's actions. With
    ``Normalizer(group_by=...)`` the padded components are constant for each robot. They are coded and decoded as 0.
    """

    column: str
    size: int

    def __call__(self, episode: Episode) -> Episode:
        values, feature = get_column(episode, self.column), episode.features()[self.column]
        column_label = f"column {self.column!r}"
        if feature.kind != "vector" or len(feature.shape) != 1:
            raise UserError(f"Only vectors can be padded, and this column has kind {feature.kind!r} and shape "
                            f"{feature.shape}.", where=column_label, hint="Remove its ColumnPadding.")
        missing = self.size - feature.size
        if missing < 0:
            raise UserError(f"The column has {feature.size} components, more than size={self.size}.",
                            where=column_label, hint=f"Use ColumnPadding({self.column!r}, {feature.size}) or larger.")
        if not missing:
            return episode
        names = feature.names and (*feature.names, *(f"padding.{i}" for i in range(feature.size, self.size)))
        wide = np.concatenate([values, np.zeros((len(values), missing), values.dtype)], 1)
        return with_column(episode, self.column, wide, replace(feature, shape=(self.size,), names=names))

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
        if role(self.column) != "action":
            return action
        if size is None:
            raise UserError(f"the policy gives {self.size} padded action components, and how many the robot has is not "
                            "known", where=f"column {self.column!r}", hint="pass features=env.features to load_actor")
        return action[:, :size]


@dataclass(frozen=True)
class SelectComponents(ColumnChange):
    """Keeps some components of a vector column, such as components that are not confounded with the action.

    Args:
        components: Numbers of the components, in the order that they get.
    """

    column: str
    components: tuple[int, ...]

    def __post_init__(self):
        if not self.components:
            raise UserError("no components are named, so that nothing of the column would be left",
                            where="SelectComponents.components", hint="name the components to keep, such as (0, 1)")

    def __call__(self, episode: Episode) -> Episode:
        values, feature = get_column(episode, self.column), episode.features()[self.column]
        column_label = f"column {self.column!r}"
        if feature.kind != "vector" or len(feature.shape) != 1:
            raise UserError(f"components of vectors can be selected, and this column has kind {feature.kind!r} and "
                            f"shape {feature.shape}", where=column_label, hint="remove its SelectComponents")
        if invalid_components := [i for i in self.components if not 0 <= i < feature.size]:
            raise UserError(f"there is no component {invalid_components[0]}; the column has {feature.size}",
                            where=column_label, hint=f"use numbers from 0 to {feature.size - 1}")
        names = feature.names and tuple(feature.names[i] for i in self.components)
        return with_column(episode, self.column, values[:, list(self.components)],
                            replace(feature, shape=(len(self.components),), names=names))

    def check_online(self):
        if role(self.column) != "observation":
            raise Unsupported(f"{self.column!r} is not an observation, and actions need all components",
                              where="SelectComponents.column", hint="name an observation")

    def step(self, obs, last, state):
        if self.column not in obs:
            return {}, state
        value = obs[self.column]
        if value.shape[-1] <= (last_read := max(self.components)):
            raise UserError(f"the column has {value.shape[-1]} components, but the policy reads component "
                            f"{last_read}", where=f"observation {self.column!r}",
                            hint="act where the observations are those of the training data")
        return {self.column: value[..., list(self.components)]}, state


@dataclass(frozen=True)
class Rename(ColumnChange):
    """Renames a column."""

    column: str
    into: str

    def __call__(self, episode: Episode) -> Episode:
        column, feature = get_column(episode, self.column), episode.schema.get(self.column)
        return with_column(episode.replace({self.column: None}), self.into, column, feature)

    def step(self, obs, last, state):
        return ({self.into: obs[self.column]} if self.column in obs else {}), state


def with_column(episode: Episode, name: str, column: np.ndarray, feature: Feature | None = None) -> Episode:
    episode = episode.replace({name: column})
    return episode if feature is None else replace(episode, schema={**episode.schema, name: feature})


def get_column(episode: Episode, name: str, hint: str = "name one that is there") -> np.ndarray:
    check_column(episode, name, hint)
    return np.asarray(episode.steps[name])


def check_column(episode: Episode, name: str, hint: str = "name one that is there") -> None:
    if name not in episode.steps:
        raise UserError(f"there is no column {name!r}; the episode has {', '.join(sorted(episode.steps))}",
                        where=f"episode {episode.metadata.get('number', '')}".strip(), hint=hint)


def target_return(obs, name: str, default: float | None, rows: int) -> Tensor:
    return _first_value(obs, name, default, rows, "the return that the policy shall reach", "ReturnToGo(target=...)")


def _first_value(obs, name: str, default: float | None, rows: int, what: str, field: str) -> Tensor:
    """Returns the column in the first observation as (B, 1) float32, or the default."""
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
