"""Training of five seeds as one batched network, and one after the other: python benchmarks/stacked_seeds.py

Prints milliseconds of CPU time for one update of all five seeds, batches included, and their ratio: the median of seven
turns, with the least and the greatest, on one thread. Both ways are timed in turns. Networks are stacked here whatever
their size. The limit `MAX_WEIGHTS` of `understudy.learn.stacked` comes from this table.
"""

from __future__ import annotations

import copy
import statistics
import time

import torch

from understudy import Method, PolicyConfig, Window, make, rollout
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.gmm import GMM
from understudy.heads.likelihood.regression import Regression
from understudy.learn import stacked
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.td3 import TD3
from understudy.nets.mlp import MLP

SEEDS, TURNS, UPDATES = range(5), 7, 40


def compare(name: str, method: Method, data) -> None:
    trainings = [stacked._prepare(method, data, seed, {}) for seed in SEEDS]
    together = stacked._StackedLearner([copy.deepcopy(training.learner) for training in trainings])

    def separately(number: int) -> None:
        for training in trainings:
            training.learner.update(training.batch(number))
    times = {way: [] for way in ("separate", "stacked")}
    for turn in range(TURNS):
        for way, update in (("separate", separately),
                            ("stacked", lambda number: together.update([t.batch(number) for t in trainings]))):
            began = time.process_time()
            for number in range(turn * UPDATES, (turn + 1) * UPDATES):
                update(number)
            times[way].append((time.process_time() - began) / UPDATES * 1e3)
    ratios = [one / other for one, other in zip(*times.values(), strict=True)]
    n_weights = sum(p.numel() for o in trainings[0].learner.optimizers.values() for p in o.parameters)
    print(f"{name:<28}{n_weights:>9,}{statistics.median(times['separate']):>10.1f}"
          f"{statistics.median(times['stacked']):>9.1f}{statistics.median(ratios):>8.2f}"
          f"  [{min(ratios):.2f}, {max(ratios):.2f}]", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    env = make("fork", 16)
    data = rollout(env.expert(), env, episodes=30, seed=1)
    print(f"{'five seeds':<28}{'weights':>9}{'separate':>10}{'stacked':>9}{'ratio':>8}")
    for width in (64, 128, 256):
        learners = {"regression": (Regression(), BehaviorCloning(1000)), "flow": (Flow(), BehaviorCloning(1000)),
                    "mixture": (GMM(), BehaviorCloning(1000)),
                    "TD3+BC": (Regression(), TD3(1000, bc_weight=0.4, critic=CriticConfig(hidden=(width, width))))}
        for name, (head, learner) in learners.items():
            policy = PolicyConfig(head, MLP(width, 1), window=Window(2, 8))
            compare(f"{name}, width {width}", Method(policy, learner=learner), data)


if __name__ == "__main__":
    main()
