"""Real-time chunking for policies that were trained to continue a prefix of actions."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch

from ..core import AtLeast, Unsupported, part
from ..heads.base import PrefixTimes
from ..policy import Clamp, Planner
from .base import require_stepwise
from .chunking import ChunkedExecutor


@part
class PrefixChunking(ChunkedExecutor):
    """Executor that runs the old chunk while a new one is computed, which continues its last actions.

    A new chunk arrives `delay` steps after its observation. The actions of the old chunk until then are given to the
    policy, which was trained so: ``Flow(times=PrefixTimes(max_delay))``. `RealTimeChunking` needs no such
    training, and computes a gradient in each denoising step instead.

    Args:
        delay: Number of steps between an observation and the arrival of its chunk.
        skip: Number of steps of each chunk that lie in the past: `Window(action_offset=-skip)`. They are given too.

    References:
        Black et al. (2025), Training-Time Action Conditioning for Efficient Real-Time Chunking, arXiv:2512.05964.
    """

    n_action_steps: int = 4
    delay: Annotated[int, AtLeast(0)] = 1
    skip: int = 0

    def check_planner(self, planner):
        super().check_planner(planner)
        self.with_delay(self.delay, planner)

    def with_delay(self, delay: int, planner: Planner) -> PrefixChunking:
        times, needed = require_stepwise(planner, type(self).__name__).head.times, self.skip + delay
        if not isinstance(times, PrefixTimes):
            raise Unsupported("the policy was not trained to continue given actions", where=type(self).__name__,
                              hint="train it with times=PrefixTimes(...) in its Flow head (the method "
                                   "training-time-rtc), or use RealTimeChunking (real-time-chunking)")
        if needed > times.max_delay:
            raise Unsupported(f"the policy was trained to continue at most {times.max_delay} given actions, and chunks "
                              f"that arrive {delay} steps late continue {needed}", where=type(self).__name__,
                              hint=f"train it with a larger delay: --policy.head.times.max-delay {needed}")
        return replace(self, delay=delay)

    def guides(self, last):
        old, exists = last.aligned()
        is_given = exists & (torch.arange(old.shape[1], device=old.device) < self.skip + self.delay)
        return Clamp(old, is_given.unsqueeze(-1)), last
