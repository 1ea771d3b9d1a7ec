"""Executor of streaming flow, which executes one action for each integration step of a flow in action space."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ..core import AtLeast, Context, State, Unsupported, UserError, part, put, take
from ..heads.denoising.streaming_flow import StreamingFlow
from .base import ActionConditionedExecutor, check_alignment, require_stepwise


@part
class StreamingFlowExecutor(ActionConditionedExecutor):
    """Executor that runs the flow of a `StreamingFlow` head while it is integrated.

    A plan starts at the last executed action, or at the code 0 in the first step of an episode, plus noise of the
    head's `sigma`. Each integration step gives the next action, so that an action costs one step and not a whole plan.
    The observation is encoded once per plan.

    Args:
        n_action_steps: Number of steps executed from each plan.

    References:
        Jiang et al. (2025), Streaming Flow Policy, arXiv:2505.21851.
    """

    n_action_steps: Annotated[int, AtLeast(1)] = 8

    def check_planner(self, planner):
        if not isinstance(head := require_stepwise(planner, "StreamingFlowExecutor").head, StreamingFlow):
            raise Unsupported(f"the steps of {type(head).__name__} are not actions", where="StreamingFlowExecutor",
                              hint="use the head StreamingFlow, or another executor, such as RecedingHorizon")
        check_alignment(self, planner, 1)
        if self.n_action_steps > planner.window.horizon - 1:
            raise UserError(f"n_action_steps is {self.n_action_steps}, but a plan has only "
                            f"{planner.window.horizon - 1} steps after the last executed action",
                            where="StreamingFlowExecutor", hint="execute fewer steps, or train with a longer horizon")

    def start(self, planner, obs, key):
        self.check_planner(planner)
        zero = torch.zeros_like(key)
        last = torch.zeros(len(key), 1, planner.action_dim, device=key.device)
        is_executed = torch.zeros(len(key), 1, dtype=torch.bool, device=key.device)
        return {"key": key, "count": zero + 1, "step": zero, "last": last,
                **_begin(planner, obs, last, is_executed, planner.noise(key, zero))}

    def act(self, planner, obs, state):
        rows = (state["step"] == self.n_action_steps).nonzero().flatten()
        if len(rows):
            old = take(state, rows)
            executed = torch.ones_like(old["last"][..., 0], dtype=torch.bool)
            plan = _begin(planner, take(obs, rows), old["last"], executed, planner.noise(old["key"], old["count"]))
            new = {**old, "count": old["count"] + 1, "step": torch.zeros_like(old["step"]), **plan}
            state = put(state, rows, new)
        x, action = _next(planner, state, state["step"])
        return action[:, 0], {**state, "x": x, "last": action, "step": state["step"] + 1}

    def plan(self, planner, obs, executed, mask, noise):
        state, chunk = _begin(planner, obs, executed, mask, noise), [executed]
        for step in range(planner.window.horizon - 1):
            state["x"], action = _next(planner, state, torch.full(mask.shape[:1], step, device=mask.device))
            chunk.append(action)
        return torch.cat(chunk, 1)


def _begin(planner, obs, last: Tensor, executed: Tensor, noise: Tensor) -> State:
    """Returns the state at the beginning of a plan, which starts from the last executed action."""
    x = planner.encode(last, obs) * executed.unsqueeze(-1) + planner.head.sigma * noise[:, :1]
    return {"x": x, "obs": dict(obs), "context": dict(vars(planner.context(obs)))}


def _next(planner, state: State, step: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the next action, normalized and in world units, (B, 1, A) each."""
    n = planner.window.horizon - 1
    t = (step / n).unsqueeze(1)
    x = planner.denoise_step(Context(**state["context"]), state["x"], t, t + 1 / n)
    return x, planner.decode(x, state["obs"])
