"""Learners from rewards on 25 demonstrations of the Adroit door by people: CORL's scores, and ours with intervals.

    python benchmarks/published_doors.py            runs what is missing; after Ctrl-C it continues
    python benchmarks/published_doors.py iql awac   of these methods alone
    python benchmarks/published_doors.py --page     prints the table of what has run
    python benchmarks/published_doors.py --tiny     a size that only shows that it runs

The protocol, fixed before the first run. Settings of CORL (Tarasov et al. 2022, arXiv 2210.07105) for door-human:
batches of 256, rate 3e-4, two layers of 256, expectile 0.8 and beta 3 (IQL), temperature 0.1 (AWAC), conservative
weight 1 (CQL, whose critic has three layers there, and its policy a rate of 1e-4). 100,000 updates of IQL and AWAC,
20,000 of CQL, where CORL has 1,000,000. The decision transformer has 10,000 updates of 64 windows at a rate of 1e-4,
where CORL has 100,000 of 4,096 at 8e-4, and asks for a return of 1,450, the lower of CORL's two. Everything else, such
as heads and codecs, is as the methods have it. No demonstration ends in a terminal state, as in D4RL. 3 training seeds
(theirs 4). D4RL's normalized score over 200 steps: "last" is of the last weights in 100 episodes, "best" the highest
mean of 10 episodes among 20 looks, chosen on the very episodes that judge it, as published, and "best, new episodes"
that of those weights in the 100 episodes of "last". The episodes are those of the cells of cloning in published.py,
which is the rival. Nothing was predicted, nothing is tuned, and no cell is called reproduced, because all have a tenth
of the published updates or less.

Recorded demonstrations are looked for in UNDERSTUDY_DATA.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import RESULTS as ALL_RESULTS  # noqa: E402
from measure import machine, one_thread, versions  # noqa: E402
from published_goals import complete_cells  # noqa: E402

from understudy.core import Diverged  # noqa: E402
from understudy.data.formats import open_dataset  # noqa: E402
from understudy.envs import make  # noqa: E402
from understudy.envs.simulators.adroit import score  # noqa: E402
from understudy.evaluate.evaluation import evaluate, validation_seed  # noqa: E402
from understudy.evaluate.stats import Interval, two_level_difference, two_level_mean  # noqa: E402
from understudy.execute.actor import Actor  # noqa: E402
from understudy.files import read_json, write_json  # noqa: E402
from understudy.learn.method import load_actor  # noqa: E402
from understudy.learn.train import train  # noqa: E402
from understudy.methods import find_method  # noqa: E402

DATA = Path(os.environ.get("UNDERSTUDY_DATA", "../shared/data")) / "hand_dapg/adroit_door_human.npz"
RUNS, RESULTS = Path("runs/published-doors"), ALL_RESULTS / "published-doors"
SEEDS, ROWS, LOOKS, WATCHED, JUDGED = (0, 1, 2), 10, 20, 10, 100
OPTIONS: dict[str, dict[str, float]] = {"iql": {"expectile": 0.8}, "awac": {"temperature": 0.1},
                                        "cql": {"conservative_weight": 1.0},
                                        "decision-transformer": {"target_return": 1450.0}}
UPDATES = {"iql": 100_000, "awac": 100_000, "cql": 20_000, "decision-transformer": 10_000}
PUBLISHED = {"bc": (2.3, 9.4), "iql": (3.3, 13.5), "awac": (4.6, 19.3), "cql": (5.5, 13.3),
             "decision-transformer": (4.4, 7.4)}  # last and best


def run(name: str, seed: int, updates: int, looks: int, episodes: int, runs: Path, results: Path) -> None:
    """Trains and judges a cell. An interrupted run continues."""
    data = open_dataset(DATA).map(lambda e: e.replace({"next.terminated": np.zeros(len(e), bool)}))
    method = find_method(name, data.features(), **OPTIONS[name])
    method = replace(method, learner=replace(method.learner, steps=updates))
    folder, env, began = runs / f"{name}-{seed}", make("AdroitHandDoor-v1", ROWS, limit=200), time.process_time()

    def scores(actor: Actor, n: int, starts: int) -> list[float]:
        return [score(e.steps["next.reward"]) for e in evaluate(actor, env, n, starts).episodes]
    resumed, diverged = folder.exists(), None
    try:
        train(method, data, folder, seed=seed, save_freq=updates // looks, val_fraction=0.0,
              score=lambda actor: float(np.mean(scores(actor, WATCHED, validation_seed(0)))))
    except Diverged as error:  # its last checkpoint is judged
        diverged = error.where
        print(error, file=sys.stderr)
    seconds = time.process_time() - began
    last, best = (load_actor(folder / place, rows=ROWS) for place in ("last", "best"))
    write_json(results / f"{name}-{seed}.json", {
        "last": scores(last, episodes, 0), "best": scores(best, WATCHED, validation_seed(0)),
        "anew": scores(best, episodes, 0), "updates": updates, "diverged": diverged,
        "seconds": None if resumed else round(seconds, 1), "machine": machine(),
        "versions": versions("torch", "numpy", "mujoco")})
    print(f"{name}, seed {seed} has run", flush=True)


def cloned(results: Path) -> list[dict]:
    """The cells of cloning, with the keys of those of this file."""
    cells = [read_json(f) for seed in SEEDS if (f := results / f"door-{seed}.json").exists()]
    return [{**cell, "best": cell["looks"][cell["best"] * LOOKS // cell["updates"] - 1]} for cell in cells]


def table(results: Path, cloning: list[dict]) -> list[str]:
    """Lines of Markdown with the scores of the methods whose training seeds have all run, and of cloning."""
    lines = ["| method | last, published | last | minus BC | best, published | best | best, new episodes | updates |",
             "|---|---|---|---|---|---|---|---|"]
    cells = complete_cells(results, OPTIONS)
    if len(cloning) == len(SEEDS):
        cells = {"bc": cloning, **cells}
    for name, runs in cells.items():
        last, best, anew = ([cell[key] for cell in runs] for key in ("last", "best", "anew"))
        gap = "" if "bc" not in cells or name == "bc" else text(two_level_difference(
            np.array(last), np.array([cell["last"] for cell in cloning]), kind="real")[0])
        published = PUBLISHED[name]
        lines.append(f"| {name} | {published[0]} | {text(two_level_mean(last))} | {gap} | {published[1]} "
                     f"| {text(two_level_mean(best))} | {text(two_level_mean(anew))} | {runs[0]['updates']:,} |")
    stopped = [f"seed {seed} of {name} at {update}" for name, runs in cells.items() for seed, cell in enumerate(runs)
               if (update := cell.get("diverged"))]
    return [*lines, *(["", f"Trainings that ended early because the critic diverged, and whose last checkpoint is "
                       f"judged: {', '.join(stopped)}."] if stopped else [])]


def text(interval: Interval) -> str:
    return f"{interval.estimate:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


def main(arguments: list[str]) -> None:
    one_thread()
    names = [a for a in arguments if not a.startswith("--")] or list(OPTIONS)
    if "--tiny" in arguments:
        folder = Path("runs/published-doors-tiny")
        for name in names:
            run(name, 0, 4, 2, 2, folder, folder / "results")
        return
    for name in () if "--page" in arguments else names:
        for seed in SEEDS:
            if not (RESULTS / f"{name}-{seed}.json").exists():
                run(name, seed, UPDATES[name], LOOKS, JUDGED, RUNS, RESULTS)
    print("\n".join(table(RESULTS, cloned(ALL_RESULTS / "published"))))


if __name__ == "__main__":
    main(sys.argv[1:])
