"""Executors that run a chunk of actions and then ask for the next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..core import AtLeast, State, UserError, check_fields, part, put, take
from ..policy import Guide, Inpaint, LastChunk, Planner
from .base import Executor, check_alignment, empty_chunks, sample_noise, sample_plans


@dataclass(frozen=True)
class PlanRequest:
    """A request for plans: the rows that need a new chunk, and what their plans depend on.

    A request can be answered in another thread or on another machine.

    Args:
        rows: Which rows of the state need a chunk, (R,).
        obs: Their observation windows, (R, To, ...).
        n_samples: Number of plans for each row.
    """

    rows: Tensor
    obs: Mapping[str, Tensor]
    noise: Tensor | State
    guides: tuple[Guide, ...] = ()
    n_samples: int = 1

    def plan(self, planner: Planner) -> Tensor:
        """Returns the chunks in world units, (R, H, A), or (R, n_samples, H, A) if there are several for each row."""
        if self.n_samples == 1:
            return planner.plan(self.obs, self.noise, self.guides)
        return sample_plans(planner, self.obs, self.noise, self.n_samples, self.guides)

    def select(self, which: Tensor) -> PlanRequest:
        """Returns the request for some of its rows."""
        return replace(self, rows=self.rows[which], obs=take(self.obs, which), noise=take(self.noise, which),
                       guides=tuple(g.select_rows(which) for g in self.guides))


class ChunkedExecutor(Executor):
    """Base class of executors that run `n_action_steps` steps of each chunk before they plan again.

    `act` requests a plan, waits for it and returns the next action. `request_plan`, `accept_plan` and `next_action`
    are also available one by one, so that a robot can keep moving while a plan is computed.

    A subclass is a frozen dataclass with the fields below. It overrides `guides` to change how a chunk is sampled, and
    `accept_plan` to change a chunk that has arrived. `last_chunk` and `planner.action_scale` help to compare chunks.
    A subclass with a field `n_samples` gets several chunks for each row, and `accept_plan` chooses or combines them.

    Args:
        n_action_steps: Number of steps executed from each chunk.
        skip: Number of steps of each chunk that lie in the past: `Window(action_offset=-skip)`.
    """

    n_action_steps: Annotated[int, AtLeast(1)]
    skip: Annotated[int, AtLeast(0)]
    n_samples: int = 1

    def __post_init__(self):
        check_fields(self)

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

    def request_plan(self, planner: Planner, obs: Mapping[str, Tensor], state: State,
                     rows: Tensor | None = None) -> PlanRequest | None:
        """Returns the plans that are needed before the next action, or None.

        Args:
            obs: Observation windows, (B, To, ...).
            rows: Which rows get a plan, (R,), as when the client of a server asks for one. None for the rows whose plan
                is due.
        """
        if rows is None and (rows := self.rows_due(state)) is None:
            return None
        due_obs = obs if len(rows) == len(state["key"]) else take(obs, rows)
        key, count, n = state["key"][rows], state["count"][rows], self.n_samples
        noise = planner.noise(key, count) if n == 1 else sample_noise(planner, key, count, n)
        return PlanRequest(rows, due_obs, noise, self.guides(self.last_chunk(state, rows)), n)

    def with_delay(self, delay: int, planner: Planner) -> ChunkedExecutor:
        """Returns the executor for chunks that are expected `delay` steps after their observation.

        By default it is the same executor. `RealTimeChunking` plans ahead for the delay.

        Raises:
            Unsupported: The planner was not trained for such a delay.
        """
        return self

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
            request: The request that is answered. If the answer was delayed, `request.obs` may be newer than it.
            chunk: The chunks, (R, H, A) in world units; with several samples, (R, n_samples, H, A).
            delay: Number of actions that were returned since the request.
        """
        return self.replace_chunk(state, request.rows, chunk, delay)

    def next_action(self, state: State) -> tuple[Tensor, State]:
        """Returns the next action of each row's chunk, (B, A), and the next state."""
        rows = torch.arange(state["cursor"].shape[0], device=state["cursor"].device)
        return state["chunk"][rows, self.skip + state["cursor"]], {**state, "cursor": state["cursor"] + 1}

    def act(self, planner, obs, state):
        if (request := self.request_plan(planner, obs, state)) is not None:
            state = self.accept_plan(planner, state, request, request.plan(planner))
        return self.next_action(state)

    def rows_due(self, state: State) -> Tensor | None:
        """Returns the rows whose chunk has been executed, or None."""
        rows = (state["cursor"] >= self.n_action_steps).nonzero().flatten()
        return rows if rows.numel() else None

    def last_chunk(self, state: State, rows: Tensor, delay: int = 0) -> LastChunk:
        """Returns the chunks that `rows` are executing.

        Args:
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
            rows: Which rows get a new chunk, (R,).
            chunk: The chunks, (R, H, A) in world units.
            delay: Number of actions that were returned since the chunks were requested.
        """
        is_whole_batch = len(rows) == len(state["cursor"])
        old = state if is_whole_batch else take(state, rows)
        new = {**old, "count": old["count"] + 1, "chunk": chunk, "cursor": torch.full_like(old["cursor"], delay)}
        return new if is_whole_batch else put(state, rows, new)


@dataclass(frozen=True)
class RecedingHorizon(ChunkedExecutor):
    """Executor that runs `n_action_steps` steps of a chunk, then plans again (receding horizon).

    Args:
        n_action_steps: Number of steps executed from each chunk.
        skip: Number of steps of each chunk that lie in the past: `Window(action_offset=-skip)`.
    """

    n_action_steps: int = 1
    skip: int = 0


@part
class RealTimeChunking(ChunkedExecutor):
    """Executor that runs the old chunk while a consistent new one is computed (real-time chunking).

    A new chunk arrives `delay` steps after its observation. It is asked to agree with the old chunk: fully on the
    steps that will be executed before it arrives, and less and less on later steps, up to the end of the old chunk.

    Recorded episodes contain no old chunk. Validation and `understudy eval RUN DATA` therefore measure plans that the
    policy makes without an old chunk, as at the start of an episode.

    Args:
        delay: Number of steps between an observation and the arrival of its chunk.
        schedule: How agreement decreases after the steps that are executed before the chunk arrives.
            ``"exponential"`` is the paper's. ``"linear"`` decreases more slowly, ``"ones"`` not at all, and with
            ``"zeros"`` only the steps before the arrival agree.

    References:
        Black et al. (2025), Real-Time Execution of Action Chunking Flow Policies, arXiv:2506.07339.
    """

    n_action_steps: int = 4
    delay: Annotated[int, AtLeast(0)] = 1
    skip: int = 0
    schedule: Literal["exponential", "linear", "ones", "zeros"] = "exponential"

    def with_delay(self, delay, planner):
        return replace(self, delay=delay)

    def guides(self, last):
        old, mask = last.aligned()
        return Inpaint(old, self.weights(mask)), last

    def weights(self, mask: Tensor) -> Tensor:
        """Returns the weight of agreement with the old chunk, (B, H), which has an action where `mask`, (B, H)."""
        step = torch.arange(mask.shape[1], device=mask.device) - self.skip - self.delay  # after the arrival
        overlap = (mask & (step >= 0)).sum(1, keepdim=True)
        linear = ((overlap - step) / (overlap + 1)).clamp(0, 1)
        later = {"exponential": linear * torch.expm1(linear) / math.expm1(1), "linear": linear,
                 "ones": torch.ones_like(linear), "zeros": torch.zeros_like(linear)}[self.schedule]
        return torch.where(step < 0, 1.0, later) * mask

    def accept_plan(self, planner, state, request, chunk, delay=0):
        if delay == 0:  # the delay is simulated: the first steps are taken from the old chunk
            old, mask = self.last_chunk(state, request.rows).aligned()
            committed = mask & (torch.arange(chunk.shape[1], device=chunk.device) < self.skip + self.delay)
            chunk = torch.where(committed.unsqueeze(-1), old, chunk)
        return self.replace_chunk(state, request.rows, chunk, delay)
