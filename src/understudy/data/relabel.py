"""Column changes: functions from an episode to an episode that add or change columns.

A `ColumnChange` is also computed while acting. The column of another function, such as the goal of `Hindsight`, is
given by the environment or by `execute.actor.ObservationWrapper`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..core import ConfigError, Feature, Schema, State, Unsupported, UserError, check_range, role
from .episode import Episode

SHOWN_TASK = "observation.task"  # an environment whose episodes have tasks of their own shows them here
EpisodeTransform = Callable[[Episode], Episode]  # a frozen dataclass or a module-level function


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


class ColumnChange(ABC):
    """Adds or changes columns of recorded episodes, and in the same way of observations while acting.

    Subclasses are frozen dataclasses. What a policy never observes, such as a reward, needs no class: a function from
    episode to episode is enough.
    """

    @property
    def open_condition(self) -> str | None:
        """Column whose first value must be given while acting, such as the desired return. None if there is none."""
        return None

    @abstractmethod
    def __call__(self, episode: Episode) -> Episode:
        """Return a recorded episode with the columns."""

    def check_online(self) -> None:
        """Check before acting that the columns can be computed while acting.

        Raises:
            UserError: A setting fits recorded episodes alone.
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
        """Return the columns that are added or replaced while acting, and the next state.

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


def changed_features(features: Schema, changes: Iterable[EpisodeTransform]) -> dict[str, Feature]:
    """Return the columns of an environment after column changes.

    A change that does not fit the columns leaves them as they are.

    Args:
        features: The columns of the environment.
        changes: The column changes, in order.
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


@dataclass(frozen=True)
class Hindsight:
    """Adds the last observation of the episode as the goal of every step.

    Args:
        column: Column whose last row is the goal.
        into: Name of the goal column.

    References:
        Ghosh et al. (2021), Learning to Reach Goals via Iterated Supervised Learning (GCSL), arXiv:1912.06088.
        Reuss et al. (2023), Goal-Conditioned Imitation Learning using Score-based Diffusion Policies (BESO),
        arXiv:2304.02532.
    """

    column: str = "observation.state"
    into: str = "observation.goal"

    def __call__(self, episode: Episode) -> Episode:
        column = get_column(episode, self.column)
        return with_column(
            episode, self.into, np.broadcast_to(column[-1], column.shape), episode.schema.get(self.column)
        )


@dataclass(frozen=True)
class NextObservation:
    """Adds the next observation of each step, from which inverse dynamics tell the action.

    While acting, a policy that plans states gives the column: see `InverseDynamicsPlanner`.

    Args:
        column: Name of an observation column.
        into: Name of the new column. After the last observation it repeats the last one.
    """

    column: str = "observation.state"
    into: str = "observation.next"

    def __call__(self, episode: Episode) -> Episode:
        column = get_column(episode, self.column)
        return with_column(episode, self.into, np.concatenate([column[1:], column[-1:]]),
                            episode.schema.get(self.column))


@dataclass(frozen=True)
class FirstObservation:
    """Adds the first observation of the episode as the goal of every step.

    While acting, the executor that chooses the goal gives the column: see `AlignedReplay`.

    Args:
        column: Name of an observation column.
        into: Name of the goal column.
    """

    column: str = "observation.state"
    into: str = "observation.goal"

    def __call__(self, episode: Episode) -> Episode:
        column = get_column(episode, self.column)
        return with_column(
            episode, self.into, np.broadcast_to(column[0], column.shape), episode.schema.get(self.column)
        )


@dataclass(frozen=True)
class MotionToFirst:
    """Replaces the actions by those that lead straight back to the first pose of the episode.

    A policy that reads the first observation as its goal (`FirstObservation`) learns from it to go where an observation
    was made, from episodes in which a robot moved in any way and without anybody's labels.

    Args:
        column: Column with the pose that the actions are velocities of.
        step: How far an action of 1 moves each component of the pose in one step.

    References:
        Di Palo and Johns (2024), On the Effectiveness of Retrieval, Alignment, and Replay in Manipulation,
        arXiv:2312.12345.
    """

    column: str = "observation.state"
    step: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        check_range(self, "step")

    def __call__(self, episode: Episode) -> Episode:
        pose = get_column(episode, self.column)[: len(episode)]
        feature = episode.features()["action"]
        if pose.shape != (len(episode), *feature.shape) or len(self.step) not in (1, feature.size):
            raise UserError(f"the pose has shape {pose.shape[1:]}, the action {feature.shape}, and step "
                            f"{len(self.step)} components", where=f"MotionToFirst, {self.column!r}",
                            hint="name a pose with a component for each component of the action")
        motion = (pose[0] - pose) / np.array(self.step, pose.dtype)
        # One factor for all components, so that the direction stays, in any frame.
        motion = motion / np.maximum(np.linalg.norm(motion, axis=1, keepdims=True), 1)
        return with_column(episode, "action", motion.astype(feature.dtype))


@dataclass(frozen=True)
class TaskText(ColumnChange):
    """Adds the task as UTF-8 bytes, padded with 0.

    It is read from the column "task", whose text may change within the episode, from the metadata "task", or from the
    text that the environment showed (`observation.task`). Without a task the text is empty. Longer text is cut after a
    complete character, also while acting.

    Args:
        max_bytes: Number of bytes of the column.
        into: Name of the new column.
        optional: Also add ``"<into>?"``, which is False where the text is empty, and act without a text if none is
            given.
    """

    max_bytes: int = 64
    into: str = SHOWN_TASK
    optional: bool = False

    def __call__(self, episode: Episode) -> Episode:
        said, which = np.unique(task_texts(episode), return_inverse=True)
        rows = np.stack([self.encode(str(text)) for text in said])
        column = (np.broadcast_to(rows[0], (len(episode) + 1, self.max_bytes)) if len(said) == 1 else rows[which])
        episode = with_column(episode, self.into, column, Feature("uint8", (self.max_bytes,), "text"))
        if not self.optional:
            return episode
        return with_column(episode, self.into + "?", (column != 0).any(1), Feature("bool", ()))

    def encode(self, text: str) -> np.ndarray:
        """Return a text as the column has it, (max_bytes,) uint8."""
        raw = text.encode()[: self.max_bytes].decode(errors="ignore").encode()
        return np.frombuffer(raw.ljust(self.max_bytes, b"\0"), np.uint8)

    def step(self, obs, last, state):
        if self.into not in obs and not self.optional:
            raise UserError(f"nothing gives the column {self.into!r}, which the policy reads", where="obs",
                            hint="say the task: --task 'WORDS', or ObservationWrapper(actor, "
                            f"{{{self.into!r}: torch.tensor(TaskText({self.max_bytes}).encode('WORDS'))}})")
        mask, text = self.into + "?", torch.zeros(len(last.exists), self.max_bytes, dtype=torch.uint8)
        if self.into in obs:
            text = _cut_text(obs[self.into], self.max_bytes)
        if not self.optional or (self.into in obs and mask in obs):
            return {self.into: text}, state
        return {self.into: text, mask: (text != 0).any(1)}, state


@dataclass(frozen=True)
class ThoughtText:
    """Adds what the expert thought at each step as UTF-8 bytes, padded with 0.

    It is read from a column of text, such as the subgoal that a scripted expert follows or that a person said. After
    the last thought it is repeated. While acting, a policy that predicts thoughts gives the column: see
    `execute.planners.Hierarchical`.

    Args:
        column: Name of the column of text.
        max_bytes: Number of bytes of the new column. Longer text is cut after a complete character.
        into: Name of the new column, (T+1, max_bytes).
    """

    column: str = "thought"
    max_bytes: int = 64
    into: str = "observation.thought"

    def __call__(self, episode: Episode) -> Episode:
        column = get_column(episode, self.column, "thought cloning needs the thoughts of the expert as text: name "
                             "their column (--columns thought=NAME)")
        said, which = np.unique(column.astype(str).reshape(len(column)), return_inverse=True)
        rows = np.stack([TaskText(self.max_bytes).encode(str(text)) for text in said])[which]
        rows = np.concatenate([rows, rows[-1:]])[: len(episode) + 1]
        return with_column(episode, self.into, rows, Feature("uint8", (self.max_bytes,), "text"))


def task_texts(episode: Episode) -> np.ndarray:
    """Return the task of each step, (T,) or (T+1,), or of the whole episode, (1,). Without a task the text is empty."""
    if "task" in episode.steps and (column := np.asarray(episode.steps["task"])).size == len(column):
        column = column.reshape(len(column))
        return (column[:1] if column.strides == (0,) else column).astype(str)  # the same text in all rows
    if task := episode.metadata.get("task"):
        return np.array([str(task)])
    return np.array(shown_texts(episode) or [""], dtype=str)


def shown_texts(episode: Episode) -> list[str]:
    """Return the task of each observation as the environment showed it. Empty if it showed none in words."""
    feature = episode.features().get(SHOWN_TASK)
    if feature is None or feature.kind != "text":
        return []
    rows = np.asarray(episode.steps[SHOWN_TASK])
    if len(rows) and (rows == rows[0]).all():  # most tasks stay the same
        return [decode_text(rows[0])] * len(rows)
    return [decode_text(row) for row in rows]


def decode_text(row: np.ndarray) -> str:
    """Return the text of UTF-8 bytes that are padded with 0."""
    return bytes(row).rstrip(b"\0").decode(errors="replace")


@dataclass(frozen=True)
class ReturnToGo(ColumnChange):
    """Adds the return to go, (T+1, 1): the sum of this and all later rewards of the episode. After the last step it is
    0.

    While acting, it is the target return at the first step, then reduced by each reward.

    What comes after a timeout is not recorded, so the return to go of an episode that was cut short is what was
    received until then, as in the code of Chen et al. (2021).

    Args:
        discount: Each reward is weighted by `discount` to the power of its distance.
        column: Name of the reward column.
        into: Name of the new column.
        target: Target return while acting. None: `--condition` or an `ObservationWrapper` gives it as the column
            `into`.
        subtract_rewards: While acting, subtract each received reward from the target. False asks for the same return
            at every step, as Decision Diffuser does.

    References:
        Chen et al. (2021), Decision Transformer: Reinforcement Learning via Sequence Modeling, arXiv:2106.01345,
        without discount.
    """

    discount: float = 1.0
    column: str = "next.reward"
    into: str = "observation.return_to_go"
    target: float | None = None
    subtract_rewards: bool = True

    def __post_init__(self):
        check_range(self, "discount", "target")

    @property
    def open_condition(self):
        return self.into if self.target is None else None

    def __call__(self, episode: Episode) -> Episode:
        column = get_column(episode, self.column, "a return to go needs rewards: use data that have them, name their "
                             "column (--columns reward=NAME), or train a method without returns, such as bc")
        reward = np.asarray(column[: len(episode)], np.float64).reshape(len(episode))
        total = np.zeros(len(episode) + 1)
        for t in reversed(range(len(episode))):
            total[t] = reward[t] + self.discount * total[t + 1]
        return with_column(episode, self.into, total.astype(np.float32)[:, None])

    def check_online(self):
        if self.subtract_rewards and self.column != "next.reward":
            raise Unsupported(f"{self.column!r} is not known while acting", where="ReturnToGo.column",
                              hint="use 'next.reward', which environments give")

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


@dataclass(frozen=True)
class TimeLeft(ColumnChange):
    """Adds the number of steps until the end of the episode, (T+1, 1): T at the first step and 0 after the last.

    Args:
        into: Name of the new column.
        length: Number of steps of an episode while acting. None: `--condition` or an `ObservationWrapper` gives it as
            the column `into`.
    """

    into: str = "observation.time_left"
    length: float | None = None

    def __post_init__(self):
        check_range(self, "length")

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


@dataclass(frozen=True)
class Progress(ColumnChange):
    """Adds the elapsed fraction of the episode, (T+1, 1): 0 at the first step and 1 after the last.

    Args:
        into: Name of the new column.
        length: Number of steps of an episode while acting.
    """

    into: str = "observation.progress"
    length: int | None = None

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
    """Adds the action of the step before, (T+1, ...). The action of the same step would reveal the target.

    Before the first step it is zero. For discrete actions each value is increased by one, and 0 means that there was no
    action yet.

    Args:
        column: Name of the action column.
        into: Name of the new column.
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


@dataclass(frozen=True)
class InterventionPenalty:
    """Sets the reward to -1 at the last step before a person takes over, and to 0 at all others.

    Any offline RL learner can use it. An episode that a person controlled from the start has no such step.

    Args:
        column: Column that is above 0 while a person controls the robot.
        into: Name of the reward column.

    References:
        Luo et al. (2024), RLIF: Interactive Imitation Learning as Reinforcement Learning, arXiv:2311.12996.
    """

    column: str = "intervention"
    into: str = "next.reward"

    def __call__(self, episode: Episode) -> Episode:
        taken = np.asarray(get_column(episode, self.column)[: len(episode)]).reshape(-1) > 0
        return with_column(episode, self.into, -np.append(taken[1:] & ~taken[:-1], False).astype(np.float32))


@dataclass(frozen=True)
class ConstantColumn(ColumnChange):
    """Adds a column with the same numbers at every step, such as an index of the data set, the robot or the operator.

    Args:
        into: Name of the new column, (T+1, D).
        value: The number, or one number per component. At least one.
    """

    into: str
    value: float | tuple[float, ...]

    def __post_init__(self):
        check_range(self, "value")
        if np.size(self.value) == 0:
            raise ConfigError(f"the column {self.into!r} has 0 components, but must have at least 1",
                              where="ConstantColumn.value",
                              hint="give one number or more; a method has one per --method.latent-dim")

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
        column: The column, such as a goal.
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
class SelectColumns:
    """Keeps some columns and removes all others.

    Args:
        columns: Names of the columns to keep.
    """

    columns: tuple[str, ...]

    def __call__(self, episode: Episode) -> Episode:
        for name in self.columns:
            _check_column(episode, name)
        return episode.replace({k: None for k in episode.steps if k not in self.columns})


@dataclass(frozen=True)
class ColumnPadding(ColumnChange):
    """Pads a vector column with zeros, so that robots of different widths share one policy.

    While acting, what is observed is padded, and actions are cut back to those of the robot. With
    ``Normalizer(group_by=...)`` the padded components are constant for each robot. They are coded and decoded as 0.

    Args:
        column: Name of the column.
        size: Number of components after padding.
    """

    column: str
    size: int

    def __call__(self, episode: Episode) -> Episode:
        values, feature = get_column(episode, self.column), episode.features()[self.column]
        where = f"column {self.column!r}"
        if feature.kind != "vector" or len(feature.shape) != 1:
            raise UserError(f"Only vectors can be padded, and this column has kind {feature.kind!r} and shape "
                            f"{feature.shape}.", where=where, hint="Remove its ColumnPadding.")
        missing = self.size - feature.size
        if missing < 0:
            raise UserError(f"The column has {feature.size} components, more than size={self.size}.", where=where,
                            hint=f"Use ColumnPadding({self.column!r}, {feature.size}) or larger.")
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
    """Keeps some components of a vector column, such as those that are not confounded with the action.

    Args:
        column: Name of an observation column.
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
        where = f"column {self.column!r}"
        if feature.kind != "vector" or len(feature.shape) != 1:
            raise UserError(f"components of vectors can be selected, and this column has kind {feature.kind!r} and "
                            f"shape {feature.shape}", where=where, hint="remove its SelectComponents")
        if wrong := [i for i in self.components if not 0 <= i < feature.size]:
            raise UserError(f"there is no component {wrong[0]}; the column has {feature.size}", where=where,
                            hint=f"use numbers from 0 to {feature.size - 1}")
        names = feature.names and tuple(feature.names[i] for i in self.components)
        return with_column(episode, self.column, values[:, list(self.components)],
                            replace(feature, shape=(len(self.components),), names=names))

    def check_online(self):
        if role(self.column) != "observation":
            raise Unsupported(f"{self.column!r} is no observation, and actions need all components",
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
    """Renames a column.

    Args:
        column: Name of the column.
        into: Its new name.
    """

    column: str
    into: str

    def __call__(self, episode: Episode) -> Episode:
        column, feature = get_column(episode, self.column), episode.schema.get(self.column)
        return with_column(episode.replace({self.column: None}), self.into, column, feature)

    def step(self, obs, last, state):
        return ({self.into: obs[self.column]} if self.column in obs else {}), state


@dataclass(frozen=True)
class ConcatColumns:
    """Joins columns of numbers into one, so that one target has actions and later observations.

    Row t of the new column has the first column at step t, the other columns at step ``t + offset`` (or their last
    row), and a last component that is 1 where the first column is known and 0 where it is not.

    Args:
        columns: Columns to join. The new column has as many rows as the first of them.
        offset: Number of steps by which the columns after the first are later.
        into: Name of the new column.
        known: Column that is not 0 at the steps where the first column is known. None if it is known everywhere.

    Raises:
        UserError: A column is missing or is not a vector of numbers.

    Example:
        >>> relabel = ConcatColumns(("action", "observation.state"), offset=8)
    """

    columns: tuple[str, ...]
    offset: int = 1
    into: str = "joint"
    known: str | None = None

    def __call__(self, episode: Episode) -> Episode:
        features = episode.features()
        for name in self.columns:
            _check_column(episode, name)
            if features[name].kind != "vector" or len(features[name].shape) != 1:
                raise UserError(f"column {name!r} is not a vector of numbers, so that it cannot be joined",
                                where="ConcatColumns.columns", hint="join actions, states and poses")
        first, *others = (get_column(episode, name) for name in self.columns)
        rows = np.arange(len(first))
        later = [column[np.minimum(rows + self.offset, len(column) - 1)] for column in others]
        known = (np.ones(len(first)) if self.known is None
                 else np.asarray(get_column(episode, self.known))[rows].reshape(len(first)) != 0)
        joined = np.concatenate([first, *later, known[:, None]], 1).astype(np.float32)
        return with_column(episode, self.into, joined, Feature("float32", joined.shape[1:]))


def with_column(episode: Episode, name: str, column: np.ndarray, feature: Feature | None = None) -> Episode:
    episode = episode.replace({name: column})
    return episode if feature is None else replace(episode, schema={**episode.schema, name: feature})


def _check_column(episode: Episode, name: str, hint: str = "name one that is there") -> None:
    if name not in episode.steps:
        raise UserError(f"there is no column {name!r}; the episode has {', '.join(sorted(episode.steps))}",
                        where=f"episode {episode.metadata.get('number', '')}".strip(), hint=hint)


def get_column(episode: Episode, name: str, hint: str = "name one that is there") -> np.ndarray:
    _check_column(episode, name, hint)
    return np.asarray(episode.steps[name])


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


def target_return(obs, name: str, default: float | None, rows: int) -> Tensor:
    return _first_value(obs, name, default, rows, "the return that the policy shall reach", "ReturnToGo(target=...)")
