"""Remedies for copying the last action, in closed loop: python benchmarks/history.py [drive | --tiny | --page]

A car must brake for a person, and a light on its dashboard shows whether the brake was on in the last step. The light
predicts nearly all actions of the demonstrations, and is the cause of none. All policies have the same network, data
and number of updates, and act from the same starts. They read one observation or the last five, whose past actions tell
the same as the light. `no light` reads one observation without the light: what is possible without the trap.

The settings are written here before any run, and the remedies have their defaults. Those that all share
(demonstrations, batch, updates, network) were chosen in pilots on the seed 100, which is not judged, with `no light`,
`one observation` and `five observations`: with 100 demonstrations and 3,000 updates 1.00, 0.92 and not tried; with 30
and 3,000 0.84, 0.67 and 0.41; with 15 and 3,000 0.60, 0.49 and 0.36; with 30 and 1,000 0.81, 0.65 and 0.42.

Left out: past-token prediction, which has a table of its own (`past-token-prediction`), and `action_dependence`, which
needs a cause that is seen in the first steps, and here the person comes later.

The cells, one for each training seed and policy, are kept in results/history/. A run that was stopped continues.
--budget 8m starts no cell later than that. --tiny keeps its cells in results/history-tiny/, and shows only that
everything runs. --page writes the table of docs/history.md from the cells that there are.
"""

from __future__ import annotations

import measure

measure.one_thread()

import functools  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

from understudy.audit.scores import MarkKeyframes  # noqa: E402
from understudy.audit.scores.keyframes import KEYFRAME  # noqa: E402
from understudy.data.column_changes import SelectComponents  # noqa: E402
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
from understudy.learn.method import Method, build_actor  # noqa: E402
from understudy.learn.optimizer import OptimizerConfig  # noqa: E402
from understudy.learn.sample_weights import ColumnWeights  # noqa: E402
from understudy.methods.behavior_cloning.bottleneck_bc import BottleneckEncoder, InformationBottleneck  # noqa: E402
from understudy.nets.encoders import ConcatEncoder  # noqa: E402
from understudy.nets.mlp import MLP  # noqa: E402
from understudy.policy import PolicyConfig  # noqa: E402

STATE, LIGHT = "observation.state", 16  # component
STARTS, SHOWN = 200, 30


@dataclass(frozen=True)
class Size:
    """How much is run. The first numbers are those of the page.

    Args:
        folder: Where the cells are kept.
        seeds: Training seeds.
        updates: Number of updates.
        n_demonstrations: Number of demonstrations.
        starts: Number of starts.
    """

    folder: str = "history"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    updates: int = 1000
    n_demonstrations: int = SHOWN
    starts: int = STARTS


FULL, TINY = Size(), Size("history-tiny", (0, 1), 5, 4, 4)


def methods(updates: int) -> dict[str, Method]:
    """The compared policies by name."""
    def method(n_obs_steps, horizon=1, executed=1, encoder=None, transforms=(), **learner) -> Method:
        policy = PolicyConfig(Regression(), MLP(128, 2), encoder or ConcatEncoder(),
                              window=Window(n_obs_steps, horizon))
        optimizer = OptimizerConfig(lr=1e-3, warmup_steps=min(100, updates // 2))
        return Method(policy, RecedingHorizon(executed), BehaviorCloning(updates, 128, optimizer=optimizer, **learner),
                      transforms)

    keyframes = {"transforms": (MarkKeyframes(),), "sample_weights": ColumnWeights(KEYFRAME, 5.0)}
    bottleneck = {"encoder": BottleneckEncoder(32), "auxiliary_losses": (InformationBottleneck(0.01),)}
    no_light = {"transforms": (SelectComponents(STATE, tuple(range(LIGHT))),)}
    return {
        "no light": method(1, **no_light),
        "five observations, no light": method(5, **no_light),
        "one observation": method(1),
        "five observations": method(5),
        "chunks": method(1, 8, 4),
        "five observations, chunks": method(5, 8, 4),
        "keyframes": method(1, **keyframes),
        "five observations, keyframes": method(5, **keyframes),
        "bottleneck": method(1, **bottleneck),
        "five observations, bottleneck": method(5, **bottleneck),
    }


NAMES = tuple(methods(10))
REFERENCES = ("one observation", "five observations")  # without a remedy


@functools.cache
def environment(rows: int):
    """The car."""
    return make("drive", rows=rows)


@functools.cache
def demonstrations(seed: int, n_demonstrations: int) -> Dataset:
    """Successful episodes of the expert: others for each training seed, the same for all policies."""
    env = environment(min(n_demonstrations, 50))
    return rollout(env.expert(), env, n_demonstrations, recording_seed(seed)).filter(lambda e: e.metadata["success"])


def cell_path(size: Size, seed: int, name: str) -> Path:
    """The file of a cell."""
    return measure.RESULTS / size.folder / f"drive-{seed}-{name.replace(', ', '-').replace(' ', '-')}.json"


def run_cell(size: Size, seed: int, name: str) -> dict:
    """Trains and judges a policy."""
    data, began = demonstrations(seed, size.n_demonstrations), time.process_time()
    result = fit_method(methods(size.updates)[name], data, seed)
    trained, env = time.process_time() - began, environment(min(size.starts, 50))
    episodes = rollout(build_actor(result.method, result.modules, features=env.features), env, size.starts, seed=0)
    return {"seed": seed, "policy": name, "updates": size.updates, "demonstrations": len(data),
            "success": [int(e.metadata["success"]) for e in episodes], "seconds": {"training": round(trained, 1)}}


def run(size: Size, until: float) -> None:
    """Runs what is missing until the time is over."""
    for seed in size.seeds:
        for name in NAMES:
            if not cell_path(size, seed, name).exists() and time.monotonic() < until:
                cell = run_cell(size, seed, name)
                write_json(cell_path(size, seed, name), cell)
                print(f"seed {seed} {name}: {np.mean(cell['success']):.2f}", file=sys.stderr, flush=True)


def page_text(size: Size) -> str:
    """The table of the documentation."""
    seeds = [s for s in size.seeds if all(cell_path(size, s, name).exists() for name in NAMES)]
    if len(seeds) < 2:  # an interval needs two
        return ""
    cells = {name: [read_json(cell_path(size, s, name)) for s in seeds] for name in NAMES}
    won = {name: np.array([cell["success"] for cell in of], float) for name, of in cells.items()}
    one, five = REFERENCES
    parts = [f"**drive**, {cells[one][0]['demonstrations']} demonstrations, {cells[one][0]['updates']:,} updates, "
             f"{len(seeds)} training seeds, {won[one].shape[1]} starts:", "",
             "| policy | success, % | more than without the remedy, points |", "|---|--:|--:|"]
    for name in sorted(NAMES, key=lambda name: -won[name].mean()):
        without = five if name.startswith(five) else one
        rate, more = two_level_rate(won[name]), two_level_difference(won[name], won[without])[0]
        gain = "" if name == without else measure.percent(more.low, more.estimate, more.high, "+")
        parts.append(f"| {name} | {measure.percent(rate.low, rate.estimate, rate.high)} | {gain} |")
    return "\n".join(parts)


def main() -> None:
    o = measure.task_options(__doc__, ["drive"])
    size = TINY if o.tiny else FULL
    if not o.page:
        run(size, o.until)
    measure.publish("history", page_text(size), "history.md", o.tiny)


if __name__ == "__main__":
    main()
