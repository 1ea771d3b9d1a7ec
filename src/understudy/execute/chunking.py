"""Executors that run a chunk and ask for the next."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import State, UserError, put, take
from ..policy import Guide, Inpaint, Planner
from .base import Executor, check_alignment, empty_chunks


@dataclass(frozen=True)
class PlanRequest:
    """A plan that is wanted: enough to compute it in another thread or on another machine."""

    rows: Tensor
    obs: Mapping[str, Tensor]
    noise: Tensor | State
    guides: tuple[Guide, ...] = ()


class ChunkedExecutor(Executor):
    """`ask` and `accept` are apart so that a robot may go on moving in between; `act` is both at once, for everyone
    who can wait."""

    n_action_steps: int  # steps carried out of each chunk
    skip: int  # steps of the chunk that lie in the past (window.action_offset = -skip)

    def start(self, planner, key):
        check_alignment(self, planner, self.skip)
        if self.skip + self.n_action_steps > planner.window.horizon:
            raise UserError(f"expected skip + execute of at most the horizon, {planner.window.horizon}, found "
                            f"{self.skip} + {self.n_action_steps}", where=type(self).__name__,
                            hint="execute fewer steps, or train with a longer horizon")
        zero = torch.zeros_like(key)
        return {"key": key, "count": zero, "cursor": zero + self.n_action_steps, "chunk": empty_chunks(planner, key)}

    @abstractmethod
    def request_plan(self, planner: Planner, obs: Mapping[str, Tensor], state: State) -> PlanRequest | None:
        """What has to be planned now, if anything."""

    @abstractmethod
    def accept_plan(self, state: State, request: PlanRequest, chunk: Tensor, delay: int = 0) -> State:
        """`late`: how many actions were emitted since `ask`."""

    def next_action(self, state: State) -> tuple[Tensor, State]:
        rows = torch.arange(state["cursor"].shape[0], device=state["cursor"].device)
        return state["chunk"][rows, self.skip + state["cursor"]], {**state, "cursor": state["cursor"] + 1}

    def act(self, planner, obs, state):
        if (ask := self.request_plan(planner, obs, state)) is not None:
            state = self.accept_plan(state, ask, planner.plan(ask.obs, ask.noise, ask.guides))
        return self.next_action(state)

    def rows_due(self, state: State) -> Tensor | None:
        rows = (state["cursor"] >= self.n_action_steps).nonzero().flatten()
        return rows if rows.numel() else None

    def replace_chunk(self, state: State, rows: Tensor, chunk: Tensor, delay: int) -> State:
        everyone = len(rows) == len(state["cursor"])
        mine = state if everyone else take(state, rows)
        new = {**mine, "count": mine["count"] + 1, "chunk": chunk, "cursor": torch.full_like(mine["cursor"], delay)}
        return new if everyone else put(state, rows, new)


@dataclass(frozen=True)
class RecedingHorizon(ChunkedExecutor):
    """Carry out `execute` steps of a chunk, then plan again."""

    n_action_steps: int = 1
    skip: int = 0

    def request_plan(self, planner, obs, state):
        if (rows := self.rows_due(state)) is None:
            return None
        mine = obs if len(rows) == len(state["key"]) else take(obs, rows)
        return PlanRequest(rows, mine, planner.noise(state["key"][rows], state["count"][rows]))

    def accept_plan(self, state, request, chunk, delay=0):
        return self.replace_chunk(state, request.rows, chunk, delay)


@dataclass(frozen=True)
class RealTimeChunking(ChunkedExecutor):
    """A chunk arrives `delay` steps after its observation; meanwhile the old one runs on, and the new one is asked
    to agree with it: firmly on the part already bound to happen, less later (Black et al. 2025)."""

    n_action_steps: int = 4
    delay: int = 1
    skip: int = 0

    def _remaining_chunk(self, state, rows):
        """What is left of the running chunk, aligned to now, and where it is more than padding."""
        mine = take(state, rows)
        horizon, dim = mine["chunk"].shape[1:]
        at = mine["cursor"].unsqueeze(1) + torch.arange(horizon, device=rows.device)
        there = (at < horizon) & (mine["count"] > 0).unsqueeze(1)
        return mine["chunk"].gather(1, at.clamp(max=horizon - 1).unsqueeze(-1).expand(-1, -1, dim)), there

    def request_plan(self, planner, obs, state):
        if (rows := self.rows_due(state)) is None:
            return None
        old, there = self._remaining_chunk(state, rows)
        step = torch.arange(old.shape[1], device=old.device)
        fade = torch.exp(-(step - self.skip - self.delay).clamp(min=0) / max(1, self.n_action_steps))
        noise = planner.noise(state["key"][rows], state["count"][rows])
        return PlanRequest(rows, take(obs, rows), noise, (Inpaint(old, fade * there),))

    def accept_plan(self, state, request, chunk, delay=0):
        if delay == 0:  # simulated delay: the first steps are those of the old chunk
            old, there = self._remaining_chunk(state, request.rows)
            firm = there & (torch.arange(chunk.shape[1], device=chunk.device) < self.skip + self.delay)
            chunk = torch.where(firm.unsqueeze(-1), old, chunk)
        return self.replace_chunk(state, request.rows, chunk, delay)
