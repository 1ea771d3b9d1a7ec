"""Delayed plans, delayed actions and lost observations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core import State, UserError, put, take, uniform
from ..policy import Planner
from .actor import LAST_REWARD, Actor, ObservationWrapper, PolicyActor, TransformedActor
from .base import Executor, empty_chunks
from .chunking import ChunkedExecutor, PlanRequest

NO_PLAN = -1  # the age of a plan where none is being computed


def delay_actor(actor: Actor, delay: int) -> Actor:
    """Returns `actor` with a computation time of `delay` steps.

    If the actor is a policy with a chunked executor, its plans are delayed (`DelayedPlan`) and the old chunk runs on.
    For any other actor, the actions are delayed (`DelayedAction`).

    Args:
        actor: The actor to delay.
        delay: Number of steps. With 0 the actor is returned unchanged.
    """
    if not (delay := _check_whole(delay)):
        return actor
    if isinstance(actor, (ObservationWrapper, TransformedActor)):
        return replace(actor, actor=delay_actor(actor.actor, delay))
    if isinstance(actor, PolicyActor) and isinstance(actor.executor, ChunkedExecutor):
        return replace(actor, executor=DelayedPlan(actor.executor, delay))
    return DelayedAction(actor, delay)


@dataclass(frozen=True)
class DelayedPlan(Executor):
    """A plan that is requested at step t arrives at step t + `delay`, as if another machine computed it.

    Until it arrives, the last chunk is executed, and its last action is repeated at its end. The steps of the new
    chunk whose time has passed are skipped. Each row computes one plan at a time. The first plan of an episode
    arrives at once.

    Args:
        executor: The executor whose plans are delayed.
        delay: Number of steps.
    """

    executor: ChunkedExecutor
    delay: int = 1

    def __post_init__(self):
        _check_whole(self.delay)

    def check_planner(self, planner):
        self.executor.check_planner(planner)

    def start(self, planner: Planner, obs: Mapping[str, Tensor], key: Tensor) -> State:
        return {"run": self.executor.start(planner, obs, key), "coming": empty_chunks(planner, key),
                "age": torch.full_like(key, NO_PLAN)}

    def act(self, planner: Planner, obs: Mapping[str, Tensor], state: State) -> tuple[Tensor, State]:
        run, coming, age = self._accept_arrived(planner, state["run"], state["coming"], state["age"])
        request = self.executor.request_plan(planner, obs, run)
        if request is not None and (free := age[request.rows] == NO_PLAN).any():
            request = request if free.all() else _select_request(request, free.nonzero().flatten())
            chunk = planner.plan(request.obs, request.noise, request.guides)
            first = run["count"][request.rows] == 0
            now, later = (which.nonzero().flatten() for which in (first | (self.delay == 0), ~first))
            if len(now):
                run = self.executor.accept_plan(planner, run, _select_request(request, now), chunk[now])
            if len(later) and self.delay:
                coming, age = put(coming, request.rows[later], chunk[later]), age.clone()
                age[request.rows[later]] = 0
        shown = run["cursor"].clamp(max=run["chunk"].shape[1] - 1 - self.executor.skip)
        beyond = run["cursor"] - shown  # steps after the end of the chunk; `last_chunk` counts them
        action, run = self.executor.next_action({**run, "cursor": shown})
        run = {**run, "cursor": run["cursor"] + beyond}
        return action, {"run": run, "coming": coming, "age": torch.where(age == NO_PLAN, age, age + 1)}

    def _accept_arrived(self, planner, run, coming, age):
        rows = (age >= max(self.delay, 1)).nonzero().flatten()
        if not len(rows):
            return run, coming, age
        run = self.executor.accept_plan(planner, run, PlanRequest(rows, {}, {}), coming[rows], delay=self.delay)
        return run, coming, put(age, rows, torch.full_like(rows, NO_PLAN))


@dataclass(frozen=True)
class DelayedAction(Actor):
    """The action that `actor` chooses at step t is executed at step t + `delay`.

    The first action is repeated until the second one arrives.

    Args:
        actor: The actor whose actions are delayed.
        delay: Number of steps.
    """

    actor: Actor
    delay: int = 1

    def __post_init__(self):
        _check_whole(self.delay)

    def start(self, obs, key):
        inner = self.actor.start(obs, key)
        first, _ = self.actor.act(obs, inner)  # the state is a value, so this call has no effect on it
        return {"inner": inner, "queue": first.unsqueeze(1).repeat(1, self.delay + 1, 1)}

    def act(self, obs, state):
        action, inner = self.actor.act(obs, state["inner"])
        queue = torch.cat([state["queue"][:, 1:], action.unsqueeze(1).to(state["queue"].dtype)], 1)
        return queue[:, 0], _pass_record({"queue": queue}, inner)


@dataclass(frozen=True)
class DroppedObservation(Actor):
    """Each observation is lost with a fixed probability, and `actor` gets the last one that arrived instead.

    Which observations are lost depends on the key of the row (stream 8). The first one always arrives.

    Args:
        actor: The actor that gets the observations.
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
        lost = uniform(state["key"], state["count"], (1,), stream=8)[:, 0] < self.probability
        seen = {k: v if k == LAST_REWARD else put(v, lost, state["seen"][k][lost]) for k, v in obs.items()}
        action, inner = self.actor.act(seen, state["inner"])
        return action, _pass_record({"seen": seen, "key": state["key"], "count": state["count"] + 1}, inner)


def _pass_record(state: State, inner: State) -> State:
    """Adds the inner actor's state to `state`, and its record, which is written into the episode, at the top."""
    inner = dict(inner)
    record = {"record": inner.pop("record")} if "record" in inner else {}
    return {**state, "inner": inner, **record}


def _select_request(request: PlanRequest, which: Tensor) -> PlanRequest:
    return PlanRequest(request.rows[which], take(request.obs, which), take(request.noise, which),
                       tuple(g.select_rows(which) for g in request.guides))


def _check_whole(delay: int) -> int:
    """Returns `delay` as an int, since a severity may be a float. Raises UserError if it is not a whole number."""
    if not delay >= 0 or delay % 1:
        raise UserError(f"the delay is {delay:g}, which is not a whole number of 0 or more", where="shift 'slow'",
                        hint="give a number of steps; 0 is no delay")
    return int(delay)
