"""Base classes of executors, which turn plans into actions.

The state of an executor is a value with one row per environment. A row can therefore be restarted, moved, saved or
copied by indexing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from ..core import State, Unsupported, UserError, take, tree_map
from ..policy import Guide, Planner, StepwisePlanner


class Executor(ABC):
    """Config of an executor, which decides which action of which plan is executed at each step."""

    def check_planner(self, planner: Planner) -> None:
        """Raises UserError if this executor cannot run a planner. Training and `start` call it."""

    @abstractmethod
    def start(self, planner: Planner, obs: Mapping[str, Tensor], key: Tensor) -> State:
        """Returns the state before the first action.

        Args:
            obs: The first observation windows, (B, To, ...). The first `act` gets the same windows.
            key: Source of all randomness of each row, (B,) int64. See `understudy.core.keys`.

        Returns:
            Nested dicts of tensors, rows first. `act` never adds an entry, removes one or changes a shape.
        """

    @abstractmethod
    def act(self, planner: Planner, obs: Mapping[str, Tensor], state: State) -> tuple[Tensor, State]:
        """Returns the next action of each row.

        Args:
            obs: Observation windows, (B, To, ...).
            state: What `start` or the last `act` returned. It is not changed in place.

        Returns:
            The actions, (B, A) in world units, and the next state.
        """


class ActionConditionedExecutor(Executor):
    """Base class of executors whose plans depend on the actions that were executed before.

    The recorded actions of a data set can then be predicted only from the recorded actions before them. Validation
    and `understudy eval RUN DATA` therefore take their plans from the executor instead of the planner. The window of
    the policy must reach back to the executed actions: with `Window(action_offset=-P)`, the first P steps of a chunk
    are the last P executed actions.

    `RealTimeChunking` is not one of these executors. Its plans depend on the rest of its last chunk, which was planned
    and not executed. Recorded episodes contain no such chunk, and the recorded actions in its place would give away the
    answer. Without a last chunk it plans as the policy alone does, as at the start of an episode.
    """

    @abstractmethod
    def plan(self, planner: Planner, obs: Mapping[str, Tensor], executed: Tensor, mask: Tensor,
             noise: Tensor | State) -> Tensor:
        """Plans a chunk that continues the given actions.

        Args:
            obs: Observation windows, (B, To, ...).
            executed: The last executed actions, oldest first, (B, P, A) in world units.
            mask: False where the episode had not begun yet, (B, P). Actions at these steps are not read.

        Returns:
            A chunk in world units, (B, H, A). Its first P steps stand for `executed`.
        """


def check_alignment(executor: Executor, planner: Planner, n_past: int = 0) -> None:
    """Raises UserError if a planner's chunks do not begin `n_past` steps before the current step."""
    if planner.window.action_offset != -n_past:
        raise UserError(f"this executor reads chunks that begin {n_past} steps before the current step, but the policy "
                        f"was trained with action_offset={planner.window.action_offset}", where=type(executor).__name__,
                        hint="an executor with skip=N runs policies trained with Window(action_offset=-N)")


def check_numeric_actions(planner: Planner, where: str, use: str, hint: str = "use an executor that executes planned "
                          "actions as they are, such as RecedingHorizon (receding-horizon) or AdaptiveChunking"
                          ) -> None:
    """Raises Unsupported if actions are classes. `use` says what needs numbers, such as "averages the actions"."""
    if planner.is_discrete:
        raise Unsupported(f"it {use}, but the actions of this policy are numbers of classes, which have no order",
                          where=where, hint=hint)


def check_samples(planner: Planner, where: str, hint: str = "leave it out: the executor RecedingHorizon "
                  "(receding-horizon) draws one plan") -> None:
    """Raises Unsupported if all plans of a planner for one observation are equal, because it does not sample."""
    if planner.is_deterministic:
        raise Unsupported("it compares several samples, but this policy plans without randomness, so that all its "
                          "samples are equal", where=where,
                          hint=f"{hint}; or use a policy whose head samples, such as Flow, or a temperature above 0 if "
                               "the head has one")


def require_stepwise(planner: Planner, where: str) -> StepwisePlanner:
    """Returns `planner` as a `StepwisePlanner`. Raises Unsupported if it cannot denoise step by step."""
    if not isinstance(planner, StepwisePlanner):
        raise Unsupported(f"{type(planner).__name__} only plans whole chunks and cannot denoise step by step",
                          where=where, hint="use another executor, such as RecedingHorizon")
    _ = planner.head  # raises Unsupported for a head without steps
    return planner


def empty_chunks(planner: Planner, key: Tensor, *shape: int) -> Tensor:
    """Returns chunks of zeros, (B, *shape, H, A), for the B rows of `key` and on its device."""
    return torch.zeros(key.shape[0], *shape, planner.window.horizon, planner.action_dim, device=key.device)


def sample_noise(planner: Planner, key: Tensor, count: Tensor, n: int) -> Tensor | State:
    """Returns the noise of `n` plans of each row, (B, n, ...).

    Args:
        key: The key of each row, (B,) int64.
        count: The number of the decision within its episode, (B,).
    """
    noises = (planner.noise(key, count * n + i) for i in range(n))
    return tree_map(lambda *parts: torch.stack(parts, 1), *noises)


def sample_plans(planner: Planner, obs: Mapping[str, Tensor], noise: Tensor | State, n: int,
                 guides: tuple[Guide, ...] = ()) -> Tensor:
    """Returns `n` plans of each row, (B, n, H, A) in world units. The network sees them as one batch.

    Args:
        obs: Observation windows, (B, To, ...).
    """
    index = repeat_rows(obs, n)
    plans = planner.plan(take(obs, index), tree_map(lambda x: x.flatten(0, 1), noise),
                         tuple(g.select_rows(index) for g in guides))
    return plans.unflatten(0, (-1, n))


def repeat_rows(obs: Mapping[str, Tensor], n: int) -> Tensor:
    """Returns an index that repeats each row of `obs` n times, (B * n,)."""
    first = next(iter(obs.values()))
    return torch.arange(first.shape[0], device=first.device).repeat_interleave(n)
