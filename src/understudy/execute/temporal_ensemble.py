"""Temporal ensembling of overlapping chunks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import AtLeast, UserError, part
from ..policy import Planner
from .base import Executor, check_alignment, check_numeric_actions, empty_chunks


@part
class TemporalEnsemble(Executor):
    """Executor that plans at every step and averages the actions of the last chunks for the current step.

    The weight of a chunk is exp(-decay * i), where i = 0 is the oldest. With decay > 0, older chunks weigh more.

    Args:
        decay: Rate at which the weights decrease from the oldest to the newest chunk.
        skip: Number of steps of each chunk that lie in the past: `Window(action_offset=-skip)`.
        delay: Simulated number of steps between an observation and the arrival of its chunk. A plan is started at every
            step, and several are computed at the same time. The first chunk of an episode arrives at once.

    References:
        Zhao et al. (2023), Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware, arXiv:2304.13705.
    """

    decay: float = 0.01
    skip: Annotated[int, AtLeast(0)] = 0
    delay: Annotated[int, AtLeast(0)] = 0

    def check_planner(self, planner):
        check_numeric_actions(planner, type(self).__name__, "averages actions of several chunks")
        check_alignment(self, planner, self.skip)
        if not 0 <= self.delay <= (last := planner.window.horizon - self.skip - 1):
            raise UserError(f"the delay is {self.delay}, but must be from 0 to {last}, "
                            "because a chunk that arrives later has no action left",
                            where=f"{type(self).__name__}.delay", hint="train with a longer horizon")

    def start(self, planner, obs, key):
        self.check_planner(planner)
        chunks = empty_chunks(planner, key, planner.window.horizon - self.skip)
        return {"key": key, "count": torch.zeros_like(key), "chunks": chunks}

    def act(self, planner, obs, state):
        new = planner.plan(obs, planner.noise(state["key"], state["count"]))
        chunks = torch.cat([new.unsqueeze(1), state["chunks"][:, :-1]], 1)  # chunks[:, j] was planned j steps ago
        age = torch.arange(chunks.shape[1], device=new.device)
        count = state["count"].unsqueeze(1)
        arrived = (age <= count) & ((age >= self.delay) | (age == count))  # the first chunk arrives at once
        actions = chunks[:, age, self.skip + age]
        weight = self.weights(planner, obs, actions, arrived) * arrived
        action = (weight.unsqueeze(-1) * actions).sum(1) / weight.sum(1, True)
        return action, {**state, "chunks": chunks, "count": state["count"] + 1}

    def weights(self, planner: Planner, obs: Mapping[str, Tensor], actions: Tensor, arrived: Tensor) -> Tensor:
        """Returns the weight of each chunk up to a factor, (B, n) or (n,).

        Args:
            obs: Observation windows, (B, To, ...).
            actions: What the chunks contain for the current step, newest first, (B, n, A) in world units.
            arrived: Which of them are there, (B, n).
        """
        # exp(decay * age) is exp(-decay * i) up to a factor, which the division removes.
        return torch.exp(self.decay * torch.arange(actions.shape[1], device=actions.device))


@part
class AdaptiveEnsemble(TemporalEnsemble):
    """A temporal ensemble in which chunks count more if their action points in the direction of the newest one.

    The weight of a chunk is exp(alpha * cosine), where cosine is the similarity of two actions for the current step:
    the action of this chunk and the action of the newest chunk, both in coded units. An old chunk that was planned for
    another way of doing the task counts less.

    Args:
        decay: Additional rate at which the weights decrease from the oldest to the newest chunk. 0 in the paper.
        alpha: Strength of the preference. With 0, all chunks count the same.

    References:
        Li et al. (2024), CogACT: A Foundational Vision-Language-Action Model for Synergizing Cognition and Action in
        Robotic Manipulation, arXiv:2411.19650.
    """

    decay: float = 0.0
    alpha: float = 0.1

    def weights(self, planner, obs, actions, arrived):
        coded = planner.encode(actions, obs)
        newest = arrived.long().argmax(1)
        reference = coded[torch.arange(len(coded), device=coded.device), newest].unsqueeze(1)
        similarity = F.cosine_similarity(coded, reference, dim=-1)
        return torch.exp(self.alpha * similarity) * super().weights(planner, obs, actions, arrived)
