"""What a supervisor's steps are worth, by the method that asks for them:
python benchmarks/interactive.py [peg | arms | particle | memory | --tiny | --page]

A policy is trained on few demonstrations, and each method of `understudy improve` with a supervisor improves it in 4
rounds of 5 episodes and 500 updates. The supervisor is the expert of the environment; where it watches, it takes over 3
steps late and errs in 5 % of its decisions. A step of the supervisor is one at which it acted, labeled or watched. The
first rival of each method is cloning on as many steps of further demonstrations, with as many updates: 2,000 on the
first ones, and 2,000 on all.

- peg: `peg_insertion(tolerance=0.02)`, 60 demonstrations, where all motors have lost 40 % of their strength since the
  demonstrations were recorded. The further demonstrations are recorded in the changed world. Chunks of 8, of which 4
  are executed.
- arms: `planar_arms`, 40 demonstrations, single actions.
- particle: `particle(fully_observed=True)`, 20 demonstrations, single actions. The expert turns to the second goal
  when the flag of the first is observed.
- memory: the same with 40 demonstrations of the toy's own expert, which turns to it when it remembers that it was
  within 0.04 of the first goal, where the flag says 0.05. So in the same state it goes to one goal or to the other.

All policies are networks of 64 x 2 that regress to the mean. All of this, and the intervals, were fixed before any run
that is judged. The numbers of demonstrations are the first of 20 (30 for peg), 40 and 60 with which cloning succeeded
in 30 to 70 % of 200 starts, and five times as many at least 20 points more often, on average over the seeds 100 and
101, which are not judged: 50 and 98 % (peg; 300 demonstrations), 33 and 71 % (arms; 200), 57 and 99 % (particle; 100),
58 and 98 % (memory; 200). No method was tried in these pilots. Only, particle was added when the five seeds of memory
had been judged and their cause been sought with `dagger` and `hg-dagger` on the seeds 100 and 101.

The cells, one for each training seed and method, are kept in results/interactive/. A run that was stopped continues.
--budget 8m starts no cell later than that. --tiny keeps its cells in results/interactive-tiny/, and shows only that
everything runs. --page writes the tables of docs/improvement-tables.md from the cells that there are.
"""

from __future__ import annotations

import measure

measure.one_thread()

import functools  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Collection  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

from understudy.data.episode import Dataset  # noqa: E402
from understudy.data.window import Window  # noqa: E402
from understudy.envs import make  # noqa: E402
from understudy.envs.base import Env, EnvWrapper, HasExpert  # noqa: E402
from understudy.envs.shifts import WeakActuators  # noqa: E402
from understudy.envs.toys.particle import RADIUS, ParticleExpert  # noqa: E402
from understudy.evaluate.evaluation import recording_seed  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402
from understudy.evaluate.stats import two_level_difference, two_level_rate  # noqa: E402
from understudy.execute.actor import Actor  # noqa: E402
from understudy.execute.chunking import RecedingHorizon  # noqa: E402
from understudy.files import read_json, write_json  # noqa: E402
from understudy.heads.likelihood.regression import Regression  # noqa: E402
from understudy.improve.collection import COSTS  # noqa: E402
from understudy.improve.improvement import Improvement  # noqa: E402
from understudy.learn.behavior_cloning import BehaviorCloning  # noqa: E402
from understudy.learn.method import Method, load_actor  # noqa: E402
from understudy.learn.optimizer import OptimizerConfig  # noqa: E402
from understudy.learn.run import Run  # noqa: E402
from understudy.learn.train import train  # noqa: E402
from understudy.nets.feed_forward import FeedForward  # noqa: E402
from understudy.policy import PolicyConfig  # noqa: E402

METHODS = ("dagger", "hg-dagger", "safe", "lazy", "ensemble", "thrifty", "iwr", "sirius", "rlif")
BASE = "the first policy"
N_ROUNDS, N_EPISODES, ROWS = 4, 5, 50
FIRST_FURTHER = 500_000  # number of the first further demonstration


class OtherExpert(EnvWrapper, HasExpert):
    """An environment with another expert than its own."""

    def __init__(self, env: Env, expert: Actor):
        super().__init__(env)
        self._expert = expert

    def expert(self) -> Actor:
        return self._expert


class WeakArm(WeakActuators, HasExpert):
    """Its expert knows nothing of the weakness, but sees what its actions did."""

    env: HasExpert

    def expert(self) -> Actor:
        return self.env.expert()


@dataclass(frozen=True)
class Task:
    name: str
    n_demonstrations: int
    options: tuple[tuple[str, object], ...] = ()
    horizon: int = 1
    weakness: float = 0.0
    expert: Actor | None = None

    def env(self, rows: int, weakness: float | None = None) -> HasExpert:
        """The environment in which the policy acts. Its demonstrations have no weakness."""
        env = make(self.name, rows, **dict(self.options))
        if self.expert is not None:
            return OtherExpert(env, self.expert)
        assert isinstance(env, HasExpert)
        weakness = self.weakness if weakness is None else weakness
        return WeakArm(env, weakness) if weakness else env

    def method(self, updates: int) -> Method:
        learner = BehaviorCloning(updates, 128, OptimizerConfig(lr=1e-3, lr_schedule="constant"))
        return Method(PolicyConfig(Regression(), FeedForward((64, 64)), window=Window(1, self.horizon)),
                      RecedingHorizon(max(self.horizon // 2, 1)), learner)


TASKS = {"peg": Task("peg_insertion", 60, (("tolerance", 0.02),), horizon=8, weakness=0.4),
         "arms": Task("planar_arms", 40), "memory": Task("particle", 40, (("fully_observed", True),))}
TASKS["particle"] = replace(TASKS["memory"], n_demonstrations=20, expert=ParticleExpert(near=RADIUS))


@dataclass(frozen=True)
class Size:
    """How much is run. The first numbers are those of the page."""

    folder: str = "interactive"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    updates: int = 2000
    starts: int = 200


FULL, TINY = Size(), Size("interactive-tiny", (0, 1), 8, 20)


def demonstrations(env: HasExpert, n: int, seed: int, first: int = 0) -> Dataset:
    return rollout(env.expert(), env, n, recording_seed(seed), first=first)


@functools.lru_cache(2)
def base_run(name: str, seed: int, updates: int) -> tuple[Dataset, Path]:
    """The first demonstrations, and the run that was trained on them."""
    task, folder = TASKS[name], Path(tempfile.mkdtemp()) / "run"
    data = demonstrations(task.env(ROWS, weakness=0.0), task.n_demonstrations, seed)
    train(task.method(updates), data, folder, seed=seed, device="cpu", val_fraction=0, progress=False)
    return data, folder


def improved(name: str, seed: int, method: str, size: Size) -> tuple[Path, dict[str, int]]:
    """Improves the first policy. Returns the run, and the steps of the supervisor."""
    data, run = base_run(name, seed, size.updates)
    improvement = Improvement(run, data, "expert", N_ROUNDS, N_EPISODES, size.updates // N_ROUNDS)
    built, stages = improvement.build(method)
    folder = Path(tempfile.mkdtemp()) / "run"
    train(built, data, folder, seed=seed, device="cpu", val_fraction=0, progress=False, stages=stages,
          env=TASKS[name].env(N_EPISODES))
    rounds = [line for line in Run(folder).read_metrics() if "round" in line]
    return folder, {cost: sum(line[f"round/{cost}"] for line in rounds) for cost in COSTS}


def rival(name: str, seed: int, n_steps: int, size: Size) -> tuple[Path, int]:
    """Trains on as many steps of further demonstrations. Returns the run, and the number of the demonstrations."""
    task, (data, run) = TASKS[name], base_run(name, seed, size.updates)
    enough = 2 * n_steps // int(data.lengths.mean()) + 1
    further = demonstrations(task.env(ROWS), enough, seed, FIRST_FURTHER)
    n = int(np.argmin(np.abs(np.cumsum(further.lengths) - n_steps))) + 1
    method, _ = Improvement(run, data, "expert").build("dagger")  # which continues the run
    folder = Path(tempfile.mkdtemp()) / "run"
    cloning = replace(method, collection=None, learner=replace(method.learner, steps=size.updates))
    train(cloning, Dataset([*data, *further.select(range(n))], data.metadata), folder, seed=seed, device="cpu",
          val_fraction=0, progress=False, stages={"from": run})
    return folder, n


def outcomes(run: Path, env: Env, size: Size) -> list[int]:
    return [int(e.metadata["success"]) for e in rollout(load_actor(run, rows=ROWS), env, size.starts, seed=0)]


def cell_path(size: Size, name: str, seed: int, method: str) -> Path:
    """The file of a cell."""
    return measure.RESULTS / size.folder / f"{name}-{seed}-{method.replace(' ', '-')}.json"


def run_cell(size: Size, name: str, seed: int, method: str) -> dict:
    """Improves the policy of a training seed by a method, and judges it and its rival."""
    began, env = time.process_time(), TASKS[name].env(ROWS)
    if method == BASE:
        return {"success": outcomes(base_run(name, seed, size.updates)[1], env, size)}
    run, costs = improved(name, seed, method, size)
    seconds = time.process_time() - began
    other, n = rival(name, seed, sum(costs.values()), size)
    return {"success": outcomes(run, env, size), "rival": outcomes(other, env, size), "further demonstrations": n,
            **costs, "seconds": round(seconds, 1)}


def run(size: Size, tasks: list[str], until: float) -> None:
    """Runs what is missing until the time is over."""
    for name in tasks:
        for seed in size.seeds:
            for method in (BASE, *METHODS):
                if not cell_path(size, name, seed, method).exists() and time.monotonic() < until:
                    cell = run_cell(size, name, seed, method)
                    write_json(cell_path(size, name, seed, method), cell)
                    print(f"{name}, seed {seed}, {method}: " + ", ".join(
                        f"{k} {np.mean(v):.2f}" for k, v in cell.items()), file=sys.stderr, flush=True)


def page_text(size: Size) -> str:
    """The tables of the documentation: the gain over as many demonstrations, and over the first policy."""
    tasks = {name: seeds for name in TASKS if len(seeds := [  # an interval needs two
        s for s in size.seeds if all(cell_path(size, name, s, m).exists() for m in (BASE, *METHODS))]) > 1}
    if not tasks:
        return ""
    cells = {(name, m): [read_json(cell_path(size, name, s, m)) for s in seeds]
             for name, seeds in tasks.items() for m in (BASE, *METHODS)}
    won = {key: np.array([c["success"] for c in of], float) for key, of in cells.items()}
    rivals = {key: np.array([c["rival"] for c in of], float) for key, of in cells.items() if key[1] != BASE}
    first = [two_level_rate(won[name, BASE]) for name in tasks]
    successes = " | ".join(measure.percent(r.low, r.estimate, r.high) for r in first)
    over_rivals = _gains(tasks, won, rivals)
    over_first = _gains(tasks, won, {key: won[key[0], BASE] for key in rivals})
    return "\n".join([
        "Success minus that of as many demonstrations, in points:", "", *over_rivals, "",
        "Success minus that of the first policy, in points:", "", *over_first[:2],
        f"| {BASE}: success, % | {successes} |", *over_first[2:]])


def _gains(tasks: Collection[str], won: dict, others: dict) -> list[str]:
    rows = [f"| | {' | '.join(tasks)} |", "|---|" + "--:|" * len(tasks)]
    for method in METHODS:
        gains = [two_level_difference(won[name, method], others[name, method])[0] for name in tasks]
        each = (measure.percent(g.low, g.estimate, g.high, "+") for g in gains)
        rows.append(f"| `{method}` | {' | '.join(each)} |")
    return rows


def main() -> None:
    warnings.simplefilter("ignore", UserWarning)  # such as of the first rounds without a takeover
    o = measure.task_options(__doc__, list(TASKS))
    size = TINY if o.tiny else FULL
    if not o.page:
        run(size, o.tasks or list(TASKS), o.until)
    measure.publish("interactive", page_text(size), "improvement-tables.md", o.tiny)


if __name__ == "__main__":
    main()
