"""Training-time and guided real-time chunking under delay: python benchmarks/training_time_rtc.py [TASK ...]

Three ways to act while a plan is computed, on the tasks of `delay.py`, with its demonstrations, starts and settings:
a flow policy with receding horizon, the same policy with real-time chunking, and one that was trained to continue given
actions (training-time-rtc). Both policies have the same network and number of updates, and the second one learns delays
of 0 to 8 steps. Nothing is tuned. Success in percent, and the difference between the two real-time schemes in points,
paired by training seed and start, with 95% intervals over seeds and starts. Results are printed and not kept.
"""

from __future__ import annotations

import measure

measure.one_thread()

import sys  # noqa: E402
import time  # noqa: E402
from dataclasses import replace  # noqa: E402

import delay  # noqa: E402
import numpy as np  # noqa: E402

from understudy.envs import make  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402
from understudy.evaluate.stats import two_level_difference, two_level_rate  # noqa: E402
from understudy.execute.actor import PolicyActor  # noqa: E402
from understudy.execute.chunking import RealTimeChunking, RecedingHorizon  # noqa: E402
from understudy.execute.latency import delay_actor  # noqa: E402
from understudy.execute.prefix_chunking import PrefixChunking  # noqa: E402
from understudy.learn.fit_method import fit_method  # noqa: E402
from understudy.methods.generative.training_time_rtc import training_time_rtc  # noqa: E402

DELAYS, SEEDS = (0, 2, 4, 8), (0, 1, 2)
SCHEMES = {"receding-horizon": RecedingHorizon(4), "real-time-chunking": RealTimeChunking(4, 0),
           "training-time-rtc": PrefixChunking(4, 0)}


def outcomes(task: delay.Task) -> dict[str, np.ndarray]:
    """Success of each scheme, (seeds, delays, starts)."""
    plain = delay.method(delay.FULL)
    trained = replace(training_time_rtc(n_action_steps=4, max_delay=max(DELAYS)), learner=plain.learner)
    won: dict[str, list[list[list[int]]]] = {scheme: [] for scheme in SCHEMES}
    for seed in SEEDS:
        policies = [fit_method(m, delay.demonstrations(task), seed).policy for m in (plain, trained)]
        for scheme, executor in SCHEMES.items():
            actor = PolicyActor(policies[scheme == "training-time-rtc"], executor)
            env = make(task.env, rows=task.most_episodes, **dict(task.options))
            won[scheme].append([[int(e.metadata["success"]) for e in rollout(
                delay_actor(actor, steps), env, task.most_episodes, seed=0)] for steps in DELAYS])
            print(f"{task.env} seed {seed} {scheme}: {np.mean(won[scheme][-1], 1)}", file=sys.stderr, flush=True)
    return {scheme: np.array(successes, float) for scheme, successes in won.items()}


def main(names: list[str]) -> None:
    began = time.perf_counter()
    for name in names:
        won = outcomes(delay.TASKS[name])
        print(f"{name}: {len(SEEDS)} training seeds, {won['receding-horizon'].shape[2]} starts each", "",
              "| delay in steps | " + " | ".join(map(str, DELAYS)) + " |", "|---|" + "---|" * len(DELAYS), sep="\n")
        for scheme, x in won.items():
            rates = (two_level_rate(x[:, i]) for i in range(len(DELAYS)))
            print(f"| {scheme} | " + " | ".join(f"{100 * r.estimate:.0f} [{100 * r.low:.0f}, {100 * r.high:.0f}]"
                                                for r in rates) + " |")
        pairs = (two_level_difference(won["training-time-rtc"][:, i], won["real-time-chunking"][:, i])[0]
                 for i in range(len(DELAYS)))
        print("| training-time minus guided | " + " | ".join(map(delay.points, pairs)) + " |", "", sep="\n")
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:] or ["fork", "push"])
