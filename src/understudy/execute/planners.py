"""Planners that are made of other planners."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Unsupported, UserError, take, tree_map
from ..policy import Guide, Planner, StepwisePlanner
from .base import require_stepwise


class PlannerWrapper(Planner):
    """A planner that changes another planner. What it does not change is passed on.

    Args:
        planner: The planner that is changed.
    """

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

    def context(self, obs):
        return self.planner.context(obs)

    def encode(self, action, obs):
        return self.planner.encode(action, obs)

    def decode(self, coded, obs):
        return self.planner.decode(coded, obs)


@dataclass(frozen=True)
class FixedBatch(PlannerWrapper, StepwisePlanner):
    """Calls the network with batches of exactly `rows` rows, however many rows are asked for.

    Matrix products of different sizes differ in their last bits. With this wrapper, the plan of a row does not depend
    on the number of other rows.

    Args:
        planner: The planner that is called.
        rows: The number of rows in each call. A last group that is too small is filled with copies of its first row.
    """

    planner: Planner
    rows: int = 16

    @property
    def head(self):
        return require_stepwise(self.planner, "FixedBatch").head

    def plan(self, obs, noise, guides=()):
        return self._in_groups(self.planner.plan, _n_rows(obs), obs, noise, guides)

    def context(self, obs):
        return self._in_groups(self.planner.context, _n_rows(obs), obs)

    def encode(self, action, obs):
        return self._in_groups(self.planner.encode, action.shape[0], action, obs)

    def decode(self, coded, obs):
        return self._in_groups(self.planner.decode, coded.shape[0], coded, obs)

    def denoise_step(self, context, x, t, t_next):
        inner = require_stepwise(self.planner, "FixedBatch")
        return self._in_groups(inner.denoise_step, x.shape[0], context, x, t, t_next)

    def _in_groups(self, function, n, *arguments):
        """Calls `function` on groups of rows and joins the results.

        Arguments are trees of tensors with n rows, or tuples of guides.
        """
        if n == self.rows:
            return function(*arguments)
        results = []
        for first in range(0, n, self.rows):
            index = torch.arange(first, first + self.rows, device=self.device)
            index = torch.where(index < n, index, first)
            results.append(function(*(tuple(g.select_rows(index) for g in a) if isinstance(a, tuple)
                                      else take(a, index) for a in arguments)))
        return tree_map(lambda *parts: torch.cat(parts)[:n], *results)


def _n_rows(obs: Mapping[str, Tensor]) -> int:
    return next(iter(obs.values())).shape[0]


@dataclass(frozen=True)
class Guided(PlannerWrapper):
    """A planner with fixed guidance. The guides of an executor are added to it.

    Args:
        planner: The planner that is guided.
        guides: The guidance of every plan.
    """

    planner: Planner
    guides: tuple[Guide, ...]

    def plan(self, obs, noise, guides=()):
        return self.planner.plan(obs, noise, self.guides + guides)


@dataclass(frozen=True)
class BestOfN(PlannerWrapper):
    """Draws `n` plans and takes the one with the highest score.

    Unlike guidance, it works with every head.

    Args:
        planner: The planner that draws the plans.
        scorer: Called with observation windows (B, To, ...) and plans (B, H, A); returns scores (B,).
        n: Number of plans.

    References:
        Hansen-Estruch et al. (2023), IDQL: Implicit Q-Learning as an Actor-Critic Method, arXiv:2304.10573.
    """

    planner: Planner
    scorer: Callable[[Mapping[str, Tensor], Tensor], Tensor]
    n: int = 16

    def noise(self, key, count):
        return _noise_of_n(self.planner, self.n, key, count)

    def plan(self, obs, noise, guides=()):
        repeated, plans = _plan_n(self.planner, self.n, obs, noise, guides)
        best = self.scorer(repeated, plans.flatten(0, 1)).unflatten(0, (-1, self.n)).argmax(1)
        return plans[torch.arange(best.shape[0], device=best.device), best]


def _noise_of_n(planner: Planner, n: int, key: Tensor, count: Tensor):
    """The noise of `n` plans, (B, n, ...)."""
    return tree_map(lambda *parts: torch.stack(parts, 1), *(planner.noise(key, count * n + i) for i in range(n)))


def _plan_n(planner: Planner, n: int, obs, noise, guides) -> tuple[Mapping[str, Tensor], Tensor]:
    """The observations, each row `n` times (B * n, ...), and the plans (B, n, H, A)."""
    first = next(iter(obs.values()))
    index = torch.arange(first.shape[0], device=first.device).repeat_interleave(n)
    obs = take(obs, index)
    plans = planner.plan(obs, tree_map(lambda x: x.flatten(0, 1), noise), tuple(g.select_rows(index) for g in guides))
    return obs, plans.unflatten(0, (-1, n))


@dataclass(frozen=True)
class Hierarchical(PlannerWrapper):
    """The high-level planner predicts a column that the low-level planner reads as an input.

    The column can be a subgoal (HIQL), a thought (Thought Cloning), a procedure, a skill or a video. Both planners
    are trained separately on the same episodes.

    Args:
        high: Predicts the column `as_key`.
        low: Plans the actions.
        as_key: The column that `low` reads.
    """

    high: Planner
    low: Planner
    as_key: str

    def __post_init__(self):
        horizon, n_obs_steps = self.high.window.horizon, self.high.window.n_obs_steps
        if not n_obs_steps == self.low.window.n_obs_steps == horizon:
            raise UserError("the horizon of the high-level policy and the observation windows of both policies must be "
                            f"equally long, but they are {horizon}, {n_obs_steps} and "
                            f"{self.low.window.n_obs_steps} steps", where="Hierarchical",
                            hint="train both policies with the same n_obs_steps, and the high-level policy with this "
                            "number as its horizon")

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
        subgoal = self.high.plan(obs, noise["high"])
        return self.low.plan({**obs, self.as_key: subgoal}, noise["low"], guides)

    def context(self, obs):
        raise Unsupported("the low-level planner reads what the high-level planner draws, so that there is no context "
                          "without noise", where="Hierarchical", hint="use an executor that plans whole chunks")
