"""Writes docs/benchmarks.md from benchmarks/results/: python benchmarks/page.py

    python benchmarks/page.py --run            runs every benchmark first (`make bench`)
    python benchmarks/page.py --run windows    these only
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import measure

PAGE = measure.HERE.parent / "docs" / "benchmarks.md"

# The rows in the order of the page: the script, its title, what is compared, and what makes it fast.
ROWS = {
    "windows": ("Windows of data", """
Training batches of 2 observation rows and 16 actions, as the training loop gets them, beside other loaders. A batch
is one `take` a column from arrays that are mapped, not read; where its rows lie is worked out once for all columns that
lie alike, and from a thousand episodes on a table says in which they lie. Its random numbers come of a counter (seed,
step) that costs nothing to set."""),
    "train_step": ("A training step", """
Forward, loss, backward, clipping and optimizer, on our side the average of the weights as well; the same weights
give the same outputs to 1e-5. Convolutions over (B, T, C) are worked out in the way that is fastest for their size:
as images of height 1, or as one matrix product of neighbors laid side by side. Mish takes one exponential and finds
its slope on the way, products are in bf16 where the hardware is fast at it, and the optimizer copies nothing. fp32
products of linear layers take oneDNN where MKL, which PyTorch would take, leaves AVX-512 alone (AMD): 235 GFLOP/s in
place of 105 on one core of the machine below."""),
    "bf16_success": ("What bf16 does to success", """
Closed loop, paired by training seed and start."""),
    "latency": ("One chunk of actions", """
From an observation to a chunk at batch 1; the same weights and noise give the same chunk. What depends on time alone
is worked out for all steps in one batch, what depends on the observation once a chunk. The ONNX file has one loop,
so that weights are packed once; packed bf16 weights are half the bytes to read, and reading them is what takes the
time."""),
    "writing": ("Writing episodes", """
With one 96×96 camera; ours is on disk at each episode's end. Frames go to the encoder from memory; there are no
pictures on the way."""),
    "recording": ("Recording", """
What one step costs a control loop of 100 a second, by the wall clock. A step copies its arrays; a thread writes them to
a journal, and another process makes the video files."""),
    "video": ("Windows out of video", """
At random places, decoded anew each time unless the line says otherwise. A file stays open, the packets of a small one
in memory, and a window begins at its own key frame."""),
    "scan": ("Scanning a data set", """
Every row of every episode of 1 M steps of state, page cache warm. Columns are mapped; the first scan makes them."""),
    "conversion": ("Converting", """
Any format into LeRobot v3.0 with its statistics, the cache empty, beside a library that only reads the same files.
The goal, half its speed, cannot be reached for npz and D4RL: the rows of Parquet alone, a row group an episode, take
pyarrow 33 ms for these 50,000 steps, as long as NumPy takes to read the npz and nine times as long as h5py takes for
D4RL's few arrays. Of robomimic and Minari every array of every episode is looked at before anything is promised.
Shares of our side's time, in percent:

| | looking through the file | reading | rows of Parquet | statistics | tables, ends of files, syncing | the rest |
|---|--:|--:|--:|--:|--:|--:|
| robomimic | 41 | 6 | 21 | 12 | 11 | 9 |
| Minari | 37 | 6 | 23 | 12 | 12 | 10 |
| npz | 2 | 29 | 29 | 16 | 13 | 11 |
| D4RL | 6 | 9 | 35 | 18 | 16 | 16 |"""),
    "memory": ("Larger than memory", """
What converting an .npz and drawing windows from what was written take at most of anonymous memory, beyond the
libraries themselves; beside it what each size takes, converting and windowing, in MB."""),
    "rollouts": ("Rollouts of the toys", """
256 environments at once beside a plain loop over one, which plans at batch 1 with the same network; fp32 throughout.
Our side plans with the ONNX file of the policy (`understudy export`, `understudy eval FILE.onnx`), whose plans are the
policy's to rounding, and with the policy as it is. From the file, about half to two thirds of our side's time is
products of matrices, at the speed that the processor has for them."""),
    "throughput": ("Evaluations on two cores", """
Two worker processes with many environments each, one thread a worker, beside one environment stepped in a loop by the
same policy at batch 1, as most code does. The episodes are the same, to the last bit, by any number of workers. Where
a simulator takes most of the time, what can be gained is the second core."""),
    "startup": ("Starting", """
The import, the help, and what an installation takes. PyTorch is imported on use."""),
    "growth": ("Growth", """
The same work on ever larger data sets. Flat is: not half as fast at ten thousand times the size."""),
    "time_to_policy": ("Time to a working policy", """
CPU seconds of training until the recommended recipe reaches 90 % of Diffusion Policy's final success."""),
    "processes": ("Several processes", """
Two processes that train one policy on one machine, beside one with the same batch."""),
    "profiles": ("Where the time goes", """
The three slowest parts as plain code does them and as they are. Before: conv1d over (B, C, T), PyTorch's Mish, fp32,
all that the network needs worked out anew in every step of the sampler, one environment after the other. After: as
it is done here, the chunk with packed weights. Profilers slow down what calls much; the ratios are without one."""),
    "gpu": ("GPU", """
None was at hand: nothing here is measured on one, and nothing that follows has run on one. There are: bf16 where it is
fast (`learner.optimizer.fast_bf16`), `--learner.optimizer.compile`, the next batch made while one is worked on, the
data on the
device where they fill no more than a quarter of what is free there (`data.device_windows`), and chunks replayed as one
captured graph (`deploy.captured`). The tests run the last two on the CPU, where they go the same way but for the
recording of the graph. A training step is not captured."""),
}

HEAD = """# Benchmarks

<!-- made by benchmarks/page.py: run the benchmark, not the pen -->

Each table is one command; `make bench` runs them all and writes this page. Times are of the processor's clock, in one
thread, our side and the peer's taking turns in one process; a ratio is the mean over the turns with its 95 % interval
(Student's t, of logarithms). A goal counts as met when the interval reaches it. Figures beside the ratio are medians of
the same turns and depend on the machine; the ratios travel better. A peer is installed by the benchmark into an
environment of its own, with the same PyTorch and NumPy as ours.
"""


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
    found = {name: json.loads(file.read_text()) for name in ROWS
             if (file := measure.RESULTS / f"{name}.json").exists()}
    parts = [HEAD, _overview(found)]
    for name, (title, says) in ROWS.items():
        parts.append(f"## {title}\n\n{says.strip()}")
        if name in found:
            parts.append(_table(found[name]))
        elif (measure.HERE / f"{name}.py").exists():
            parts.append(f"`python benchmarks/{name}.py` has not run.")
    PAGE.write_text("\n\n".join(p.strip() for p in parts) + "\n")
    print(PAGE)


def _overview(found: dict) -> str:
    goals = [line for result in found.values() for line in result["lines"] if line["met"] is not None]
    met = sum(line["met"] for line in goals)
    return f"Of {len(goals)} goals set beforehand, {met} are met and {len(goals) - met} are not; the tables say which."


def _table(result: dict) -> str:
    machine, versions = result["machine"], result["versions"]
    lines = ["| | ours | peer | ratio | goal | |", "|---|--:|--:|--:|--:|---|"]
    lines += [_row(line) for line in result["lines"]]
    made = (f"`{result['command']}` · {result['date']}, {machine['cpu']}, {machine['cores']} cores "
            f"({machine['has'] or 'no AVX2'}) · " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    pictures = "".join(f"\n\n{words}:\n\n![{words}](images/{name})"
                       for name, words in result.get("pictures", {}).items())
    said = f"\n\n{result['says']}" if "says" in result else ""
    return "\n".join(lines) + said + pictures + f"\n\n<small>{made}</small>"


def _row(line: dict) -> str:
    ours, peer = (measure.Figure(**line[k]) if line[k] else None for k in ("ours", "peer"))
    times = line["ratio"]
    ratio = (f"**{_times(times['estimate'])}** [{_times(times['low'])}, {_times(times['high'])}]"
             if times and times["estimate"] else "")
    goal = (f"≥ {_times(line['goal'])}" if line["goal"] is not None else
            f"≤ {line['bound']:,g} {line['ours']['unit']}" if line["bound"] is not None and line["ours"] else "")
    verdict = {True: "met", False: "**not met**", None: ""}[line["met"]]
    note = "; ".join(x for x in (verdict, line["note"]) if x)
    return f"| {line['what']} | {measure.text(ours)} | {measure.text(peer)} | {ratio} | {goal} | {note} |"


def _times(value: float) -> str:
    return f"{value:,.0f}×" if value >= 100 else f"{value:.3g}×"


if __name__ == "__main__":
    sys.exit(main())
