"""Acting at a fixed rate on a robot while plans are computed in the background."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor

from ..core import State, Unsupported, UserError
from ..policy import Planner
from .actor import PolicyActor, check_action
from .chunking import ChunkedExecutor, PlanRequest
from .latency import continued_action


class AsynchronousRunner:
    """Runs a policy on a robot whose plans are computed in a background thread, so that the robot never waits.

    `act` returns at once. A new chunk is used from the first call of `act` after it is ready, without the steps whose
    time has passed. Until then the old chunk continues, and its last action is repeated at its end. `act` waits for the
    first plan of an episode. If no action is left, it waits up to `patience` seconds for a later plan, as policies of
    single actions need.

    The delay of each plan is measured, as the number of actions that were returned between an observation and the
    arrival of its plan. `RealTimeChunking` expects the largest of the last delays, and its own `delay` at first. All
    results depend on the machine. To evaluate an executor with a fixed delay, use `execute.latency.DelayedPlan`.

    Args:
        actor: The policy with an executor of chunks, such as `load_actor("runs/flow")`.
        n_delays: Number of last delays whose maximum is expected of the next plan.
        patience: Longest wait for a plan, in seconds, when the chunk has no action left.

    Attributes:
        delays: The last delays in steps, oldest first.
        plan_seconds: The times of the last computations in seconds, oldest first. The first plans of episodes are not
            among them, because they include the warm-up.
        windows: Windows of the observations up to the last one. None before the first episode.
        n_stale: Number of actions of the episode that repeated the last one of a chunk, because no new chunk had
            arrived.

    Example:
        >>> with AsynchronousRunner(load_actor("runs/flow", features=env.features)) as runner:
        ...     runner.start(obs, keys(0, [0]))
        ...     while True:
        ...         action = runner.act(obs)  # then send the action, wait for the next step, and observe

    References:
        Black et al. (2025), Real-Time Execution of Action Chunking Flow Policies, arXiv:2506.07339.
    """

    def __init__(self, actor: PolicyActor, n_delays: int = 10, patience: float = 0.0):
        if not isinstance(actor, PolicyActor) or not isinstance(actor.executor, ChunkedExecutor):
            class_name = type(actor.executor if isinstance(actor, PolicyActor) else actor).__name__
            raise Unsupported(f"{class_name} does not execute chunks, so nothing can be executed while a plan is "
                              "computed", where="AsynchronousRunner",
                              hint="use a PolicyActor with RecedingHorizon or RealTimeChunking")
        self.actor, self.executor, self.patience = actor, actor.executor, patience
        self.delays: deque[int] = deque(maxlen=n_delays)
        self.plan_seconds: deque[float] = deque(maxlen=n_delays)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: tuple[PlanRequest, Future[tuple[Tensor, float]], int] | None = None
        self.windows: Mapping[str, Tensor] | None = None
        self._run: State = {}
        self._n_actions = self.n_stale = 0

    @torch.no_grad()
    def start(self, obs: Mapping[str, Tensor], key: Tensor) -> None:
        """Starts an episode. A plan of the episode before is dropped.

        Args:
            obs: The first observation, (1, ...). See `PolicyActor.start`.
            key: Source of all randomness, (1,) int64.
        """
        if self._pending is not None:
            self._pending[1].exception()  # waits: one plan at a time
            self._pending = None
        first, self.windows = self.actor.first_windows(obs, key)
        self._run = self.executor.start(self.actor.planner, first, key.to(self.actor.planner.device))
        self._n_actions = self.n_stale = 0

    @torch.no_grad()
    def act(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Returns the next action, (1, A) in world units on the CPU, for the current observation, (1, ...).

        Raises:
            NonFiniteAction: An observation or an action is NaN or infinite.
        """
        if self.windows is None:
            raise UserError("no episode has been started", where="AsynchronousRunner.act",
                            hint="call start(obs, key) first")
        planner = self.actor.planner
        self.windows = self.actor.next_windows(obs, self.windows)
        self._accept_arrived(planner)
        if self._pending is None:
            request = self._expecting_executor(planner).request_plan(planner, self.windows, self._run)
            if request is not None and self._run["count"][0] == 0:
                self._run = self.executor.accept_plan(planner, self._run, request, request.plan(planner))
            elif request is not None:
                self._pending = request, self._thread.submit(_timed_plan, planner, request), self._n_actions
        if self._has_ended() and self._pending is not None:
            wait((self._pending[1],), self.patience)
            self._accept_arrived(planner)
        self.n_stale += self._has_ended()
        action, self._run = continued_action(self.executor, self._run)
        self._n_actions += 1
        action = action.cpu()
        check_action(action)
        return action

    def _has_ended(self) -> bool:
        """Returns whether the chunk has no action left."""
        return bool(self._run["cursor"][0] >= self._run["chunk"].shape[1] - self.executor.skip)

    def _expecting_executor(self, planner: Planner) -> ChunkedExecutor:
        """Returns the executor that expects the largest of the recent planning delays, or the largest supported one."""
        for delay in sorted(self.delays, reverse=True):
            try:
                return self.executor.with_delay(delay, planner)
            except Unsupported as error:  # a robot in motion is not left alone because one plan was late
                warnings.warn(str(error), UserWarning, stacklevel=3)
        return self.executor

    def _accept_arrived(self, planner: Planner) -> None:
        if self._pending is None or not self._pending[1].done():
            return
        request, future, since = self._pending
        chunk, seconds = future.result()
        delay, self._pending = self._n_actions - since, None
        self._run = self.executor.accept_plan(planner, self._run, request, chunk, delay=delay)
        self.delays.append(delay)
        self.plan_seconds.append(seconds)

    def close(self) -> None:
        """Ends the background thread. A plan that is being computed is finished first."""
        self._thread.shutdown()

    def __enter__(self) -> AsynchronousRunner:
        return self

    def __exit__(self, *error) -> None:
        self.close()


@torch.no_grad()  # the mode of gradients belongs to a thread
def _timed_plan(planner: Planner, request: PlanRequest) -> tuple[Tensor, float]:
    """Computes the plans of a request, and returns them with the seconds that it took."""
    started = time.perf_counter()
    chunk = request.plan(planner).cpu()  # waits for a GPU
    return chunk.to(planner.device), time.perf_counter() - started
