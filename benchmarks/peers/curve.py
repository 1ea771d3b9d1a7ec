"""What the scripts of the peers in benchmarks/return_curves.py share."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np


class Curve:
    """The returns after every so many steps, and the CPU seconds without those of the evaluations.

    Args:
        end: The return at which the training is over.
    """

    def __init__(self, name: str, every: str, starts: list[str], end: float = math.inf):
        self.env, self.every, self.starts, self.end = gymnasium.make(name), int(every), list(map(int, starts)), end
        self.steps, self.returns, self.cpu_seconds = [], [], []
        self.began, self.excluded = time.process_time(), 0.0

    def look(self, n_steps: int, plan: Callable[[np.ndarray], np.ndarray]) -> bool:
        """Evaluates a deterministic policy if it is time to. Returns False if the training is over."""
        if n_steps % self.every == 0:
            now = time.process_time()
            self.steps.append(n_steps)
            self.returns.append(sum(self.episode_return(plan, seed) for seed in self.starts) / len(self.starts))
            self.cpu_seconds.append(round(now - self.began - self.excluded, 2))
            self.excluded += time.process_time() - now
        return not self.returns or self.returns[-1] < self.end

    def episode_return(self, plan: Callable[[np.ndarray], np.ndarray], seed: int) -> float:
        obs, _ = self.env.reset(seed=seed)
        total, is_over = 0.0, False
        while not is_over:
            obs, reward, terminated, truncated, _ = self.env.step(plan(obs))
            total, is_over = total + float(reward), terminated or truncated
        return total

    def write(self, path: str) -> None:
        columns = {"steps": self.steps, "returns": self.returns, "cpu_seconds": self.cpu_seconds}
        Path(path).write_text(json.dumps(columns, indent=1) + "\n")
