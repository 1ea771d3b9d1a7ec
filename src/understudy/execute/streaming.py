"""A rolling buffer of partly denoised actions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import Executor, check_alignment, require_stepwise


@dataclass(frozen=True)
class StreamingExecutor(Executor):
    """Keeps a buffer of H actions whose noise level rises from the first to the last.

    Each step denoises the whole buffer by one level, executes its first action, which is clean then, and appends
    noise at its end. The head must be trained with `times="ramp"` or `times="each"`.

    References:
        Høeg et al. (2024), Streaming Diffusion Policy, arXiv:2406.04806.
    """

    def check_planner(self, planner):
        require_stepwise(planner, "StreamingExecutor")
        check_alignment(self, planner)

    def start(self, planner, obs, key):
        self.check_planner(planner)
        zero = torch.zeros_like(key)
        x, context = planner.noise(key, zero), planner.context(obs)
        H, step = x.shape[1], torch.arange(x.shape[1], device=x.device)
        # Bring the buffer from pure noise to rising noise levels, one level at a time.
        level = [((n - step).clamp(min=0) / H).expand(x.shape[0], H) for n in range(H)]
        for t, t_next in zip(level[:-1], level[1:], strict=True):
            x = planner.denoise_step(context, x, t, t_next)
        return {"key": key, "count": zero, "x": x}

    def act(self, planner, obs, state):
        x, H = state["x"], state["x"].shape[1]
        t = (H - 1 - torch.arange(H, device=x.device)).expand(x.shape[0], H) / H
        x = planner.denoise_step(planner.context(obs), x, t, t + 1 / H)
        action = planner.decode(x, obs)[:, 0]
        tail = planner.noise(state["key"], state["count"] + 1)[:, :1]
        return action, {**state, "count": state["count"] + 1, "x": torch.cat([x[:, 1:], tail], 1)}
