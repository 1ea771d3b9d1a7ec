"""Executors that run a chunk of actions and then ask for the next."""

from __future__ import annotations

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
        guides: Guidance of the new plans, such as agreement with the old chunk.
    """

    rows: Tensor
    obs: Mapping[str, Tensor]
    noise: Tensor | State
    guides: tuple[Guide, ...] = ()


class ChunkedExecutor(Executor):
    """Executes `n_action_steps` steps of each chunk.

    `act` requests a plan, waits for it and returns the next action. `request_plan`, `accept_plan` and `next_action`
    are also available one by one, so that a robot can keep moving while a plan is computed.

    A subclass is a frozen dataclass with the fields below. It overrides `guides` to change how a chunk is sampled, and
    `accept_plan` to change a chunk that has arrived. `last_chunk` and `planner.action_scale` help to compare chunks.

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

    def request_plan(self, planner: Planner, obs: Mapping[str, Tensor], state: State) -> PlanRequest | None:
        """Returns the plans that are needed before the next action, or None.

        Args:
            planner: The planner that will be asked.
            obs: Observation windows, (B, To, ...).
            state: The current state.
        """
        if (rows := self.rows_due(state)) is None:
            return None
        due_obs = obs if len(rows) == len(state["key"]) else take(obs, rows)
        noise = planner.noise(state["key"][rows], state["count"][rows])
        return PlanRequest(rows, due_obs, noise, self.guides(self.last_chunk(state, rows)))

    def guides(self, last: LastChunk) -> tuple[Guide, ...]:
        """Returns the guidance of new chunks. By default `last` alone, which does not change a chunk.

        Args:
            last: The chunks that the rows were executing. Planners that choose between several samples read them.
        """
        return (last,)

    def accept_plan(self, planner: Planner, state: State, request: PlanRequest, chunk: Tensor, delay: int = 0) -> State:
        """Returns the state with new chunks.

        Args:
            planner: The planner that computed them. `planner.action_scale` is the scale of each action component.
            state: The current state.
            request: The request that is answered.
            chunk: The chunks, (R, H, A) in world units.
            delay: Number of actions that were returned since the request.
        """
        return self.replace_chunk(state, request.rows, chunk, delay)

    def next_action(self, state: State) -> tuple[Tensor, State]:
        """Returns the next action of each row's chunk, (B, A), and the next state."""
        rows = torch.arange(state["cursor"].shape[0], device=state["cursor"].device)
        return state["chunk"][rows, self.skip + state["cursor"]], {**state, "cursor": state["cursor"] + 1}

    def act(self, planner, obs, state):
        if (request := self.request_plan(planner, obs, state)) is not None:
            chunk = planner.plan(request.obs, request.noise, request.guides)
            state = self.accept_plan(planner, state, request, chunk)
        return self.next_action(state)

    def rows_due(self, state: State) -> Tensor | None:
        """Returns the rows whose chunk has been executed, or None."""
        rows = (state["cursor"] >= self.n_action_steps).nonzero().flatten()
        return rows if rows.numel() else None

    def last_chunk(self, state: State, rows: Tensor, delay: int = 0) -> LastChunk:
        """Returns the chunks that `rows` are executing.

        Args:
            state: The current state.
            rows: Which rows, (R,).
            delay: Number of actions that were returned since the new chunk was requested. `LastChunk.aligned` gives the
                old chunk in the time of the new one.
        """
        if len(rows) < len(state["cursor"]):
            state = take({k: state[k] for k in ("chunk", "cursor", "count")}, rows)
        return LastChunk(state["chunk"], state["cursor"] - delay, state["count"] > 0)

    def replace_chunk(self, state: State, rows: Tensor, chunk: Tensor, delay: int) -> State:
        """Returns the state in which `rows` execute new chunks, from step `skip + delay` of each chunk on.

        Args:
            state: The current state.
            rows: Which rows get a new chunk, (R,).
            chunk: The chunks, (R, H, A) in world units.
            delay: Number of actions that were returned since the chunks were requested.
        """
        everyone = len(rows) == len(state["cursor"])
        old = state if everyone else take(state, rows)
        new = {**old, "count": old["count"] + 1, "chunk": chunk, "cursor": torch.full_like(old["cursor"], delay)}
        return new if everyone else put(state, rows, new)


@dataclass(frozen=True)
class RecedingHorizon(ChunkedExecutor):
    """Executes `n_action_steps` steps of a chunk, then plans again.

    Args:
        n_action_steps: Number of steps executed from each chunk.
        skip: Number of steps of each chunk that lie in the past: `Window(action_offset=-skip)`.
    """

    n_action_steps: int = 1
    skip: int = 0


@dataclass(frozen=True)
class RealTimeChunking(ChunkedExecutor):
    """Executes the old chunk while the new one is computed.

    A new chunk arrives `delay` steps after its observation. It is asked to agree with the old chunk: fully on the
    steps that will be executed before it arrives, and less and less on later steps.

    Recorded episodes contain no old chunk. Validation and `understudy eval RUN DATA` therefore measure the plans of the
    policy alone, which are those of the first chunk of an episode.

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

    def guides(self, last):
        old, mask = last.aligned()
        step = torch.arange(old.shape[1], device=old.device)
        weight = torch.exp(-(step - self.skip - self.delay).clamp(min=0) / max(1, self.n_action_steps))
        return Inpaint(old, weight * mask), last

    def accept_plan(self, planner, state, request, chunk, delay=0):
        if delay == 0:  # the delay is simulated: the first steps are those of the old chunk
            old, mask = self.last_chunk(state, request.rows).aligned()
            committed = mask & (torch.arange(chunk.shape[1], device=chunk.device) < self.skip + self.delay)
            chunk = torch.where(committed.unsqueeze(-1), old, chunk)
        return self.replace_chunk(state, request.rows, chunk, delay)
