"""Updates of learners that are not compiled, against those of an earlier commit: python benchmarks/eager_updates.py

    python benchmarks/eager_updates.py [METHOD[:BATCH] ...]      against the last commit before learners had one engine
    git worktree add ../base COMMIT
    python benchmarks/eager_updates.py --base ../base/src        against any other

Each side is a process with one thread. They take turns of some updates, with the networks, batch size and example data
of the method, and equal batches. Without METHOD there is one method for each class of learners, and several that clone.
Then the results are stored: the mean, the slowest, and some methods in `lines`, all of them in `ratios`.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

measure.one_thread()

BEFORE = "852280c4"
LEAST, ON_AVERAGE = 1.0, 1.1  # times as fast as before
TURNS, SECONDS = 11, 0.06  # of one turn
SRC = measure.HERE.parent / "src"
CLONING = ("bc:32", "bc:256", "diffusion-policy", "act")
SHOWN = (*CLONING, "iql", "td3-bc", "cql", "hiql", "gciql")


def methods_of_learners() -> list[str]:
    from understudy.methods import find_method, method_files
    from understudy.testing.methods import example_columns

    classes = {type(find_method(name, example_columns(name)).learner): name for name in reversed(method_files())}
    others = {name for kind, name in classes.items() if kind.__name__ != "BehaviorCloning"}
    return [*SHOWN, *sorted(others - {*SHOWN})]


def serve() -> None:
    """Answers each line of standard input: "METHOD[:BATCH]" builds a learner, and a number makes so many updates."""
    import torch

    from understudy.core import Feature
    from understudy.learn.method import training_data
    from understudy.methods import find_method
    from understudy.policy import Policy
    from understudy.testing.methods import example_columns, example_data, with_trained_stages

    def built(name: str, size: str):
        columns = example_columns(name)
        method = find_method(name, columns)
        rewards = {k: Feature("float32", ()) for k in ("next.reward", *method.learner.extra)}
        data = example_data(rewards | columns)
        method = with_trained_stages(method, data)
        data = training_data(data, method)
        torch.manual_seed(0)
        policy = Policy(method.policy, data.features()).fit_statistics(data)
        learner = method.learner.build(policy, 0, 100_000, data)
        sampler = learner.batch_sampler(learner.annotate(data, None))
        return learner, [sampler.batch(int(size or method.learner.batch_size), n) for n in range(8)]

    torch.set_num_threads(1)
    learner, batches = built("bc", "")
    for line in sys.stdin:
        before = time.process_time()
        if line.strip().isdigit():
            for n in range(int(line)):
                learner.update(batches[n % len(batches)])
        else:
            name, _, size = line.strip().partition(":")
            learner, batches = built(name, size)
        print(time.process_time() - before, flush=True)


class Side:
    """A process that makes updates with the code of a folder."""

    def __init__(self, src: Path):
        self.process = subprocess.Popen([sys.executable, "-W", "ignore", __file__, "--serve"], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        env={**os.environ, "PYTHONPATH": str(src)})

    def ask(self, request: str | int) -> float:
        """Returns the seconds of processor time that the answer took."""
        print(request, file=self.process.stdin, flush=True)
        assert self.process.stdout is not None
        return float(self.process.stdout.readline())


def seconds_of(name: str, sides: dict[str, Side]) -> dict[str, list[float]]:
    for side in sides.values():
        side.ask(name)
        side.ask(6)
    calls = max(2, math.ceil(SECONDS / (sides["now"].ask(4) / 4)))
    seconds: dict[str, list[float]] = {key: [] for key in sides}
    for turn in range(TURNS):
        for key in sorted(sides, reverse=turn % 2 == 0):
            seconds[key].append(sides[key].ask(calls) / calls)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD[:BATCH]")
    parser.add_argument("--base", type=Path, metavar="SRC", help="folder `src` of another commit")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve()
    with tempfile.TemporaryDirectory() as folder:
        if options.base is None:
            archive = subprocess.run(["git", "archive", BEFORE, "src"], cwd=measure.HERE.parent, check=True,
                                     stdout=subprocess.PIPE)
            subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)
        sides = {"now": Side(SRC), "before": Side(options.base or Path(folder, "src"))}
        seconds, lines = {}, {}
        for name in options.methods or methods_of_learners():
            seconds[name] = seconds_of(name, sides)
            lines[name] = measure.compared(name, seconds[name], "now", "before", amount=1, unit="1/s", goal=LEAST)
            print(measure.row(lines[name]), flush=True)
    means = {key: [math.exp(statistics.mean(math.log(s[key][turn]) for s in seconds.values()))
                   for turn in range(TURNS)] for key in sides}
    mean = measure.compared(f"{len(lines)} learners, geometric mean", means, "now", "before", amount=1, unit="1/s",
                            goal=ON_AVERAGE)
    if options.methods:
        print(measure.row(mean))
        return
    slowest = min(lines, key=lambda name: lines[name].ratio.estimate)
    measure.save("eager_updates", [mean, *(lines[name] for name in dict.fromkeys((slowest, *SHOWN)))], more={
        "ratios": {name: [line.ratio.estimate, line.ratio.low, line.ratio.high] for name, line in lines.items()}})


if __name__ == "__main__":
    main()
