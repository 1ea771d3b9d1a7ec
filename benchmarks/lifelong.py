"""What is forgotten of a task by its age, and what earlier tasks give to a new one:
python benchmarks/lifelong.py [ARM ... | --tiny | --page]

The world, networks and laws are those of the table `power-law-rehearsal`: eight tasks one after the other, three orders
for each training seed. After each task, all eight are measured on 50 starts. The table shows success by
the number of tasks learned since (0: just learned), and success in a task that has not been learned yet, which is what
the earlier ones give to it. The seeds are not those of the table, nor of its pilots. Intervals are over training seeds
and orders (`two_level_rate`). All this was fixed before the first run.

The cells, one for each training seed and arm, are kept in results/lifelong/. A run that was stopped continues.
--budget 8m starts no cell later than that. --tiny keeps its cells in results/lifelong-tiny/. --page only prints the
table of the cells that there are.
"""

from __future__ import annotations

import measure

measure.one_thread()

import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

from understudy.evaluate.evaluation import validation_seed  # noqa: E402
from understudy.evaluate.stats import Interval, two_level_rate  # noqa: E402
from understudy.files import read_json, write_json  # noqa: E402

sys.path.insert(0, str(measure.HERE.parent))
from evidence.families.task_sequence.what_to_keep import N_ORDERS, N_TASKS, Sequence, TaskDemonstrations, successes  # noqa: E402

SEEDS, STARTS = range(870, 875), 50
ARMS = {"one after the other": Sequence(), "EWC": Sequence(elastic=0.1), "power law": Sequence("power"),
        "uniform": Sequence("uniform"), "uniform, 5 kept": Sequence("uniform", kept=5)}


def cell_path(arm: str, seed: int, tiny: bool) -> Path:
    """The file of a cell."""
    return measure.RESULTS / f"lifelong{'-tiny' * tiny}" / f"{arm.replace(',', '').replace(' ', '-')}-{seed}.json"


def run_cell(arm: str, seed: int, tiny: bool) -> dict:
    """Success in each task after each, (orders, tasks learned, tasks), with the tasks in the order of learning."""
    starts, everything = 2 if tiny else STARTS, np.tile(np.arange(N_TASKS), (N_ORDERS, 1))
    data = TaskDemonstrations(2 if tiny else 50).load(seed)
    sequence = Sequence(**{**vars(ARMS[arm]), **({"updates": 1} if tiny else {})})
    after, began = [], time.process_time()

    def evaluate(nets, tasks):
        after.append(successes(nets, everything, starts, validation_seed(seed)))
        return np.take_along_axis(after[-1], tasks, 1)
    orders, _, _ = sequence.learn(data, seed, evaluate)
    matrix = np.stack([np.take_along_axis(success, orders, 1) for success in after[:N_TASKS]], 1)
    return {"success": matrix.tolist(), "seconds": round(time.process_time() - began, 1)}


def by_age(matrix: np.ndarray) -> list[Interval]:
    """Success by the number of tasks learned since, for matrices (seeds, orders, tasks learned, tasks)."""
    return [two_level_rate(np.diagonal(matrix, -age, 2, 3).reshape(len(matrix), -1), kind="bounded")
            for age in range(N_TASKS)]


def before_learning(matrix: np.ndarray) -> Interval:
    """Success in tasks that are learned next."""
    return two_level_rate(np.diagonal(matrix, 1, 2, 3).reshape(len(matrix), -1), kind="bounded")


def table(tiny: bool) -> str:
    """Success in percent by the number of tasks learned since, or no text if cells are missing."""
    ages = (0, 1, 3, 7)
    lines = ["| arm | next task, before it is learned | " + " | ".join(
        f"{age} tasks later" if age else "just learned" for age in ages) + " |", "|---|" + "--:|" * (1 + len(ages))]
    for arm in ARMS:
        files = [cell_path(arm, seed, tiny) for seed in SEEDS]
        if not all(file.exists() for file in files):
            return ""
        matrix = np.array([read_json(file)["success"] for file in files])
        intervals = by_age(matrix)
        cells = [measure.percent(i.low, i.estimate, i.high) for i in (before_learning(matrix),
                                                                      *(intervals[age] for age in ages))]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    o = measure.task_options(__doc__, ARMS)
    for seed in () if o.page else SEEDS:
        for arm in o.tasks or ARMS:
            if not (file := cell_path(arm, seed, o.tiny)).exists() and time.monotonic() < o.until:
                write_json(file, cell := run_cell(arm, seed, o.tiny))
                print(f"{arm}, seed {seed}: {cell['seconds']} s", file=sys.stderr, flush=True)
    print(table(o.tiny))


if __name__ == "__main__":
    main()
