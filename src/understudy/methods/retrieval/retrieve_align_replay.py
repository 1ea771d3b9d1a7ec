from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

import numpy as np
import torch
from torch import Tensor

from ...checkpoint import FromStage
from ...core import AtLeast, ConfigError, Feature, Schema, Unsupported, UserError, part
from ...data.operations import Crop, Filter
from ...data.relabel import FirstObservation, MotionToFirst
from ...data.window import Window
from ...execute.base import Executor, check_alignment, check_numeric_actions
from ...execute.following import policy_with_memory
from ...execute.wrappers import ActionWrapper
from ...heads.likelihood.regression import Regression
from ...heads.memory.neighbors import Neighbors
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method, Stage
from ...learn.optimizer import OptimizerConfig
from ...nets.encoders import ConcatEncoder
from ...nets.feed_forward import FeedForward
from ...policy import Planner, Policy, PolicyConfig
from ..needs import NUMBERS
from ..registry import method


@dataclass(frozen=True)
class PlanarFrame(ActionWrapper):
    """Wrapper that shows poses and velocities in the plane in the frame of an observed pose.

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


@part
class AlignedReplay(Executor):
    """Executor that repeats the motion of a demonstration from the place where it began.

    There are three phases. At the start of an episode, the retriever chooses a demonstration and tells what its first
    observation was. The aligner, a policy with that observation as its goal, then acts until it hardly moves. At last
    the actions of the demonstration are repeated without looking. After that, alignment begins again.

    The policy that it executes has the head `Neighbors`, whose memory has every step of the demonstrations. To repeat a
    motion relative to the effector and not to the world, record it in the effector's frame (`PlanarFrame`).

    Args:
        retriever: A policy with the head `Neighbors` that was fitted to the first step of each demonstration
            (``Crop(0, 1)``), in the same order. Its target is the observation that the aligner compares.
        aligner: A policy that goes to the goal. None to replay from anywhere.
        goal: Column of the aligner with the goal.
        tolerance: Alignment ends where no component of the aligner's action exceeds this, in units of the action.
        max_steps: Alignment ends after this number of steps in any case.

    References:
        Di Palo and Johns (2024), On the Effectiveness of Retrieval, Alignment, and Replay in Manipulation,
        arXiv:2312.12345.
    """

    retriever: Policy | FromStage
    aligner: Planner | FromStage | None
    goal: str = "observation.goal"
    tolerance: Annotated[float, AtLeast(0)] = 0.05
    max_steps: Annotated[int, AtLeast(0)] = 40

    def check_planner(self, planner):
        check_alignment(self, planner)
        if self.aligner is not None:
            check_numeric_actions(planner, "AlignedReplay", "aligns until the actions are small")
        policy_with_memory(planner, "AlignedReplay")

    def start(self, planner, obs, key):
        self.check_planner(planner)
        retriever, first = self._retriever(), _first_rows(planner)
        stored = cast(Any, retriever.net).values  # the first observation of each demonstration
        if len(first) != len(stored):
            raise ConfigError(f"the retriever knows {len(stored)} demonstrations, and the policy {len(first)}",
                              where="AlignedReplay.retriever",
                              hint="fit it to the same episodes, with the operation Crop(0, 1)")
        demo = self.retrieve(obs, key.to(planner.device))
        goal = retriever.decode(stored[demo][:, :1], obs)[:, 0]
        row = first[demo]
        return {"goal": goal, "first": row, "row": row.clone(), "step": torch.zeros_like(row),
                "is_aligned": torch.full_like(row, self.aligner is None, dtype=torch.bool),
                "key": key.to(planner.device), "count": torch.zeros_like(row)}

    def retrieve(self, obs: Mapping[str, Tensor], key: Tensor) -> Tensor:
        """Chooses a demonstration for each row.

        Args:
            obs: The first observation windows, (B, To, ...).
            key: Source of randomness, (B,) int64. The nearest demonstration does not depend on it.

        Returns:
            Numbers of demonstrations, (B,) int64.
        """
        retriever = self._retriever()
        head = retriever.config.head
        assert isinstance(head, Neighbors)
        return head.nearest(retriever.net, retriever.context(_inputs(retriever, obs)))[0][:, 0]

    def replay(self, planner: Planner, obs: Mapping[str, Tensor], row: Tensor) -> Tensor:
        """Returns the recorded actions of some rows of the memory, (B, A).

        Args:
            obs: The current observation windows, (B, To, ...).
            row: Numbers of the rows, (B,).
        """
        net = cast(Any, policy_with_memory(planner, "AlignedReplay").net)
        return planner.decode(net.values[row][:, :1], obs)[:, 0]

    def act(self, planner, obs, state):
        net = cast(Any, policy_with_memory(planner, "AlignedReplay").net)
        action = self.replay(planner, obs, state["row"])
        is_aligned = state["is_aligned"]
        if self.aligner is not None:
            aligner = self._aligner()
            aligner_obs = {**_inputs(aligner, obs, self.goal), self.goal: state["goal"].unsqueeze(1)}
            motion = aligner.plan(aligner_obs, aligner.noise(state["key"], state["count"]))[:, 0]
            is_near = (motion.abs() <= self.tolerance).all(1)
            is_aligned = is_aligned | is_near | (state["step"] >= self.max_steps)
            action = torch.where(is_aligned.unsqueeze(1), action, motion)
        has_ended = is_aligned & (net.known[state["row"], 1] == 0)
        row = torch.where(is_aligned, state["row"] + 1, state["row"])
        return action, {
            **state,
            "row": torch.where(has_ended, state["first"], row),
            "step": torch.where(is_aligned, 0, state["step"] + 1),
            "is_aligned": is_aligned & ~has_ended if self.aligner is not None else is_aligned,
            "count": state["count"] + 1,
        }

    def _retriever(self) -> Policy:
        if not isinstance(self.retriever, Policy) or not isinstance(self.retriever.config.head, Neighbors):
            raise Unsupported(f"{_kind(self.retriever)} is not a policy with a memory of demonstrations",
                              where="AlignedReplay.retriever", hint="train a stage with the head Neighbors")
        return self.retriever

    def _aligner(self) -> Planner:
        if not isinstance(self.aligner, Planner):
            raise Unsupported(f"{_kind(self.aligner)} is not a policy", where="AlignedReplay.aligner",
                              hint="give a policy, or a method whose stages are trained")
        return self.aligner


def _kind(source: object) -> str:
    return str(source) if isinstance(source, FromStage) else type(source).__name__


def _inputs(planner: Planner, obs: Mapping[str, Tensor], later_column: str = "") -> dict[str, Tensor]:
    """Returns the observation columns that a planner reads, without the column that is added later."""
    if missing := [k for k in planner.inputs if k not in obs and k != later_column]:
        raise ConfigError(f"the policy with the demonstrations does not read {missing[0]!r}, which the retriever or "
                          "the aligner needs", where="AlignedReplay", hint="add it to the inputs of that policy")
    return {k: obs[k][:, -planner.window.n_obs_steps:] for k in planner.inputs if k != later_column}


def _first_rows(planner: Planner) -> Tensor:
    """Returns the number of the first row of each demonstration in the memory of a policy, (N,)."""
    net = cast(Any, policy_with_memory(planner, "AlignedReplay").net)
    last = (net.known[:, 1] == 0).nonzero().flatten()
    return torch.cat([torch.zeros_like(last[:1]), last[:-1] + 1])


@method("Di Palo and Johns 2024, arXiv 2312.12345, whose retrieval compares features of DINO, and whose alignment is "
        "visual servoing by a camera at the wrist", rows=("316",),
        needs=(NUMBERS, "actions that are velocities of an observed pose",
               "prior data: the robot moves away from the start of each demonstration"),
        when="if there is one demonstration, and the robot can first go to where it began.")
def retrieve_align_replay(
    descriptor: str = "observation.environment_state", view: str = "observation.environment_state",
    pose: str = "observation.state", step: tuple[float, ...] = (1.0,), tolerance: float = 0.05, first: int = 0,
    frame: str | None = None, poses: tuple[str, ...] = (),
) -> Method:
    """Retrieval, alignment, replay: choose a demonstration, go where it began, and repeat its motion.

    Args:
        descriptor: Column that tells which demonstration fits.
        view: Column that tells where the robot is relative to the object.
        pose: Column with the pose of the effector.
        step: How far an action of 1 moves each component of the pose in one step.
        tolerance: Alignment ends at actions smaller than this.
        first: First step of a demonstration that is repeated. -6 is the sixth from the end.
        frame: Column with the pose in whose frame the velocities are, such as that of the effector. None: the world's.
        poses: Columns whose pose is given in that frame too. See `PlanarFrame`.
    """
    task = (Filter("dataset", equals=("task",)), Crop(first))
    prior = Filter("dataset", equals=("prior",))
    wrapper = None if frame is None else PlanarFrame(frame, poses)
    memory = PolicyConfig(Neighbors(1, "equal"), encoder=ConcatEncoder(), window=Window(1, 2),
                          inputs=tuple(dict.fromkeys((descriptor, view))))
    retriever_config = PolicyConfig(Neighbors(1, "equal"), encoder=ConcatEncoder(), inputs=(descriptor,), target=view)
    aligner_config = PolicyConfig(Regression(), FeedForward((128, 128)), ConcatEncoder(),
                                  inputs=(view, "observation.goal"))
    retrieval = Method(retriever_config, learner=BehaviorCloning(1), transforms=(*task, Crop(0, 1)), wrapper=wrapper)
    alignment = Method(aligner_config, learner=BehaviorCloning(2000, 256, OptimizerConfig(3e-3)), wrapper=wrapper,
                       transforms=(MotionToFirst(pose, step), prior, FirstObservation(view)))
    return Method(memory, AlignedReplay(FromStage("retrieval"), FromStage("alignment"), tolerance=tolerance),
                  BehaviorCloning(1), task, wrapper=wrapper,
                  stages=(Stage("retrieval", retrieval, "task"), Stage("alignment", alignment, "prior")))
