"""Measures how long a policy takes to plan and to decide, for one robot on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ...core import keys, role
from ...data.episode import Episode
from ...execute.actor import LAST_REWARD, Actor, NoisyActor, ObservationWrapper, PolicyActor
from ...execute.base import require_stepwise
from ...execute.planners import PlannerWrapper
from ...policy import Planner, StepwisePlanner


@dataclass(frozen=True)
class LatencySummary:
    """Times in milliseconds from an observation to the policy's action.

    An executor of chunks plans at some decisions only. At each decision in between, it takes the next action of the
    chunk. The statistics are then computed from the decisions that plan, because the robot has to wait for them.

    Args:
        p95: 95th percentile of these times.
        n_plans: Number of timed decisions that planned. None if the actor does not tell which decisions planned; the
            statistics are then computed from all decisions.
        between_plans: Median time of the decisions that did not plan, if there are any.
        period: Milliseconds between two steps, where the frequency is known.
        n_late: Number of decisions that took longer than that.
    """

    median: float
    p95: float
    max: float
    n_plans: int | None
    between_plans: float | None
    decisions: int
    period: float | None
    n_late: int | None

    @property
    def period_fraction(self) -> float | None:
        """`p95` as a fraction of the period."""
        return None if self.period is None else self.p95 / self.period

    def describe(self) -> str:
        """Returns the summary in one or two sentences."""
        what = "A decision" if self.n_plans is None else "A plan"
        count = self.decisions if self.n_plans is None else self.n_plans
        text = (f"{what} takes {_format_ms(self.median)} ms (median), {_format_ms(self.p95)} (95 of 100), "
                f"{_format_ms(self.max)} (the slowest of {count})")
        if self.between_plans is not None and self.n_plans:
            text += (f"; one is made every {self.decisions / self.n_plans:.2g} steps, and the steps between take "
                     f"{_format_ms(self.between_plans)} ms")
        if self.period is not None:
            text += f". A step lasts {self.period:.3g} ms, and {self.n_late or 'no'} decision" + (
                "s" if (self.n_late or 0) > 1 else "") + " took longer"
        return text + "."

    def to_json(self) -> dict[str, float | int | None]:
        """Returns the latency summary as JSON, for the key `behavior.latency` of `understudy eval --json`."""
        return {"median_ms": self.median, "p95_ms": self.p95, "max_ms": self.max, "plans": self.n_plans,
                "between_plans_ms": self.between_plans, "decisions": self.decisions, "period_ms": self.period,
                "fraction_of_period": self.period_fraction, "late": self.n_late}


def measure_latency(actor: Actor, episodes: Iterable[Episode], fps: float | None = None, decisions: int = 400,
                    seconds: float = 3.0) -> LatencySummary:
    """Times the decisions of an actor on recorded observations, one row at a time, as a robot would.

    Args:
        episodes: The actor is shown their observations. The first steps of the first episode warm up and do not count.
        fps: Steps per second of the robot or environment.
        seconds: Stop after this time, even if fewer decisions were timed.
    """
    counter = _PlanCount()
    counted = _count_plans(actor, counter)
    took: list[float] = []
    planned: list[bool] = []
    began = time.perf_counter()
    for warm, episode in _with_warmup(episodes):
        columns = {k: np.asarray(episode.steps[k]) for k in episode.steps
                   if role(k) not in ("action", "outcome", "index")}
        columns = {k: v for k, v in columns.items() if v.dtype.kind in "fiub"}
        if "next.reward" in episode.steps:
            reward = np.asarray(episode.steps["next.reward"], np.float32).reshape(len(episode.steps["next.reward"]))
            columns[LAST_REWARD] = np.append(np.float32(0), reward)
        state: Any = None
        for t in range(min(len(episode), 20) if warm else len(episode)):
            obs = {k: torch.from_numpy(np.array(v[t:t + 1])) for k, v in columns.items()}
            if state is None:
                state = counted.start(obs, keys(0, [0]))
            before, since = counter.plans, time.perf_counter()
            _, state = counted.act(obs, state)
            spent = time.perf_counter() - since
            state = {k: v for k, v in state.items() if k != "record"}
            if not warm:
                took.append(1e3 * spent)
                planned.append(counter.plans > before)
            if len(took) >= decisions or time.perf_counter() - began > seconds and took:
                return _summarize(took, planned, fps)
    return _summarize(took, planned, fps)


@dataclass
class _PlanCount:
    plans: int = 0


@dataclass(frozen=True)
class _CountingPlanner(PlannerWrapper, StepwisePlanner):
    """A planner that counts how many plans an executor asks for."""

    planner: Planner
    count: _PlanCount = field(default_factory=_PlanCount)

    @property
    def head(self):
        return require_stepwise(self.planner, type(self.planner).__name__).head

    def plan(self, obs, noise, guides=()):
        self.count.plans += 1
        return self.planner.plan(obs, noise, guides)

    def denoise_step(self, context, x, t, t_next):
        return require_stepwise(self.planner, type(self.planner).__name__).denoise_step(context, x, t, t_next)


def _count_plans(actor: Actor, count: _PlanCount) -> Actor:
    """Returns the actor with a planner that counts plans. An actor that is not a policy is returned unchanged."""
    if isinstance(actor, (ObservationWrapper, NoisyActor)) and actor.actor is not None:
        return replace(actor, actor=_count_plans(actor.actor, count))
    return replace(actor, planner=_CountingPlanner(actor.planner, count)) if isinstance(actor, PolicyActor) else actor


def _with_warmup(episodes: Iterable[Episode]):
    """Yields (whether to warm up, episode). The first episode comes twice."""
    for i, e in enumerate(episodes):
        if i == 0:
            yield True, e
        yield False, e


def _summarize(took: list[float], planned: list[bool], fps: float | None) -> LatencySummary:
    period = 1e3 / fps if fps else None
    plan_times = [t for t, p in zip(took, planned, strict=True) if p]
    other_times = [t for t, p in zip(took, planned, strict=True) if not p]
    of = plan_times or took
    return LatencySummary(
        float(np.median(of)), float(np.percentile(of, 95)), max(of), len(plan_times) or None,
        float(np.median(other_times)) if plan_times and other_times else None, len(took), period,
        None if period is None else sum(t > period for t in took))


def _format_ms(v: float) -> str:
    return f"{v:.3g}" if v < 100 else f"{v:.0f}"
