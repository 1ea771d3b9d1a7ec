"""Which checkpoint of a training acts best: python benchmarks/checkpoints.py [TASK ... | --tiny | --page]

A training stores ten checkpoints, validates each on held-out demonstrations, and may roll each out. This compares what
a user can choose, from the same starts:

- last: the last checkpoint. Its weights are the moving average that the library deploys (`WarmupDecay(0.995)`).
- least error: the checkpoint of least held-out error (energy score), as `understudy train` chooses it.
- rollouts: the checkpoint with most success in 20 rollouts of each, from starts that are not judged.
- averaged: the plain mean of the weights since half of the training, `PolynomialDecay(1.0, start=half)`.
- unaveraged: the weights of the last update without any average.

Six methods of four kinds of head learn six data sets of 30 to 100 demonstrations, with three training seeds, each with
demonstrations of its own. A tenth is held out, as by default. Methods have their defaults, except for 2,000 updates,
and for three networks that would take most of the time: act, flow-policy and diffusion-policy have an MLP of 256 units
and 3 blocks, as in heads.py, and act has chunks of 10 steps. `people` is a planar arm with three joints that reaches a
target, shown as people show it: unsteady, slower in some episodes than in others, with pauses, and a step late.

The rule was written before any judged cell ran. For each kind of head all its trainings (methods, data sets, seeds) are
pooled: the difference of success to `last`, paired by start, with the interval of `two_level_difference`, where each
training is a row. `RUN` means another checkpoint than the last one for a kind of head if

1. the interval of that difference lies above 0, and
2. on no data set the kind's mean difference is below -5 points.

Otherwise `RUN` means the last one. This is judged for "least error", which decides for runs whose best checkpoint is
that of least error, and apart from it for "rollouts", which decides for runs that were rolled out while they trained. A
kind that is not measured follows the rule for all methods pooled. If "averaged" fulfills the rule, `RUN` does not
change, because no file holds these weights: the page says so, and the learner's default average is then to be
examined. "unaveraged" is there to see what the average that the library keeps is worth.

Pilots on the seed 100, which is not judged, chose the data sets and their sizes, such that success is neither 0 nor
1: the last checkpoint of bc after 1,500 updates drive .71, push .49, peg .70, rooms .39, people .35, and after 3,000
fork .96. Left out: blocks (.07), arms (1.0), people who push (.01 and 0). Networks were made smaller, and the chunks of
act shorter, for their time alone.

The cells, one for each data set, seed and method, are kept in results/checkpoints/. --half 0 and --half 1 divide them
between two processes. --budget 60m starts no cell later. --tiny shows only that everything runs. --page writes the
table and the figure of docs/checkpoints.md from the cells that there are.
"""

from __future__ import annotations

import measure

measure.one_thread()

import copy  # noqa: E402
import functools  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Mapping, Sequence  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

from understudy.core import normal, uniform  # noqa: E402
from understudy.data.episode import Dataset  # noqa: E402
from understudy.envs import make  # noqa: E402
from understudy.evaluate.evaluation import recording_seed, tuning_seed  # noqa: E402
from understudy.evaluate.plots import differences  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402
from understudy.evaluate.stats import Interval, two_level_difference  # noqa: E402
from understudy.execute.actor import Actor  # noqa: E402
from understudy.files import read_json, write_text  # noqa: E402
from understudy.learn.fit_method import acting_policy  # noqa: E402
from understudy.learn.method import Method, build_actor  # noqa: E402
from understudy.learn.run import Run  # noqa: E402
from understudy.learn.train import best_step, train  # noqa: E402
from understudy.methods import find_method  # noqa: E402
from understudy.methods.chunking.act import act  # noqa: E402
from understudy.nets.ema import EMA, PolynomialDecay  # noqa: E402
from understudy.nets.mlp import MLP  # noqa: E402
from understudy.policy import Policy  # noqa: E402

PICTURES = measure.HERE.parent / "docs" / "images"
CHOICES = ("last", "least error", "rollouts", "averaged", "unaveraged")
KINDS = {"regression": ("bc", "act"), "mixture": ("bc-gmm",), "categorical": ("bc-bins",),
         "denoising": ("flow-policy", "diffusion-policy")}
METHODS = tuple(name for of in KINDS.values() for name in of)
MARGIN, ROLLOUTS = 0.05, 20


@dataclass(frozen=True)
class Task:
    """A data set: an environment, the number of demonstrations, and whether they are shown as people show them."""

    env: str
    n_demonstrations: int
    people: bool = False


TASKS = {"fork": Task("fork", 30), "drive": Task("drive", 30), "push": Task("push", 50),
         "peg": Task("peg_insertion", 100), "rooms": Task("four_rooms", 50), "people": Task("planar_arms", 60, True)}


@dataclass(frozen=True)
class Size:
    """How much is run. The first numbers are those of the page."""

    folder: str = "checkpoints"
    seeds: tuple[int, ...] = (0, 1, 2)
    updates: int = 2000
    starts: int = 300


FULL, TINY = Size(), Size("checkpoints-tiny", (0, 1), 20, 10)


@dataclass(frozen=True)
class Person(Actor):
    """Shows the expert's way as a person does: unsteady for several steps, at a speed that differs between episodes,
    with pauses, and one step late.

    Args:
        expert: Knows the way.
        tremor: Standard deviation of the unsteadiness.
        pause: Probability that a pause of `paused` steps begins in a step.
        paused: Number of steps.
    """

    expert: Actor
    tremor: float = 0.2
    pause: float = 0.03
    paused: int = 6

    def start(self, obs, key):
        speed = 0.5 + 0.5 * uniform(key, torch.zeros_like(key), (1,), stream=6).float()
        first, _ = self.expert.act(obs, state := self.expert.start(obs, key))
        return {"expert": state, "key": key, "count": torch.zeros_like(key), "speed": speed,
                "late": torch.zeros_like(first), "shake": torch.zeros_like(first), "left": torch.zeros_like(key)}

    def act(self, obs, state):
        key, count = state["key"], state["count"]
        wish, expert = self.expert.act(obs, state["expert"])
        begins = uniform(key, count, (1,), stream=6)[:, 0] < self.pause
        pause = torch.where(state["left"] > 0, state["left"] - 1, torch.where(begins & (count > 0), self.paused, 0))
        noise = normal(key, count, tuple(wish.shape[1:]), stream=5)
        shake = 0.8 * state["shake"] + 0.6 * self.tremor * noise
        action = torch.where((pause > 0)[:, None], 0.0, state["speed"] * state["late"]) + shake
        return action, {**state, "expert": expert, "count": count + 1, "late": wish, "shake": shake, "left": pause}


@functools.cache
def environment(task: str, rows: int):
    """The environment of a data set."""
    return make(TASKS[task].env, rows=rows)


@functools.cache
def demonstrations(task: str, seed: int) -> Dataset:
    """Successful episodes: others for each training seed, the same for all methods."""
    n_demonstrations = TASKS[task].n_demonstrations
    env = environment(task, n_demonstrations)
    expert = Person(env.expert()) if TASKS[task].people else env.expert()
    rollouts = rollout(expert, env, 2 * n_demonstrations, recording_seed(seed)).filter(lambda e: e.metadata["success"])
    return rollouts.select(range(min(n_demonstrations, len(rollouts))))


def method(name: str, data: Dataset) -> Method:
    """A method of the library, with a smaller network where its own would take minutes."""
    recipe = act(horizon=10) if name == "act" else find_method(name, data.features())
    if name in ("act", "flow-policy", "diffusion-policy"):
        return replace(recipe, policy=replace(recipe.policy, trunk=MLP(256, 3)))
    return recipe


class Watch:
    """Keeps the policy of each checkpoint, and the mean of the weights since half of the training."""

    def __init__(self, data: Dataset, every: int, steps: int):
        self.data, self.every, self.steps = data, every, steps
        self.checkpoints: dict[int, Policy] = {}
        self.mean: EMA | None = None

    def __call__(self, step, learner, metrics):
        if "loss" not in metrics:  # called again after a validation
            return
        if self.mean is None:
            self.mean = EMA(learner.policy, PolynomialDecay(1.0, 1e-9, self.steps // 2))
        self.mean.update(learner.policy)
        if step % self.every == 0:
            self.checkpoints[step] = copy.deepcopy(acting_policy(learner, self.data))
        if step == self.steps:
            self.unaveraged = copy.deepcopy(learner.policy).eval()


def run_cell(size: Size, task: str, seed: int, name: str) -> dict:
    """Trains, and judges what each choice gives."""
    data, began = demonstrations(task, seed), time.process_time()
    chosen, env = method(name, data), environment(task, min(size.starts, 100))
    few = environment(task, ROLLOUTS)

    def score(actor: Actor) -> float:
        return float(np.mean([e.metadata["success"] for e in rollout(actor, few, ROLLOUTS, tuning_seed(seed))]))

    watch = Watch(data, -(-size.updates // 10), size.updates)
    with tempfile.TemporaryDirectory() as folder:
        train(chosen, data, Path(folder) / "run", steps=size.updates, seed=seed, score=score, device="cpu",
              callbacks=[watch], progress=False)
        lines = Run(Path(folder) / "run").read_metrics()
    trained = time.process_time() - began
    steps = list(watch.checkpoints)
    choice = {"last": max(steps), "least error": best_step(lines, steps, "validation/energy"),
              "rollouts": best_step(lines, steps, "score")}
    policies = {step: watch.checkpoints[step] for step in choice.values()}
    policies |= {"averaged": watch.mean.module, "unaveraged": watch.unaveraged}
    won = {key: [int(e.metadata["success"]) for e in rollout(
        build_actor(chosen, {"policy": policy}, features=env.features), env, size.starts, seed=0)]
        for key, policy in policies.items()}
    success = {key: won[choice.get(key, key)] for key in CHOICES}
    curve = [[line["step"], line["validation/energy"], line["score"]] for line in lines if "score" in line]
    return {"task": task, "seed": seed, "method": name, "updates": size.updates, "demonstrations": len(data),
            "chosen": choice, "curve": curve, "success": success,
            "seconds": {"training": round(trained, 1), "all": round(time.process_time() - began, 1)}}


def cell_path(size: Size, task: str, seed: int, name: str) -> Path:
    """The file of a cell."""
    return measure.RESULTS / size.folder / f"{task}-{seed}-{name}.json"


def run(size: Size, tasks: list[str], half: int | None, until: float) -> None:
    """Runs what is missing until the time is over. Each half begins at another end of every seed's cells."""
    for seed in size.seeds:
        cells = [(task, name) for name in METHODS for task in tasks]
        for task, name in cells[::-1] if half else cells:
            path = cell_path(size, task, seed, name)
            if not path.exists() and time.monotonic() < until:
                cell = run_cell(size, task, seed, name)
                write_text(path, json.dumps(cell) + "\n")
                rates = ", ".join(f"{key} {np.mean(won):.2f}" for key, won in cell["success"].items())
                print(f"{task} seed {seed} {name}: {rates}; {cell['chosen']}; {cell['seconds']}", file=sys.stderr,
                      flush=True)


# -- the page -----------------------------------------------------------------------------------------------------


def cells_of(size: Size) -> list[dict]:
    """All finished cells."""
    paths = [cell_path(size, task, seed, name) for seed in size.seeds for name in METHODS for task in TASKS]
    return [read_json(path) for path in paths if path.exists()]


def difference(cells: Sequence[Mapping], choice: str) -> Interval:
    """Success with a choice minus that with the last checkpoint. Each training is a row of the table."""
    first, last = ([cell["success"][key] for cell in cells] for key in (choice, "last"))
    return two_level_difference(first, last)[0]


def least_difference(cells: Sequence[Mapping], choice: str) -> tuple[float, str]:
    """The mean difference on the data set where it is least, and the name of that data set."""
    of = {task: [c for c in cells if c["task"] == task] for task in TASKS}
    return min((float(np.mean([np.mean(c["success"][choice]) - np.mean(c["success"]["last"]) for c in some])), task)
               for task, some in of.items() if some)


def is_better(cells: Sequence[Mapping], choice: str) -> bool:
    """The rule: whether a choice takes the place of the last checkpoint."""
    return difference(cells, choice).low > 0 and least_difference(cells, choice)[0] >= -MARGIN


def _row(name: str, cells: Sequence[Mapping]) -> str:
    columns = [name, str(len(cells)), f"{100 * np.mean([c['success']['last'] for c in cells]):.0f}"]
    for choice in CHOICES[1:]:
        d = difference(cells, choice)
        columns.append(measure.percent(d.low, d.estimate, d.high, "+"))
    return f"| {' | '.join(columns)} |"


def difference_table(title: str, groups: Mapping[str, Sequence[Mapping]]) -> list[str]:
    """Success with the last checkpoint, and how much more each choice has."""
    header = [f"| {title} | trainings | last, % | {' | '.join(CHOICES[1:])} |", "|---|--:|--:|--:|--:|--:|--:|"]
    return header + [_row(name, some) for name, some in groups.items() if len(some) > 1]


def rule_text(groups: Mapping[str, Sequence[Mapping]]) -> str:
    """What the rule says of the kinds of head."""
    def says(choice: str) -> str:
        better = [kind for kind, some in groups.items() if is_better(some, choice)]
        return f"`RUN/best` for {', '.join(better)}, otherwise `RUN/last`" if better else "`RUN/last` for every kind"
    return f"By the rule, `RUN` means {says('least error')}. With rollouts it means {says('rollouts')}."


def summary(size: Size, cells: Sequence[Mapping]) -> str:
    """How many trainings there are, and in how many the held-out error has risen."""
    planned, hours = len(size.seeds) * len(METHODS) * len(TASKS), sum(c["seconds"]["all"] for c in cells) / 3600
    risen = [c for c in cells if c["curve"][-1][1] > min(error for _, error, _ in c["curve"])]
    early = np.median([c["chosen"]["least error"] / c["updates"] for c in risen])
    return (f"{len(cells)} of {planned} planned trainings of {size.updates:,} updates are finished; they took "
            f"{hours:.1f} CPU hours. In {len(risen)} of them the held-out error had risen at the end, and was "
            f"lowest after {early:.0%} of the updates (median).")


def page_text(size: Size) -> str:
    """The table of the documentation. The figure has the methods one by one."""
    cells = cells_of(size)
    if len(cells) < 2:  # an interval needs two
        return ""
    kinds = {kind: [c for c in cells if c["method"] in of] for kind, of in KINDS.items()}
    methods = {name: [c for c in cells if c["method"] == name] for name in METHODS}
    rose = [c for c in cells if c["curve"][-1][1] > 1.1 * min(error for _, error, _ in c["curve"])]
    rows = [(f"{name}: {choice}", d.estimate, d.low, d.high, d.low > 0 or d.high < 0)
            for choice in ("least error", "rollouts") for name, some in methods.items() if len(some) > 1
            for d in [difference(some, choice)]]
    if size == FULL:
        write_text(PICTURES / "checkpoints.svg", differences(rows).standalone_svg())
    all_of = {"all": cells, "all whose held-out error rose by a tenth": rose}
    return "\n".join([
        summary(size, cells), "", *difference_table("kind of head", kinds | all_of), "", rule_text(
            {kind: some for kind, some in kinds.items() if len(some) > 1} | {"others": cells})])


def main() -> None:
    o = measure.task_options(__doc__, TASKS, numbers=("half",))
    size = TINY if o.tiny else FULL
    if not o.page:
        run(size, o.tasks or list(TASKS), o.half, o.until)
    if o.page or o.tiny:
        measure.publish("checkpoints", page_text(size), "checkpoints.md", o.tiny)


if __name__ == "__main__":
    main()
