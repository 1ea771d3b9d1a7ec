"""One cell of benchmarks/return_curves.py with stable-baselines3 or SBX, which calls this script."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import torch
from curve import Curve
from stable_baselines3.common.noise import NormalActionNoise

torch.set_num_threads(1)


def main() -> None:
    library, method, end, name, n_steps, every, seed, out, *starts = sys.argv[1:]
    algorithm = getattr(importlib.import_module(library.replace("-", "_")), method.upper())
    curve = Curve(name, every, starts, float(end))
    shape = curve.env.action_space.shape
    options: dict = {
        "sac": {"learning_starts": 1000},
        "td3": {"learning_starts": 1000, "learning_rate": 3e-4, "batch_size": 256,
                "policy_kwargs": {"net_arch": [256, 256]},
                "action_noise": NormalActionNoise(np.zeros(shape), np.full(shape, 0.1))},
        "dqn": {"learning_rate": 3e-4, "learning_starts": 1000, "batch_size": 256, "tau": 0.005,
                "target_update_interval": 1, "train_freq": 1, "exploration_fraction": 0.2,
                "policy_kwargs": {"net_arch": [256, 256]}},
    }.get(method, {})
    model = algorithm("MlpPolicy", name, seed=int(seed), device="cpu", **options)
    model.learn(int(n_steps), lambda *_: curve.look(
        model.num_timesteps, lambda obs: model.predict(obs, deterministic=True)[0]))
    curve.write(out)


if __name__ == "__main__":
    main()
