"""How soon a policy works: python benchmarks/time_to_policy.py [TASK ... | --page]

The recommended method (`methods.recommend`) beside Diffusion Policy as it stands here (U-Net of 5 M parameters, DDIM
in 10 steps), in CPU seconds of training on one core; rollouts are not counted. The rule, written before any run that
is judged:

- Updates. Diffusion Policy makes some 30 passes over the demonstrations of each task. The others make as many updates
  as a tenth of its time surely holds, by the cost of an update measured beforehand. Warm-up keeps its share of the
  updates.
- Trials. Every arm gets the same eight on each task: the method's own learning rate and three times that, each
  executing 1, 2, 4 and 8 steps at a time, after half of the updates. They have a training seed and starts of their own.
  The best success is taken; on ties the method's own setting, then the one that plans less often.
- Judged are three further training seeds of each arm, all on the same starts, after 1/4, 1/2 and all of the updates;
  what trains for seconds also after 1/16 and 1/8.
- "Reached" is the first of these at which the mean success over seeds is 90 % of Diffusion Policy's at its end, and
  stays there at all later ones. The ratio is of CPU seconds of training, seed by seed.

Cells that ran are kept in results/time-to-policy: Ctrl-C, and go on; --page writes what there is. Half an hour of a
core; the tasks may run side by side.
"""

from __future__ import annotations

import measure

measure.one_thread()

import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterable  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402
from functools import cache  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

from understudy.data.episode import Dataset  # noqa: E402
from understudy.envs import make  # noqa: E402
from understudy.envs.base import Env  # noqa: E402
from understudy.evaluate.evaluation import recording_seed, tuning_seed  # noqa: E402
from understudy.evaluate.plots import Axis, curves  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402
from understudy.evaluate.stats import two_level_rate  # noqa: E402
from understudy.execute.actor import PolicyActor  # noqa: E402
from understudy.files import read_json, write_json, write_text  # noqa: E402
from understudy.learn.fit_method import fit_method  # noqa: E402
from understudy.learn.method import Method  # noqa: E402
from understudy.methods import find_method, recommend  # noqa: E402
from understudy.policy import Policy  # noqa: E402

KEPT = measure.RESULTS / "time-to-policy"
PICTURE = measure.HERE.parent / "docs" / "images"
PEER, OURS, WIDE = "diffusion-policy", "recommended", "recommended, as many parameters"
SEEDS, TRIED = (0, 1, 2), 100  # training seeds: those that are judged, and that of the trials
SHARE, GOAL = 0.9, 10.0
RATES, EXECUTED = (1.0, 3.0), (8, 4, 2, 1)


@dataclass(frozen=True)
class Task:
    env: str
    n_demonstrations: int  # demonstrations by its expert, of which those that succeed are kept
    updates: dict[str, int]  # of each arm
    episodes: int = 100
    rows: int = 100
    options: tuple[tuple[str, int], ...] = ()


TASKS = {
    "push": Task("push", 200, {PEER: 2000, OURS: 2700, WIDE: 400}),
    # The expert takes about 80 steps; an episode of a policy may take 200.
    "door-open": Task("metaworld/door-open-v3", 50, {PEER: 1000, OURS: 1000, WIDE: 250}, episodes=50, rows=50,
                      options=(("limit", 200),)),
}
WIDTH = 1050  # of the recommended method's MLP, for as many parameters as Diffusion Policy has


@cache
def env(name: str) -> Env:
    task = TASKS[name]
    return make(task.env, rows=task.rows, **dict(task.options))


@cache
def demonstrations(name: str) -> Dataset:
    return rollout(env(name).expert(), env(name), TASKS[name].n_demonstrations, recording_seed(0)).filter(
        lambda e: e.metadata["success"]
    )


def method(arm: str, data: Dataset, steps: int, rate: float = 1.0, executed: int | None = None) -> Method:
    """`arm` for a run of `steps` updates; rate: what its own is multiplied by."""
    base = find_method(PEER if arm == PEER else recommend(data.features()), data.features())
    if arm == WIDE:
        base = replace(base, policy=replace(base.policy, trunk=replace(base.policy.trunk, width=WIDTH)))
    optimizer = base.learner.optimizer
    optimizer = replace(optimizer, lr=rate * optimizer.lr,
                        warmup_steps=round(optimizer.warmup_steps * steps / base.learner.steps))
    return replace(base, learner=replace(base.learner, steps=steps, optimizer=optimizer),
                   executor=replace(base.executor, n_action_steps=executed or base.executor.n_action_steps))


def trained(base: Method, data: Dataset, seed: int, marks: Iterable[int], look: Callable) -> int:
    """Trains, and calls `look(updates, CPU seconds of training until then, policy)` at each mark, which costs none of
    them. Returns the number of parameters."""
    began, aside = time.process_time(), 0.0

    def watch(step, learner, metrics):
        nonlocal aside
        if step in marks:
            paused = time.process_time()
            look(step, paused - began - aside, learner.trained_policy.eval())
            aside += time.process_time() - paused

    result = fit_method(base, data, seed, callbacks=(watch,))
    return sum(p.numel() for p in result.policy.parameters())


def success(policy: Policy, base: Method, name: str, episodes: int, seed: int) -> list[int]:
    return [int(e.metadata["success"]) for e in rollout(PolicyActor(policy, base.executor), env(name), episodes, seed)]


# -- cells --------------------------------------------------------------------------------------------------------


def trial(name: str, arm: str, rate: float) -> dict:
    """One training and its success at each number of executed steps, kept on disk."""
    def work():
        task, data, counts = TASKS[name], demonstrations(name), {}
        steps = task.updates[arm] // 2

        def look(step, seconds, policy):
            for n in EXECUTED:
                counts[str(n)] = success(policy, method(arm, data, steps, rate, n), name, task.episodes, tuning_seed(0))
        trained(method(arm, data, steps, rate), data, TRIED, {steps}, look)
        return {"updates": steps, "rate": rate, "executed": counts}
    return _kept(_file(name, arm, f"trial-{rate:g}"), work)


def chosen(name: str, arm: str) -> tuple[float, int, float]:
    """The factor of the learning rate, the executed steps, and their success in the trials."""
    own = 1.0, method(arm, demonstrations(name), 1).executor.n_action_steps
    tried = {(rate, n): float(np.mean(trial(name, arm, rate)["executed"][str(n)])) for rate in RATES for n in EXECUTED}
    best = max((own, *tried), key=lambda setting: tried[setting])  # the first of the best
    return *best, tried[best]


def looks(arm: str) -> tuple[int, ...]:
    """It is looked at after a 16th, ... of its updates."""
    return (4, 2, 1) if arm == PEER else (16, 8, 4, 2, 1)


def judged(name: str, arm: str, seed: int) -> dict:
    """One training seed: its success at every look."""
    def work():
        task, curve = TASKS[name], []
        steps = task.updates[arm]
        rate, executed, _ = chosen(name, arm)
        base = method(arm, demonstrations(name), steps, rate, executed)

        def look(step, seconds, policy):
            curve.append({"update": step, "seconds": seconds, "success": success(policy, base, name, task.episodes, 0)})
        parameters = trained(base, demonstrations(name), seed, {steps // part for part in looks(arm)}, look)
        return {"rate": rate, "executed": executed, "parameters": parameters, "curve": curve}
    return _kept(_file(name, arm, seed), work)


def _file(name: str, arm: str, which: object) -> Path:
    return KEPT / f"{name}-{arm.replace(', ', '-').replace(' ', '-')}-{which}.json"


def _kept(file: Path, work: Callable[[], dict]) -> dict:
    if not file.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        write_json(file, result := work())
        shares = result.get("executed") if "curve" not in result else {round(c["seconds"]): c["success"]
                                                                       for c in result["curve"]}
        print(f"{file.stem}: " + ", ".join(f"{k}: {np.mean(v):.2f}" for k, v in shares.items()), file=sys.stderr,
              flush=True)
    return read_json(file)


# -- what came out ------------------------------------------------------------------------------------------------


def finished_seeds(name: str) -> list[int]:
    """The training seeds of which every arm has run; none where there is but one: it has no interval."""
    seeds = [s for s in SEEDS if all(_file(name, arm, s).exists() for arm in TASKS[name].updates)]
    return seeds if len(seeds) > 1 else []


def lines(name: str) -> list[measure.Line]:
    if not (seeds := finished_seeds(name)):
        return [measure.Line(name, goal=GOAL, note="did not run")]
    runs = {arm: [judged(name, arm, s)["curve"] for s in seeds] for arm in TASKS[name].updates}
    sizes = {arm: judged(name, arm, seeds[0])["parameters"] / 1e6 for arm in runs}
    mean = {arm: [float(np.mean([c[i]["success"] for c in runs[arm]])) for i in range(len(looks(arm)))] for arm in runs}
    goal, spent = SHARE * mean[PEER][-1] - 1e-9, [c[-1]["seconds"] for c in runs[PEER]]

    def reached(arm: str) -> int | None:
        return next((i for i in range(len(mean[arm])) if min(mean[arm][i:]) >= goal), None)

    itself = np.median([c[reached(PEER)]["seconds"] for c in runs[PEER]])  # at its end at the latest
    table = []
    for arm in (OURS, WIDE):
        size = (f"{sizes[arm]:.2g} M parameters; Diffusion Policy ({sizes[PEER]:.2g} M) ends at {mean[PEER][-1]:.0%}, "
                f"and is itself seen at nine tenths of that after {itself:.0f} s")
        good = reached(arm)
        at = len(mean[arm]) - 1 if good is None else good
        took = [c[at]["seconds"] for c in runs[arm]]
        note = f"{mean[arm][at]:.0%} after {runs[arm][0][at]['update']} updates, {mean[arm][-1]:.0%} at its end; {size}"
        # What was not reached has no ratio: 0, which meets no goal.
        times = measure.Ratio(0, 0, 0) if good is None else measure.ratio(spent, took)
        table.append(measure.Line(f"{name}, {arm}", measure.Figure.of(took, "s"), measure.Figure.of(spent, "s"), times,
                                  GOAL, note=note if good is not None else f"not reached: {note}"))
    return table


def picture(name: str) -> tuple[str, str]:
    """Success against CPU seconds, the mean over seeds and its two-level interval; its file's name, and what it is."""
    series, bands = {}, {}
    for arm in TASKS[name].updates:
        runs = [judged(name, arm, s)["curve"] for s in finished_seeds(name)]
        points = [two_level_rate([r[i]["success"] for r in runs]) for i in range(len(runs[0]))]
        seconds = [float(np.mean([r[i]["seconds"] for r in runs])) for i in range(len(runs[0]))]
        series[arm] = seconds, [p.estimate for p in points]
        bands[arm] = [p.low for p in points], [p.high for p in points]
    seconds = [x for xs, _ in series.values() for x in xs]
    series[f"{SHARE:.0%} of {PEER} at its end"] = (min(seconds), max(seconds)), (SHARE * series[PEER][1][-1],) * 2
    file = f"time-to-policy-{name}.svg"
    figure = curves(series, Axis("CPU seconds of training", log=True), Axis(f"success on {name}", 0, 1), dots=True,
                    bands=bands)
    write_text(PICTURE / file, figure.standalone_svg())
    return file, f"Success on {name}, the mean over training seeds with its 95 % interval over seeds and starts"


def summary(name: str) -> str:
    """What the trials chose."""
    parts = []
    for arm in TASKS[name].updates:
        rate, executed, share = chosen(name, arm)
        own = method(arm, demonstrations(name), 1).learner.optimizer.lr
        parts.append(f"{arm} rate {rate * own:g} and {executed} steps carried out ({share:.0%})")
    return (f"On {name}, {len(RATES) * len(EXECUTED)} trials each chose: {'; '.join(parts)}. "
            f"{len(finished_seeds(name))} training seeds, {TASKS[name].episodes} starts.")


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in () if names == ["--page"] else names or TASKS:
        for seed in SEEDS:  # the arms take turns
            for arm in TASKS[name].updates:
                judged(name, arm, seed)
    done = [name for name in TASKS if finished_seeds(name)]
    measure.save("time_to_policy", [line for name in TASKS for line in lines(name)],
                 more={"says": "\n\n".join(map(summary, done)), "pictures": dict(map(picture, done))})


if __name__ == "__main__":
    main(sys.argv[1:])
