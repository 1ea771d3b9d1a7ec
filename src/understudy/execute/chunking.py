"""Executors that run a chunk of actions and then ask for the next."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import State, UserError, put, take
from ..policy import Guide, Inpaint, LastChunk, Planner
from .base import Executor, check_alignment, empty_chunks


@dataclass(frozen=True)
class PlanRequest:
    """The arguments of `Planner.plan` for the rows that need a new chunk.

    A request can be answered in another thread or on another machine.

    Args:
        rows: Which rows of the state need a chunk, (R,).
        obs: Their observation windows, (R, To, ...).
        noise: Their noise.
        guides: What the plans shall agree with.
    """

    rows: Tensor
    obs: Mapping[str, Tensor]
    noise: Tensor | State
    guides: tuple[Guide, ...] = ()


class ChunkedExecutor(Executor):
    """Executes `n_action_steps` steps of each chunk.

    `act` requests a plan, waits for it and returns the next action. `request_plan`, `accept_plan` and `next_action`
    are also available one by one, so that a robot can keep moving while a plan is computed.

    Args:
        n_action_steps: Number of steps executed from each chunk.
        skip: Number of steps of each chunk that lie in the past: `Window(action_offset=-skip)`.
    """

    n_action_steps: int
    skip: int

    def check_planner(self, planner):
        check_alignment(self, planner, self.skip)
        if self.skip + self.n_action_steps > planner.window.horizon:
            raise UserError(f"skip + n_action_steps is {self.skip} + {self.n_action_steps}, but a chunk has only "
                            f"{planner.window.horizon} steps", where=type(self).__name__,
                            hint="execute fewer steps, or train with a longer horizon")

    def start(self, planner, obs, key):
        self.check_planner(planner)
        zero = torch.zeros_like(key)
        return {"key": key, "count": zero, "cursor": zero + self.n_action_steps, "chunk": empty_chunks(planner, key)}

    @abstractmethod
    def request_plan(self, planner: Planner, obs: Mapping[str, Tensor], state: State) -> PlanRequest | None:
        """Returns the plans that are needed before the next action, or None."""

    @abstractmethod
    def accept_plan(self, state: State, request: PlanRequest, chunk: Tensor, delay: int = 0) -> State:
        """Returns the state with new chunks.

        Args:
            state: The current state.
            request: The request that is answered.
            chunk: The chunks, (R, H, A) in world units.
            delay: Number of actions that were returned since the request.
        """

    def next_action(self, state: State) -> tuple[Tensor, State]:
        """Returns the next action of each row's chunk, (B, A), and the next state."""
        rows = torch.arange(state["cursor"].shape[0], device=state["cursor"].device)
        return state["chunk"][rows, self.skip + state["cursor"]], {**state, "cursor": state["cursor"] + 1}

    def act(self, planner, obs, state):
        if (request := self.request_plan(planner, obs, state)) is not None:
            state = self.accept_plan(state, request, planner.plan(request.obs, request.noise, request.guides))
        return self.next_action(state)

    def rows_due(self, state: State) -> Tensor | None:
        """Returns the rows whose chunk has been executed, or None."""
        rows = (state["cursor"] >= self.n_action_steps).nonzero().flatten()
        return rows if rows.numel() else None

    def replace_chunk(self, state: State, rows: Tensor, chunk: Tensor, delay: int) -> State:
        """Returns the state in which `rows` execute `chunk` from its step `skip + delay` on."""
        everyone = len(rows) == len(state["cursor"])
        old = state if everyone else take(state, rows)
        new = {**old, "count": old["count"] + 1, "chunk": chunk, "cursor": torch.full_like(old["cursor"], delay)}
        return new if everyone else put(state, rows, new)


def _last_chunk(state: State, rows: Tensor) -> LastChunk:
    if len(rows) < len(state["cursor"]):
        state = take({k: state[k] for k in ("chunk", "cursor", "count")}, rows)
    return LastChunk(state["chunk"], state["cursor"], state["count"] > 0)


@dataclass(frozen=True)
class RecedingHorizon(ChunkedExecutor):
    """Executes `n_action_steps` steps of a chunk, then plans again.

    Args:
        n_action_steps: Number of steps executed from each chunk.
        skip: Number of steps of each chunk that lie in the past: `Window(action_offset=-skip)`.
    """

    n_action_steps: int = 1
    skip: int = 0

    def request_plan(self, planner, obs, state):
        if (rows := self.rows_due(state)) is None:
            return None
        due_obs = obs if len(rows) == len(state["key"]) else take(obs, rows)
        noise = planner.noise(state["key"][rows], state["count"][rows])
        return PlanRequest(rows, due_obs, noise, (_last_chunk(state, rows),))

    def accept_plan(self, state, request, chunk, delay=0):
        return self.replace_chunk(state, request.rows, chunk, delay)


@dataclass(frozen=True)
class RealTimeChunking(ChunkedExecutor):
    """Executes the old chunk while the new one is computed.

    A new chunk arrives `delay` steps after its observation. It is asked to agree with the old chunk: fully on the
    steps that will be executed before it arrives, and less and less on later steps.

    Args:
        n_action_steps: Number of steps executed from each chunk.
        delay: Number of steps between an observation and the arrival of its chunk.
        skip: Number of steps of each chunk that lie in the past: `Window(action_offset=-skip)`.

    References:
        Black et al. (2025), Real-Time Execution of Action Chunking Flow Policies, arXiv:2506.07339.
    """

    n_action_steps: int = 4
    delay: int = 1
    skip: int = 0

    def request_plan(self, planner, obs, state):
        if (rows := self.rows_due(state)) is None:
            return None
        last = _last_chunk(state, rows)
        old, mask = last.aligned()
        step = torch.arange(old.shape[1], device=old.device)
        weight = torch.exp(-(step - self.skip - self.delay).clamp(min=0) / max(1, self.n_action_steps))
        noise = planner.noise(state["key"][rows], state["count"][rows])
        return PlanRequest(rows, take(obs, rows), noise, (Inpaint(old, weight * mask), last))

    def accept_plan(self, state, request, chunk, delay=0):
        if delay == 0:  # the delay is simulated: the first steps are those of the old chunk
            old, mask = _last_chunk(state, request.rows).aligned()
            committed = mask & (torch.arange(chunk.shape[1], device=chunk.device) < self.skip + self.delay)
            chunk = torch.where(committed.unsqueeze(-1), old, chunk)
        return self.replace_chunk(state, request.rows, chunk, delay)
