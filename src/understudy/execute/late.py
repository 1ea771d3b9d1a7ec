"""The world does not wait: plans that come late, and observations that do not come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core import State, UserError, put, take, uniform
from ..policy import Planner
from .actor import Actor, Given, Plays
from .base import Executor, blank
from .chunked import Ask, Chunked

NEVER = -1  # no plan is under way


def late(actor: Actor, steps: int) -> Actor:
    """`actor`, thinking for `steps` steps while the clock runs on. 0: the actor itself.

    Of a policy with a chunked executor the plans are late (`Late`), and the running chunk bridges the gap. Any other
    actor's every action is (`Behind`).
    """
    if not (steps := _whole(steps)):
        return actor
    if isinstance(actor, Given):
        return replace(actor, actor=late(actor.actor, steps))
    if isinstance(actor, Plays) and isinstance(actor.executor, Chunked):
        return replace(actor, executor=Late(actor.executor, steps))
    return Behind(actor, steps)


@dataclass(frozen=True)
class Late(Executor):
    """The plan that is asked for at step t arrives at t + `steps`, as where a robot moves on while another machine
    plans. Until then the last chunk goes on, and where it is at its end its last action stays; of the new chunk the
    actions whose time has passed are left out. One plan is under way at a time. The first is there at once: no robot
    starts without one.
    """

    executor: Chunked
    steps: int = 1

    def __post_init__(self):
        _whole(self.steps)

    def start(self, policy: Planner, key: Tensor) -> State:
        return {"run": self.executor.start(policy, key), "coming": blank(policy, key),
                "age": torch.full_like(key, NEVER)}

    def act(self, policy: Planner, obs: Mapping[str, Tensor], state: State) -> tuple[Tensor, State]:
        run, coming, age = state["run"], state["coming"], state["age"]
        run, age = self._arrive(run, coming, age)
        ask = self.executor.ask(policy, obs, run)
        if ask is not None and (free := age[ask.rows] == NEVER).any():
            mine = ask if free.all() else _part(ask, free.nonzero().flatten())
            chunk = policy.plan(mine.obs, mine.noise, mine.guides)
            first = run["count"][mine.rows] == 0
            now, later = (which.nonzero().flatten() for which in (first | (self.steps == 0), ~first))
            if len(now):
                run = self.executor.accept(run, _part(mine, now), chunk[now])
            if len(later) and self.steps:
                coming, age = put(coming, mine.rows[later], chunk[later]), age.clone()
                age[mine.rows[later]] = 0
        last = run["chunk"].shape[1] - 1 - self.executor.skip
        action, run = self.executor.emit({**run, "cursor": run["cursor"].clamp(max=last)})
        return action, {"run": run, "coming": coming, "age": torch.where(age == NEVER, age, age + 1)}

    def _arrive(self, run, coming, age):
        rows = (age >= max(self.steps, 1)).nonzero().flatten()
        if not len(rows):
            return run, age
        run = self.executor.accept(run, Ask(rows, {}, {}), coming[rows], late=self.steps)
        return run, put(age, rows, torch.full_like(rows, NEVER))


@dataclass(frozen=True)
class Behind(Actor):
    """What `actor` decides at step t is done at t + `steps`; until its second action comes the first one stays."""

    actor: Actor
    steps: int = 1

    def __post_init__(self):
        _whole(self.steps)

    def start(self, obs, key):
        inner = self.actor.start(obs, key)
        first, _ = self.actor.act(obs, inner)  # its state is a value: nothing has happened
        return {"inner": inner, "queue": first.unsqueeze(1).repeat(1, self.steps + 1, 1)}

    def act(self, obs, state):
        action, inner = self.actor.act(obs, state["inner"])
        queue = torch.cat([state["queue"][:, 1:], action.unsqueeze(1).to(state["queue"].dtype)], 1)
        return queue[:, 0], _told({"queue": queue}, inner)


@dataclass(frozen=True)
class Dropped(Actor):
    """Of the observations a `share` does not come: `actor` then sees again what came last, at first the start.
    Which ones is decided by each row's key (stream 8)."""

    actor: Actor
    share: float = 0.1

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise UserError(f"expected a level from 0 to 1, found {self.share:g}", where="shift 'dropped'",
                            do="the share of observations that are lost: 0 is none")

    def start(self, obs, key):
        return {"inner": self.actor.start(obs, key), "seen": dict(obs), "key": key, "count": torch.zeros_like(key)}

    def act(self, obs, state):
        lost = uniform(state["key"], state["count"], (1,), stream=8)[:, 0] < self.share
        seen = {k: put(v, lost, state["seen"][k][lost]) for k, v in obs.items()}
        action, inner = self.actor.act(seen, state["inner"])
        return action, _told({"seen": seen, "key": state["key"], "count": state["count"] + 1}, inner)


def _told(state: State, inner: State) -> State:
    """`state` around an inner one; what the inner actor writes down is written down."""
    inner = dict(inner)
    record = {"record": inner.pop("record")} if "record" in inner else {}
    return {**state, "inner": inner, **record}


def _part(ask: Ask, which: Tensor) -> Ask:
    """Those of its rows."""
    return Ask(ask.rows[which], take(ask.obs, which), take(ask.noise, which), tuple(g.take(which) for g in ask.guides))


def _whole(steps: int) -> int:
    """`steps`, if they are some. A severity may be a float."""
    if not steps >= 0 or steps % 1:
        raise UserError(f"expected a level that is a whole number, 0 or more, found {steps:g}", where="shift 'slow'",
                        do="how many steps late: 0 is in time")
    return int(steps)
