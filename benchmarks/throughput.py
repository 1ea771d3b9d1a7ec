"""Episodes a second of an evaluation on two cores, beside one environment stepped in a loop:
python benchmarks/throughput.py

Both sides play the same weights in the same environments. The loop is what most code does: it plans at batch 1, carries
out the chunk, and plans again, one episode after another, in one thread. Ours are two workers with many rows each, one
thread a worker. Their start (about 2 s of each) is not counted: an evaluation starts them once. Weights are untrained:
how good the actions are costs no time.

As everywhere here by the processor's clock, in turns. The time of ours is what two idle cores would take at least: that
of its busiest process, or half of that of all three, whichever is more.
"""

from __future__ import annotations

import measure

measure.one_thread()

import multiprocessing  # noqa: E402
import os  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from rollouts import plain  # noqa: E402

from understudy import envs  # noqa: E402
from understudy.evaluate.recording import UniformRandomActor  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402
from understudy.evaluate.workers import WorkerPool  # noqa: E402
from understudy.execute.actor import PolicyActor  # noqa: E402
from understudy.execute.planners import FixedBatch  # noqa: E402
from understudy.methods import find_method  # noqa: E402
from understudy.policy import Policy  # noqa: E402

TOYS, MUJOCO = 5.0, 1.7  # what is aimed at, on 2 cores


def untrained(chosen: str, name: str):
    """(method, policy), the same in every process."""
    env = envs.make(name, 4)
    episodes = rollout(UniformRandomActor(env), env, 4)
    method = find_method(chosen, episodes.features())
    torch.manual_seed(0)
    return method, Policy(method.policy, episodes.features()).fit_statistics(episodes).eval()


def seat(chosen: str, name: str, rows: int):
    method, policy = untrained(chosen, name)
    return PolicyActor(FixedBatch(policy, rows), method.executor), envs.make(name, rows)


def spent(pids: list[int]) -> list[float]:
    """Seconds of processor time of each process so far (of Linux)."""
    def one(pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return [one(pid) for pid in pids]


def line(chosen: str, name: str, rows: int, goal: float, episodes: int, alone: int) -> measure.Line:
    """episodes: of our side in a turn; alone: of the loop's."""
    method, policy = untrained(chosen, name)
    one, each = envs.make(name, 1), {"two": [], "loop": []}
    with WorkerPool(partial(seat, chosen, name, rows), 2) as crew:
        mean = crew.rollout(episodes).steps / episodes  # warm, too
        pids = [os.getpid(), *(p.pid for p in multiprocessing.active_children())]
        plain(policy, method, one, 1)
        for _ in range(measure.REPEATS):
            before = spent(pids)
            crew.rollout(episodes)
            took = [b - a for a, b in zip(before, spent(pids), strict=True)]
            each["two"].append(max(max(took), sum(took) / 2) / episodes)
            steps = 0

            def loop():
                nonlocal steps
                steps = plain(policy, method, one, alone)
            each["loop"].append(measure.cpu(loop) / steps * mean)
    return measure.compared(f"{chosen} on {name}, {rows} rows a worker", each, "two", "loop", amount=1,
                            unit="episodes/s", goal=goal)


def main() -> None:
    torch.set_num_threads(1)
    out = [line("bc", name, 128, TOYS, 1024, 8) for name in ("fork", "push")]
    out.append(line("diffusion-policy", "fork", 128, TOYS, 256, 1))
    out += [line("bc", name, 8, MUJOCO, 16, 4) for name in ("Hopper-v4", "AdroitHandDoor-v1", "metaworld/door-open-v3")]
    measure.save("throughput", out, packages=("torch", "numpy", "mujoco", "gymnasium"))


if __name__ == "__main__":
    main()
