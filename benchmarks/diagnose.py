"""Does `understudy diagnose` name an injected fault first, and does it leave sound runs alone?

    python benchmarks/diagnose.py open                  runs the cases of development with the code of PYTHONPATH
    python benchmarks/diagnose.py fresh --as after      those that the checks are judged by
    python benchmarks/diagnose.py train [NAME ...]      trains the runs of all sets, and diagnoses none
    python benchmarks/diagnose.py pilot [NAME ...]      success of the runs with other seeds
    python benchmarks/diagnose.py commands [NAME ...]   the command of each open case
    python benchmarks/diagnose.py table                 prints the results as Markdown

There are 90 cases in diagnose_cases.py: 30 faults in each of the two worlds of diagnose_worlds.py, of which one has
cameras, and 30 sound runs of other methods and worlds. Each case is in three sets, which have the same kinds of faults
with other sizes, components, cameras and directions, and other seeds of demonstrations and training. The checks were
made with the set `open`, and then judged once by the set `judged`. Since then `judged` is a set of development, too.
The set `fresh` was listed and committed before the checks were changed again, and was run once, when they were done.
The aim there: the right fault first in 56 of 60, the right size where one is named, and no fault in 28 of 30 sound
runs.

A fault counts as found if the first finding is a fault or a warning and has one of the codes of the case. Its size
counts if the value of the finding is right: steps exactly, factors within a quarter. A sound run is quiet if no finding
is a fault. The codes were decided before anything was run, also those of checks that did not exist then.

Before there were two sets, a seed drew half of the cases of the set `open`, which nothing was tuned on. Judged once,
the checks of that time named the right fault first in 20 of these 30. Since then these cases are open too.

Each case runs `understudy diagnose` with what a user has: the data and the environment, or the data alone. Cases that
differ only where the policy acts share data and run, which stay in --folder. A result is stored as soon as it is there
(results/diagnose.json), so that a run that was stopped continues.
"""

from __future__ import annotations

import measure

measure.one_thread()

import argparse  # noqa: E402
import contextlib  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import shlex  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402
from unittest import mock  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from diagnose_cases import KINDS, SETS, Case, cases_of  # noqa: E402
from diagnose_worlds import ACTION, FlatPixels  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from understudy.commands.diagnose import main as diagnose  # noqa: E402
from understudy.data.episode import Dataset  # noqa: E402
from understudy.data.formats import open_dataset, write_dataset  # noqa: E402
from understudy.envs import make  # noqa: E402
from understudy.evaluate.evaluation import recording_seed  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402
from understudy.files import read_json, write_checksums, write_json  # noqa: E402
from understudy.learn.method import load_actor  # noqa: E402
from understudy.learn.train import train  # noqa: E402
from understudy.methods import find_method  # noqa: E402
from understudy.nets.encoders import TokenEncoder  # noqa: E402
from understudy.nets.mlp import MLP  # noqa: E402

FILE = measure.RESULTS / "diagnose.json"
TRUST = "diagnose_worlds"
SEEDS = {"open": 11, "judged": 29, "fresh": 47, "pilot": 1011}  # of demonstrations and training


# -- demonstrations and runs ------------------------------------------------------------------------------------------


def _shift(data: Dataset, steps: int) -> Dataset:
    """Actions in the row `steps` later than their own."""
    def moved(e):
        rows = np.clip(np.arange(len(e)) - steps, 0, len(e) - 1)
        return e.replace({ACTION: e.steps[ACTION][rows]})
    return data.map(moved)


def _scaled(data: Dataset, factor: float) -> Dataset:
    return data.map(lambda e: e.replace({ACTION: (factor * np.asarray(e.steps[ACTION])).astype(np.float32)}))


def _gripper(data: Dataset, closed: float) -> Dataset:
    """The gripper is stored as 0 and another number."""
    def stored(e):
        action = np.array(e.steps[ACTION])
        action[:, 2] = closed * (action[:, 2] > 0)
        return e.replace({ACTION: action})
    return data.map(stored)


CHANGES: dict[str, Callable[[Dataset, float], Dataset]] = {
    "late": lambda data, steps: _shift(data, int(steps)), "early": lambda data, steps: _shift(data, -int(steps)),
    "gripper": _gripper, "percent": lambda data, _: _scaled(data, 100), "degrees": lambda data, _: _scaled(data, 57.3),
    "thousandths": lambda data, _: _scaled(data, 1000)}


def env_name(world: str) -> str:
    return f"{TRUST}:{world}" if world.startswith(("carry", "reach")) else world


def make_env(world: str):
    return make(env_name(world), 20, (TRUST,))


def demonstrations(case: Case, folder: Path, seed: int) -> Path:
    """The file of the demonstrations of a case."""
    words = [case.world, case.episodes, case.data, seed]
    path = folder / "data" / ("-".join(str(w).replace(" ", "_").replace(":", "_") for w in words if w) + ".npz")
    if not path.exists():
        env = make_env(case.world)
        expert = make_env(case.world.split("__frozen")[0]).expert()
        data = rollout(expert, env, case.episodes, recording_seed(seed)).filter(lambda e: e.metadata["success"])
        path.parent.mkdir(parents=True, exist_ok=True)
        if case.data:
            change, *numbers = case.data.split()
            data = CHANGES[change](data, float(numbers[0]) if numbers else 0)
        write_dataset(data, path)
    return path


def _method(case: Case, features):
    """The method, with small networks."""
    method = find_method(case.method, features, **case.options)
    inputs = [n for n, f in features.items() if n.startswith("observation.") and f.kind != "string"]
    inputs = tuple(dict.fromkeys([*inputs, *getattr(method.policy.encoder, "named", ())]))
    policy, learner = replace(method.policy, inputs=inputs), method.learner
    if case.fields:
        policy = replace(policy, codec=replace(policy.codec, **case.fields))
    if isinstance(policy.encoder, TokenEncoder):
        policy = replace(policy, encoder=replace(policy.encoder, vision=FlatPixels()))
    if isinstance(policy.trunk, MLP):
        policy = replace(policy, trunk=replace(policy.trunk, width=64))
    if hasattr(learner, "batch_size"):
        learner = replace(learner, batch_size=32)
    return replace(method, policy=policy, learner=learner)


def trained_run(case: Case, folder: Path, seed: int) -> Path:
    """The folder of the run of a case. Cases with the same training share it."""
    path = demonstrations(case, folder, seed)
    words = [path.stem, case.method, *case.options.values(), *case.fields.values(), case.steps]
    out = folder / "runs" / "-".join(map(str, words))
    if not (out / "checkpoints" / f"{case.steps:06d}").exists():
        data = open_dataset(path)
        train(_method(case, data.features()), data, out, seed=seed, steps=case.steps,
              save_freq=max(case.steps // 3, 1), val_fraction=0.2, device="cpu", progress=False)
    if not case.run:
        return out
    change, number = case.run.split()
    changed = out.with_name(f"{out.name}-{change}-{number}")
    if not changed.exists():
        early = trained_run(replace(case, run="", steps=int(number)), folder, seed) if change == "early" else None
        shutil.copytree(out, changed)
        RUNS[change](changed, early or float(number))
    return changed / "checkpoints" / f"{int(number):06d}" if change == "early" else changed


def _early(run: Path, early: Path) -> None:
    """A checkpoint from early in the training is kept, too."""
    for checkpoint in (early / "checkpoints").iterdir():
        shutil.copytree(checkpoint, run / "checkpoints" / checkpoint.name)


def _statistics(run: Path, factor: float) -> None:
    """Statistics of the state in another unit."""
    for file in run.glob("checkpoints/*/weights.safetensors"):
        weights = load_file(file)
        for key in weights:
            if key.startswith("codec.obs_transforms.") and weights[key].shape == (3,):
                weights[key] = factor * weights[key]
        save_file(weights, file)
        write_checksums(file.parent, file.name)


RUNS = {"early": _early, "statistics": _statistics}


# -- judging ----------------------------------------------------------------------------------------------------------


def arguments(case: Case, folder: Path, seed: int) -> list[str]:
    """The arguments of `understudy diagnose`. Trains the run."""
    run, data = trained_run(case, folder, seed), demonstrations(case, folder, seed)
    acting = [] if case.act is None else ["--env", env_name(case.act or case.world)]
    return [str(run), "--data", str(data), *acting, "--trust", TRUST, "--device", "cpu"]


def judge(case: Case, folder: Path, seed: int) -> dict:
    """What `understudy diagnose` says, and whether it is right."""
    args, began, printed, errors = arguments(case, folder, seed), time.process_time(), io.StringIO(), io.StringIO()
    successes: list[bool] = []

    def watched(actor, *arguments_of_rollout, **options):
        episodes = rollout(actor, *arguments_of_rollout, **options)
        if not successes:  # the first are those of the policy
            successes.extend(bool(e.metadata.get("success")) for e in episodes)
        return episodes
    try:
        with (contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors),
              mock.patch("understudy.diagnose.runner.rollout", watched)):
            diagnose([*args, "--json"])
        findings = json.loads(printed.getvalue())["findings"]
    except (Exception, SystemExit) as error:
        message = f"{error!r} {errors.getvalue()[-300:]}".replace(str(folder), "FOLDER")
        findings = [{"code": "error", "level": "note", "value": None, "message": message}]
    findings = [{k: f[k] for k in ("code", "level", "value", "message")} for f in findings]
    first = findings[0] if findings else {"code": None, "level": "note", "value": None}
    result = {"expected": list(case.codes), "first": first["code"], "level": first["level"], "findings": findings,
              "success": float(np.mean(successes)) if successes else None,
              "seconds": round(time.process_time() - began, 1)}
    if not case.codes:
        return result | {"right": all(f["level"] != "fault" for f in findings)}
    right = first["code"] in case.codes and first["level"] != "note"
    if case.size is not None and right:
        value = abs(first["value"])
        exact = first["code"] in ("action-shift", "latency")
        result["size_right"] = value == case.size if exact else abs(np.log(value / case.size)) < np.log(1.25)
        result |= {"size": case.size, "named_size": first["value"], "size_right": bool(result["size_right"])}
    return result | {"right": right}


def run_set(which: str, label: str, names: list[str], folder: Path) -> None:
    results = read_json(FILE) if FILE.exists() else {}
    own = results.setdefault(label, {}).setdefault(which, {})
    for case in cases_of(which):
        if case.name in own or names and not any(n in case.name for n in names):
            continue
        own[case.name] = result = judge(case, folder, SEEDS[which])
        write_json(FILE, results)
        size = {None: "", True: " size right", False: " size WRONG"}[result.get("size_right")]
        text = ", ".join(f"{f['level']} {f['code']} ({f['value'] or 0:.3g})" for f in result["findings"])
        print(("right" if result["right"] else "WRONG") + size, case.name, f"{result['seconds']:.0f} s, success "
              f"{result['success']} | {text}", flush=True)


def pilot(names: list[str], folder: Path) -> None:
    """Success of the run of each sound case, and of the healthy runs behind the faults, with other seeds."""
    cases = {}
    for case in [case for which in SETS for kind in reversed(KINDS) for case in cases_of(which, kind)]:
        if not names or any(n in case.name for n in names):
            cases.setdefault((case.world, case.method, str(case.options), case.steps, case.data), case)
    for case in cases.values():
        began = time.process_time()
        run = trained_run(replace(case, run=""), folder / "pilot", SEEDS["pilot"])
        spent, env = time.process_time() - began, make_env(case.world)
        actor = load_actor(run, device="cpu", rows=16, trust=(TRUST,))
        episodes = rollout(actor, env, 30, recording_seed(SEEDS["pilot"] + 1))
        print(f"{np.mean([e.metadata['success'] for e in episodes]):.0%} {spent:.0f} s", case.name, flush=True)


def table() -> None:
    """Prints each kind and set, before and after, then each case."""
    results = read_json(FILE)
    columns = [(which, label) for which in SETS for label in results if which in results[label]]
    print("| | " + " | ".join(f"{which}, {label}" for which, label in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for title, kinds, key in (("right fault first", ("carry", "reach"), "right"),
                              ("right size, where one is named", ("carry", "reach"), "size_right"),
                              ("no fault in a sound run", ("sound",), "right")):
        cells = []
        for which, label in columns:
            names = {case.name for kind in kinds for case in cases_of(which, kind)}
            judged = [r[key] for n, r in results[label][which].items() if n in names and key in r]
            cells.append(f"{sum(judged)} of {len(judged)}" if judged else "")
        print(f"| {title} | " + " | ".join(cells) + " |")
    for which in SETS:
        print(f"\n| {which} | " + " | ".join(results) + " |\n|---|" + "---|" * len(results))
        for case in cases_of(which):
            outcomes = [results[label].get(which, {}).get(case.name) for label in results]
            print(f"| {case.name} | " + " | ".join(map(_said, outcomes)) + " |")


def _said(result: dict | None) -> str:
    if result is None:
        return ""
    if not result["expected"]:
        faults = [f["code"] for f in result["findings"] if f["level"] == "fault"]
        return "**" + ", ".join(faults) + "**" if faults else "no fault"
    name = f"{result['first']}" if result["level"] != "note" else "no fault"
    if result.get("size_right") is False:
        name += f" ({abs(result['named_size']):.3g} instead of {result['size']:g})"
    return name if result["right"] else f"**{name}**"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=(*SETS, "train", "pilot", "commands", "table"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--as", dest="label", default="after", help="the column of the results")
    parser.add_argument("--folder", type=Path, default=Path("diagnose-runs"))
    o = parser.parse_args()
    torch.set_num_threads(1)
    if o.what == "pilot":
        pilot(o.names, o.folder)
    elif o.what == "table":
        table()
    elif o.what == "train":
        for which in SETS:
            for case in cases_of(which):
                if not o.names or any(n in f"{which} {case.name}" for n in o.names):
                    arguments(case, o.folder, SEEDS[which])
                    print(which, case.name, flush=True)
    elif o.what == "commands":
        for case in cases_of("open"):
            if not o.names or case.name in o.names:
                words = shlex.join(arguments(case, o.folder, SEEDS["open"]))
                print(f"{case.name}\n  PYTHONPATH=src:benchmarks understudy diagnose {words}")
    else:
        run_set(o.what, o.label, o.names, o.folder)


if __name__ == "__main__":
    sys.path.insert(0, str(measure.HERE))
    main()
