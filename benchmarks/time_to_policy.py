"""How soon a policy works: python benchmarks/time_to_policy.py [CELL ...]

The recommended recipe (`recipes.recommended`) beside Diffusion Policy as it stands here (U-Net of 5 M parameters, DDIM
in 10 steps), in CPU seconds of training on one core; rollouts are not counted. Fixed before the first run: the tasks,
the updates of each arm, the marks at which each is looked at, three training seeds, the same 100 starts for all. No arm
is tuned to a task. "Reached" is the first mark at which the mean success over seeds is 90 % of Diffusion Policy's at
its end, and stays there at all later marks. Cells that ran are kept in results/time-to-policy: Ctrl-C, and go on.
"""

from __future__ import annotations

import measure

measure.one_thread()

import sys  # noqa: E402
import time  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

from understudy.data.episode import Dataset  # noqa: E402
from understudy.envs import make  # noqa: E402
from understudy.evaluate.judge import recording  # noqa: E402
from understudy.evaluate.plots import curves  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402
from understudy.evaluate.stats import two_level  # noqa: E402
from understudy.execute.actor import Plays  # noqa: E402
from understudy.execute.planners import Fixed  # noqa: E402
from understudy.files import read_json, write_json, write_text  # noqa: E402
from understudy.learn.fit import fit  # noqa: E402
from understudy.learn.method import Method  # noqa: E402
from understudy.nets.mlp import MLP  # noqa: E402
from understudy.policy import Policy  # noqa: E402
from understudy.recipes import find, recommended  # noqa: E402

KEPT = measure.RESULTS / "time-to-policy"
PICTURE = measure.HERE.parent / "docs" / "images"
ROWS, EPISODES, SEEDS, SHARE, GOAL = 25, 100, (0, 1, 2), 0.9, 10.0


@dataclass(frozen=True)
class Arm:
    marks: tuple[int, ...]  # updates after which it is looked at; the last is its end

    def method(self, data: Dataset) -> Method:
        return find("diffusion-policy", data.features())


@dataclass(frozen=True)
class Recommended(Arm):
    width: int | None = None  # of its MLP, where it is not the recipe's

    def method(self, data):
        method = find(recommended(data.features()), data.features())
        if self.width is None:
            return method
        return replace(method, policy=replace(method.policy, trunk=MLP(self.width, 3)))


TASKS = {"push": ("push", 200), "door-open": ("metaworld/door-open-v3", 50)}  # environment, demonstrations
ARMS = {
    "diffusion-policy": Arm((1000, 2000, 3000)),
    "recommended": Recommended((50, 100, 200, 400, 800, 1600, 3000)),
    "recommended, as many parameters": Recommended((50, 100, 200, 400, 800, 1600), 900),
}
CELLS = [f"{task}/{arm}/{seed}" for task in TASKS for arm in ARMS for seed in SEEDS]


def shown(task: str) -> Dataset:
    name, episodes = TASKS[task]
    env = make(name, rows=min(ROWS, episodes))
    try:
        return rollout(env.expert(), env, episodes, recording(0)).where(lambda e: e.meta["success"])
    finally:
        env.close()


def run(cell: str) -> None:
    task, name, seed = cell.split("/")
    data, arm = shown(task), ARMS[name]
    method = arm.method(data)
    steps, curve = arm.marks[-1], []
    env = make(TASKS[task][0], rows=ROWS)
    began, aside = time.process_time(), 0.0
    torch.manual_seed(int(seed))
    policy = Policy(method.policy, data.features()).fit(data)
    learner = method.learn.build(policy, int(seed), steps)
    windows = policy.windows(data, extra=method.learn.extra)

    def look(step, learner, seen):
        nonlocal aside
        if step not in arm.marks:
            return
        paused = time.process_time()
        ran = rollout(Plays(Fixed(learner.trained.eval(), ROWS), method.run), env, EPISODES)
        curve.append({"update": step, "seconds": paused - began - aside,
                      "success": [int(e.meta["success"]) for e in ran]})
        aside += time.process_time() - paused
        print(f"{cell}: {step} updates, {curve[-1]['seconds']:.0f} CPU s, success "
              f"{np.mean(curve[-1]['success']):.2f}", flush=True)

    fit(learner, lambda n: windows.batch(method.learn.batch, n, int(seed)), steps, watch=(look,))
    env.close()
    write_json(_file(cell), {"cell": cell, "parameters": sum(p.numel() for p in policy.parameters()), "curve": curve})


def _file(cell: str):
    return KEPT / f"{cell.replace('/', '-').replace(', ', '-').replace(' ', '-')}.json"


def lines() -> list[measure.Line]:
    found = []
    for task in TASKS:
        if missing := [c for c in CELLS if c.startswith(f"{task}/") and not _file(c).exists()]:
            found.append(measure.Line(task, goal=GOAL, note=f"did not run: {len(missing)} cells"))
            continue
        runs = {arm: [read_json(_file(f"{task}/{arm}/{s}")) for s in SEEDS] for arm in ARMS}
        peer = runs["diffusion-policy"]
        final = np.mean([c["curve"][-1]["success"] for c in peer])
        spent = [c["curve"][-1]["seconds"] for c in peer]
        for arm in [a for a in ARMS if a != "diffusion-policy"]:
            means = [np.mean([c["curve"][i]["success"] for c in runs[arm]]) for i in range(len(ARMS[arm].marks))]
            good = [i for i in range(len(means)) if min(means[i:]) >= SHARE * final]
            says = (f"{runs[arm][0]['parameters'] / 1e6:.2g} M parameters; Diffusion Policy "
                    f"({peer[0]['parameters'] / 1e6:.2g} M) ends at {final:.0%}")
            if not good:
                found.append(measure.Line(f"{task}, {arm}", None, measure.Figure.of(spent, "s"), measure.Ratio(0, 0, 0),
                                          GOAL, note=f"not reached, at most {max(means):.0%}; {says}"))
                continue
            took = [c["curve"][good[0]]["seconds"] for c in runs[arm]]
            found.append(measure.Line(
                f"{task}, {arm}", measure.Figure.of(took, "s"), measure.Figure.of(spent, "s"),
                measure.ratio(spent, took), GOAL,
                note=f"{means[good[0]]:.0%} after {ARMS[arm].marks[good[0]]} updates; {says}"))
    return found


def picture(task: str) -> str:
    """Success against CPU seconds, the mean over seeds and its two-level interval; its file's name."""
    series, bands = {}, {}
    for arm in ARMS:
        runs = [read_json(_file(f"{task}/{arm}/{s}"))["curve"] for s in SEEDS]
        points = [two_level([r[i]["success"] for r in runs]) for i in range(len(runs[0]))]
        seconds = [float(np.mean([r[i]["seconds"] for r in runs])) for i in range(len(runs[0]))]
        series[arm] = seconds, [p.estimate for p in points]
        bands[arm] = [p.low for p in points], [p.high for p in points]
    name = f"time-to-policy-{task}.svg"
    write_text(PICTURE / name, curves(series, "CPU seconds of training", f"success on {task}", dots=True, low=0, high=1,
                                      bands=bands).alone())
    return name


def main(cells: list[str]) -> None:
    torch.set_num_threads(1)
    for cell in cells or CELLS:
        if cells or not _file(cell).exists():
            run(cell)
    pictures = [picture(t) for t in TASKS if all(_file(c).exists() for c in CELLS if c.startswith(f"{t}/"))]
    measure.save("time_to_policy", lines(), more={"pictures": pictures})


if __name__ == "__main__":
    main(sys.argv[1:])
