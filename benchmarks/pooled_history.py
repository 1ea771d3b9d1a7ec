"""What a history costs whose past becomes one token: python benchmarks/pooled_history.py

The method contextvla (8 observations, 4 blocks, the mean after 2) with 16 tokens in each step, next to the same network
without the mean and with a single observation. Weights are random. It prints CPU milliseconds of one thread for the
encoder alone, with 64 windows and with one, for a plan of one robot (the encoder once, and 10 evaluations of the trunk)
and for an update with 64 windows, all in turns in one process, and the ratio to the whole history with its interval of
95 % over the turns.
"""

from __future__ import annotations

import measure

measure.one_thread()

from dataclasses import replace  # noqa: E402
from statistics import median  # noqa: E402

import torch  # noqa: E402

from understudy.core import Feature  # noqa: E402
from understudy.learn.behavior_cloning import BehaviorCloning  # noqa: E402
from understudy.methods import find_method  # noqa: E402
from understudy.policy import Policy  # noqa: E402
from understudy.testing import random_dataset  # noqa: E402

STEPS, TOKENS, BATCH, REPEATS = 8, 16, 64, 7
FEATURES = {**{f"observation.part{i}": Feature("float32", (8,)) for i in range(TOKENS)},
            "action": Feature("float32", (7,))}


def sides(n_obs_steps: int, pool_after: int | None):
    """The measured functions of one network."""
    data = random_dataset(FEATURES)
    config = find_method("contextvla", n_obs_steps=n_obs_steps, pool_after=pool_after).policy
    config = replace(config, inputs=tuple(k for k in FEATURES if k != "action"))
    torch.manual_seed(0)
    policy = Policy(config, data.features()).fit_statistics(data)
    learner = BehaviorCloning(1000, BATCH).build(policy, 0, 1000, data)
    batch = learner.batch_sampler(data).batch(BATCH, 0)
    obs, noise = {k: v[:1] for k, v in batch.obs.items()}, torch.randn(1, *policy.noise_shape)

    def acting(work):
        def run():
            policy.eval()
            with torch.no_grad():
                work()
        return run

    return {"encoder of 64 windows": acting(lambda: policy.context(batch.obs)),
            "encoder of one window": acting(lambda: policy.context(obs)),
            "plan": acting(lambda: policy.plan(obs, noise)), "update": lambda: learner.update(batch)}


def main() -> None:
    networks = {"one observation": sides(1, None), "pooled": sides(STEPS, 2), "whole history": sides(STEPS, None)}
    for what in networks["pooled"]:
        seconds = measure.interleaved({name: works[what] for name, works in networks.items()}, REPEATS)
        for name, times in seconds.items():
            r = measure.ratio(times, seconds["whole history"])
            print(f"{what}, {name}: {1000 * median(times):.2f} ms, {r.estimate:.2f} [{r.low:.2f}, {r.high:.2f}] of the "
                  "whole history", flush=True)


if __name__ == "__main__":
    main()
