"""The world does not wait: plans that come late, and observations that do not come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core import State, UserError, put, take, uniform
from ..policy import Planner
from .actor import Actor, ObservationWrapper, PolicyActor
from .base import Executor, empty_chunks
from .chunking import ChunkedExecutor, PlanRequest

NO_PLAN = -1  # no plan is under way


def delay_actor(actor: Actor, delay: int) -> Actor:
    """`actor`, thinking for `steps` steps while the clock runs on. 0: the actor itself.

    Of a policy with a chunked executor the plans are late (`DelayedPlan`), and the running chunk bridges the gap. Any
    other
    actor's every action is (`DelayedAction`).
    """
    if not (delay := _check_whole(delay)):
        return actor
    if isinstance(actor, ObservationWrapper):
        return replace(actor, actor=delay_actor(actor.actor, delay))
    if isinstance(actor, PolicyActor) and isinstance(actor.executor, ChunkedExecutor):
        return replace(actor, executor=DelayedPlan(actor.executor, delay))
    return DelayedAction(actor, delay)


@dataclass(frozen=True)
class DelayedPlan(Executor):
    """The plan that is asked for at step t arrives at t + `steps`, as where a robot moves on while another machine
    plans. Until then the last chunk goes on, and where it is at its end its last action stays; of the new chunk the
    actions whose time has passed are left out. One plan is under way at a time. The first is there at once: no robot
    starts without one.
    """

    executor: ChunkedExecutor
    delay: int = 1

    def __post_init__(self):
        _check_whole(self.delay)

    def start(self, planner: Planner, key: Tensor) -> State:
        return {"run": self.executor.start(planner, key), "coming": empty_chunks(planner, key),
                "age": torch.full_like(key, NO_PLAN)}

    def act(self, planner: Planner, obs: Mapping[str, Tensor], state: State) -> tuple[Tensor, State]:
        run, coming, age = state["run"], state["coming"], state["age"]
        run, age = self._accept_arrived(run, coming, age)
        ask = self.executor.request_plan(planner, obs, run)
        if ask is not None and (free := age[ask.rows] == NO_PLAN).any():
            mine = ask if free.all() else _select_request(ask, free.nonzero().flatten())
            chunk = planner.plan(mine.obs, mine.noise, mine.guides)
            first = run["count"][mine.rows] == 0
            now, later = (which.nonzero().flatten() for which in (first | (self.delay == 0), ~first))
            if len(now):
                run = self.executor.accept_plan(run, _select_request(mine, now), chunk[now])
            if len(later) and self.delay:
                coming, age = put(coming, mine.rows[later], chunk[later]), age.clone()
                age[mine.rows[later]] = 0
        last = run["chunk"].shape[1] - 1 - self.executor.skip
        action, run = self.executor.next_action({**run, "cursor": run["cursor"].clamp(max=last)})
        return action, {"run": run, "coming": coming, "age": torch.where(age == NO_PLAN, age, age + 1)}

    def _accept_arrived(self, run, coming, age):
        rows = (age >= max(self.delay, 1)).nonzero().flatten()
        if not len(rows):
            return run, age
        run = self.executor.accept_plan(run, PlanRequest(rows, {}, {}), coming[rows], delay=self.delay)
        return run, put(age, rows, torch.full_like(rows, NO_PLAN))


@dataclass(frozen=True)
class DelayedAction(Actor):
    """What `actor` decides at step t is done at t + `steps`; until its second action comes the first one stays."""

    actor: Actor
    delay: int = 1

    def __post_init__(self):
        _check_whole(self.delay)

    def start(self, obs, key):
        inner = self.actor.start(obs, key)
        first, _ = self.actor.act(obs, inner)  # its state is a value: nothing has happened
        return {"inner": inner, "queue": first.unsqueeze(1).repeat(1, self.delay + 1, 1)}

    def act(self, obs, state):
        action, inner = self.actor.act(obs, state["inner"])
        queue = torch.cat([state["queue"][:, 1:], action.unsqueeze(1).to(state["queue"].dtype)], 1)
        return queue[:, 0], _pass_record({"queue": queue}, inner)


@dataclass(frozen=True)
class DroppedObservation(Actor):
    """Of the observations a `share` does not come: `actor` then sees again what came last, at first the start.
    Which ones is decided by each row's key (stream 8)."""

    actor: Actor
    probability: float = 0.1

    def __post_init__(self):
        if not 0 <= self.probability <= 1:
            raise UserError(f"expected a level from 0 to 1, found {self.probability:g}", where="shift 'dropped'",
                            hint="the share of observations that are lost: 0 is none")

    def start(self, obs, key):
        return {"inner": self.actor.start(obs, key), "seen": dict(obs), "key": key, "count": torch.zeros_like(key)}

    def act(self, obs, state):
        lost = uniform(state["key"], state["count"], (1,), stream=8)[:, 0] < self.probability
        seen = {k: put(v, lost, state["seen"][k][lost]) for k, v in obs.items()}
        action, inner = self.actor.act(seen, state["inner"])
        return action, _pass_record({"seen": seen, "key": state["key"], "count": state["count"] + 1}, inner)


def _pass_record(state: State, inner: State) -> State:
    """`state` around an inner one; what the inner actor writes down is written down."""
    inner = dict(inner)
    record = {"record": inner.pop("record")} if "record" in inner else {}
    return {**state, "inner": inner, **record}


def _select_request(ask: PlanRequest, which: Tensor) -> PlanRequest:
    """Those of its rows."""
    return PlanRequest(
        ask.rows[which], take(ask.obs, which), take(ask.noise, which), tuple(g.select_rows(which) for g in ask.guides)
    )


def _check_whole(steps: int) -> int:
    """`steps`, if they are some. A severity may be a float."""
    if not steps >= 0 or steps % 1:
        raise UserError(f"expected a level that is a whole number, 0 or more, found {steps:g}", where="shift 'slow'",
                        hint="how many steps late: 0 is in time")
    return int(steps)
