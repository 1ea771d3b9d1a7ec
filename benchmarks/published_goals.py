"""Goal-conditioned agents of OGBench on two of its tasks: their published success, and ours with its interval.

    python benchmarks/published_goals.py                        runs what is missing; after Ctrl-C it continues
    python benchmarks/published_goals.py cube-single-play qrl   of this task and this method alone
    python benchmarks/published_goals.py --page                 prints the tables of what has run
    python benchmarks/published_goals.py --tiny                 a size that only shows that it runs

The protocol, fixed before the first run. Park et al. 2025 (arXiv 2410.20092), their settings of each agent for each
data set, and 3 training seeds (theirs 8). All methods have networks of three layers of 256, batches of 256 and rate
3e-4, theirs three layers of 512 and batches of 1,024. 40,000 updates, of CRL on pointmaze-medium-navigate 20,000, of
QRL on cube-single-play 10,000, theirs 1,000,000, so that no cell is called reproduced. Five goals of 50 episodes each,
the same episodes for all methods, of the last weights (theirs: the mean of the last three looks). What must show, by
95 % intervals of differences over training seeds and episodes: on pointmaze-medium-navigate GCIVL, QRL and HIQL above
GCBC, on cube-single-play GCIQL above HIQL. An interval that shows the opposite is published as it is. Nothing is tuned.
The runs of HIQL on pointmaze-medium-navigate then continue to 100,000 updates.

Recorded demonstrations are looked for in UNDERSTUDY_DATA. Those of cube-single-play are not part of it: OGBench's
`data_gen_scripts/generate_manipspace.py` makes them (`--env_name=cube-single-v0 --dataset_type=play`, 1,000 episodes of
1,001 steps). It sets no seed. Here ten calls of 100 episodes, with NumPy's generator seeded by 0 to 9, were joined.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import RESULTS as ALL_RESULTS  # noqa: E402
from measure import machine, one_thread, versions  # noqa: E402

from understudy.data.formats import open_dataset  # noqa: E402
from understudy.envs import make  # noqa: E402
from understudy.evaluate.evaluation import evaluate  # noqa: E402
from understudy.evaluate.stats import Interval, two_level_difference, two_level_rate  # noqa: E402
from understudy.files import read_json, write_json  # noqa: E402
from understudy.learn.method import Method, load_actor  # noqa: E402
from understudy.learn.train import train  # noqa: E402
from understudy.methods import find_method  # noqa: E402
from understudy.nets.feed_forward import FeedForward  # noqa: E402

DATA = Path(os.environ.get("UNDERSTUDY_DATA", "../shared/data")) / "ogbench"
RUNS, RESULTS = Path("runs/published-goals"), ALL_RESULTS / "published-goals"
SEEDS, ROWS, EPISODES = (0, 1, 2), 25, 50


@dataclass(frozen=True)
class Task:
    """The cells of one data set.

    Attributes:
        env: Where policies act; its goals are ":1" to ":5".
        options: Settings of each agent for this data set.
        published: Success of each agent in percent.
        updates: Of agents that do not have 40,000.
        predicted: Agents that are to be above `rival`.
        continued: Cells whose runs are those of other cells.
    """

    env: str
    options: dict[str, dict[str, float]]
    published: dict[str, int]
    updates: dict[str, int]
    rival: str
    predicted: tuple[str, ...]
    continued: dict[str, str] = field(default_factory=dict)


TASKS = {
    "pointmaze-medium-navigate": Task(
        "ogbench/pointmaze-medium-v0",
        options={"gcbc": {}, "gcivl": {"alpha": 10.0}, "gciql": {"alpha": 0.003}, "qrl": {"alpha": 0.0003},
                 "crl": {"alpha": 0.03}, "hiql": {}, "hiql-continued": {}},
        published={"gcbc": 9, "gcivl": 63, "gciql": 53, "qrl": 82, "crl": 29, "hiql": 79, "hiql-continued": 79},
        updates={"crl": 20_000, "hiql-continued": 100_000}, rival="gcbc", predicted=("gcivl", "qrl", "hiql"),
        continued={"hiql-continued": "hiql"}),
    "cube-single-play": Task(
        "ogbench/cube-single-v0",
        options={"gcbc": {}, "gcivl": {"alpha": 10.0}, "gciql": {"alpha": 1.0}, "qrl": {"alpha": 0.3},
                 "hiql": {"subgoal_steps": 10}},
        published={"gcbc": 6, "gcivl": 53, "gciql": 68, "qrl": 5, "hiql": 15},
        updates={"qrl": 10_000}, rival="hiql", predicted=("gciql",)),
}


def build(task: Task, name: str, features, updates: int) -> Method:
    method = find_method(task.continued.get(name, name), features, **task.options[name])
    learner = replace(method.learner, steps=updates, batch_size=256)
    return replace(method, policy=replace(method.policy, trunk=FeedForward((256, 256, 256), "gelu")), learner=learner)


def run(of: str, name: str, seed: int, updates: int, episodes: int, runs: Path, results: Path) -> None:
    """Trains and judges a cell. A run that was interrupted, or that had fewer updates, continues."""
    task, data = TASKS[of], open_dataset(DATA / f"{of}-v0.npz")
    folder = runs / of / f"{task.continued.get(name, name)}-{seed}"
    began = time.process_time()
    train(build(task, name, data.features(), updates), data, folder, seed=seed)
    seconds = time.process_time() - began
    actor, rows = load_actor(folder, rows=ROWS), min(ROWS, episodes)
    environments = (make(f"{task.env}:{goal}", rows=rows) for goal in range(1, 6))
    success = [evaluate(actor, env, episodes, seed=0).successes.astype(int).tolist() for env in environments]
    write_json(results / of / f"{name}-{seed}.json", {
        "success": success, "updates": updates, "seconds": round(seconds, 1), "machine": machine(),
        "versions": versions("torch", "numpy", "mujoco")})
    print(f"{of}, {name}, seed {seed}: {np.mean(success):.3f}", flush=True)


def complete_cells(results: Path, names: Iterable[str]) -> dict[str, list[dict]]:
    """The cells of each method whose training seeds have all run."""
    cells = {name: [read_json(f) for seed in SEEDS if (f := results / f"{name}-{seed}.json").exists()]
             for name in names}
    return {name: runs for name, runs in cells.items() if len(runs) == len(SEEDS)}


def table(results: Path, of: str) -> list[str]:
    """Lines of Markdown with success by method, and its difference to that of the rival."""
    task = TASKS[of]
    lines = [f"| method | published, % | here, % | minus {task.rival.upper()} | by goal, % | updates |",
             "|---|---|---|---|---|---|"]
    cells = complete_cells(results / of, task.options)
    for name, runs in cells.items():
        by_goal = ", ".join(f"{100 * p:.0f}" for p in np.mean([cell["success"] for cell in runs], (0, 2)))
        against = "" if name == task.rival or task.rival not in cells else points(gap(cells, name, task.rival))
        lines.append(f"| {name} | {task.published[name]} | {points(two_level_rate(flat(runs)))} | {against} "
                     f"| {by_goal} | {runs[0]['updates']:,} |")
    return lines


def verdicts(results: Path, of: str) -> str:
    """Whether each method that was predicted to be above its rival is, in words."""
    task = TASKS[of]
    cells = complete_cells(results / of, task.options)
    gaps = {name: gap(cells, name, task.rival) for name in task.predicted if {name, task.rival} <= cells.keys()}
    words = {name: "reproduced" if it.low > 0 else "not reproduced" if it.high < 0 else "undecided"
             for name, it in gaps.items()}
    order = f"{', '.join(task.predicted).upper()} above {task.rival.upper()}"
    return f"{order}: " + ", ".join(f"{name} **{words.get(name, 'not all have run')}**" for name in task.predicted)


def flat(runs: list[dict]) -> np.ndarray:
    """Success in each episode of all goals, (seeds, episodes)."""
    return np.array([cell["success"] for cell in runs]).reshape(len(runs), -1)


def gap(cells: dict[str, list[dict]], name: str, rival: str) -> Interval:
    return two_level_difference(flat(cells[name]), flat(cells[rival]))[0]


def points(interval: Interval) -> str:
    return f"{100 * interval.estimate:.0f} [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def for_each(chosen: list[str], call: Callable[[str, str, int], None]) -> None:
    """Calls for each cell of the chosen tasks and methods. If no task is chosen, all are; so with methods."""
    if unknown := set(chosen) - set(TASKS) - {name for task in TASKS.values() for name in task.options}:
        sys.exit(f"there is no task and no method {', '.join(sorted(unknown))}")
    for of in [name for name in TASKS if name in chosen] or TASKS:
        for seed in SEEDS:
            for name in [name for name in chosen if name not in TASKS] or TASKS[of].options:
                if name in TASKS[of].options:
                    call(of, name, seed)


def main(arguments: list[str]) -> None:
    one_thread()
    chosen = [a for a in arguments if not a.startswith("--")]
    results = RESULTS
    if "--tiny" in arguments:
        runs = Path("runs/published-goals-tiny")
        results = runs / "results"
        for_each(chosen, lambda of, name, seed: run(of, name, seed, 2, 2, runs, results))
    elif "--page" not in arguments:
        for_each(chosen, lambda of, name, seed: (RESULTS / of / f"{name}-{seed}.json").exists() or run(
            of, name, seed, TASKS[of].updates.get(name, 40_000), EPISODES, RUNS, RESULTS))
    for of in TASKS:
        print("\n".join([of, *table(results, of)]))


if __name__ == "__main__":
    main(sys.argv[1:])
