"""What fused experts save: python benchmarks/fused_experts.py

A plan of the method mode for one robot (4 layers of width 128, 10 steps, 2 of 4 experts), with its attention "joint"
and with "cross": as it is, with fused experts, and with dense feed-forward layers of the same active and the same total
size. Weights are random. It prints the operations of the matrix products, CPU milliseconds of one thread, all in turns
in one process, and the ratio to the policy as it is with its interval of 95 % over the turns.
"""

from __future__ import annotations

import measure

measure.one_thread()

from dataclasses import replace  # noqa: E402
from statistics import median  # noqa: E402

import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from understudy.deploy.equivalence import random_noise  # noqa: E402
from understudy.deploy.fused_experts import fuse_experts  # noqa: E402
from understudy.methods import find_method  # noqa: E402
from understudy.testing import random_batch  # noqa: E402

REPEATS = 9
DENSE = {"dense, same active size": 8, "dense, same total size": 16}  # ratios of the feed-forward layers


def main() -> None:
    config = find_method("mode").policy
    for attention in ("joint", "cross"):
        def build(attention=attention, **options):
            return random_batch(replace(config, trunk=replace(config.trunk, attention=attention, **options)))
        experts, batch = build()
        policies = {"as it is": experts.eval(), "fused": fuse_experts(experts)}
        for name, size in DENSE.items():
            policies[name] = build(feed_forward=None, feed_forward_ratio=size)[0].eval()
        obs, noise = {k: v[:1] for k, v in batch.obs.items()}, random_noise(experts, 1)

        def plan(policy, obs=obs, noise=noise):
            with torch.no_grad():
                return policy.plan(obs, noise)
        works = {name: lambda policy=policy, plan=plan: plan(policy) for name, policy in policies.items()}
        seconds = measure.interleaved(works, REPEATS)
        for name, times in seconds.items():
            with FlopCounterMode(display=False) as counter:
                works[name]()
            r = measure.ratio(times, seconds["as it is"])
            print(f"{attention:6} {name:24} {counter.get_total_flops() / 1e6:6.0f} million operations "
                  f"{1000 * median(times):6.2f} ms   {r.estimate:.3f} [{r.low:.3f}, {r.high:.3f}]")


if __name__ == "__main__":
    main()
