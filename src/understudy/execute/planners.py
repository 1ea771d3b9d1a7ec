"""Planners made of policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import UserError, take
from ..policy import Guide, Planner, Streams


def _each(function, *trees):
    """`function` of the tensors that stand at the same place in nested dicts."""
    if isinstance(trees[0], Mapping):
        return {k: _each(function, *(t[k] for t in trees)) for k in trees[0]}
    return function(*trees)


class Over(Planner):
    """A planner around a policy that it otherwise resembles."""

    policy: Planner

    @property
    def inputs(self):
        return self.policy.inputs

    @property
    def features(self):
        return self.policy.features

    @property
    def window(self):
        return self.policy.window

    @property
    def dim(self):
        return self.policy.dim

    @property
    def device(self):
        return self.policy.device

    def noise(self, key, count):
        return self.policy.noise(key, count)


@dataclass(frozen=True)
class Fixed(Over, Streams):
    """The network always sees batches of exactly `rows` rows, whatever number is asked for, so that a plan does not
    depend on who else is planned for (matrix products of other sizes differ in their last bits)."""

    policy: Planner
    rows: int = 16

    def _groups(self, function, n, *arguments):
        """`function` over groups of rows, of the n that there are. Arguments are tensors or trees of them, rows first,
        or guides."""
        if n == self.rows:
            return function(*arguments)
        parts = []
        for i in range(0, n, self.rows):
            # A short group is filled up with its own first row: it costs time and changes nobody.
            at = torch.arange(i, i + self.rows, device=self.device)
            at = torch.where(at < n, at, i)
            parts.append(function(*(tuple(g.take(at) for g in a) if isinstance(a, tuple) else take(a, at)
                                    for a in arguments)))
        if isinstance(parts[0], tuple):
            return tuple(torch.cat(p)[:n] for p in zip(*parts, strict=True))
        return torch.cat(parts)[:n]

    def plan(self, obs, noise, guides=()):
        return self._groups(self.policy.plan, next(iter(obs.values())).shape[0], obs, noise, guides)

    def advance(self, obs, x, t, to):
        if not isinstance(self.policy, Streams):
            raise UserError(f"{type(self.policy).__name__} shows no half-made chunks", do="take another executor")
        return self._groups(self.policy.advance, x.shape[0], obs, x, t, to)


@dataclass(frozen=True)
class Guided(Over):
    """A policy under standing guidance; executors may add theirs (real-time chunks towards a goal)."""

    policy: Planner
    guides: tuple[Guide, ...]

    def plan(self, obs, noise, guides=()):
        return self.policy.plan(obs, noise, self.guides + guides)


@dataclass(frozen=True)
class Best(Over):
    """Of `count` plans take the best by `score(obs, plan) -> (B,)`: IDQL, value-guided selection. Works for every
    head, unlike guidance."""

    policy: Planner
    score: Callable[[Mapping[str, Tensor], Tensor], Tensor]
    count: int = 16

    def noise(self, key, count):
        return _each(lambda *n: torch.stack(n, 1), *(self.policy.noise(key, count * self.count + i)
                                                     for i in range(self.count)))

    def plan(self, obs, noise, guides=()):
        first = next(iter(obs.values()))
        each = torch.arange(first.shape[0], device=first.device).repeat_interleave(self.count)
        many = take(obs, each)
        plans = self.policy.plan(many, _each(lambda n: n.flatten(0, 1), noise), tuple(g.take(each) for g in guides))
        best = self.score(many, plans).unflatten(0, (-1, self.count)).argmax(1)
        rows = torch.arange(best.shape[0], device=best.device)
        return plans.unflatten(0, (-1, self.count))[rows, best]


@dataclass(frozen=True)
class Chain(Over):
    """`high` answers a column that `low` reads as an input: subgoals (HIQL), thoughts (Thought Cloning), procedures,
    skills, imagined video. Both train alone, on the same episodes."""

    high: Planner
    low: Planner
    as_key: str

    def __post_init__(self):
        if not self.high.window.obs == self.low.window.obs == self.high.window.horizon:
            raise UserError("expected a horizon of the high policy and observation windows of both that are equally "
                            f"long, found {self.high.window.horizon}, {self.high.window.obs} and {self.low.window.obs}",
                            where="Chain", do="train them so: what the high policy says takes the place of the low "
                            "one's observation rows")

    @property
    def policy(self):
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
