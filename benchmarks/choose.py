"""Does `understudy choose` recommend the best method? python benchmarks/choose.py [TASK ... | --tiny | --page]

On each of six toys, every candidate is trained with all the updates that it has by default, with several seeds, and
judged on many starts. These long runs say which method is best. `choose` then has a short budget for the same
demonstrations, with other seeds and starts. Its recommendation counts as right if the mean success of the recommended
method in the long runs is at most `TIED` below that of the best. The aim, set before any run: right on five of six.

The candidates are those that `choose` tries by itself, without `act` and `diffusion-policy`, whose long runs would take
hours on a CPU. Nothing is tuned. `planar_arms` has taken the place of `memory`, where no candidate reads a history that
is long enough, so that all of them guess and every choice is right. A pilot with the seed 100 decided it: regression
succeeded in .64, the mixture in .68, and the neighbors in .30.

Long runs are kept in results/choose/, and so is each recommendation: a run that was stopped continues. A long run takes
seconds to minutes, and all of them about an hour of a core. --budget 8m starts no cell later than that. --tiny takes
minutes, keeps its cells in results/choose-tiny/, and shows only that everything runs. --page writes the table of
docs/choosing.md from the cells that there are.
"""

from __future__ import annotations

import measure

measure.one_thread()

import functools  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402
from pathlib import Path  # noqa: E402

from understudy.choose import choose_method  # noqa: E402
from understudy.data.episode import Dataset  # noqa: E402
from understudy.envs import make  # noqa: E402
from understudy.evaluate.evaluation import evaluate, recording_seed, validation_seed  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402
from understudy.files import read_json, write_json  # noqa: E402
from understudy.learn.fit_method import fit_method  # noqa: E402
from understudy.learn.method import build_actor  # noqa: E402
from understudy.methods import find_method  # noqa: E402

CANDIDATES = ("bc", "bc-gmm", "bc-rnn-gmm", "knn", "mip", "flow-policy")
SHOWN = {"fork": 60, "particle": 100, "planar_arms": 100, "push": 100, "four_rooms": 60, "peg_insertion": 60}
TIED = 0.05  # of success
ROWS = 50


@dataclass(frozen=True)
class Size:
    """How much is run. The first numbers are those of the table.

    Args:
        folder: Where the cells are kept.
        seeds: Training seeds of the long runs.
        episodes: Starts of a long run.
        budget: Seconds that `choose` has.
        judged_on: Starts on which `choose` judges.
        updates: Most updates of a long run. None for those that the method has by default.
        candidates: The methods.
    """

    folder: str = "choose"
    seeds: tuple[int, ...] = (10, 11)
    episodes: int = 400
    budget: float = 180.0
    judged_on: int = 100
    updates: int | None = None
    candidates: tuple[str, ...] = CANDIDATES


FULL = Size()
TINY = Size("choose-tiny", (10,), 10, 4.0, 10, 20, ("knn", "search-bc"))  # nothing is trained


@functools.cache
def demonstrations(task: str) -> Dataset:
    """Successful episodes of the expert, the same ones for all."""
    env = make(task, rows=ROWS)
    return rollout(env.expert(), env, SHOWN[task], recording_seed(0)).filter(lambda e: e.metadata["success"])


def long_run(size: Size, task: str, name: str, seed: int) -> Path:
    """The file of a long run."""
    return measure.RESULTS / size.folder / f"{task}-{seed}-{name}.json"


def recommendation(size: Size, task: str) -> Path:
    """The file of what `choose` recommended."""
    return measure.RESULTS / size.folder / f"{task}-choice.json"


def run_long(size: Size, task: str, name: str, seed: int) -> None:
    """Trains a candidate with all its updates and judges it."""
    began, data = time.process_time(), demonstrations(task)
    method = find_method(name, data.features())
    if size.updates is not None:
        method = replace(method, learner=replace(method.learner, steps=min(method.learner.steps, size.updates)))
    result = fit_method(method, data, seed)
    env = make(task, rows=ROWS)
    actor = build_actor(result.method, result.modules, features=env.features, rows=ROWS)
    won = [int(s) for s in evaluate(actor, env, size.episodes, validation_seed(seed)).successes]
    write_json(long_run(size, task, name, seed), {
        "task": task, "method": name, "seed": seed, "updates": method.learner.steps, "success": won,
        "seconds": round(time.process_time() - began, 1)})
    print(f"{task}: {name}, seed {seed}: {sum(won) / len(won):.2f}", file=sys.stderr, flush=True)


def run_choice(size: Size, task: str) -> None:
    """Lets `choose` recommend a method."""
    with tempfile.TemporaryDirectory() as folder:
        choice = choose_method(demonstrations(task), Path(folder) / "trials", env=make(task, rows=16),
                               budget=size.budget, methods=size.candidates, episodes=size.judged_on)
    write_json(recommendation(size, task), choice.to_json())
    print(f"{task}: {choice.recommended}, as good: {', '.join(choice.tied)}", file=sys.stderr, flush=True)


def run(size: Size, tasks: list[str], until: float) -> None:
    """Runs what is missing, task by task, until the time is over."""
    for task in tasks:
        for seed in size.seeds:
            for name in size.candidates:
                if not long_run(size, task, name, seed).exists() and time.monotonic() < until:
                    run_long(size, task, name, seed)
        if not recommendation(size, task).exists() and time.monotonic() < until:
            run_choice(size, task)


def long_success(size: Size, task: str) -> dict[str, float]:
    """Mean success of each candidate in the long runs. Empty until all have run."""
    files = {name: [long_run(size, task, name, seed) for seed in size.seeds] for name in size.candidates}
    if not all(path.exists() for paths in files.values() for path in paths):
        return {}
    success_of = {name: [read_json(path)["success"] for path in paths] for name, paths in files.items()}
    return {name: sum(map(sum, won)) / sum(map(len, won)) for name, won in success_of.items()}


def page_text(size: Size) -> str:
    """The table of the documentation."""
    done = [task for task in SHOWN if long_success(size, task) and recommendation(size, task).exists()]
    if not done:
        return ""
    rows, n_right = [], 0
    always = dict.fromkeys(size.candidates, 0)  # how often a method is right that is taken for all data
    for task in done:
        success, choice = long_success(size, task), read_json(recommendation(size, task))
        best = max(success, key=lambda name: success[name])
        taken = choice["recommended"]
        right = success[taken] >= success[best] - TIED
        n_right += right
        for name in always:
            always[name] += success[name] >= success[best] - TIED
        rows.append(f"| {task} | {taken} | {', '.join(choice['tied']) or 'none'} | {success[taken]:.1%} | "
                    f"{best} {success[best]:.1%} | {'yes' if right else 'no'} |")
    lines = [f"`python benchmarks/choose.py`: {size.budget / 60:.3g} minutes for each choice among "
             f"{', '.join(size.candidates)}. Long runs have all updates, {len(size.seeds)} training seeds and "
             f"{size.episodes} starts each. A recommendation is right if it is at most {100 * TIED:.0f} points below "
             f"the best method of the long runs. {n_right} of {len(done)} are right; the aim is 5 of {len(SHOWN)}. To "
             f"take one method for all data would be right on {max(always.values())} at most "
             f"({' or '.join(name for name, n in always.items() if n == max(always.values()))})."]
    if missing := [task for task in SHOWN if task not in done]:
        lines.append(f"Not run yet: {', '.join(missing)}.")
    return "\n".join([*lines, "", "| data | recommended | as good, it says | its long runs | best long runs | right |",
                      "|---|---|---|--:|---|---|", *rows])


def main() -> None:
    o = measure.task_options(__doc__, SHOWN)
    size = TINY if o.tiny else FULL
    if not o.page:
        run(size, o.tasks or list(SHOWN), o.until)
    measure.publish("choose", page_text(size), "choosing.md", o.tiny)


if __name__ == "__main__":
    main()
