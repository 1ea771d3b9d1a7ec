"""Executors that run a chunk and ask for the next."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import State, UserError, put, take
from ..policy import Guide, Inpaint, Planner
from .base import Executor, aligned, blank


@dataclass(frozen=True)
class Ask:
    """A plan that is wanted: enough to compute it in another thread or on another machine."""

    rows: Tensor
    obs: Mapping[str, Tensor]
    noise: Tensor | State
    guides: tuple[Guide, ...] = ()


class Chunked(Executor):
    """`ask` and `accept` are apart so that a robot may go on moving in between; `act` is both at once, for everyone
    who can wait."""

    execute: int  # steps carried out of each chunk
    skip: int  # steps of the chunk that lie in the past (window.ahead = -skip)

    def start(self, policy, key):
        aligned(self, policy, self.skip)
        if self.skip + self.execute > policy.window.horizon:
            raise UserError(f"expected skip + execute of at most the horizon, {policy.window.horizon}, found "
                            f"{self.skip} + {self.execute}", where=type(self).__name__,
                            do="execute fewer steps, or train with a longer horizon")
        zero = torch.zeros_like(key)
        return {"key": key, "count": zero, "cursor": zero + self.execute, "chunk": blank(policy, key)}

    @abstractmethod
    def ask(self, policy: Planner, obs: Mapping[str, Tensor], state: State) -> Ask | None:
        """What has to be planned now, if anything."""

    @abstractmethod
    def accept(self, state: State, ask: Ask, chunk: Tensor, late: int = 0) -> State:
        """`late`: how many actions were emitted since `ask`."""

    def emit(self, state: State) -> tuple[Tensor, State]:
        rows = torch.arange(state["cursor"].shape[0], device=state["cursor"].device)
        return state["chunk"][rows, self.skip + state["cursor"]], {**state, "cursor": state["cursor"] + 1}

    def act(self, policy, obs, state):
        if (ask := self.ask(policy, obs, state)) is not None:
            state = self.accept(state, ask, policy.plan(ask.obs, ask.noise, ask.guides))
        return self.emit(state)

    def due(self, state: State) -> Tensor | None:
        rows = (state["cursor"] >= self.execute).nonzero().flatten()
        return rows if rows.numel() else None

    def swap(self, state: State, rows: Tensor, chunk: Tensor, late: int) -> State:
        everyone = len(rows) == len(state["cursor"])
        mine = state if everyone else take(state, rows)
        new = {**mine, "count": mine["count"] + 1, "chunk": chunk, "cursor": torch.full_like(mine["cursor"], late)}
        return new if everyone else put(state, rows, new)


@dataclass(frozen=True)
class Receding(Chunked):
    """Carry out `execute` steps of a chunk, then plan again."""

    execute: int = 1
    skip: int = 0

    def ask(self, policy, obs, state):
        if (rows := self.due(state)) is None:
            return None
        mine = obs if len(rows) == len(state["key"]) else take(obs, rows)
        return Ask(rows, mine, policy.noise(state["key"][rows], state["count"][rows]))

    def accept(self, state, ask, chunk, late=0):
        return self.swap(state, ask.rows, chunk, late)


@dataclass(frozen=True)
class RealTime(Chunked):
    """A chunk arrives `delay` steps after its observation; meanwhile the old one runs on, and the new one is asked
    to agree with it: firmly on the part already bound to happen, less later (Black et al. 2025)."""

    execute: int = 4
    delay: int = 1
    skip: int = 0

    def _rest(self, state, rows):
        """What is left of the running chunk, aligned to now, and where it is more than padding."""
        mine = take(state, rows)
        horizon, dim = mine["chunk"].shape[1:]
        at = mine["cursor"].unsqueeze(1) + torch.arange(horizon, device=rows.device)
        there = (at < horizon) & (mine["count"] > 0).unsqueeze(1)
        return mine["chunk"].gather(1, at.clamp(max=horizon - 1).unsqueeze(-1).expand(-1, -1, dim)), there

    def ask(self, policy, obs, state):
        if (rows := self.due(state)) is None:
            return None
        old, there = self._rest(state, rows)
        step = torch.arange(old.shape[1], device=old.device)
        fade = torch.exp(-(step - self.skip - self.delay).clamp(min=0) / max(1, self.execute))
        noise = policy.noise(state["key"][rows], state["count"][rows])
        return Ask(rows, take(obs, rows), noise, (Inpaint(old, fade * there),))

    def accept(self, state, ask, chunk, late=0):
        if late == 0:  # simulated delay: the first steps are those of the old chunk
            old, there = self._rest(state, ask.rows)
            firm = there & (torch.arange(chunk.shape[1], device=chunk.device) < self.skip + self.delay)
            chunk = torch.where(firm.unsqueeze(-1), old, chunk)
        return self.swap(state, ask.rows, chunk, late)
