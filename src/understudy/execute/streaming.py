"""Executor of streaming diffusion, with a rolling buffer of partly denoised actions."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from ..core import AtLeast, Context, State, Unsupported, UserError, part, put, take
from ..heads.base import DenoisingHead, PrefixTimes, RampTimes
from .base import Executor, check_alignment, require_stepwise


@part
class StreamingExecutor(Executor):
    """Executor that keeps a buffer of actions whose noise level rises with time, and executes the clean ones.

    A plan denoises the whole buffer until its first group of `n_action_steps` actions is clean, executes that group,
    and appends noise at the end. A plan needs `n_denoising_steps` network evaluations, where a plan from noise with
    equally many levels needs H / n_action_steps times as many. Later groups are denoised again with newer observations.

    The head must be trained with the times of such a buffer: `times=RampTimes(n_action_steps)`, or `times="each"`.

    Args:
        n_action_steps: Number of steps that are executed from each plan. Must divide the horizon.
        n_denoising_steps: Number of denoising steps of a plan.
        start_from: The buffer at the start of an episode. ``"denoise"``: a whole plan from noise, to which the noise of
            the buffer is added. It costs ``n_denoising_steps * H / n_action_steps`` evaluations, once. ``"zeros"``, the
            default of the authors' code: the code 0 with noise. It costs nothing, and the first actions are close to
            the code 0.

    References:
        Høeg et al. (2024), Streaming Diffusion Policy, arXiv:2406.04806.
    """

    n_action_steps: Annotated[int, AtLeast(1)] = 1
    n_denoising_steps: Annotated[int, AtLeast(1)] = 1
    start_from: Literal["denoise", "zeros"] = "denoise"

    def check_planner(self, planner):
        head = require_stepwise(planner, "StreamingExecutor").head
        check_alignment(self, planner)
        times = head.times
        if not isinstance(head, DenoisingHead) or times == "shared" or isinstance(times, PrefixTimes):
            raise Unsupported(f"the steps of a buffer have different noise levels, and {type(head).__name__} was "
                              f"trained with one for all", where="StreamingExecutor",
                              hint=f"train with times=RampTimes({self.n_action_steps}), or use RecedingHorizon")
        if isinstance(times, RampTimes) and times.n_action_steps != self.n_action_steps:
            raise UserError(f"n_action_steps is {self.n_action_steps}, but the policy was trained for a buffer with "
                            f"{times}", where="StreamingExecutor",
                            hint=f"use StreamingExecutor(n_action_steps={times.n_action_steps})")
        if isinstance(times, RampTimes) and self.start_from == "denoise" and not times.shared_fraction:
            raise UserError("start_from=\"denoise\" plans a whole chunk from noise, and shared_fraction=0 trains no "
                            "such plans", where="StreamingExecutor",
                            hint="use start_from=\"zeros\", or train with RampTimes(shared_fraction=0.2)")
        self._levels(planner)

    def start(self, planner, obs, key):
        self.check_planner(planner)
        zero, level = torch.zeros_like(key), self._levels(planner)
        noise = planner.noise(key, zero)
        clean = torch.zeros_like(noise)
        if self.start_from == "denoise":
            clean = self._denoise(planner, planner.context(obs), noise, torch.zeros_like(level), 1.0)
        buffer = planner.head.interpolate(clean, planner.noise(key, zero + 1), level.unsqueeze(-1))
        actions = torch.zeros(len(key), self.n_action_steps, planner.action_dim, device=key.device)
        return {"key": key, "count": zero + 2, "cursor": zero + self.n_action_steps, "x": buffer, "actions": actions}

    def act(self, planner, obs, state):
        rows = (state["cursor"] >= self.n_action_steps).nonzero().flatten()
        if len(rows) == len(state["cursor"]):
            state = self._plan(planner, obs, state)
        elif len(rows):
            state = put(state, rows, self._plan(planner, take(obs, rows), take(state, rows)))
        index = torch.arange(len(state["cursor"]), device=state["cursor"].device)
        return state["actions"][index, state["cursor"]], {**state, "cursor": state["cursor"] + 1}

    def _plan(self, planner, obs, state: State) -> State:
        """Denoises the buffer until its first group of steps is clean. Returns the state with these as next actions."""
        level, n = self._levels(planner), self.n_action_steps
        x = self._denoise(planner, planner.context(obs), state["x"], level, n / len(level))
        noise = planner.noise(state["key"], state["count"])[:, :n]
        return {**state, "count": state["count"] + 1, "cursor": torch.zeros_like(state["cursor"]),
                "actions": planner.decode(x, obs)[:, :n], "x": torch.cat([x[:, n:], noise], 1)}

    def _denoise(self, planner, context: Context, x: Tensor, level: Tensor, rise: float) -> Tensor:
        """Denoises the buffer: raises the times of all its steps, `level` (H,), by `rise`."""
        n_steps = round(rise * len(level) / self.n_action_steps) * self.n_denoising_steps
        for i in range(n_steps):
            t, t_next = ((level + rise * j / n_steps).clamp(max=1).expand(x.shape[:2]) for j in (i, i + 1))
            x = planner.denoise_step(context, x, t, t_next)
        return x

    def _levels(self, planner) -> Tensor:
        """Returns the denoising times of the buffer's steps before a plan, (H,)."""
        return RampTimes(self.n_action_steps).levels(planner.window.horizon, planner.device)
