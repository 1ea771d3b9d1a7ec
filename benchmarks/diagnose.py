"""Does `understudy diagnose` name an injected fault first, and does it leave sound runs alone?

    python benchmarks/diagnose.py open                  runs one half of the cases with the code of PYTHONPATH
    python benchmarks/diagnose.py sealed --as after     the other half, which nothing was tuned on
    python benchmarks/diagnose.py train                 trains the runs of both halves, and diagnoses none
    python benchmarks/diagnose.py pilot [NAME ...]      success of the runs with other seeds
    python benchmarks/diagnose.py commands [NAME ...]   the command of each case
    python benchmarks/diagnose.py table                 prints the results as Markdown

There are 90 cases: 30 faults in each of the two worlds of diagnose_worlds.py, of which one has cameras, and 30 sound
runs of other methods and worlds. `SEED` draws half of each kind, which is sealed: it is run once, when the checks are
done. The aim, for the sealed half: the right fault first in 28 of 30, the right size where one is named, and no fault
in 14 of 15 sound runs.

A fault counts as found if the first finding is a fault or a warning and has one of the codes of the case. Its size
counts if the value of the finding is right: steps exactly, factors within a quarter. A sound run is quiet if no finding
is a fault. The codes and sizes were decided before anything was run, also those of checks that did not exist then
(`NEW`). After the first open cases were run, plans that average got longer and may also be called too long, the early
checkpoint became one, and sound runs that train for long got other methods.

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
from dataclasses import dataclass, field, replace  # noqa: E402
from pathlib import Path  # noqa: E402
from unittest import mock  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from diagnose_worlds import FlatPixels  # noqa: E402
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

SEED = 55  # draws the sealed half
JUDGED, PILOT = 11, 1011  # seeds of demonstrations and training
FILE = measure.RESULTS / "diagnose.json"
TRUST = "diagnose_worlds"
ACTION = "action"

# Codes of checks that did not exist when the list was made. A check with the same meaning may get another code.
NEW = {"averaged ways": "averaged-ways", "image never changes": "image-never-changes",
       "component treated as constant": "treated-as-constant", "chunk too long": "chunk-too-long",
       "decided at the start": "decided-at-the-start"}
AVERAGED, FROZEN, CONSTANT, LONG, DECIDED = NEW.values()


@dataclass(frozen=True)
class Case:
    """A run, where it acts, and what should be said of it.

    Args:
        world: Where the demonstrations were recorded.
        codes: The accepted codes of the first finding. None for a sound run.
        act: Where the policy acts; `world` if it is empty. None: the command gets the data alone.
        size: Steps or factor that the finding should name.
        data: Changes the demonstrations, see `CHANGES`.
        run: Changes the trained run, see `RUNS`.
        options: Of the method.
        fields: Fields of the method's codec and executor to change.
    """

    name: str
    world: str
    codes: tuple[str, ...] = ()
    act: str | None = ""
    size: float | None = None
    method: str = "bc"
    options: dict = field(default_factory=dict)
    fields: dict = field(default_factory=dict)
    steps: int = 800
    episodes: int = 80
    data: str = ""
    run: str = ""


def in_carry(name: str, fault: str, *codes: str, **options) -> Case:
    return Case(f"carry: {name}", "carry", codes, f"carry__{fault}", **options)


def in_reach(name: str, fault: str, *codes: str, **options) -> Case:
    return Case(f"reach: {name}", "reach", codes, f"reach__{fault}", **options)


CARRY = (
    Case("carry: actions stored 1 step late", "carry", ("action-shift",), size=1, data="late 1"),
    Case("carry: actions stored 4 steps late", "carry", ("action-shift",), None, 4, data="late 4"),
    Case("carry: actions stored 18 steps late", "carry", ("action-shift",), size=18, data="late 18"),
    Case("carry: actions stored 2 steps early", "carry", ("action-shift",), None, 2, data="early 2"),
    in_carry("actions executed 3 steps late", "late_3", "latency", size=3),
    in_carry("actions executed 14 steps late", "late_14", "latency", size=14),
    in_carry("sensors 2 steps late", "late_sensors_2", "latency", size=2),
    in_carry("sign of an action", "sign_y", "sign-flip"),
    in_carry("sign of a sensor", "sensor_sign_y", "sign-flip"),
    in_carry("an action has 0.4 of its effect", "scale_x", "action-scale", size=0.4),
    in_carry("actions exchanged", "swapped_actions", "component-order"),
    in_carry("sensors exchanged", "swapped_states", "component-order"),
    in_carry("object and goal exchanged", "exchanged_places", "component-order"),
    in_carry("state in millimeters", "millimeters", "observation-units", size=1000),
    in_carry("offset of an action", "offset_x", "calibration-drift"),
    in_carry("half of the rate, told", "rate_told", "rate-differs", size=0.5),
    in_carry("half of the rate, not told", "rate_untold", "action-scale", "rate-differs"),
    in_carry("stuck sensor", "stuck_y", "constant-sensor"),
    in_carry("motor without power", "dead_x", "action-scale", "constant-sensor"),
    in_carry("tight limits", "limited", "limits-bind"),
    in_carry("starts in a corner", "elsewhere", "start-states"),
    Case("carry: goals only from a part", "carry__half", ("start-states", DECIDED), "carry"),
    in_carry("noisy sensors", "noisy", "novel-states", "observation-noise"),
    in_carry("velocities added to positions", "added", "action-convention"),
    Case("carry: 30 updates", "carry", ("underfit",), None, steps=30),
    Case("carry: two ways averaged", "carry__way", (AVERAGED, LONG), options={"horizon": 20}),
    Case("carry: chunks of 30 in gusts", "carry__gust", (LONG,), options={"horizon": 30}),
    Case("carry: gripper in a small unit", "carry__small", (CONSTANT,), fields={"min_scale": 0.05}),
    Case("carry: gripper stored as 0 and 1", "carry", ("action-scale", "action-units", "calibration-drift",
                                                       "action-convention"), data="binary gripper"),
    Case("carry: actions stored in percent", "carry", ("action-units",), size=100, data="percent"))

REACH = (
    Case("reach: actions stored 3 steps late", "reach", ("action-shift",), None, 3, data="late 3"),
    Case("reach: actions stored 9 steps late", "reach", ("action-shift",), size=9, data="late 9"),
    Case("reach: actions stored 5 steps early", "reach", ("action-shift",), None, 5, data="early 5"),
    in_reach("actions executed 5 steps late", "late_5", "latency", size=5),
    in_reach("sensors and cameras 8 steps late", "late_sensors_8", "latency", size=8),
    in_reach("cameras 6 steps late", "late_cameras_6", "latency", "camera-latency"),
    in_reach("cameras exchanged", "swapped_cameras", "cameras-swapped"),
    in_reach("red and blue exchanged", "bgr", "color-order"),
    in_reach("red and blue of one camera exchanged", "bgr_side", "color-order"),
    in_reach("frozen camera", "frozen_top", FROZEN),
    in_reach("black camera", "black_top", FROZEN, "camera-differs"),
    Case("reach: camera frozen in the recording", "reach__frozen_top", (FROZEN,), "reach"),
    in_reach("larger images", "larger", "camera-size"),
    in_reach("zoomed cameras", "zoomed", "camera-differs"),
    in_reach("cameras upside down", "flipped", "camera-differs"),
    in_reach("dark images", "dark", "camera-differs"),
    in_reach("camera with another name", "renamed_camera", "missing-column"),
    in_reach("mirrored action", "mirror_x", "sign-flip"),
    in_reach("offset of an action", "offset_y", "calibration-drift"),
    in_reach("actions in another order", "rolled_actions", "component-order"),
    in_reach("positions executed as relative", "added", "action-convention"),
    in_reach("offset of a sensor", "height", "start-states", "calibration-drift"),
    Case("reach: two ways averaged", "reach__way", (AVERAGED, LONG), options={"horizon": 20}),
    Case("reach: chunks of 30 in gusts", "reach__gust", (LONG,), options={"horizon": 30}),
    Case("reach: targets only from a part", "reach__half", ("start-states", DECIDED), "reach"),
    Case("reach: 30 updates", "reach", ("underfit",), steps=30),
    Case("reach: 4 demonstrations", "reach", ("overfit",), episodes=5),
    Case("reach: early checkpoint", "reach", ("wrong-checkpoint",), run="early"),
    Case("reach: statistics of other data", "reach", ("wrong-statistics",), run="statistics"),
    Case("reach: actions stored in percent", "reach", ("action-units",), size=100, data="percent"))


def sound(world: str, method: str, steps: int = 800, episodes: int = 80, **options) -> Case:
    name = " ".join([f"sound: {world} {method}", *(f"{k}={v}" for k, v in options.items())])
    return Case(name, world, method=method, steps=steps, episodes=episodes, options=options)


SOUND = (
    sound("carry", "bc", 1500), sound("carry", "bc", horizon=4), sound("carry", "bc-gmm"), sound("carry", "bc-bins"),
    sound("carry", "bet"), sound("carry", "interpolant-policy"), sound("carry", "shortcut-policy"),
    sound("carry", "knn"), sound("carry", "flow-policy"), sound("carry", "diffusion-bc"),
    sound("carry", "adaflow"), sound("carry", "mip"), sound("carry", "iql", 500), sound("carry", "search-bc"),
    sound("carry", "robust-bc"), sound("carry", "bc-inverse-dynamics"), sound("carry__gust", "bc"),
    sound("carry__way", "flow-policy"),
    sound("carry__small", "bc"), sound("reach", "bc"), sound("reach", "bc", horizon=4), sound("reach", "bc-gmm"),
    sound("reach", "flow-policy"), sound("reach", "bc-bins"), sound("reach", "mip"), sound("reach__gust", "bc"),
    sound("peg_insertion", "bc-gmm", 1500), sound("planar_arms", "flow-policy", 1500), sound("lane_driving", "bc"),
    sound("fork", "bet"))
KINDS = {"carry": CARRY, "reach": REACH, "sound": SOUND}


def half(kind: str, which: str) -> list[Case]:
    """The open or the sealed half of the cases of a kind."""
    cases = KINDS[kind]
    order = np.random.default_rng([SEED, list(KINDS).index(kind)]).permutation(len(cases))
    chosen = order[:len(cases) // 2] if which == "sealed" else order[len(cases) // 2:]
    return [cases[i] for i in sorted(chosen)]


# -- demonstrations and runs ------------------------------------------------------------------------------------------


def _shift(data: Dataset, steps: int) -> Dataset:
    """Actions in the row `steps` later than their own."""
    def moved(e):
        rows = np.clip(np.arange(len(e)) - steps, 0, len(e) - 1)
        return e.replace({ACTION: e.steps[ACTION][rows]})
    return data.map(moved)


def _binary(data: Dataset) -> Dataset:
    def stored(e):
        action = np.array(e.steps[ACTION])
        action[:, 2] = action[:, 2] > 0
        return e.replace({ACTION: action})
    return data.map(stored)


def _percent(data: Dataset) -> Dataset:
    return data.map(lambda e: e.replace({ACTION: (100 * np.asarray(e.steps[ACTION])).astype(np.float32)}))


CHANGES: dict[str, Callable[[Dataset], Dataset]] = {
    **{f"late {k}": (lambda data, k=k: _shift(data, k)) for k in (1, 3, 4, 9, 18)},
    **{f"early {k}": (lambda data, k=k: _shift(data, -k)) for k in (2, 5)},
    "binary gripper": _binary, "percent": _percent}


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
        write_dataset(CHANGES[case.data](data) if case.data else data, path)
    return path


def _method(case: Case, features):
    """The method, with small networks."""
    method = find_method(case.method, features, **case.options)
    inputs = tuple(n for n, f in features.items() if n.startswith("observation.") and f.kind != "string")
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
    changed = out.with_name(f"{out.name}-{case.run}")
    if not changed.exists():
        early = trained_run(replace(case, run="", steps=30), folder, seed)
        shutil.copytree(out, changed)
        RUNS[case.run](changed, early)
    return changed


def _early(run: Path, early: Path) -> None:
    """Only a checkpoint from early in the training is kept."""
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(early / "checkpoints", run / "checkpoints")


def _statistics(run: Path, early: Path) -> None:
    """Statistics of the state in another unit."""
    for file in run.glob("checkpoints/*/weights.safetensors"):
        weights = load_file(file)
        for key in weights:
            if key.startswith("codec.obs_transforms.") and weights[key].shape == (3,):
                weights[key] = 57.29578 * weights[key]
        save_file(weights, file)
        write_checksums(file.parent, file.name)


RUNS = {"early": _early, "statistics": _statistics}


# -- judging ----------------------------------------------------------------------------------------------------------


def arguments(case: Case, folder: Path) -> list[str]:
    """The arguments of `understudy diagnose`. Trains the run."""
    run, data = trained_run(case, folder, JUDGED), demonstrations(case, folder, JUDGED)
    acting = [] if case.act is None else ["--env", env_name(case.act or case.world)]
    return [str(run), "--data", str(data), *acting, "--trust", TRUST, "--device", "cpu"]


def judge(case: Case, folder: Path) -> dict:
    """What `understudy diagnose` says, and whether it is right."""
    args, began, printed, errors = arguments(case, folder), time.process_time(), io.StringIO(), io.StringIO()
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
        message = f"{error!r} {errors.getvalue()[-300:]}"
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


def run_half(which: str, label: str, names: list[str], folder: Path) -> None:
    results = read_json(FILE) if FILE.exists() else {}
    half_results = results.setdefault(label, {}).setdefault(which, {})
    for case in [case for kind in KINDS for case in half(kind, which)]:
        if case.name in half_results or names and not any(n in case.name for n in names):
            continue
        half_results[case.name] = result = judge(case, folder)
        write_json(FILE, results)
        size = {None: "", True: " size right", False: " size WRONG"}[result.get("size_right")]
        text = ", ".join(f"{f['level']} {f['code']} ({f['value'] or 0:.3g})" for f in result["findings"])
        print(("right" if result["right"] else "WRONG") + size, case.name, f"{result['seconds']:.0f} s, success "
              f"{result['success']} | {text}", flush=True)


def pilot(names: list[str], folder: Path) -> None:
    """Success of the run of each sound case, and of the healthy runs behind the faults, with other seeds."""
    cases = {}
    for case in [*SOUND, *CARRY, *REACH]:
        if not names or any(n in case.name for n in names):
            cases.setdefault((case.world, case.method, str(case.options), case.steps, case.data), case)
    for case in cases.values():
        began = time.process_time()
        run = trained_run(replace(case, run=""), folder / "pilot", PILOT)
        spent, env = time.process_time() - began, make_env(case.world)
        episodes = rollout(load_actor(run, device="cpu", rows=16, trust=(TRUST,)), env, 30, recording_seed(PILOT + 1))
        print(f"{np.mean([e.metadata['success'] for e in episodes]):.0%} {spent:.0f} s", case.name, flush=True)


def table() -> None:
    """Prints each kind and half, before and after, then each case."""
    results = read_json(FILE)
    print("| | " + " | ".join(f"{which}, {label}" for which in ("open", "sealed") for label in results) + " |")
    print("|---|" + "---|" * 2 * len(results))
    for title, kinds, key in (("right fault first", ("carry", "reach"), "right"),
                              ("right size, where one is named", ("carry", "reach"), "size_right"),
                              ("no fault in a sound run", ("sound",), "right")):
        cells = []
        for which in ("open", "sealed"):
            names = {case.name for kind in kinds for case in half(kind, which)}
            for label in results:
                judged = [r[key] for n, r in results[label].get(which, {}).items() if n in names and key in r]
                cells.append(f"{sum(judged)} of {len(judged)}" if judged else "")
        print(f"| {title} | " + " | ".join(cells) + " |")
    print("\n| case | half | " + " | ".join(results) + " |\n|---|---|" + "---|" * len(results))
    for kind in KINDS:
        for which in ("open", "sealed"):
            for case in half(kind, which):
                outcomes = [results[label].get(which, {}).get(case.name) for label in results]
                print(f"| {case.name} | {which} | " + " | ".join(map(_said, outcomes)) + " |")


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
    parser.add_argument("what", choices=("open", "sealed", "train", "pilot", "commands", "table"))
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
        for case in [c for which in ("sealed", "open") for kind in KINDS for c in half(kind, which)]:
            arguments(case, o.folder)
            print(case.name, flush=True)
    elif o.what == "commands":
        for case in [c for kind in KINDS for c in half(kind, "open") if not o.names or c.name in o.names]:
            print(case.name)
            print(f"  PYTHONPATH=src:benchmarks understudy diagnose {shlex.join(arguments(case, o.folder))}")
    else:
        run_half(o.what, o.label, o.names, o.folder)


if __name__ == "__main__":
    sys.path.insert(0, str(measure.HERE))
    main()
