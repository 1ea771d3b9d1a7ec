"""Retrieval, alignment and replay: choose a demonstration, go where it began, and repeat its motion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..checkpoint import FromStage
from ..core import ConfigError, Unsupported, check_range
from ..heads.neighbors import Neighbors
from ..policy import Planner, Policy
from .base import Executor, check_alignment, check_numeric_actions
from .following import policy_with_memory


@dataclass(frozen=True)
class AlignedReplay(Executor):
    """Repeats the motion of a demonstration from the place where it began.

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
    tolerance: float = 0.05
    max_steps: int = 40

    def __post_init__(self):
        check_range(self, "tolerance", "max_steps", at_least=0)

    def check_planner(self, planner):
        check_alignment(self, planner)
        if self.aligner is not None:
            check_numeric_actions(planner, "AlignedReplay", "aligns until the actions are small")
        policy = policy_with_memory(planner, "AlignedReplay")
        if policy.window.horizon < 2:
            raise ConfigError("the window has a horizon of 1, which does not tell where a demonstration ends",
                              where="AlignedReplay", hint="use Window(horizon=2)")

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
            planner: The planner with the memory.
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
            seen = {**_inputs(aligner, obs, self.goal), self.goal: state["goal"].unsqueeze(1)}
            motion = aligner.plan(seen, aligner.noise(state["key"], state["count"]))[:, 0]
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


def _kind(given: object) -> str:
    return str(given) if isinstance(given, FromStage) else type(given).__name__


def _inputs(planner: Planner, obs: Mapping[str, Tensor], given: str = "") -> dict[str, Tensor]:
    """What a planner reads of an observation. `given` is a column that is added later."""
    if missing := [k for k in planner.inputs if k not in obs and k != given]:
        raise ConfigError(f"the policy with the demonstrations does not read {missing[0]!r}, which the retriever or "
                          "the aligner needs", where="AlignedReplay", hint="add it to the inputs of that policy")
    return {k: obs[k][:, -planner.window.n_obs_steps:] for k in planner.inputs if k != given}


def _first_rows(planner: Planner) -> Tensor:
    """Numbers of the first row of each demonstration in the memory of a policy, (N,)."""
    net = cast(Any, policy_with_memory(planner, "AlignedReplay").net)
    last = (net.known[:, 1] == 0).nonzero().flatten()
    return torch.cat([torch.zeros_like(last[:1]), last[:-1] + 1])
