"""Anything that acts: a policy with an executor, an expert, a person, or a gate over both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..core import State, UserError, normal
from ..data.video import resize
from ..policy import Planner
from .base import Executor
from .chunked import Receding


class Actor(ABC):
    @abstractmethod
    def start(self, obs: Mapping[str, Tensor], key: Tensor) -> State:
        """obs (B, ...): the first observation of each row. key (B,) int64: all the randomness of each row."""

    @abstractmethod
    def act(self, obs: Mapping[str, Tensor], state: State) -> tuple[Tensor, State]:
        """(B, A) actions, on the CPU. What `state["record"]` holds is written into the episode beside the action."""


@dataclass(frozen=True)
class Plays(Actor):
    """A planner with an executor; keeps the observation history. Observations may be arrays; they are moved to the
    planner's device, actions come back from it. frames: (height, width) to which a camera's frames are brought first,
    by the rule that training data was (`Policy.frames`)."""

    policy: Planner
    executor: Executor = Receding()
    frames: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def _seen(self, obs):
        missing = [k for k in self.policy.inputs if k not in obs]
        if missing:
            raise UserError(f"expected an observation {missing[0]!r}, found {', '.join(sorted(obs))}",
                            where=type(self).__name__, do="the policy reads the columns it was trained with")
        return {k: _number(self._sized(k, obs[k])).to(self.policy.device) for k in self.policy.inputs}

    def _sized(self, name, value):
        if name not in self.frames or tuple(value.shape[-3:-1]) == self.frames[name]:
            return value
        return resize(np.asarray(value), self.frames[name])

    def start(self, obs, key):
        rows = self.policy.window.obs
        seen = {k: v.unsqueeze(1).expand(-1, rows, *v.shape[1:]).clone() for k, v in self._seen(obs).items()}
        return {"seen": seen, "run": self.executor.start(self.policy, key.to(self.policy.device))}

    @torch.no_grad()
    def act(self, obs, state):
        now = self._seen(obs)
        seen = {k: torch.cat([v[:, 1:], now[k].unsqueeze(1)], 1) for k, v in state["seen"].items()}
        action, run = self.executor.act(self.policy, seen, state["run"])
        return action.cpu(), {"seen": seen, "run": run}


def _number(value) -> Tensor:
    value = torch.as_tensor(value)
    return value.float() if value.dtype == torch.float64 else value


@dataclass(frozen=True)
class Given(Actor):
    """Adds columns that the environment does not show: a goal, a task in words, a wanted return. The run-time twin
    of a relabelling."""

    actor: Actor
    columns: Mapping[str, Tensor]  # name -> (*feature)

    def _add(self, obs):
        rows = next(iter(obs.values())).shape[0]
        return {**obs, **{k: v.expand(rows, *v.shape) for k, v in self.columns.items()}}

    def start(self, obs, key):
        return self.actor.start(self._add(obs), key)

    def act(self, obs, state):
        return self.actor.act(self._add(obs), state)


@dataclass(frozen=True)
class Noisy(Actor):
    """Explores: Gaussian noise around an actor, or, without one, nothing but noise."""

    actor: Actor | None
    dim: int
    std: float = 1.0

    def start(self, obs, key):
        inner = {} if self.actor is None else self.actor.start(obs, key)
        return {"inner": inner, "key": key, "count": torch.zeros_like(key)}

    def act(self, obs, state):
        noise = self.std * normal(state["key"], state["count"], (self.dim,), stream=5)
        action, inner = (0.0, {}) if self.actor is None else self.actor.act(obs, state["inner"])
        inner, state = dict(inner), {**state, "count": state["count"] + 1}
        if (record := inner.pop("record", None)) is not None:  # what the inner actor writes down is written down
            state["record"] = record
        return action + noise, {**state, "inner": inner}
