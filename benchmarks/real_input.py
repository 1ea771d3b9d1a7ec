"""Real demonstrations, real simulators: trains and judges cell by cell, and writes docs/real-input.md.

    python benchmarks/real_input.py            runs the cells that have not run, one after another; Ctrl-C and go on
    python benchmarks/real_input.py door/knn   these cells only
    python benchmarks/real_input.py --page     writes the page from the cells that have run

Each cell is two commands anyone can give, `understudy train` and `understudy eval`; what is measured beyond them
(the door's angle, D4RL's score) comes from the same episodes. One training seed a cell: every figure is of this
checkpoint. Recorded demonstrations are looked for in UNDERSTUDY_DATA.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from understudy.core import UserError
from understudy.data.formats import open_dataset
from understudy.envs import make
from understudy.evaluate.evaluation import evaluate
from understudy.evaluate.stats import bootstrap_mean, clopper_pearson
from understudy.files import read_json, write_json, write_text
from understudy.learn.method import load_actor

DATA = Path(os.environ.get("UNDERSTUDY_DATA", "../shared/data"))
RUNS = Path("runs/real-input")
RESULTS = Path("benchmarks/results/real-input")
PAGE = Path("docs/real-input.md")
EPISODES, ROWS = 100, 20

# Updates, so that no cell trains for more than 8 CPU minutes on one core; fixed before the first run.
STEPS = {"bc": 5000, "bc-gmm": 3000, "act": 2000, "diffusion-policy": 1500, "mip": 3000, "knn": 1, "untrained": 1}
RECOMMENDED = "bc-gmm"  # understudy.methods.recommend: chosen on fork and on the door, before the other tasks ran


@dataclass(frozen=True)
class Task:
    title: str
    data: str  # under DATA, or the name of what `understudy record` makes
    env: str
    methods: tuple[str, ...]
    record: int = 0  # demonstrations to record first
    rows: int = ROWS


TASKS = {
    "door": Task("Adroit door, 25 demonstrations by people", "hand_dapg/adroit_door_human.npz", "AdroitHandDoor-v1",
                 ("knn", "bc", "mip", "bc-gmm", "diffusion-policy", "act")),
    "door-open": Task("Meta-World door-open, scripted", "metaworld-door-open", "metaworld/door-open-v3",
                      ("bc", "mip", "diffusion-policy"), record=50),
    "drawer-open": Task("Meta-World drawer-open, scripted", "metaworld-drawer-open", "metaworld/drawer-open-v3",
                        ("bc", RECOMMENDED), record=50),
    "pick-place": Task("Meta-World pick-place, scripted", "metaworld-pick-place", "metaworld/pick-place-v3",
                       ("bc", RECOMMENDED), record=50),
    "hopper": Task("Hopper, 2 episodes of a trained agent", "cs285/hopper_expert.npz", "Hopper-v4",
                   ("bc", RECOMMENDED)),
    "walker2d": Task("Walker2d, 2 episodes of a trained agent", "cs285/walker2d_expert.npz", "Walker2d-v4",
                     ("bc", RECOMMENDED)),
}
FLOOR = "untrained"  # bc after a single update: what a task gives away
CELLS = tuple(f"{task}/{method}" for task, t in TASKS.items() for method in (*t.methods, FLOOR))


def commands(cell: str) -> list[str]:
    task, method = cell.split("/")
    t = TASKS[task]
    data = f"DATA/{t.data}" if not t.record else f"{RUNS}/{t.data}"
    first = [f"understudy record {t.env} --actor scripted --episodes {t.record} --out {data}"] if t.record else []
    named = "bc" if method == FLOOR else method
    return [*first, f"understudy train {named} {data} --steps {STEPS[method]} --val-fraction 0 --out {RUNS}/{cell}",
            f"understudy eval {RUNS}/{cell} {t.env} --episodes {EPISODES}"]


def run(cell: str) -> None:
    task, method = cell.split("/")
    t = TASKS[task]
    if not t.record and not (DATA / t.data).exists():
        raise UserError("expected recorded demonstrations, found none", where=DATA / t.data,
                        hint="set UNDERSTUDY_DATA to the folder that holds them")
    make(t.env).close()  # or it says what to install
    whole = not (RUNS / cell).exists()  # of a training that goes on, only the end would be timed
    for command in commands(cell)[:-1]:
        print("$", command, flush=True)
        words = shlex.split(command.replace("DATA/", f"{DATA}/"))
        began = os.times()
        subprocess.run([sys.executable, "-m", *words], check=True)
        ended = os.times()
    spent = ended.children_user + ended.children_system - began.children_user - began.children_system
    env = make(t.env, rows=t.rows)
    try:
        began = time.process_time()
        evaluation = evaluate(load_actor(RUNS / cell, rows=ROWS), env, EPISODES, seed=0)
    finally:
        env.close()
    write_json(RESULTS / f"{cell.replace('/', '-')}.json", {
        "cell": cell, "train_cpu_seconds": round(spent, 1) if whole else None,
        "eval_cpu_seconds": round(time.process_time() - began, 1),
        "steps": STEPS[method], **evaluation.to_json(), **extra(task, evaluation)})


def extra(task: str, result) -> dict:
    """What a task is judged by beside the flag of its environment."""
    if task != "door":
        return {}
    from understudy.envs.simulators.adroit import score

    opened = clopper_pearson(sum(e.metadata["opened"] for e in result.episodes), len(result.episodes))
    scores = bootstrap_mean([score(e.steps["next.reward"]) for e in result.episodes])
    return {"opened": _interval(opened), "d4rl": _interval(scores)}


def line_of_demonstrations(task: str) -> dict:
    """The demonstrations' own line."""
    t = TASKS[task]
    place = RUNS / t.data if t.record else DATA / t.data
    if not place.exists():
        return {}
    data = open_dataset(place)
    returns = [float(np.asarray(e.steps["next.reward"]).sum()) for e in data]
    line = {"episodes": len(data), "return": float(np.mean(returns))}
    if task == "door":
        from understudy.envs.simulators.adroit import HINGE, score
        hinge = [np.asarray(e.steps["observation.state"])[:, HINGE].max() for e in data]
        early = [np.asarray(e.steps["observation.state"])[:300, HINGE].max() for e in data]
        line |= {"flag": sum(h >= 1.35 for h in early) / len(data), "opened": sum(h > 1.0 for h in early) / len(data),
                 "ever": sum(h > 1.0 for h in hinge) / len(data),
                 "d4rl": float(np.mean([score(e.steps["next.reward"]) for e in data]))}
    elif t.record:
        line["flag"] = sum(bool(e.metadata["success"]) for e in data) / len(data)
    return line


def _interval(i) -> dict:
    return {"estimate": i.estimate, "low": i.low, "high": i.high, "level": i.level}


# -- the page -----------------------------------------------------------------------------------------------------


def page() -> str:
    door = TASKS["door"]
    return "\n".join([
        "# Real input", "",
        "This page shows how the named methods do on demonstrations by people and by trained agents, with their "
        "defaults and without tuning for a task.", "",
        "Each row is one training with one seed, so every number describes *this checkpoint*, and the intervals do not "
        f"cover the variation between training seeds. All policies of a task were evaluated on the same {EPISODES} "
        "starts. Intervals are 95 % intervals.", "",
        f"{_updates()} *untrained* is `bc` after a single update, which shows how easy the task is.", "",
        f"## {door.title}", "", *_notes(), *_table("door"), "",
        "## Other tasks", "",
        "The demonstrations of Meta-World are by scripted policies, those of Hopper and Walker2d by trained agents (2 "
        "episodes each). The result is the success rate, or the mean return where the environment defines no "
        "success.", "", *_other_tasks(), "",
        "## How to repeat a row", "",
        "Each row is two commands, for example:", "",
        "<!-- not run: hours of training -->", "```console", *_folded(commands("door/knn")), "```", "",
        f"Demonstrations of Meta-World are recorded first: `understudy record ENV --actor scripted --episodes "
        f"{TASKS['door-open'].record} --out DATA`. `python benchmarks/real_input.py` runs all missing rows."]) + "\n"


def _folded(lines: list[str]) -> list[str]:
    """Commands with at most 80 columns: each option on a line of its own."""
    return [part for line in lines for part in f"$ {line}".replace(" --", " \\\n    --").splitlines()]


def _updates() -> str:
    return "Updates: " + ", ".join(f"{n:,} for {method}" for method, n in STEPS.items() if n > 1) + "."


def _notes() -> list[str]:
    return [f"The environment `{TASKS['door'].env}` stops after 200 steps, when few of the people have reached its "
            "success flag (hinge at 1.35 rad). Success is therefore measured within 300 steps, by the flag and by the "
            "hinge passing 1.0 rad. D4RL's normalized score counts the first 200 steps. The published score of "
            "behavior cloning is 2.3 for its last checkpoint, and 9.4 for its best one, selected on the test episodes.",
            ""]


def _results(task: str) -> dict[str, dict]:
    """What ran of a task, by method."""
    files = {m: RESULTS / f"{task}-{m}.json" for m in (*TASKS[task].methods, FLOOR)}
    return {m: read_json(file) if file.exists() else {} for m, file in files.items()}


def _demonstrations(task: str) -> dict:
    path = RESULTS / f"{task}-shown.json"
    return read_json(path) if path.exists() else {}


def _table(task: str) -> list[str]:
    head = ["", "flag", "hinge > 1.0 rad", "D4RL score"]
    rows = [head, ["---"] * len(head)]
    if line := _demonstrations(task):
        rows.append(["*the demonstrations*", _share(line["flag"]), _share(line["opened"]), f"{line['d4rl']:.1f}"])
    for method, r in _results(task).items():
        rows.append([method, _range(r["success"], 100, " %"), _range(r["opened"], 100, " %"), _range(r["d4rl"])]
                    if r else [method, "did not run", "", ""])
    return ["| " + " | ".join(row) + " |" for row in rows]


def _other_tasks() -> list[str]:
    head = ["task", "method", "result"]
    rows = [head, ["---"] * len(head)]
    for task in list(TASKS)[1:]:  # the door has a table of its own
        shown, results = _demonstrations(task), _results(task)
        of = [f"`{TASKS[task].env}`", "*the demonstrations*"]
        rows.append([*of, _share(shown.get("flag")) or f"{shown['return']:.1f}" if shown else ""])
        for method, r in results.items():
            rows.append(["", method, _range(r["success"], 100, " %") or _return(r) if r else "did not run"])
    return ["| " + " | ".join(row) + " |" for row in rows]


def _return(result: dict) -> str:
    return _range({"estimate": result["return"]["mean"], **result["return"]})


def _share(value) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _range(i, times: float = 1, unit: str = "") -> str:
    if i is None:
        return ""
    digits = 0 if times == 100 else 1
    return f"{times * i['estimate']:.{digits}f}{unit} [{times * i['low']:.{digits}f}, {times * i['high']:.{digits}f}]"


def main() -> int:
    names = [a for a in sys.argv[1:] if a != "--page"]
    if unknown := [c for c in names if c not in CELLS]:
        print(f"no cell {unknown[0]!r}; there are {', '.join(CELLS)}", file=sys.stderr)
        return 2
    status = 0
    for cell in () if "--page" in sys.argv else (names or CELLS):
        if (RESULTS / f"{cell.replace('/', '-')}.json").exists():
            continue
        try:
            run(cell)
        except (UserError, subprocess.CalledProcessError) as error:
            print(f"{cell}: {error}", file=sys.stderr)
            status = 2
    for task in TASKS:
        if line := line_of_demonstrations(task):
            write_json(RESULTS / f"{task}-shown.json", line)
    write_text(PAGE, page())
    print(f"wrote {PAGE}: " + json.dumps({"ran": sum((RESULTS / f"{c.replace('/', '-')}.json").exists()
                                                     for c in CELLS), "of": len(CELLS)}))
    return status


if __name__ == "__main__":
    sys.exit(main())
