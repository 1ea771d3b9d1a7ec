"""Filters that make the executed actions smoother."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..core import Above, AtLeast, Below, State, Unsupported, part, tree_map
from ..policy import Planner
from .base import ActionConditionedExecutor, Executor, check_numeric_actions


class ActionFilter(ABC):
    """Filter that makes the sequence of planned actions smoother. Subclasses are frozen dataclasses."""

    @abstractmethod
    def start(self, action: Tensor) -> State:
        """Returns the state as if `action` (B, A) had been executed for a long time."""

    @abstractmethod
    def step(self, planner: Planner, action: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns the executed action, (B, A), and the next state.

        Args:
            planner: The planner. `planner.action_scale` is the scale of each action component.
            action: The planned action, (B, A) in world units.
            state: The state. It is not changed in place.
        """


@part
class LowPassFilter(ActionFilter):
    """Filter that averages actions exponentially: a low-pass filter of first order.

    At f steps per second, its cutoff frequency is ``-f * log(decay) / (2 * pi)``. It delays slow motion by
    ``decay / (1 - decay)`` steps.

    Args:
        decay: Weight of the last executed action, from 0 (no filter) to below 1.
    """

    decay: Annotated[float, AtLeast(0), Below(1)] = 0.5

    def start(self, action):
        return {"last": action}

    def step(self, planner, action, state):
        action = self.decay * state["last"] + (1 - self.decay) * action
        return action, {"last": action}


@part
class JerkLimit(ActionFilter):
    """Filter that limits how fast actions change: their velocity, acceleration and jerk.

    The change per step is clipped to V = `max_change`. Two moving averages over n = `n_average` steps follow. The
    first difference of the executed actions is then at most V, the second one 2 V / n, and the third one, the jerk,
    4 V / n². The executed actions never leave the range of the planned ones. They are n - 1 steps late in slow motion.
    Use it for actions that are positions.

    Args:
        max_change: Largest change per step, in units of `planner.action_scale`.
        n_average: Number of steps of each moving average. 1 limits the change alone.

    References:
        Biagiotti and Melchiorri (2012), FIR Filters for Online Trajectory Planning with Time- and Frequency-Domain
        Specifications, Control Engineering Practice.
    """

    max_change: Annotated[float, Above(0)] = 0.5
    n_average: Annotated[int, AtLeast(1)] = 2

    def start(self, action):
        queue = action.unsqueeze(1).repeat(1, self.n_average, 1)
        return {"limited": action, "first": queue, "second": queue}

    def step(self, planner, action, state):
        limit = self.max_change * planner.action_scale.to(action)
        limited = state["limited"] + (action - state["limited"]).clamp(-limit, limit)
        first = torch.cat([state["first"][:, 1:], limited.unsqueeze(1)], 1)
        second = torch.cat([state["second"][:, 1:], first.mean(1, keepdim=True)], 1)
        return second.mean(1), {"limited": limited, "first": first, "second": second}


@dataclass(frozen=True)
class FilteredExecutor(Executor):
    """Executor that filters the actions of another executor. The first action of an episode stays as it is.

    The executor must not be an `ActionConditionedExecutor`: its plans continue the executed actions, which a filter
    would change.
    """

    executor: Executor
    filter: ActionFilter = LowPassFilter()

    def __post_init__(self):
        if isinstance(self.executor, ActionConditionedExecutor):
            raise Unsupported(f"{type(self.executor).__name__} continues the actions that it executed, and a filter "
                              "would change them", where="FilteredExecutor.executor",
                              hint="filter an executor that executes chunks, such as RecedingHorizon")

    def check_planner(self, planner):
        check_numeric_actions(planner, type(self.filter).__name__, "smooths actions")
        self.executor.check_planner(planner)

    def start(self, planner: Planner, obs: Mapping[str, Tensor], key: Tensor) -> State:
        self.check_planner(planner)
        zero_action = torch.zeros(len(key), planner.action_dim, device=key.device)
        return {"run": self.executor.start(planner, obs, key), "filter": self.filter.start(zero_action),
                "begun": torch.zeros_like(key, dtype=torch.bool)}

    def act(self, planner: Planner, obs: Mapping[str, Tensor], state: State) -> tuple[Tensor, State]:
        action, run = self.executor.act(planner, obs, state["run"])

        def if_begun(old, new):
            return torch.where(state["begun"].reshape(-1, *[1] * (old.dim() - 1)), old, new)
        before = tree_map(if_begun, state["filter"], self.filter.start(action))
        action, after = self.filter.step(planner, action, before)
        return action, {"run": run, "filter": after, "begun": torch.ones_like(state["begun"])}
