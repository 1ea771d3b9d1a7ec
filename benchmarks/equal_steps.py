"""Success of interactive methods against the steps of a person: python benchmarks/equal_steps.py [TASK ... | OPTION]

The methods are those of `understudy improve`, with its settings and the scripted supervisor. Each continues the same
cloned policy of each training seed, in four rounds with 500 updates each. A round lasts until the supervisor has acted
or labeled a quarter of 600 steps, or for 40 episodes. The last episode of a round is complete, so that the steps are
more. Beside them stand cloning of the same demonstrations, and of these and demonstrations of 600 steps in the
world of deployment, each from the start with as many updates as the methods have in all. All policies of a training
seed act from the same starts. Intervals are Student's t over training seeds, which have their own starts.

A cell is a method, a task and a training seed. Its file in benchmarks/results/equal-steps has the outcome of each
start, and the steps that the supervisor acted, labeled and watched. Cells that are there are not run again. The tasks
were chosen by a pilot with the seed 50, in which no method took part: the first policy succeeds in 30 to 70 % of the
episodes, and the same cloning with five times the demonstrations in at least 20 points more. --seed N runs that seed
alone. --page writes the table of docs/improvement-tables.md. --budget 30m begins no cell later. --tiny runs all in
the smallest size.
"""

from __future__ import annotations

import measure

measure.one_thread()

import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402
from functools import partial  # noqa: E402
from itertools import product  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

from understudy.data.episode import Dataset  # noqa: E402
from understudy.data.window import Window  # noqa: E402
from understudy.envs import make  # noqa: E402
from understudy.envs.base import Env  # noqa: E402
from understudy.evaluate.evaluation import evaluate, recording_seed  # noqa: E402
from understudy.evaluate.recording import expert_actor  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402
from understudy.execute.chunking import RecedingHorizon  # noqa: E402
from understudy.files import read_json, write_json  # noqa: E402
from understudy.heads.likelihood.regression import Regression  # noqa: E402
from understudy.improve.collection import COSTS, CollectionRounds  # noqa: E402
from understudy.improve.improvement import Improvement  # noqa: E402
from understudy.learn.behavior_cloning import BehaviorCloning  # noqa: E402
from understudy.learn.fit_method import FitResult, fit_method  # noqa: E402
from understudy.learn.method import Method  # noqa: E402
from understudy.learn.train import train  # noqa: E402
from understudy.nets.encoders import ConcatEncoder  # noqa: E402
from understudy.nets.mlp import MLP  # noqa: E402
from understudy.policy import PolicyConfig  # noqa: E402

sys.path.insert(0, str(measure.HERE.parent))
from evidence.worlds.human_steps import HumanStepsCollector, expert_steps  # noqa: E402
from evidence.worlds.peg import WeakPeg  # noqa: E402

RIVAL = "more demonstrations"
RIVALS = ("cloning", RIVAL)
METHODS = ("dagger", "hg-dagger", "safe", "lazy", "ensemble", "iwr", "sirius", "rlif", "thrifty")
NAMES = {"peg": "peg insertion", "planar_arms": "two arms", "push": "push"}
FIRST_DEMONSTRATION = 500_000  # number of the first demonstration that the steps of the supervisor buy
ROWS = 25  # environments side by side; results do not depend on it


@dataclass(frozen=True)
class Task:
    """A task: the worlds of the demonstrations and of deployment, given their rows, and the number of demonstrations.
    """

    demonstrated: Callable[[int], Env]
    deployed: Callable[[int], Env]
    n_demonstrations: int


TASKS = {"peg": Task(partial(WeakPeg, loss=0.0), WeakPeg, 30),
         "planar_arms": Task(partial(make, "planar_arms"), partial(make, "planar_arms"), 30),
         "push": Task(partial(make, "push"), partial(make, "push"), 100)}


@dataclass(frozen=True)
class Size:
    """How much is run. The first numbers are those of the page."""

    folder: str = "equal-steps"
    seeds: tuple[int, ...] = (0, 1, 2)
    updates: int = 2000  # of the first policy, and of all rounds together
    n_rounds: int = 4
    n_steps: int = 600  # that the supervisor acts or labels
    starts: int = 300


FULL, TINY = Size(), Size("equal-steps-tiny", (0, 1), 20, 2, 20, 10)


def cloning(updates: int) -> Method:
    policy = PolicyConfig(Regression(), MLP(64, 1), ConcatEncoder(), window=Window(horizon=8))
    return Method(policy, RecedingHorizon(4), BehaviorCloning(updates))


def interactive(run: Path, data: Dataset, name: str, size: Size) -> tuple[Method, dict[str, Path]]:
    """The method of `understudy improve`, whose rounds have equally many steps of the supervisor, and its stages."""
    improvement = Improvement(run, data, "expert", size.n_rounds, n_updates=size.updates // size.n_rounds)
    method, stages = improvement.build(name)
    rounds = method.collection
    assert isinstance(rounds, CollectionRounds)
    collector = HumanStepsCollector(rounds.collector, size.n_steps // size.n_rounds)
    return replace(method, collection=replace(rounds, collector=collector)), stages


def run_seed(task: str, seed: int, size: Size, names: Sequence[str], until: float) -> None:
    """Runs those of some cells of a task and a training seed that are missing."""
    missing = [name for name in names if not cell(size, task, name, seed).exists()]
    if not missing or time.monotonic() > until:
        return
    demonstrated, env = TASKS[task].demonstrated(ROWS), TASKS[task].deployed(ROWS)
    data = rollout(expert_actor(demonstrated), demonstrated, TASKS[task].n_demonstrations, recording_seed(seed))
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        if set(missing) & set(METHODS):
            train(cloning(size.updates), data, run, seed=seed, device="cpu", val_fraction=0.0, progress=False)
        for name in missing:
            if time.monotonic() > until:
                return
            began, rounds = time.process_time(), []
            result = fit(task, name, seed, size, run, data, rounds)
            outcomes = evaluate(result.actor, env, size.starts, seed).successes
            assert outcomes is not None
            write_json(cell(size, task, name, seed), {
                "task": task, "method": name, "seed": seed, "successes": outcomes.astype(int).tolist(),
                "rounds": rounds, "seconds": round(time.process_time() - began, 1)})
            print(f"{task}, {name}, seed {seed}: {np.mean(outcomes):.0%}, {time.process_time() - began:.0f} s",
                  file=sys.stderr, flush=True)


def fit(task: str, name: str, seed: int, size: Size, run: Path, data: Dataset, rounds: list[dict]) -> FitResult:
    """Trains one cell, and adds what each round cost to `rounds`."""
    env = TASKS[task].deployed(1)
    if name in RIVALS:
        if name == "more demonstrations":
            more = expert_steps(env, size.n_steps, recording_seed(seed), FIRST_DEMONSTRATION)
            rounds.append({"acted": sum(map(len, more)), "labeled": 0, "watched": 0, "episodes": len(more)})
            data = Dataset([*data, *more])
        return fit_method(cloning(2 * size.updates), data, seed)

    def watch(n_updates, learner, metrics):
        if "round" in metrics:
            rounds.append({key: int(metrics[f"round/{key}"]) for key in (*COSTS, "episodes")})
    method, stages = interactive(run, data, name, size)
    return fit_method(method, data, seed, env=env, stages=stages, callbacks=[watch])


def cell(size: Size, task: str, name: str, seed: int) -> Path:
    return measure.RESULTS / size.folder / f"{task}-{seed}-{name.replace(' ', '-')}.json"


# -- the page -------------------------------------------------------------------------------------------------------


def cells_of(size: Size, task: str, name: str) -> list[dict]:
    paths = [cell(size, task, name, seed) for seed in size.seeds]
    return [read_json(path) for path in paths if path.exists()]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower end, the mean and the upper end of the 95 % interval of Student's t."""
    from scipy import stats

    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values) - half), float(np.mean(values)), float(np.mean(values) + half)


def entry(size: Size, task: str, name: str) -> str:
    """Success minus that of more demonstrations on the same seeds, in points, and of these their success in percent."""
    cells = cells_of(size, task, name)
    if len(cells) < 2:  # an interval needs two
        return "–"
    rates = [np.mean(c["successes"]) for c in cells]
    if name == RIVAL:
        low, rate, high = interval(rates)
        return measure.percent(max(low, 0), rate, min(high, 1))
    rivals = {c["seed"]: np.mean(c["successes"]) for c in cells_of(size, task, RIVAL)}
    return measure.percent(*interval([rate - rivals[c["seed"]] for rate, c in zip(rates, cells, strict=True)]), "+")


def page_text(size: Size) -> str:
    """The table of the documentation. Empty if no task has two seeds of each rival."""
    tasks = [task for task in NAMES if min(len(cells_of(size, task, name)) for name in RIVALS) > 1]
    if not tasks:
        return ""
    rows = [f"| | {' | '.join(NAMES[task] for task in tasks)} |", "|---|" + "--:|" * len(tasks)]
    for name in (*RIVALS[::-1], *METHODS):
        each = [entry(size, task, name) for task in tasks]
        if set(each) != {"–"}:
            label = f"{name}: success, %" if name == RIVAL else name
            rows.append(f"| {label} | {' | '.join(each)} |")
    return "\n".join(rows)


def main() -> None:
    o = measure.task_options(__doc__, TASKS, numbers=("seed",))
    size = TINY if o.tiny else FULL
    (measure.RESULTS / size.folder).mkdir(parents=True, exist_ok=True)
    if not o.page:
        seeds = size.seeds if o.seed is None else (o.seed,)
        for names in ((*RIVALS, *METHODS[:-2]), METHODS[-2:-1], METHODS[-1:]):  # the slowest after all others
            for seed, task in product(seeds, o.tasks or TASKS):
                run_seed(task, seed, size, names, o.until)
    if o.page or o.tiny:
        measure.publish("equal_steps", page_text(size), "improvement-tables.md", o.tiny)


if __name__ == "__main__":
    main()
