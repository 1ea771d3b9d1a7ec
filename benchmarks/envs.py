"""Steps a second of the bundled toys, for one row and for a thousand: python benchmarks/envs.py"""

from __future__ import annotations

import time

import torch

from understudy import envs
from understudy.core import keys
from understudy.evaluate.recording import UniformRandomActor


def speed(name: str, rows: int, seconds: float = 1.0) -> float:
    """Steps of single rows a second, rows that end being started anew; the actor's time is not counted."""
    env = envs.make(name, rows)
    actor = UniformRandomActor(env)
    obs = env.reset(torch.arange(rows), keys(0, range(rows)))
    action, _ = actor.act(obs, actor.start(obs, keys(0, range(rows))))
    steps, fresh, spent = 0, rows, 0.0
    while spent < seconds:
        began = time.perf_counter()
        out = env.step(action)
        ended = (out.terminated | out.truncated).nonzero().flatten()
        if ended.numel():
            env.reset(ended, keys(0, range(fresh, fresh + ended.numel())))
            fresh += ended.numel()
        spent += time.perf_counter() - began
        steps += rows
    return steps / spent


def main() -> None:
    torch.set_num_threads(1)
    names = [*envs.names(), "particle:8"]
    print(f"{'steps/s':12s} {'1 row':>12s} {'1000 rows':>12s} {'times':>7s}")
    for name in names:
        one, many = (speed(name, rows) for rows in (1, 1000))
        print(f"{name:12s} {one:12,.0f} {many:12,.0f} {many / one:7.0f}", flush=True)


if __name__ == "__main__":
    main()
