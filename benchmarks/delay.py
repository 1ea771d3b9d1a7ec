"""Success against inference delay: python benchmarks/delay.py [TASK ... | --tiny | --page]

One flow policy for each task and training seed acts with every execution scheme, while its plans arrive 0 to 8 steps
late. The settings are written here before any run and nothing is tuned: every scheme has its defaults, and executes 4
steps of a chunk of 16 where it has such a number. The scheme jerk-limit is left out: it is for actions that are
positions, and those of both toys are velocities. On the door of Meta-World, actions are steps of a position controller.

Late plans are those of `DelayedPlan`: the old chunk continues, one plan is computed at a time, and the steps of a new
chunk whose time has passed are skipped. The two ensembles start a plan at every step instead, and compute several at
once (`TemporalEnsemble(delay=...)`). Real-time chunking knows the delay. The computation of 15 samples
counts as much as that of one: the axis is the delay, not the work.

The cells, one for each task, seed and scheme, are kept in results/delay/: a run that was stopped continues, and trains
at most its current policy again; --budget 30m starts no cell later than that. All of it takes an hour or two of a core,
by the machine. --tiny takes minutes, keeps its cells in results/delay-tiny/, and shows only that everything runs.
--page writes what docs/execution.md says, and the figures, from the cells that there are.
"""

from __future__ import annotations

import measure

measure.one_thread()

import sys  # noqa: E402
import time  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

from understudy.data.episode import Dataset  # noqa: E402
from understudy.envs import make  # noqa: E402
from understudy.evaluate.evaluation import recording_seed  # noqa: E402
from understudy.evaluate.plots import Axis, curves  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402
from understudy.evaluate.stats import Interval, two_level_difference, two_level_rate  # noqa: E402
from understudy.execute.actor import Actor, PolicyActor  # noqa: E402
from understudy.execute.chunking import ChunkedExecutor  # noqa: E402
from understudy.execute.latency import delay_actor  # noqa: E402
from understudy.execute.temporal_ensemble import TemporalEnsemble  # noqa: E402
from understudy.files import read_json, write_json, write_text  # noqa: E402
from understudy.learn.execution import with_execution_scheme  # noqa: E402
from understudy.learn.fit_method import fit_method  # noqa: E402
from understudy.learn.method import Method, build_planner  # noqa: E402
from understudy.methods.generative.flow_policy import flow_policy  # noqa: E402
from understudy.policy import Policy  # noqa: E402

PICTURES = measure.HERE.parent / "docs" / "images"
SCHEMES = ("receding-horizon", "temporal-ensemble", "adaptive-ensemble", "chunk-blending", "bidirectional-decoding",
           "adaptive-horizon", "adaptive-chunking", "self-guided-chunking", "real-time-chunking", "low-pass")
DELAYS = tuple(range(9))
REFERENCE = SCHEMES[0]


@dataclass(frozen=True)
class Task:
    """What is learned.

    Args:
        env: Name of the environment.
        n_demonstrations: How many demonstrations of its expert the policy learns from.
        options: Of the environment.
        most_episodes: The most starts of a cell, where the simulator is slow.
    """

    env: str
    n_demonstrations: int
    options: tuple[tuple[str, float], ...] = ()
    most_episodes: int = 100


@dataclass(frozen=True)
class Size:
    """How much is run. The first numbers are those of the table."""

    folder: str = "delay"
    seeds: tuple[int, ...] = (0, 1, 2)
    delays: tuple[int, ...] = DELAYS
    updates: int = 4000
    episodes: int = 100


FULL = Size()
TINY = Size("delay-tiny", (0, 1), (0, 4, 8), 300, 10)
TASKS = {"fork": Task("fork", 100, (("gust", 0.2),)), "push": Task("push", 200),
         "door-open": Task("metaworld/door-open-v3", 50, (("limit", 150),), most_episodes=20)}
TABLE = ("fork", "push")  # three seeds of 20 starts of the door tell no scheme apart


def method(size: Size) -> Method:
    """The policy of all schemes."""
    flow_method = flow_policy(n_action_steps=4)
    optimizer = replace(flow_method.learner.optimizer, warmup_steps=min(100, size.updates // 10))
    return replace(flow_method, learner=replace(flow_method.learner, steps=size.updates, optimizer=optimizer))


def demonstrations(task: Task) -> Dataset:
    """Successful episodes of the expert."""
    env = make(task.env, rows=task.most_episodes, **dict(task.options))
    return rollout(env.expert(), env, task.n_demonstrations, recording_seed(0)).filter(lambda e: e.metadata["success"])


def late_actor(policy: Policy, base: Method, scheme: str, delay: int, rows: int) -> Actor:
    """The policy with an execution scheme whose plans arrive `delay` steps late."""
    base = with_execution_scheme(base, scheme)
    planner = build_planner(base, {"policy": policy}, rows)
    if isinstance(base.executor, TemporalEnsemble):
        return PolicyActor(planner, replace(base.executor, delay=delay))
    executor = base.executor.with_delay(delay, planner) if isinstance(base.executor, ChunkedExecutor) else base.executor
    return delay_actor(PolicyActor(planner, executor), delay)


def cell_path(size: Size, name: str, seed: int, scheme: str) -> Path:
    """The file of a cell."""
    return measure.RESULTS / size.folder / f"{name}-{seed}-{scheme}.json"


def run_cells(size: Size, name: str, seed: int, until: float = float("inf")) -> None:
    """Runs the cells of a task and a training seed that are missing. None begins after `until`."""
    task, trained_method, policy = TASKS[name], method(size), None
    episodes = min(size.episodes, task.most_episodes)
    for scheme in SCHEMES:
        path = cell_path(size, name, seed, scheme)
        if path.exists() or time.monotonic() > until:
            continue
        if policy is None:
            policy = fit_method(trained_method, demonstrations(task), seed).policy
        cells = {}
        for delay in size.delays:
            env = make(task.env, rows=episodes, **dict(task.options))
            rollouts = rollout(late_actor(policy, trained_method, scheme, delay, episodes), env, episodes, seed=0)
            cells[str(delay)] = [int(e.metadata["success"]) for e in rollouts]
        write_json(path, {"task": name, "seed": seed, "scheme": scheme, "updates": size.updates, "success": cells})
        rates = ", ".join(f"{d}: {sum(s) / len(s):.2f}" for d, s in cells.items())
        print(f"{name} seed {seed} {scheme}: {rates}", file=sys.stderr, flush=True)


def finished_seeds(size: Size, name: str) -> list[int]:
    """The training seeds for which every scheme has run. Empty if there is only one, which has no interval."""
    finished_seeds = [s for s in size.seeds if all(cell_path(size, name, s, scheme).exists() for scheme in SCHEMES)]
    return finished_seeds if len(finished_seeds) > 1 else []


def outcomes(size: Size, name: str) -> dict[str, np.ndarray]:
    """Success of each scheme, (seeds, delays, starts), of the finished seeds. Empty if there are none."""
    cells = {scheme: [read_json(cell_path(size, name, s, scheme))["success"] for s in seeds]
             for seeds in [finished_seeds(size, name)] if seeds for scheme in SCHEMES}
    return {scheme: np.array([[cell[str(d)] for d in size.delays] for cell in cells_of_scheme], float)
            for scheme, cells_of_scheme in cells.items()}


def intervals(won: dict[str, np.ndarray]) -> dict[str, list[Interval]]:
    """The success of each scheme at each delay, with its interval over seeds and starts."""
    return {scheme: [two_level_rate(x[:, i]) for i in range(x.shape[1])] for scheme, x in won.items()}


def percent(rate: Interval) -> str:
    """A success rate in percent, with its interval, for the table."""
    return f"{100 * rate.estimate:.0f} [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


def points(difference: Interval) -> str:
    """A difference in points, with its interval, for the table."""
    text = measure.percent(difference.low, difference.estimate, difference.high, "+")
    return f"**{text}**" if difference.low > 0 or difference.high < 0 else text


def differences(won: dict[str, np.ndarray], delays: tuple[int, ...]) -> dict[str, list[Interval]]:
    """Success of each scheme minus that of receding horizon, paired by seed and start: without delay, and as the mean
    over the delays above 0."""
    first, late = delays.index(0), [i for i, d in enumerate(delays) if d]
    plain = won[REFERENCE]
    return {scheme: [two_level_difference(x[:, first], plain[:, first])[0],
                     two_level_difference(x[:, late].mean(1), plain[:, late].mean(1), kind="bounded")[0]]
            for scheme, x in won.items() if scheme != REFERENCE}


def write_figure(size: Size, name: str, success: dict[str, list[Interval]]) -> None:
    """The figure of a task, with all delays."""
    delays = [float(d) for d in size.delays]
    figure = curves({scheme: (delays, [r.estimate for r in rates]) for scheme, rates in success.items()},
                    Axis("delay in steps"), Axis(f"success on {name}", 0, 1), dots=True)
    write_text(PICTURES / f"delay-{name}.svg", figure.standalone_svg())


def page_text(size: Size) -> str:
    """What the documentation says of each task: the success of the reference, and the other schemes minus it."""
    lines, columns, compared = [], [], []
    late = [d for d in size.delays if d]
    for name, task in TASKS.items():
        if not (won := outcomes(size, name)):
            continue
        success = intervals(won)
        write_figure(size, name, success)
        options = "".join(f", {k}={v:g}" for k, v in task.options)
        in_time, latest = percent(success[REFERENCE][0]), percent(success[REFERENCE][-1])
        lines.append(
            f"- {name}{options} ({len(finished_seeds(size, name))} training seeds, "
            f"{min(size.episodes, task.most_episodes)} starts each): {REFERENCE} succeeds in {in_time} %, "
            f"and in {latest} % at delay {late[-1]} ([figure](images/delay-{name}.svg)).")
        if name in TABLE:
            columns += [f"{name}, no delay", f"{name}, delays {late[0]} to {late[-1]}"]
            compared.append(differences(won, size.delays))
    rows = [f"| {scheme} | {' | '.join(points(d) for of in compared for d in of[scheme])} |"
            for scheme in SCHEMES if scheme != REFERENCE]
    parts = [*lines, "", f"| scheme minus {REFERENCE} | {' | '.join(columns)} |",
             "|---|" + "--:|" * len(columns), *rows] if columns else lines
    if size == TINY and parts:
        parts.insert(0, "**These numbers are from the smallest size of the benchmark, which only shows that it runs. "
                        "The policies are barely trained, and the intervals are too wide to compare schemes.**\n")
    return "\n".join(parts)


def main() -> None:
    torch.set_num_threads(1)
    o = measure.task_options(__doc__, TASKS)
    size = TINY if o.tiny else FULL
    for seed in () if o.page else size.seeds:
        for name in o.tasks or TASKS:
            run_cells(size, name, seed, o.until)
    if text := page_text(size):
        measure.insert("delay", text, "execution.md")
        print(text)


if __name__ == "__main__":
    main()
