"""Temporal ensembling of overlapping chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..core import UserError
from .base import Executor, check_alignment, empty_chunks


@dataclass(frozen=True)
class TemporalEnsemble(Executor):
    """Plans at every step and averages what the last chunks contain for the current step.

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
    skip: int = 0
    delay: int = 0

    def check_planner(self, planner):
        check_alignment(self, planner, self.skip)
        if not 0 <= self.delay <= (last := planner.window.horizon - self.skip - 1):
            raise UserError(f"the delay is {self.delay}, but must be from 0 to {last}, "
                            "because a chunk that arrives later has no action left", where="TemporalEnsemble.delay",
                            hint="train with a longer horizon")

    def start(self, planner, obs, key):
        self.check_planner(planner)
        chunks = empty_chunks(planner, key, planner.window.horizon - self.skip)
        return {"key": key, "count": torch.zeros_like(key), "chunks": chunks}

    def act(self, planner, obs, state):
        new = planner.plan(obs, planner.noise(state["key"], state["count"]))
        chunks = torch.cat([new.unsqueeze(1), state["chunks"][:, :-1]], 1)  # chunks[:, j] was planned j steps ago
        age = torch.arange(chunks.shape[1], device=new.device)
        count = state["count"].unsqueeze(1)
        planned = (age <= count) & ((age >= self.delay) | (age == count))  # the first chunk arrives at once
        # exp(decay * age) is exp(-decay * i) up to a factor, which the division removes.
        weight = torch.exp(self.decay * age) * planned
        action = (weight.unsqueeze(-1) * chunks[:, age, self.skip + age]).sum(1) / weight.sum(1, True)
        return action, {**state, "chunks": chunks, "count": state["count"] + 1}
