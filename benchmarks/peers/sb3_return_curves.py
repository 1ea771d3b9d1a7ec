"""One cell of benchmarks/return_curves.py with stable-baselines3 or SBX, which calls this script."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise

torch.set_num_threads(1)


class Curve(BaseCallback):
    """The returns after every so many steps, and the CPU seconds without those of the evaluations."""

    def __init__(self, name: str, every: int, starts: list[int]):
        super().__init__()
        self.judged, self.every, self.starts = gymnasium.make(name), every, starts
        self.curve: dict[str, list[float]] = {"steps": [], "returns": [], "cpu_seconds": []}
        self.began, self.excluded = time.process_time(), 0.0

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            now = time.process_time()
            self.curve["steps"].append(self.num_timesteps)
            self.curve["returns"].append(sum(map(self.judge, self.starts)) / len(self.starts))
            self.curve["cpu_seconds"].append(round(now - self.began - self.excluded, 2))
            self.excluded += time.process_time() - now
        return True

    def judge(self, seed: int) -> float:
        """The return of the deterministic policy from one start."""
        obs, _ = self.judged.reset(seed=seed)
        total, is_over = 0.0, False
        while not is_over:
            obs, reward, terminated, truncated, _ = self.judged.step(self.model.predict(obs, deterministic=True)[0])
            total, is_over = total + float(reward), terminated or truncated
        return total


def main() -> None:
    library, method, name, n_steps, every, seed, out, *starts = sys.argv[1:]
    algorithm = getattr(importlib.import_module(library.replace("-", "_")), method.upper())
    callback = Curve(name, int(every), list(map(int, starts)))
    options: dict = {
        "sac": {"learning_starts": 1000},
        "td3": {"learning_starts": 1000, "learning_rate": 3e-4, "batch_size": 256,
                "policy_kwargs": {"net_arch": [256, 256]},
                "action_noise": NormalActionNoise(np.zeros(1), np.full(1, 0.1))},
        "dqn": {"learning_rate": 3e-4, "learning_starts": 1000, "batch_size": 256, "tau": 0.005,
                "target_update_interval": 1, "train_freq": 1, "exploration_fraction": 0.2,
                "policy_kwargs": {"net_arch": [256, 256]}},
    }.get(method, {})
    model = algorithm("MlpPolicy", name, seed=int(seed), device="cpu", **options)
    model.learn(int(n_steps), callback)
    Path(out).write_text(json.dumps(callback.curve, indent=1) + "\n")


if __name__ == "__main__":
    main()
