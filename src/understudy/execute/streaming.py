"""A rolling buffer of half-made actions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..core import Unsupported, put, take
from ..policy import StepwisePlanner
from .base import Executor, check_alignment


@dataclass(frozen=True)
class StreamingExecutor(Executor):
    """The nearest action is nearly clean, the farthest pure noise; every step cleans all of them by one level, emits
    the first and appends noise (Streaming Diffusion Policy, Høeg et al. 2024). Needs a head trained with
    times="ramp" or "each"."""

    def start(self, planner, key):
        if not isinstance(planner, StepwisePlanner):
            raise Unsupported(f"{type(planner).__name__} shows no half-made chunks", hint="take another executor")
        check_alignment(self, planner)
        return {"key": key, "count": torch.zeros_like(key), "x": planner.noise(key, torch.zeros_like(key))}

    def act(self, planner, obs, state):
        x, H = state["x"], state["x"].shape[1]
        step = torch.arange(H, device=x.device)
        fresh = (state["count"] == 0).nonzero().flatten()
        if fresh.numel():  # walk a new row up to the ramp, all levels in turn
            y, o = x[fresh], take(obs, fresh)
            level = [((n - step).clamp(min=0) / H).expand(fresh.numel(), H) for n in range(H)]
            for t, to in zip(level[:-1], level[1:], strict=True):
                y, _ = planner.denoise_step(o, y, t, to)
            x = put(x, fresh, y)
        low = (H - 1 - step).expand(x.shape[0], H) / H
        x, action = planner.denoise_step(obs, x, low, low + 1 / H)
        tail = planner.noise(state["key"], state["count"] + 1)[:, :1]
        return action[:, 0], {**state, "count": state["count"] + 1, "x": torch.cat([x[:, 1:], tail], 1)}
