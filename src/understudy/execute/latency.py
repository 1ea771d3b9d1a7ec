"""Simulates delayed plans, delayed actions and lost observations."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from ..core import Above, State, Unsupported, UserError, part, put, take, uniform
from ..policy import Planner
from .actor import LAST_REWARD, Actor, ObservationWrapper, PolicyActor, TransformedActor, pass_record
from .base import Executor, empty_chunks
from .chunking import ChunkedExecutor, PlanRequest
from .filters import FilteredExecutor

NO_PLAN = -1  # the age of a plan where none is being computed


def delay_actor(actor: Actor, delay: int) -> Actor:
    """Wraps an actor so that its computation takes `delay` steps.

    If the actor is a policy with a chunked executor, its plans are delayed (`DelayedPlan`) and the old chunk runs on.
    `RealTimeChunking` is given the delay.
    For any other actor, the actions are delayed (`DelayedAction`).

    Args:
        delay: Number of steps. With 0 the actor is returned unchanged.
    """
    if not (delay := _check_whole(delay, "delay_actor (shift 'slow')")):
        return actor
    if isinstance(actor, (ObservationWrapper, TransformedActor)):
        return replace(actor, actor=delay_actor(actor.actor, delay))
    if isinstance(actor, PolicyActor) and (executor := _delay_plans(actor.executor, actor.planner, delay)) is not None:
        return replace(actor, executor=executor)
    return DelayedAction(actor, delay)


def _delay_plans(executor: Executor, planner: Planner, delay: int) -> Executor | None:
    """Wraps an executor so that its plans arrive late. Returns None if it executes no chunks."""
    if isinstance(executor, FilteredExecutor):
        inner = _delay_plans(executor.executor, planner, delay)
        return None if inner is None else replace(executor, executor=inner)
    return DelayedPlan(executor.with_delay(delay, planner), delay) if isinstance(executor, ChunkedExecutor) else None


class LatePlan(Executor):
    """Executor whose plans arrive some steps after their request, as if another machine computed them.

    Until a plan arrives, the last chunk is executed, and its last action is repeated at its end. The steps of the new
    chunk whose time has passed are skipped. Each row computes one plan at a time. The first plan of an episode arrives
    at once. Subclasses are frozen dataclasses that say how late a plan is.
    """

    executor: ChunkedExecutor

    def __post_init__(self):
        if not isinstance(self.executor, ChunkedExecutor):
            raise Unsupported(f"{type(self.executor).__name__} executes no chunk that could continue until a plan "
                              "arrives", where=f"{type(self).__name__}.executor",
                              hint="use an executor of chunks, such as RecedingHorizon or RealTimeChunking; "
                                   "execute.latency.delay_actor(actor, delay) delays any actor, a filter's plans and "
                                   "otherwise the actions")

    @abstractmethod
    def timed_plan(self, planner: Planner, request: PlanRequest) -> tuple[Tensor, int]:
        """Returns the plans for a request, and how many steps later they arrive."""

    def check_planner(self, planner):
        self.executor.check_planner(planner)

    def start(self, planner: Planner, obs: Mapping[str, Tensor], key: Tensor) -> State:
        n = self.executor.n_samples
        return {"run": self.executor.start(planner, obs, key),
                "coming": empty_chunks(planner, key, *([n] if n > 1 else [])),
                "age": torch.full_like(key, NO_PLAN), "delay": torch.zeros_like(key)}

    def act(self, planner: Planner, obs: Mapping[str, Tensor], state: State) -> tuple[Tensor, State]:
        run, coming, age, delay = self._accept_arrived(planner, obs, state)
        request = self.executor.request_plan(planner, obs, run)
        if request is not None and (free := age[request.rows] == NO_PLAN).any():
            request = request if free.all() else request.select(free.nonzero().flatten())
            chunk, steps = self.timed_plan(planner, request)
            first = run["count"][request.rows] == 0
            now, later = (which.nonzero().flatten() for which in (first | (steps == 0), ~first))
            if len(now):
                run = self.executor.accept_plan(planner, run, request.select(now), chunk[now])
            if len(later) and steps:
                rows = request.rows[later]
                coming, age, delay = put(coming, rows, chunk[later]), age.clone(), delay.clone()
                age[rows], delay[rows] = 0, steps
        action, run = continued_action(self.executor, run)
        return action, {"run": run, "coming": coming, "age": torch.where(age == NO_PLAN, age, age + 1), "delay": delay}

    def _accept_arrived(self, planner, obs, state):
        run, age, delay = state["run"], state["age"], state["delay"]
        arrived = (age != NO_PLAN) & (age >= delay)
        for steps in delay[arrived].unique().tolist():
            rows = (arrived & (delay == steps)).nonzero().flatten()
            request = PlanRequest(rows, take(obs, rows), {}, n_samples=self.executor.n_samples)
            run = self.executor.accept_plan(planner, run, request, state["coming"][rows], delay=steps)
        return run, state["coming"], torch.where(arrived, NO_PLAN, age), delay


def continued_action(executor: ChunkedExecutor, run: State) -> tuple[Tensor, State]:
    """Returns the next action of each row's chunk, and the next state. After the end, the last action is repeated."""
    cursor = run["cursor"].clamp(max=run["chunk"].shape[1] - 1 - executor.skip)
    beyond = run["cursor"] - cursor  # steps after the end of the chunk; `last_chunk` counts them
    action, run = executor.next_action({**run, "cursor": cursor})
    return action, {**run, "cursor": run["cursor"] + beyond}


@dataclass(frozen=True)
class DelayedPlan(LatePlan):
    """Executor whose plans arrive `delay` steps after their request. See `LatePlan`.

    Args:
        executor: The executor whose plans are delayed. It executes chunks, as `RecedingHorizon` does. `delay_actor`
            delays any actor.
        delay: Number of steps, 0 or more.
    """

    executor: ChunkedExecutor
    delay: int = 1

    def __post_init__(self):
        super().__post_init__()
        _check_whole(self.delay, "DelayedPlan.delay")

    def timed_plan(self, planner, request):
        return request.plan(planner), self.delay


@part
class MeasuredDelay(LatePlan):
    """Executor whose plans arrive as many steps late as their computation took. See `LatePlan`.

    The delay is the time of the computation divided by the period, rounded down: a plan that is done within the period
    of its step is in time. Rows that plan in one batch wait for the whole batch, so evaluate with one row
    (`--rows 1`). Results depend on the machine and on what else runs on it.

    Args:
        executor: The executor whose plans are late. It executes chunks, as `RecedingHorizon` does.
        period: Seconds from one step to the next.
    """

    executor: ChunkedExecutor
    period: Annotated[float, Above(0)] = 0.02

    def timed_plan(self, planner, request):
        began = time.perf_counter()
        chunk = request.plan(planner)
        if chunk.device.type == "cuda":
            torch.cuda.synchronize(chunk.device)
        return chunk, int((time.perf_counter() - began) / self.period)


@dataclass(frozen=True)
class DelayedAction(Actor):
    """Wraps an actor so that the action that it chooses at step t is executed at step t + `delay`.

    The first action is repeated until the second one arrives.
    """

    actor: Actor
    delay: int = 1

    def __post_init__(self):
        _check_whole(self.delay, "DelayedAction.delay")

    def start(self, obs, key):
        inner = self.actor.start(obs, key)
        first, _ = self.actor.act(obs, inner)  # the state is a value, so this call has no effect on it
        return {"inner": inner, "queue": first.unsqueeze(1).repeat(1, self.delay + 1, 1)}

    def act(self, obs, state):
        action, inner = self.actor.act(obs, state["inner"])
        queue = torch.cat([state["queue"][:, 1:], action.unsqueeze(1).to(state["queue"].dtype)], 1)
        return queue[:, 0], pass_record({"queue": queue}, inner)


@dataclass(frozen=True)
class DroppedObservation(Actor):
    """Wraps an actor so that observations are lost at random, and it gets the last one that arrived instead.

    Which observations are lost depends on the key of the row (stream 8). The first one always arrives.

    Args:
        probability: Probability that an observation is lost, from 0 to 1.
    """

    actor: Actor
    probability: float = 0.1

    def __post_init__(self):
        if not 0 <= self.probability <= 1:
            raise UserError(f"the probability is {self.probability:g}, which is not between 0 and 1",
                            where="shift 'dropped'", hint="give the probability that an observation is lost")

    def start(self, obs, key):
        return {"inner": self.actor.start(obs, key), "seen": dict(obs), "key": key, "count": torch.zeros_like(key)}

    def act(self, obs, state):
        is_lost = uniform(state["key"], state["count"], (1,), stream=8)[:, 0] < self.probability
        received = {k: v if k == LAST_REWARD else put(v, is_lost, state["seen"][k][is_lost]) for k, v in obs.items()}
        action, inner = self.actor.act(received, state["inner"])
        return action, pass_record({"seen": received, "key": state["key"], "count": state["count"] + 1}, inner)


def _check_whole(delay: int, where: str) -> int:
    """Converts a delay to an int. Raises UserError if it is not a whole number."""
    if not delay >= 0 or delay % 1:
        raise UserError(f"the delay is {delay:g}, which is not a whole number of 0 or more", where=where,
                        hint="give a number of steps; 0 means no delay")
    return int(delay)
