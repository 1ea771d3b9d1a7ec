"""Temporal ensembling."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import Executor, check_alignment, empty_chunks


@dataclass(frozen=True)
class TemporalEnsemble(Executor):
    """Plan at every step and average what past chunks say of now: weight exp(-decay * i), i = 0 the oldest, so that
    with decay > 0 older chunks weigh more (ACT, Zhao et al. 2023)."""

    decay: float = 0.01

    def start(self, planner, key):
        check_alignment(self, planner)
        return {
            "key": key,
            "count": torch.zeros_like(key),
            "chunks": empty_chunks(planner, key, planner.window.horizon),
        }

    def act(self, planner, obs, state):
        new = planner.plan(obs, planner.noise(state["key"], state["count"]))
        chunks = torch.cat([new.unsqueeze(1), state["chunks"][:, :-1]], 1)  # [:, j]: j steps old
        age = torch.arange(chunks.shape[1], device=new.device)
        known = age <= state["count"].unsqueeze(1)
        weight = torch.exp(self.decay * age) * known  # up to a factor exp(-decay * i) with i counted from the oldest
        action = (weight.unsqueeze(-1) * chunks[:, age, age]).sum(1) / weight.sum(1, True)
        return action, {**state, "chunks": chunks, "count": state["count"] + 1}
