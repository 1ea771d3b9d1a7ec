"""Goal-conditioned agents of OGBench on pointmaze-medium-navigate: their published success, and ours with its interval.

    python benchmarks/published_goals.py              runs what is missing; Ctrl-C and go on
    python benchmarks/published_goals.py gcivl hiql   of these methods alone
    python benchmarks/published_goals.py --page       prints the table of what has run
    python benchmarks/published_goals.py --tiny       a size that only shows that it runs

The protocol, fixed before the first run. Park et al. 2025 (arXiv 2410.20092), their settings of each agent for this
data set, and 3 training seeds (theirs 8). All methods have networks of three layers of 256, batches of 256 and rate
3e-4, theirs three layers of 512 and batches of 1,024. 40,000 updates, of CRL 20,000, theirs 1,000,000, so that no
cell is called reproduced. Five goals of 50 episodes each, the same episodes for all methods, of the last weights
(theirs: the mean of the last three looks). What must show: GCIVL, QRL and HIQL minus GCBC lie above 0 by their 95 %
intervals over training seeds and episodes. An interval that lies below is published as it is. Nothing is tuned. The
runs of HIQL then continue to 100,000 updates.

Recorded demonstrations are looked for in UNDERSTUDY_DATA.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
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

DATA = Path(os.environ.get("UNDERSTUDY_DATA", "../shared/data")) / "ogbench/pointmaze-medium-navigate-v0.npz"
RUNS, RESULTS = Path("runs/published-goals"), ALL_RESULTS / "published-goals"
SEEDS, ROWS, EPISODES = (0, 1, 2), 25, 50
OPTIONS: dict[str, dict[str, float]] = {"gcbc": {}, "gcivl": {"alpha": 10.0}, "gciql": {"alpha": 0.003},
                                        "qrl": {"alpha": 0.0003}, "crl": {"alpha": 0.03}, "hiql": {},
                                        "hiql-continued": {}}
PUBLISHED = {"gcbc": 9, "gcivl": 63, "gciql": 53, "qrl": 82, "crl": 29, "hiql": 79, "hiql-continued": 79}  # percent
UPDATES = {"crl": 20_000, "hiql-continued": 100_000}
CONTINUED = {"hiql-continued": "hiql"}  # cells whose runs are those of other cells
PREDICTED = ("gcivl", "qrl", "hiql")  # to be above gcbc


def build(name: str, features, updates: int) -> Method:
    method = find_method(CONTINUED.get(name, name), features, **OPTIONS[name])
    learner = replace(method.learner, steps=updates, batch_size=256)
    return replace(method, policy=replace(method.policy, trunk=FeedForward((256, 256, 256), "gelu")), learner=learner)


def run(name: str, seed: int, updates: int, episodes: int, runs: Path, results: Path) -> None:
    """Trains and judges a cell. A run that was interrupted, or that had fewer updates, continues."""
    data = open_dataset(DATA)
    folder = runs / f"{CONTINUED.get(name, name)}-{seed}"
    began = time.process_time()
    train(build(name, data.features(), updates), data, folder, seed=seed)
    seconds = time.process_time() - began
    actor, rows = load_actor(folder, rows=ROWS), min(ROWS, episodes)
    environments = (make(f"ogbench/pointmaze-medium-v0:{goal}", rows=rows) for goal in range(1, 6))
    success = [evaluate(actor, env, episodes, seed=0).successes.astype(int).tolist() for env in environments]
    write_json(results / f"{name}-{seed}.json", {
        "success": success, "updates": updates, "seconds": round(seconds, 1), "machine": machine(),
        "versions": versions("torch", "numpy", "mujoco")})
    print(f"{name}, seed {seed}: {np.mean(success):.3f}", flush=True)


def complete_cells(results: Path, names: Iterable[str] = OPTIONS) -> dict[str, list[dict]]:
    """The cells of each method whose training seeds have all run."""
    cells = {name: [read_json(f) for seed in SEEDS if (f := results / f"{name}-{seed}.json").exists()]
             for name in names}
    return {name: runs for name, runs in cells.items() if len(runs) == len(SEEDS)}


def table(results: Path) -> list[str]:
    """Lines of Markdown with success by method, and its difference to GCBC."""
    lines = ["| method | published | here | minus GCBC | by goal | updates |", "| --- | --- | --- | --- | --- | --- |"]
    cells = complete_cells(results)
    for name, runs in cells.items():
        by_goal = ", ".join(f"{100 * p:.0f}" for p in np.mean([cell["success"] for cell in runs], (0, 2)))
        against = "" if name == "gcbc" or "gcbc" not in cells else points(minus_cloning(cells, name))
        lines.append(f"| {name} | {PUBLISHED[name]} % | {points(two_level_rate(flat(runs)))} | {against} | {by_goal} % "
                     f"| {runs[0]['updates']:,} |")
    return lines


def verdicts(results: Path) -> str:
    """Whether each method in `PREDICTED` is above cloning, in words."""
    cells = complete_cells(results)
    gaps = {name: minus_cloning(cells, name) for name in PREDICTED if {name, "gcbc"} <= cells.keys()}
    words = {name: "reproduced" if gap.low > 0 else "not reproduced" if gap.high < 0 else "undecided"
             for name, gap in gaps.items()}
    return ", ".join(f"{name} **{words.get(name, 'not all have run')}**" for name in PREDICTED)


def flat(runs: list[dict]) -> np.ndarray:
    """Success in each episode of all goals, (seeds, episodes)."""
    return np.array([cell["success"] for cell in runs]).reshape(len(runs), -1)


def minus_cloning(cells: dict[str, list[dict]], name: str) -> Interval:
    return two_level_difference(flat(cells[name]), flat(cells["gcbc"]))[0]


def points(interval: Interval) -> str:
    return f"{100 * interval.estimate:.0f} [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def for_each(names: list[str], call: Callable[[str, int], None]) -> None:
    for seed in SEEDS:
        for name in names or list(OPTIONS):
            call(name, seed)


def main(arguments: list[str]) -> None:
    one_thread()
    names = [a for a in arguments if not a.startswith("--")]
    if "--tiny" in arguments:
        folder = Path("runs/published-goals-tiny")
        for_each(names, lambda name, seed: run(name, seed, 2, 2, folder, folder / "results"))
        print("\n".join(table(folder / "results")))
        return
    if "--page" not in arguments:
        for_each(names, lambda name, seed: (RESULTS / f"{name}-{seed}.json").exists() or run(
            name, seed, UPDATES.get(name, 40_000), EPISODES, RUNS, RESULTS))
    print("\n".join(table(RESULTS)))


if __name__ == "__main__":
    main(sys.argv[1:])
