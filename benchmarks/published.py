"""Published tables, reproduced with this project's code: their figure, ours with its interval, and what differs.

    python benchmarks/published.py            what has not run, one after another; Ctrl-C and go on
    python benchmarks/published.py --page     writes docs/published.md from what has run

The protocols, fixed before the first run, three training seeds each, nothing tuned:

- pointmaze: goal-conditioned behavior cloning of OGBench (Park et al. 2025, arXiv 2410.20092), `gcbc`, on
  pointmaze-medium-navigate: 20,000 updates where they have 1,000,000; five goals of 50 episodes each, of the weights at
  80, 90 and 100 % of the updates, averaged, as theirs. Published: 9 % over 8 seeds.
- door: plain cloning of CORL (Tarasov et al. 2022, arXiv 2210.07105) on 25 demonstrations of the Adroit door by
  people, their network, rate and batch: 100,000 updates where they have 1,000,000; D4RL's normalized score over 200
  steps. "last" is of the last weights, in 100 episodes. "best" is the highest mean of 10 episodes among 20 looks,
  chosen on the very episodes that judge it, as published; "best, judged anew" are those weights in 100 other episodes.
  Published: 2.3 and 9.4 over 4 seeds.

Recorded demonstrations are looked for in UNDERSTUDY_DATA.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import machine, one_thread, versions  # noqa: E402

from understudy import methods  # noqa: E402
from understudy.core import UserError  # noqa: E402
from understudy.data.codec import Normalizer  # noqa: E402
from understudy.data.formats import open_dataset
from understudy.envs import make  # noqa: E402
from understudy.evaluate.evaluation import evaluate, validation_seed  # noqa: E402
from understudy.evaluate.stats import two_level_mean  # noqa: E402
from understudy.execute.actor import PolicyActor  # noqa: E402
from understudy.execute.chunking import RecedingHorizon  # noqa: E402
from understudy.execute.planners import FixedBatch  # noqa: E402
from understudy.files import read_json, write_json, write_text  # noqa: E402
from understudy.heads.regression import Regression  # noqa: E402
from understudy.learn.behavior_cloning import BehaviorCloning  # noqa: E402
from understudy.learn.fit_method import fit_method  # noqa: E402
from understudy.learn.method import Method  # noqa: E402
from understudy.learn.optimizer import OptimizerConfig  # noqa: E402
from understudy.nets.ema import ConstantDecay  # noqa: E402
from understudy.nets.encoders import ConcatEncoder  # noqa: E402
from understudy.nets.feed_forward import FeedForward  # noqa: E402
from understudy.policy import Policy, PolicyConfig  # noqa: E402

DATA = Path(os.environ.get("UNDERSTUDY_DATA", "../shared/data"))
RUNS, RESULTS, PAGE = Path("runs/published"), Path("benchmarks/results/published"), Path("docs/published.md")
SEEDS, ROWS = (0, 1, 2), 25


def corl() -> Method:
    policy = PolicyConfig(
        Regression(),
        trunk=FeedForward((256, 256), "relu"),
        encoder=ConcatEncoder(),
        codec=Normalizer(target="identity"),
    )
    return Method(
        policy,
        RecedingHorizon(1),
        BehaviorCloning(
            batch_size=256,
            ema=ConstantDecay(0.0),
            optimizer=OptimizerConfig(lr=3e-4, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None),
        ),
    )


@dataclass(frozen=True)
class Table:
    data: str  # under DATA
    method: Callable[[], Method]
    updates: int
    looks: tuple[int, ...]  # updates whose weights are kept and judged
    judge: Callable[[Callable[[int], PolicyActor], tuple[int, ...]], dict]


def mazes(acting, looks) -> dict:
    """success[look][goal]: 0s and 1s, one an episode."""
    env = [make(f"ogbench/pointmaze-medium-v0:{goal}", rows=ROWS) for goal in range(1, 6)]
    return {"success": [[evaluate(acting(look), e, 50, seed=0).successes.astype(int).tolist() for e in env]
                        for look in looks]}


def doors(acting, looks) -> dict:
    """D4RL's scores, one an episode: of the last weights, of each look's ten, and of the best look's in others."""
    from understudy.envs.adroit import score

    env = make("AdroitHandDoor-v1", rows=10, limit=200)

    def scores(look, episodes, seed):
        return [score(e.steps["next.reward"]) for e in evaluate(acting(look), env, episodes, seed).episodes]
    watched = [scores(look, 10, validation_seed(0)) for look in looks]
    best = int(np.argmax([np.mean(w) for w in watched]))
    last = scores(looks[-1], 100, 0)
    return {"looks": watched, "best": looks[best], "last": last,
            "anew": last if looks[best] == looks[-1] else scores(looks[best], 100, 0)}


TABLES = {
    "pointmaze": Table("ogbench/pointmaze-medium-navigate-v0.npz", lambda: methods.find_method("gcbc"), 20_000,
                       (16_000, 18_000, 20_000), mazes),
    "door": Table("hand_dapg/adroit_door_human.npz", corl, 100_000, tuple(range(5_000, 100_001, 5_000)), doors),
}


def train(name: str, seed: int) -> None:
    """Its weights at each look, under RUNS; interrupted, it begins anew."""
    table, folder = TABLES[name], RUNS / f"{name}-{seed}"
    if (folder / "trained.json").exists():
        return
    if not (DATA / table.data).exists():
        raise UserError("expected recorded demonstrations, found none", where=DATA / table.data,
                        hint="set UNDERSTUDY_DATA to the folder that holds them")
    data, method = open_dataset(DATA / table.data), table.method()
    method = replace(method, learner=replace(method.learner, steps=table.updates))
    began = time.process_time()

    def look(step, learner, seen):
        if step in table.looks:
            learner.trained_policy.save(folder / str(step))
            print(f"{name}, seed {seed}: {step} updates, loss {seen['loss']:.4f}, "
                  f"{time.process_time() - began:.0f} CPU s", flush=True)
    fit_method(method, data, seed, callbacks=(look,))
    write_json(folder / "trained.json", {"seconds": round(time.process_time() - began, 1), "updates": table.updates,
                                         "machine": machine(), "versions": versions("torch", "numpy", "mujoco")})


def judge(name: str, seed: int) -> None:
    table, folder = TABLES[name], RUNS / f"{name}-{seed}"

    def acting(look: int) -> PolicyActor:
        return PolicyActor(FixedBatch(Policy.load(folder / str(look)), ROWS), table.method().executor)
    began = time.process_time()
    found = table.judge(acting, table.looks)
    write_json(RESULTS / f"{name}-{seed}.json", {**read_json(folder / "trained.json"), **found,
                                                 "judging": round(time.process_time() - began, 1)})


# -- the page -------------------------------------------------------------------------------------------------------


def page() -> str:
    lines = ["# Published tables", "",
             "This page repeats published results with understudy. There are three training seeds. Intervals are 95 % "
             "intervals over training seeds and episodes. `python benchmarks/published.py` runs what is missing and "
             "writes this page.",
             "", "| table | published | here | updates here, there | training, CPU s a seed |",
             "| --- | --- | --- | --- | --- |", *_mazes(), *_doors(), "", *NOTES]
    return "\n".join(lines) + "\n"


NOTES = (
    "## Differences from the published experiments", "",
    "*OGBench, GCBC.* The data were generated again by OGBench's own script, so they have the same distribution but "
    "other numbers. The network (three layers of 512, GELU), the learning rate, the batch size and the goals (a later "
    "state of the same episode, uniformly) are the same. The number of updates is 2 % of the published one. "
    "Observations are standardized here and not there. The last layer is initialized like the others; theirs starts a "
    "hundred times smaller. The evaluation is the same: five goals with 50 episodes each, and the mean of three "
    "checkpoints. Almost all success is at the first and the last goal. It was not tested whether more updates would "
    "change that.", "",
    "*CORL, behavior cloning.* The demonstrations, the network, the learning rate and the batch size are the same, "
    "with a tenth of the updates. Their last layer has a tanh. Ours has none, because the environment clips actions. "
    "The simulator is MuJoCo 3 of Gymnasium-Robotics instead of mujoco-py. The reward has the signs of the original. "
    "*Best* is selected among 20 evaluations here and among 200 there, on the ten episodes that it is reported for. In "
    "both cases it is a maximum over noise. The row below it is the result of the same weights in 100 other episodes.")


def _found(name: str) -> list[dict]:
    return [read_json(f) for seed in SEEDS if (f := RESULTS / f"{name}-{seed}.json").exists()]


def _mazes() -> list[str]:
    found = _found("pointmaze")
    if len(found) < 2:
        return ["| OGBench pointmaze-medium-navigate, GCBC, success | 9 % | did not run | | |"]
    success = np.array([f["success"] for f in found])  # (seeds, looks, goals, episodes)
    over = two_level_mean(success.mean(1).reshape(len(found), -1))
    each = [f"{100 * success[:, :, g].mean():.0f}" for g in range(5)]
    return [f"| OGBench pointmaze-medium-navigate, GCBC, success | 9 % | {_share(over)}, by goal {', '.join(each)} % | "
            f"20,000, 1,000,000 | {_seconds(found)} |"]


def _doors() -> list[str]:
    found = _found("door")
    name = "CORL door-human, BC, D4RL score"
    if len(found) < 2:
        return [f"| {name} | 2.3 | did not run | | |"]
    best = two_level_mean([f["looks"][TABLES["door"].looks.index(f["best"])] for f in found])
    anew = two_level_mean([f["anew"] for f in found])
    return [f"| {name}, last | 2.3 | {_score(two_level_mean([f['last'] for f in found]))} | 100,000, 1,000,000 | "
            f"{_seconds(found)} |",
            f"| {name}, best, selected on the test episodes | 9.4 | {_score(best)} | | |",
            f"| {name}, the same weights on new episodes | | {_score(anew)} | | |"]


def _share(i) -> str:
    return f"{100 * i.estimate:.0f} % [{100 * max(i.low, 0):.0f}, {100 * i.high:.0f}]"


def _score(i) -> str:
    return f"{i.estimate:.1f} [{i.low:.1f}, {i.high:.1f}]"


def _seconds(found) -> str:
    return f"{np.mean([f['seconds'] for f in found]):.0f}"


def main() -> int:
    one_thread()
    status = 0
    for name in () if "--page" in sys.argv else [a for a in sys.argv[1:] if a in TABLES] or TABLES:
        for seed in SEEDS:
            if (RESULTS / f"{name}-{seed}.json").exists():
                continue
            try:
                train(name, seed)
                if "--train" not in sys.argv:
                    judge(name, seed)
            except UserError as error:
                print(f"{name}: {error}", file=sys.stderr)
                status = 2
    write_text(PAGE, page())
    print(f"wrote {PAGE}")
    return status


if __name__ == "__main__":
    sys.exit(main())
