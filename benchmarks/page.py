"""Writes docs/benchmarks.md from benchmarks/results/: python benchmarks/page.py

    python benchmarks/page.py --run            runs every benchmark first (`make bench`)
    python benchmarks/page.py --run windows    these only
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict

import measure

MAX_ROWS = 3  # of a table that is not folded
FOLD_ENDS = "\n\n</details>"
PAGE = measure.HERE.parent / "docs" / "benchmarks.md"

# The sections in the order of the page: script, title, and what is compared and why it is fast.
ROWS = {
    "windows": ("Windows of data", """
Training batches of 2 observation rows and 16 actions, as the training loop gets them, compared with other loaders."""),
    "train_step": ("A training step", """
Forward pass, loss, backward pass, clipping and optimizer. understudy also updates the averaged weights. Matrix products
use bf16 if the hardware is fast at it. The same weights give the same outputs to 1e-5."""),
    "offline_rl": ("Updates of small networks", """
Updates of offline reinforcement learning and of cloning, with networks of 256 × 2 and batches of 256 (of 32 × 2 against
imitation). The plain loop is PyTorch alone with the same networks and losses. CORL's AWAC and CQL have a third layer,
and so have ours that are compared with them. OGBench's agents have 256 × 3 here.

Ratios from 0.9 to 1.1 cannot be told from 1: those of runs minutes apart differed by up to 0.15. On a processor that
computes AVX-512 in halves, IQL was 1.2 times as fast as in d3rlpy, TD3+BC 1.3, cloning 1.7."""),
    "compiled_updates": ("Compiled updates", """
The same updates as one compiled graph ([`--compile`](runs.md#compiled-updates)). JAX compiles OGBench's agents, too.
Compilation takes place once; the last column has its time."""),
    "eager_updates": ("Updates against those of before", """
Updates of a method for each class of learners, not compiled, against the last commit before learners had one engine
(the "peer"). The table has the mean of all, the slowest, and some others. Other programs kept both cores busy."""),
    "stacked_seeds": ("Several seeds at once", """
Five seeds of one method whose updates are one graph (`learn.stacked.fit_seeds`), compared with five trainings one
after the other (the "peer")."""),
    "bf16_success": ("Effect of bf16 on success", """
Success in closed loop, paired by training seed and start."""),
    "latency": ("One chunk of actions", """
Time from an observation to a chunk at batch size 1. The same weights and noise give the same chunk."""),
    "head_speed": ("All policy heads", """
One chunk at batch size 1 and one training update of the heads that [Which head](heads.md) compares, with the same
small network (an MLP of 256 × 3 blocks). Ratios are to understudy's own DDPM with 100 steps, the first row."""),
    "export": ("Exported files", """
One chunk at batch size 1 from the files that `understudy export` writes, compared with the policy in PyTorch (the
"peer"). The last column has sizes, and differences over 1,000 inputs relative to the largest action. The policies are
those of the methods for the toy fork before training, and a regression from one camera.

The last lines compare the success of files after training, on the same starts."""),
    "writing": ("Writing episodes", """
Episodes with one 96×96 camera. understudy's data are on disk at the end of each episode."""),
    "recording": ("Recording", """
Wall-clock time that one recorded step takes from a control loop at 100 Hz."""),
    "cameras": ("Recording with two cameras", """
`understudy record` with an emulated SO-101 and two emulated cameras. A step is late by the time that is
missing from its period."""),
    "studio": ("The studio", """
A person holds keys in the toy `push`, in a studio on two cores, with a client that reads all messages in place of a
browser. Other programs kept both cores busy, so ages are upper bounds.

The same client records episodes of a minute with an emulated SO-101, its leader and two emulated cameras. Little else
ran on the machine. Steps are lost if an episode has fewer than its recorded times have room for.

The last lines compare a policy that acts while its sampled plans are drawn with one whose plans are not."""),
    "video": ("Windows from video", """
Windows at random places, decoded each time unless the line says otherwise."""),
    "scan": ("Scanning a data set", """
Reading every row of every episode of 1 M steps of state, with a warm page cache. The first time creates the memory
maps."""),
    "conversion": ("Converting", """
Converting each format to LeRobot v3.0 with statistics, with an empty cache, compared with a library that only reads the
same files. The goal, half the speed of that library, cannot be reached for npz and D4RL, because writing the rows to
Parquet alone takes as long as reading the npz file. Percentages of understudy's time:

| | looking through the file | reading | rows of Parquet | statistics | tables, ends of files, syncing | the rest |
|---|--:|--:|--:|--:|--:|--:|
| robomimic | 41 | 6 | 21 | 12 | 11 | 9 |
| Minari | 37 | 6 | 23 | 12 | 12 | 10 |
| npz | 2 | 29 | 29 | 16 | 13 | 11 |
| D4RL | 6 | 9 | 35 | 18 | 16 | 16 |"""),
    "memory": ("Larger than memory", """
Maximum of anonymous memory, in addition to the libraries, for converting an .npz file and for drawing windows from the
result. The table also shows the values for each size, converting and windowing, in MB."""),
    "rollouts": ("Rollouts of the toys", """
256 environments at once, compared with a plain loop over one that plans at batch size 1 with the same network; all in
fp32. understudy plans with the ONNX file of the policy (`understudy eval FILE.onnx`), or with the policy itself."""),
    "throughput": ("Evaluations on two cores", """
Two worker processes with many environments each and one thread per worker, compared with one environment in a loop
with the same policy at batch size 1. The episodes are bit-identical for any number of workers."""),
    "startup": ("Starting", """
Time of the import and of the help, and size of the installation."""),
    "serving": ("Serving", """
A policy server and its clients on one machine, over websockets. The policy is an MLP flow policy with 2 steps (width
128, 1 block) that reads 14 numbers and plans 16 actions. Other programs were running on the machine, so latencies are
upper bounds.

The last lines are about a policy in a process for LeRobot: the time of a plan, less the time in which the process
plans. A policy of a few lines stands in for one of LeRobot, and little else ran on the machine."""),
    "growth": ("Growth", """
The same work on larger and larger data sets."""),
    "time_to_policy": ("Time to a working policy", """
CPU seconds of training until the recommended method reaches 90 % of Diffusion Policy's final success rate."""),
    "processes": ("Several processes", """
Two processes that train one policy on one machine, compared with one process and the same batch size."""),
    "profiles": ("Where the time goes", """
The three slowest parts, in plain code and in understudy. Plain code has conv1d over (B, C, T), PyTorch's Mish, fp32,
all inputs of the network computed again in every step of the sampler, and one environment after the other. The ratios
were measured without a profiler."""),
    "gpu_goals": ("Goals on a GPU", """
Updates of methods at their defaults, with the data on the GPU, and training steps of ACT and of Diffusion Policy
compared with LeRobot's."""),
    "gpu_methods": ("On a GPU", """
Updates of methods at their defaults on a GPU and on the processor of the same machine, in wall-clock time. Networks of
a few layers on numbers (`bc`, `bc-gmm`, `iql`) gain nothing: launching the kernels of an update takes longer than their
work.

`make test-gpu` ran on an H200: of its last run 140 of 144 tests had passed, and none failed, when the time was up.
Several GPUs have not been tried. The goals of `python benchmarks/gpu.py goals train` and the latency beside LeRobot's
have not been measured."""),
    "gpu_data": ("Batches for a GPU", """
Training with two cameras: batches that the processor makes between the updates (peer), batches that it makes during
the update before, and data that stay on the GPU, as they do if they fill at most a quarter of its free memory."""),
}

HEAD = """---
hide: [navigation]
---

# Benchmarks

<!-- made by benchmarks/page.py: run the benchmark instead of editing this page -->

Each table compares understudy ("ours") with another library (the "peer"), and is made by the command below it, or all
by `make bench`.

Times are CPU times in one thread. Both sides take turns in one process, and each figure is the median over the turns. A
ratio is the mean over the turns with its 95 % interval (Student's t on logarithms). A goal counts as met if the
interval reaches it. Peers are in environments of their own, with the same PyTorch and NumPy.
Figures depend on the machine; ratios depend on it less.
"""


# Sections at the end of the page whose tables are the scripts' own (`page()`): title, and what is compared.
TABLES = {
    "return_curves": ("CPU seconds to a return", """
SAC and TD3 on Pendulum-v1, PPO and DQN on CartPole-v1, with the same settings as stable-baselines3 2.9.2 and SBX 0.28.0
(TD3 and DQN: those of understudy, as far as the peers have them). CleanRL's files of SAC and TD3, and GAIL of imitation
1.0.1, have their own settings. Ours acts in eight environments, and with half of the noise of the others in TD3.

Compilation counts, and other programs kept both cores busy. PPO and GAIL, and TD3 on Hopper, ran on a slower machine
than the other tasks, ours and the peers'.

The first table has medians of SAC. The difference from SBX is within the spread of five seeds, and that counts as met.
For GAIL the plan asked for half of imitation's CPU seconds to nine tenths of the return of the demonstrations. That is
not met: they are 5 here and 6 there.

On Hopper, training ends when 20 episodes have a mean return of 2,300, and after 200,000 steps (PPO: 500,000) at most.
For TD3 that is too few to compare the libraries. CPU seconds of SAC leave out what ran on the slower machine, such as
the seed of ours that took 140,000 steps where the others took 80,000 and 75,000, so that our row is too favorable."""),
    "learner_lines": ("Lines of a learner", """
Lines of code of each learner beside d3rlpy's and OGBench's, without docstrings, comments, imports and blank lines.
Lines have up to 120 characters here and in OGBench, and 80 in d3rlpy, so that statements, in parentheses, compare
better.

"With what it extends" adds the files of other learners that a learner imports. Networks, heads and data are not
counted, except OGBench's networks. The second table has all lines of the files of methods, before a method became one
class and now."""),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="*", metavar="NAME", choices=[*ROWS])
    failed = []
    if (asked := parser.parse_args().run) is not None:
        for name in asked or ROWS:
            if (script := measure.HERE / f"{name}.py").exists():
                print(f"== {name}", flush=True)
                failed += [name] if subprocess.run([sys.executable, script]).returncode else []
    write()
    if failed:
        print(f"did not finish: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def write() -> None:
    results = {name: json.loads(file.read_text()) for name in ROWS
             if (file := measure.RESULTS / f"{name}.json").exists()}
    tables = {name: importlib.import_module(name) for name in TABLES}
    judged = {name: [{**asdict(line), "met": line.met} for line in module.lines()]
              for name, module in tables.items() if hasattr(module, "lines")}
    usual = _usual(results.values())
    made_with = ", ".join(f"{name} {version}" for name, version in usual.items() if name != "machine")
    parts = [HEAD, f"Unless the line below a table names others, machine and versions are: {usual['machine']}; "
             f"{made_with}.", _overview([*(result["lines"] for result in results.values()), *judged.values()])]
    for name, (title, says) in ROWS.items():
        if name in results:
            lines_table = _heads if name == "head_speed" else _lines_table
            parts += [f"## {title}\n\n{says.strip()}", _table(results[name], usual, lines_table)]
    for name, (title, says) in TABLES.items():
        goals = f"{_lines_table(judged[name])}\n\n" if name in judged else ""
        parts.append(f"## {title}\n\n{says.strip()}\n\n{goals}{_with_folds(tables[name].page())}\n\n"
                     f"<small>`python benchmarks/{name}.py`</small>")
    PAGE.write_text("\n\n".join(p.strip() for p in parts) + "\n")
    print(PAGE)


def _overview(lines_of_tables: list[list[dict]]) -> str:
    goals = [line for lines in lines_of_tables for line in lines if line["met"] is not None]
    met = sum(line["met"] for line in goals)
    return (f"Of {len(goals)} goals that were set in advance, {met} are met and {len(goals) - met} are not.")


def _usual(results: Iterable[dict]) -> dict[str, str]:
    """The machine and the versions of most tables, which are said once."""
    made_with: dict[str, Counter[str]] = {}
    for result in results:
        for key, value in {"machine": _machine(result), **result["versions"]}.items():
            made_with.setdefault(key, Counter())[value] += 1
    return {key: made_with[key].most_common(1)[0][0] for key in ("machine", "python", "torch", "numpy")}


def _machine(result: dict) -> str:
    machine = result["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores ({machine['has'] or 'no AVX2'})"


def _table(result: dict, usual: dict[str, str], lines_table: Callable[[list[dict]], str]) -> str:
    machine = _machine(result)
    other = [machine] * (machine != usual["machine"])
    other += [f"{name} {version}" for name, version in result["versions"].items() if usual.get(name) != version]
    origin = f"`{result['command']}` · {result['date']}" + (f" · {', '.join(other)}" if other else "")
    charts = [(words, f"![{words.split(',')[0]}](images/{name})") for name, words in result.get("pictures", {}).items()]
    parts = [lines_table(result["lines"]), _with_folds(result.get("says", "")),
             *(_fold(words, chart) for words, chart in charts)]
    text, origin = "\n\n".join(filter(None, parts)), f"<small>{origin}</small>"
    if text.count(FOLD_ENDS) == 1 and text.endswith(FOLD_ENDS):  # everything is in one fold
        return text.replace(FOLD_ENDS, f"\n\n{origin}{FOLD_ENDS}")
    return f"{text}\n\n{origin}"


def _heads(lines: list[dict]) -> str:
    """A row for each head, with its times of a chunk and its speed of training."""
    by_head: dict[str, dict[str, dict]] = {}
    for line in lines:
        head, _, what = line["what"].partition(": ")
        by_head.setdefault(head, {})[what] = line
    rows = ["| head | chunk, ms | ratio | ONNX file, ms | ratio | training, samples/s | ratio |",
            "|---|--:|--:|--:|--:|--:|--:|"]
    for head, measured in by_head.items():
        cells = [cell for what in ("one chunk", "one chunk, ONNX file", "training")
                 for cell in (_figure_and_ratio(measured[what]) if what in measured else ("", ""))]
        rows.append(f"| {head} | {' | '.join(cells)} |")
    notes = "".join(f"\n\n{head}, {what}: {line['note']}." for head, measured in by_head.items()
                    for what, line in measured.items() if line["note"])
    return _folded("\n".join(rows)) + notes


def _figure_and_ratio(line: dict) -> tuple[str, str]:
    ours = measure.Figure(**line["ours"])
    return measure.text(ours).removesuffix(ours.unit).strip(), _ratio(line["ratio"])


def _lines_table(lines: list[dict]) -> str:
    """A table without empty columns. What all lines begin with, and the note that all have, stand beside it."""
    lines, start, note = _said_once(lines)
    units = {line[side]["unit"] for line in lines for side in ("ours", "peer") if line[side]}
    unit = units.pop() if len(units) == 1 else ""
    rows = [["", *(f"{side}, {unit}" if unit else side for side in ("ours", "peer")), "ratio", "goal", ""],
            *(_row(line, unit) for line in lines)]
    used = [i for i in range(6) if i < 2 or any(row[i] for row in rows[1:])]
    head, *body = (re.sub(r"\| +(?=\|)", "| ", f"| {' | '.join(row[i] for i in used)} |") for row in rows)
    table = "\n".join([head, "".join("|--:" if 0 < i < 5 else "|---" for i in used) + "|", *body])
    before = f"All lines: {start}.\n\n" if start else ""
    return before + _folded(table, _goals(lines)) + (f"\n\n{note[0].upper()}{note[1:]}." if note else "")


def _said_once(lines: list[dict]) -> tuple[list[dict], str, str]:
    """Lines without what all of them say, and what they begin with (up to a ":" or ";") and the note that all have."""
    start = re.match(r"(.+)[:;] ", lines[0]["what"])
    begin = start[0] if start and len(lines) > 1 and all(line["what"].startswith(start[0]) for line in lines) else ""
    note = lines[0]["note"] if len(lines) > 1 and len({line["note"] for line in lines}) == 1 else ""
    ends = {line["what"].removeprefix(begin).rpartition(": ")[2] for line in lines}
    end = f": {ends.pop()}" if len(lines) > 1 and len(ends) == 1 else ""
    return ([{**line, "what": line["what"].removeprefix(begin).removesuffix(end), "note": "" if note else line["note"]}
             for line in lines], begin.rstrip(":; "), note)


def _folded(table: str, words: str = "", title: str = "") -> str:
    """A table of many lines below a line that says how many, and how many goals are met."""
    if (n_rows := table.count("\n|") - 1) <= MAX_ROWS:
        return f"**{title}**\n\n{table}" if title else table
    return _fold((f"{title}: " if title else "") + f"{n_rows} lines{words}", table)


def _fold(summary: str, text: str) -> str:
    return f"<details markdown>\n<summary>{summary}</summary>\n\n{text}{FOLD_ENDS}"


def _with_folds(text: str) -> str:
    """A text in which tables of many lines are folded. A bold title before a table becomes the line of the fold."""
    return re.sub(r"^(?:\*\*(.+)\*\*\n\n)?(\|.*(?:\n\|.*)*)",
                  lambda table: _folded(table[2], title=table[1] or ""), text, flags=re.MULTILINE)


def _goals(lines: list[dict]) -> str:
    met = [line["met"] for line in lines if line["met"] is not None]
    return f", {sum(met)} of {len(met)} goals met" if met else ""


def _ratio(times: dict | None) -> str:
    return (f"**{_times(times['estimate'])}** [{_times(times['low'])}, {_times(times['high'])}]"
            if times and times["estimate"] else "")


def _row(line: dict, unit: str) -> list[str]:
    ours, peer = (measure.text(measure.Figure(**line[k])).removesuffix(unit).strip() if line[k] else ""
                  for k in ("ours", "peer"))
    goal = (f"≥ {_times(line['goal'])}" if line["goal"] is not None else
            f"≤ {line['bound']:,g} {line['ours']['unit']}" if line["bound"] is not None and line["ours"] else "")
    verdict = {True: "met", False: "**not met**", None: ""}[line["met"]]
    note = "; ".join(x for x in (verdict, line["note"]) if x)
    return [line["what"], ours, peer, _ratio(line["ratio"]), goal, note]


def _times(value: float) -> str:
    return f"{value:,.0f}×" if value >= 100 else f"{value:.3g}×"


if __name__ == "__main__":
    sys.exit(main())
