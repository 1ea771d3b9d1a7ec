"""Relabeling: operations that add or change columns of recorded episodes, but not of observations while acting.

The environment, a planner or `execute.actor.ObservationWrapper` gives such a column, such as the goal of `Hindsight`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core import ConfigError, Feature, UserError, part
from .column_changes import check_column, get_column, with_column
from .episode import Episode


@dataclass(frozen=True)
class Hindsight:
    """Adds the last observation of the episode as the goal of every step.

    References:
        Ghosh et al. (2021), Learning to Reach Goals via Iterated Supervised Learning (GCSL), arXiv:1912.06088.
        Reuss et al. (2023), Goal-Conditioned Imitation Learning using Score-based Diffusion Policies (BESO),
        arXiv:2304.02532.
    """

    column: str = "observation.state"
    into: str = "observation.goal"

    def __call__(self, episode: Episode) -> Episode:
        column, feature = get_column(episode, self.column), episode.schema.get(self.column)
        return with_column(episode, self.into, np.broadcast_to(column[-1], column.shape), feature)


@dataclass(frozen=True)
class NextObservation:
    """Adds the next observation of each step, from which an inverse dynamics model predicts the action.

    While acting, a policy that plans states gives the column: see `InverseDynamicsPlanner`.
    """

    column: str = "observation.state"
    into: str = "observation.next"

    def __call__(self, episode: Episode) -> Episode:
        column, feature = get_column(episode, self.column), episode.schema.get(self.column)
        return with_column(episode, self.into, np.concatenate([column[1:], column[-1:]]), feature)


@dataclass(frozen=True)
class FirstObservation:
    """Adds the first observation of the episode as the goal of every step.

    While acting, the executor that chooses the goal gives the column: see `AlignedReplay`.
    """

    column: str = "observation.state"
    into: str = "observation.goal"

    def __call__(self, episode: Episode) -> Episode:
        column, feature = get_column(episode, self.column), episode.schema.get(self.column)
        return with_column(episode, self.into, np.broadcast_to(column[0], column.shape), feature)


@part
class MotionToFirst:
    """Replaces the actions by actions that lead straight back to the first pose of the episode.

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
class InterventionPenalty:
    """Sets the reward to -1 at the last step before a person takes over, and to 0 at all other steps.

    Any offline RL learner can use it. An episode that a person controlled from the start has no such step.

    Args:
        column: Column that is above 0 while a person controls the robot.

    References:
        Luo et al. (2024), RLIF: Interactive Imitation Learning as Reinforcement Learning, arXiv:2311.12996.
    """

    column: str = "intervention"
    into: str = "next.reward"

    def __call__(self, episode: Episode) -> Episode:
        taken = np.asarray(get_column(episode, self.column)[: len(episode)]).reshape(-1) > 0
        return with_column(episode, self.into, -np.append(taken[1:] & ~taken[:-1], False).astype(np.float32))


@part
class ScaledReward:
    """Multiplies the reward, adds a number, and then limits it.

    Args:
        scale: Factor of the reward. 0 is refused.
        shift: What is added to it then.
        low: Smallest reward. None for no limit.
        high: Largest reward. None for no limit.
    """

    scale: float = 1.0
    shift: float = 0.0
    low: float | None = None
    high: float | None = None
    column: str = "next.reward"

    def __post_init__(self):
        if self.scale == 0:
            raise ConfigError("the factor is 0, so that all rewards would be equal", where="ScaledReward.scale",
                              hint="use another number")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ConfigError(f"the smallest reward, {self.low:g}, is not below the largest, {self.high:g}",
                              where="ScaledReward.low", hint="give the smaller one first")

    def __call__(self, episode: Episode) -> Episode:
        reward = self.scale * get_column(episode, self.column).astype(np.float32) + self.shift
        low, high = -np.inf if self.low is None else self.low, np.inf if self.high is None else self.high
        return with_column(episode, self.column, np.clip(reward, low, high).astype(np.float32))


@dataclass(frozen=True)
class SelectColumns:
    """Keeps some columns of the data and removes all other columns."""

    columns: tuple[str, ...]

    def __call__(self, episode: Episode) -> Episode:
        for name in self.columns:
            check_column(episode, name)
        return episode.replace({k: None for k in episode.steps if k not in self.columns})


@dataclass(frozen=True)
class ConcatColumns:
    """Joins columns of numbers into one column, so that a policy can predict several of them together.

    Row t of the new column has the first column at step t, all further columns at step ``t + offset`` (or their last
    row), and a last component that is 1 where the first column is known and 0 where it is not.

    Args:
        columns: Vectors of numbers. The new column has as many rows as the first of them.
        offset: Number of steps by which the columns after the first are later.
        known_column: Column that is not 0 at the steps where the first column is known. None if it is known everywhere.

    Example:
        >>> relabel = ConcatColumns(("action", "observation.state"), offset=8)
    """

    columns: tuple[str, ...]
    offset: int = 1
    into: str = "joint"
    known_column: str | None = None

    def __call__(self, episode: Episode) -> Episode:
        features = episode.features()
        for name in self.columns:
            check_column(episode, name)
            if features[name].kind != "vector" or len(features[name].shape) != 1:
                raise UserError(f"column {name!r} is not a vector of numbers, so that it cannot be joined",
                                where="ConcatColumns.columns", hint="join actions, states and poses")
        first, *others = (get_column(episode, name) for name in self.columns)
        rows = np.arange(len(first))
        later = [column[np.minimum(rows + self.offset, len(column) - 1)] for column in others]
        is_known = (np.ones(len(first)) if self.known_column is None
                    else np.asarray(get_column(episode, self.known_column))[rows].reshape(len(first)) != 0)
        joined = np.concatenate([first, *later, is_known[:, None]], 1).astype(np.float32)
        return with_column(episode, self.into, joined, Feature("float32", joined.shape[1:]))
