"""Planners made of policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import UserError, take
from ..policy import Guide, Planner, StepwisePlanner


def _map_tensors(function, *trees):
    """`function` of the tensors that stand at the same place in nested dicts."""
    if isinstance(trees[0], Mapping):
        return {k: _map_tensors(function, *(t[k] for t in trees)) for k in trees[0]}
    return function(*trees)


class PlannerWrapper(Planner):
    """A planner around a policy that it otherwise resembles."""

    planner: Planner

    @property
    def inputs(self):
        return self.planner.inputs

    @property
    def features(self):
        return self.planner.features

    @property
    def window(self):
        return self.planner.window

    @property
    def action_dim(self):
        return self.planner.action_dim

    @property
    def device(self):
        return self.planner.device

    def noise(self, key, count):
        return self.planner.noise(key, count)


@dataclass(frozen=True)
class FixedBatch(PlannerWrapper, StepwisePlanner):
    """The network always sees batches of exactly `rows` rows, whatever number is asked for, so that a plan does not
    depend on who else is planned for (matrix products of other sizes differ in their last bits)."""

    planner: Planner
    rows: int = 16

    def _in_groups(self, function, n, *arguments):
        """`function` over groups of rows, of the n that there are. Arguments are tensors or trees of them, rows first,
        or guides."""
        if n == self.rows:
            return function(*arguments)
        parts = []
        for i in range(0, n, self.rows):
            # A short group is filled up with its own first row: it costs time and changes nobody.
            at = torch.arange(i, i + self.rows, device=self.device)
            at = torch.where(at < n, at, i)
            parts.append(function(*(tuple(g.select_rows(at) for g in a) if isinstance(a, tuple) else take(a, at)
                                    for a in arguments)))
        if isinstance(parts[0], tuple):
            return tuple(torch.cat(p)[:n] for p in zip(*parts, strict=True))
        return torch.cat(parts)[:n]

    def plan(self, obs, noise, guides=()):
        return self._in_groups(self.planner.plan, next(iter(obs.values())).shape[0], obs, noise, guides)

    def denoise_step(self, obs, x, t, t_next):
        if not isinstance(self.planner, StepwisePlanner):
            raise UserError(f"{type(self.planner).__name__} shows no half-made chunks", hint="take another executor")
        return self._in_groups(self.planner.denoise_step, x.shape[0], obs, x, t, t_next)


@dataclass(frozen=True)
class Guided(PlannerWrapper):
    """A policy under standing guidance; executors may add theirs (real-time chunks towards a goal)."""

    planner: Planner
    guides: tuple[Guide, ...]

    def plan(self, obs, noise, guides=()):
        return self.planner.plan(obs, noise, self.guides + guides)


@dataclass(frozen=True)
class BestOfN(PlannerWrapper):
    """Of `count` plans take the best by `score(obs, plan) -> (B,)`: IDQL, value-guided selection. Works for every
    head, unlike guidance."""

    planner: Planner
    scorer: Callable[[Mapping[str, Tensor], Tensor], Tensor]
    n: int = 16

    def noise(self, key, count):
        return _map_tensors(lambda *n: torch.stack(n, 1), *(self.planner.noise(key, count * self.n + i)
                                                     for i in range(self.n)))

    def plan(self, obs, noise, guides=()):
        first = next(iter(obs.values()))
        each = torch.arange(first.shape[0], device=first.device).repeat_interleave(self.n)
        many = take(obs, each)
        plans = self.planner.plan(
            many, _map_tensors(lambda n: n.flatten(0, 1), noise), tuple(g.select_rows(each) for g in guides)
        )
        best = self.scorer(many, plans).unflatten(0, (-1, self.n)).argmax(1)
        rows = torch.arange(best.shape[0], device=best.device)
        return plans.unflatten(0, (-1, self.n))[rows, best]


@dataclass(frozen=True)
class Hierarchical(PlannerWrapper):
    """`high` answers a column that `low` reads as an input: subgoals (HIQL), thoughts (Thought BehaviorCloning),
    procedures,
    skills, imagined video. Both train alone, on the same episodes."""

    high: Planner
    low: Planner
    as_key: str

    def __post_init__(self):
        if not self.high.window.n_obs_steps == self.low.window.n_obs_steps == self.high.window.horizon:
            raise UserError(
                "expected a horizon of the high policy and observation windows of both that are equally "
                f"long, found {self.high.window.horizon}, {self.high.window.n_obs_steps} and "
                f"{self.low.window.n_obs_steps}",
                where="Chain",
                hint="train them so: what the high policy says takes the place of the low one's observation rows",
            )

    @property
    def planner(self):
        return self.low

    @property
    def inputs(self):
        return tuple(dict.fromkeys((*self.high.inputs, *(k for k in self.low.inputs if k != self.as_key))))

    @property
    def features(self):
        return {**self.high.features, **self.low.features}

    def noise(self, key, count):
        return {"high": self.high.noise(key, count), "low": self.low.noise(key + 1, count)}

    def plan(self, obs, noise, guides=()):
        said = self.high.plan(obs, noise["high"])
        return self.low.plan({**obs, self.as_key: said}, noise["low"], guides)
