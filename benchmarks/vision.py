"""Success of image policies by encoder and augmentation: python benchmarks/vision.py [TASK ... | --tiny | --page]

The same policy, a chunk by regression, learns the same demonstrations with different encoders of the image, and acts
from the same starts. All policies with images also read the same numbers: the positions of the robot itself. Two
references bound what the image is worth: a policy that reads the whole state of the simulator, and one that sees no
image. An encoder is useful if it is better than the second.

The settings are written here before any run. Those that all share (rate, batch, updates, network) were chosen in pilots
with `state`, `no-image` and `conv` on the seed 100, which is not judged. A large network has fewer updates, as many as
fit into about the time of the others (`FEWER`).

The cells, one for each task, seed and encoder, are kept in results/vision/. A run that was stopped continues. --budget
8m starts no cell later than that. --tiny takes minutes, keeps its cells in results/vision-tiny/, and shows only that
everything runs. --page writes the table of docs/encoders.md from the cells that there are. Meta-World needs MuJoCo
(`pip install 'understudy[sim]'`) and a machine that can draw.
"""

from __future__ import annotations

import measure

measure.one_thread()

import functools  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

from understudy.checkpoint import FromStage  # noqa: E402
from understudy.data.augment import ColorJitter, RandomShift  # noqa: E402
from understudy.data.episode import Dataset  # noqa: E402
from understudy.data.window import Window  # noqa: E402
from understudy.envs import make  # noqa: E402
from understudy.evaluate.evaluation import recording_seed  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402
from understudy.evaluate.stats import two_level_difference, two_level_rate  # noqa: E402
from understudy.execute.chunking import RecedingHorizon  # noqa: E402
from understudy.files import read_json, write_json  # noqa: E402
from understudy.heads.likelihood.regression import Regression  # noqa: E402
from understudy.learn.behavior_cloning import BehaviorCloning  # noqa: E402
from understudy.learn.fit_method import fit_method  # noqa: E402
from understudy.learn.method import InitializeFrom, Method, Stage, build_actor  # noqa: E402
from understudy.learn.objectives.representation import RepresentationLearning  # noqa: E402
from understudy.learn.objectives.representation_objectives import InverseDynamics  # noqa: E402
from understudy.learn.optimizer import OptimizerConfig  # noqa: E402
from understudy.nets.encoders import TokenEncoder  # noqa: E402
from understudy.nets.mlp import MLP  # noqa: E402
from understudy.nets.vision import ResNet, SmallConv  # noqa: E402
from understudy.policy import PolicyConfig  # noqa: E402

STATE = "observation.state"
FEWER = {"resnet": 150}  # most updates, of heavy networks


@dataclass(frozen=True)
class Task:
    """What is learned.

    Args:
        env: Name of the environment with images.
        camera: The column of images.
        whole: The column with the whole state of the simulator.
        n_demonstrations: Number of demonstrations.
        starts: Number of episodes on which a policy is judged.
        limit: Number of steps of an episode. None for the environment's.
    """

    env: str
    camera: str
    whole: str
    n_demonstrations: int
    starts: int
    limit: int | None = None


TASKS = {
    "push": Task("push-images", "observation.images.top", "simulator.state", 100, 200),
    "button": Task("metaworld/button-press-topdown-v3@images=64", "observation.images.corner2",
                   "simulator.observation.state", 25, 20, 120),
}


@dataclass(frozen=True)
class Size:
    """How much is run. The first numbers are those of the page.

    Args:
        folder: Where the cells are kept.
        seeds: Training seeds.
        updates: Number of updates.
        n_demonstrations: Number of demonstrations. None for those of the task.
        starts: Number of starts. None for those of the task.
    """

    folder: str = "vision"
    seeds: tuple[int, ...] = (0, 1, 2)
    updates: int = 1500
    n_demonstrations: int | None = None
    starts: int | None = None


FULL, TINY = Size(), Size("vision-tiny", (0, 1), 2, 3, 2)


def methods(task: Task, updates: int) -> dict[str, Method]:
    """The compared policies by name."""
    window, inputs = Window(2, 8), (task.camera, STATE)

    def method(encoder, inputs=inputs, steps=updates, augmentations=()) -> Method:
        policy = PolicyConfig(Regression(), MLP(256, 2), encoder, window=window, inputs=inputs,
                              augmentations=augmentations)
        learner = BehaviorCloning(steps, batch_size=32, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=50))
        return Method(policy, RecedingHorizon(4), learner)

    def conv(**options) -> TokenEncoder:
        return TokenEncoder(64, vision=SmallConv(), **options)

    pretrained = Stage("encoder", replace(method(conv()), learner=RepresentationLearning(
        (InverseDynamics(),), steps=updates // 2, batch_size=32)))
    frozen = replace(method(conv(), steps=updates // 2), stages=(pretrained,), initialize_from=(
        InitializeFrom(FromStage("encoder"), load=("codec", "encoder"), train=("net",)),))
    resnet = TokenEncoder(64, vision=ResNet())
    random = TokenEncoder(64, vision=ResNet(pool="mean", frozen=True), cache_features=True)
    return {
        "state": method(TokenEncoder(64), inputs=(task.whole,)),
        "no-image": method(TokenEncoder(64), inputs=(STATE,)),
        "conv": method(conv()),
        "conv, crop": method(conv(crop=4)),
        "conv, shift": method(conv(), augmentations=(RandomShift(task.camera, pixels=4),)),
        "conv, shift and color": method(conv(), augmentations=(ColorJitter(task.camera),
                                                               RandomShift(task.camera, pixels=4))),
        "conv, inverse dynamics, frozen": frozen,
        "resnet": method(resnet, steps=min(updates, FEWER["resnet"])),
        "resnet, random and frozen": method(random),
    }


NAMES = tuple(methods(TASKS["push"], 10))
REFERENCE = "no-image"


@functools.cache
def environment(name: str, rows: int):
    """The environment of a task."""
    task = TASKS[name]
    return make(task.env, rows=rows, **({} if task.limit is None else {"limit": task.limit}))


@functools.cache
def demonstrations(name: str, seed: int, n_demonstrations: int) -> Dataset:
    """Successful episodes of the expert: others for each training seed, the same for all encoders."""
    env = environment(name, min(n_demonstrations, 10))
    return rollout(env.expert(), env, n_demonstrations, recording_seed(seed)).filter(lambda e: e.metadata["success"])


def cell_path(size: Size, task: str, seed: int, name: str) -> Path:
    """The file of a cell."""
    return measure.RESULTS / size.folder / f"{task}-{seed}-{name.replace(', ', '-').replace(' ', '-')}.json"


def run_cell(size: Size, task: str, seed: int, name: str) -> None:
    """Trains and judges a policy."""
    data = demonstrations(task, seed, size.n_demonstrations or TASKS[task].n_demonstrations)
    began = time.process_time()
    result = fit_method(methods(TASKS[task], size.updates)[name], data, seed)
    trained = time.process_time()
    starts = size.starts or TASKS[task].starts
    env = environment(task, min(starts, 10))
    episodes = rollout(build_actor(result.method, result.modules, features=env.features), env, starts, seed=0)
    won = [int(e.metadata["success"]) for e in episodes]
    seconds = {"training": trained - began, "acting": time.process_time() - trained}
    write_json(cell_path(size, task, seed, name), {
        "task": task, "seed": seed, "encoder": name, "updates": result.method.learner.steps,
        "demonstrations": len(data), "success": won, "seconds": {k: round(v, 1) for k, v in seconds.items()}})
    print(f"{task} seed {seed} {name}: {sum(won) / len(won):.2f}; "
          + ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items()), file=sys.stderr, flush=True)


def run(size: Size, tasks: list[str], until: float) -> None:
    """Runs what is missing until the time is over."""
    for seed in size.seeds:
        for task in tasks:
            for name in NAMES:
                if not cell_path(size, task, seed, name).exists() and time.monotonic() < until:
                    run_cell(size, task, seed, name)


def page_text(size: Size) -> str:
    """The tables of the documentation."""
    parts = []
    for task, about in TASKS.items():
        seeds = [s for s in size.seeds if all(cell_path(size, task, s, name).exists() for name in NAMES)]
        if len(seeds) < 2:  # an interval needs two
            continue
        cells = {name: [read_json(cell_path(size, task, s, name)) for s in seeds] for name in NAMES}
        won = {name: np.array([cell["success"] for cell in of], float) for name, of in cells.items()}
        parts += [f"**{about.env}**, {cells[REFERENCE][0]['demonstrations']} demonstrations, {len(seeds)} training "
                  f"seeds, {won[REFERENCE].shape[1]} starts:", "",
                  "| encoder | success, % | more than without the image, points | training, CPU s |",
                  "|---|--:|--:|--:|"]
        for name in sorted(NAMES, key=lambda name: -won[name].mean()):
            rate, more = two_level_rate(won[name]), two_level_difference(won[name], won[REFERENCE])[0]
            gain = "" if name == REFERENCE else measure.percent(more.low, more.estimate, more.high, "+")
            took = np.mean([cell["seconds"]["training"] for cell in cells[name]])
            parts.append(f"| {name} | {measure.percent(rate.low, rate.estimate, rate.high)} | {gain} | {took:.0f} |")
        parts.append("")
    return "\n".join(parts).rstrip()


def main() -> None:
    o = measure.task_options(__doc__, TASKS)
    size = TINY if o.tiny else FULL
    if not o.page:
        run(size, o.tasks or list(TASKS), o.until)
    measure.publish("vision", page_text(size), "encoders.md", o.tiny)


if __name__ == "__main__":
    main()
