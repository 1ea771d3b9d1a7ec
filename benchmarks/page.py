"""Writes docs/benchmarks.md from benchmarks/results/: python benchmarks/page.py

    python benchmarks/page.py --run            runs every benchmark first (`make bench`)
    python benchmarks/page.py --run windows    these only
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from dataclasses import asdict

import measure

PAGE = measure.HERE.parent / "docs" / "benchmarks.md"

# The sections in the order of the page: script, title, and what is compared and why it is fast.
ROWS = {
    "windows": ("Windows of data", """
Training batches of 2 observation rows and 16 actions, as the training loop gets them, compared with other loaders. A
batch is one `take` per column from memory-mapped arrays. The positions of its rows are computed once for all columns
with the same layout. From a thousand episodes on, a table finds the episode of a row. The random numbers come from a
counter (seed, step), which costs nothing to set."""),
    "train_step": ("A training step", """
Forward pass, loss, backward pass, clipping and optimizer. understudy also updates the averaged weights. The same
weights give the same outputs to 1e-5. Convolutions over (B, T, C) are computed in the fastest way for their size: as
images of height 1, or as one matrix product of neighboring steps.

Mish computes one exponential and gets its
derivative from it. Matrix products use bf16 if the hardware is fast at it, and the optimizer copies nothing. Linear
layers in fp32 use oneDNN where MKL, PyTorch's default, does not use AVX-512 (AMD): 235 GFLOP/s instead of 105 on one
core of the machine below."""),
    "offline_rl": ("Updates of small networks", """
Updates of offline reinforcement learning and of cloning, with networks of 256 × 2 and batches of 256 (of 32 × 2 against
imitation). A batch is drawn for each update. The plain loop is PyTorch alone with the same networks and losses. CORL's
AWAC and CQL have a third layer, and so have ours that are compared with them. OGBench's agents have 256 × 3 here.

Ratios of runs minutes apart on the idle machine differed by up to 0.15, more than the intervals say. Those from 0.9 to
1.1 cannot be told from 1.

Forward and backward passes take more than half of our time at 256 × 2. The rest is mostly Python: seeds of noise,
masks, weights, logged values, gradient norms and normalization. On a processor that computes AVX-512 in halves, so
that oneDNN multiplies no faster than MKL, IQL was 1.2 times as fast as in d3rlpy, TD3+BC 1.3, cloning 1.7."""),
    "compiled_updates": ("Compiled updates", """
The same updates as one compiled graph (`--compile`, see [Compiled updates](runs.md#compiled-updates)), compared with
those of d3rlpy and imitation, with those of OGBench's agents, which JAX compiles, and with ours that are not compiled.
Compilation takes place once, and its time is in the notes."""),
    "eager_updates": ("Updates against those of before", """
Updates of a method for each class of learners, and of some that clone, not compiled, against the last commit before
learners had one engine (the "peer"). Networks and batch sizes are those of the methods, unless the line names a batch
size. States agree: `tests/learn/test_states.py` compares them to 1e-6.

The table has the mean of all, the slowest, and some others; those of all are in `benchmarks/results`. Each side is a
process; they take turns, and other programs kept both cores busy.

What changed: freed memory is kept for the next update, and lists of the optimizer and factors of normalization are
computed once. The mean misses its goal. Only compilation joins the operations of PyTorch that remain."""),
    "stacked_seeds": ("Several seeds at once", """
Five seeds of one method whose updates are one graph (`learn.stacked.fit_seeds`), compiled and called one operation
after the other, compared with five trainings one after the other ("peer"). Batches of 256 are drawn for each update
and seed."""),
    "bf16_success": ("Effect of bf16 on success", """
Success in closed loop, paired by training seed and start."""),
    "latency": ("One chunk of actions", """
Time from an observation to a chunk at batch size 1. The same weights and noise give the same chunk. What depends only
on the diffusion time is computed for all steps in one batch, and what depends only on the observation once per chunk.
The ONNX file has one loop, so that weights are packed once. Packed bf16 weights have half the bytes, and reading the
weights takes most of the time."""),
    "head_speed": ("All policy heads", """
One chunk at batch size 1 and one training update of the heads that [Which head](heads.md) compares, with the same
small network (an MLP of 256 × 3 blocks). The "peer" is understudy's own DDPM with 100 steps. The heads take turns, so
that the ratios hold although the machine was busy. The aim, 20 times the speed of DDPM-100 at success not more than 5
points lower, is judged there."""),
    "export": ("Exported files", """
One chunk at batch size 1 from the files that `understudy export` writes, compared with the policy in PyTorch (the
"peer"), with sizes and differences over 1,000 inputs, relative to the largest action. The policies are those of the
methods for the toy fork before training (the U-Net of `diffusion-policy` has 64 and 128 channels), and a regression
from one camera.

Machine code of AOTInductor takes minutes to make. A program of torch.export is interpreted, and therefore no faster
than the policy. The last lines compare the success of files after training, on the same starts; their difference is
that of 32 bits minus that of 8 bits."""),
    "writing": ("Writing episodes", """
Episodes with one 96×96 camera. understudy's data are on disk at the end of each episode. Frames go from memory to the
encoder, without image files in between."""),
    "recording": ("Recording", """
Wall-clock time that one recorded step takes from a control loop at 100 Hz. A step copies its arrays. A thread writes
them to a journal, and another process makes the video files."""),
    "cameras": ("Recording with two cameras", """
`understudy record` with an emulated SO-101 and two emulated cameras. The video of an episode is encoded while the next
one is recorded. A step is late by the time that is missing from its period."""),
    "video": ("Windows from video", """
Windows at random places, decoded each time unless the line says otherwise. The file stays open, the packets of a small
file stay in memory, and decoding starts at the last key frame before the window."""),
    "scan": ("Scanning a data set", """
Reading every row of every episode of 1 M steps of state, with a warm page cache. Columns are memory-mapped. The first
scan creates the maps."""),
    "conversion": ("Converting", """
Converting each format to LeRobot v3.0 with statistics, with an empty cache, compared with a library that only reads the
same files. The goal, half the speed of that library, cannot be reached for npz and D4RL.

Writing the rows to Parquet
alone, with one row group per episode, takes pyarrow 33 ms for these 50,000 steps. That is as long as NumPy takes to
read the npz file, and nine times as long as h5py takes for the few arrays of D4RL. For robomimic and Minari, every
array of every episode is checked before the conversion starts. Percentages of understudy's time:

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
fp32. understudy plans with the ONNX file of the policy (`understudy export`, `understudy eval FILE.onnx`), whose plans
are equal to those of the policy up to rounding, and with the policy itself. With the file, about half to two thirds of
understudy's time are matrix products, at the speed of the processor."""),
    "throughput": ("Evaluations on two cores", """
Two worker processes with many environments each and one thread per worker, compared with one environment in a loop
with the same policy at batch size 1, as most code does it. The episodes are bit-identical for any number of workers.
If a simulator takes most of the time, only the second core can make it faster."""),
    "startup": ("Starting", """
Time of the import and of the help, and size of the installation. PyTorch is imported when it is used."""),
    "serving": ("Serving", """
A policy server and its clients on one machine, over websockets. The policy is an MLP flow policy with 2 steps (width
128, 1 block) that reads 14 numbers and plans 16 actions. The server's own time is everything except the network:
reading, queue, checks, histories, threads and writing.

Other programs were running on the machine, with the load that
the notes give, so latencies are upper bounds. For the part with 64 clients, the note also says how long the machine
held up a process that only slept."""),
    "growth": ("Growth", """
The same work on larger and larger data sets. "Flat" means at least half the speed with ten thousand times the
data."""),
    "time_to_policy": ("Time to a working policy", """
CPU seconds of training until the recommended method reaches 90 % of Diffusion Policy's final success rate."""),
    "processes": ("Several processes", """
Two processes that train one policy on one machine, compared with one process and the same batch size."""),
    "profiles": ("Where the time goes", """
The three slowest parts, in plain code and in understudy. Before: conv1d over (B, C, T), PyTorch's Mish, fp32, all
inputs of the network computed again in every step of the sampler, one environment after the other. After:
understudy's code, with packed weights for the chunk. Profilers slow down code with many calls; the ratios were measured
without one."""),
    "gpu_goals": ("Goals on a GPU", """
Updates of methods at their defaults, with the data on the GPU, and training steps of ACT and of Diffusion Policy
compared with LeRobot's. `python benchmarks/gpu.py goals train` measures both within 8 minutes, with the goals that were
set. They have not been measured yet."""),
    "gpu_methods": ("On a GPU", """
Updates of methods at their defaults on a GPU and on the processor of the same machine, in wall-clock time.

Networks of a few layers on numbers (`bc`, `bc-gmm`, `iql`) gain nothing: an update launches hundreds of kernels, and
launching them takes longer than their work. In a profile on a machine with a slower processor, the GPU worked for 1 ms
of the 7 ms of an update of `bc`, and for 9 ms of the 61 ms of one of `diffusion-policy`. A training step is not
recorded as a CUDA graph.

`make test-gpu` ran on an H200: contracts of methods, bit-equal resuming in fp32 and bf16, compiled networks, recorded
plans (`deploy.cuda_graph`), data on the device (`data.device_windows`), and updates in a second process. Of its last
run 140 of 144 tests had passed, and none failed, when the time was up.

Several GPUs have not been tried. The latency was not compared with LeRobot's on a GPU
(`python benchmarks/gpu.py latency`)."""),
    "gpu_data": ("Batches for a GPU", """
Training with two cameras: batches that the processor makes between the updates (peer), batches that it makes during
the update before, and data that stay on the GPU, as they do if they fill at most a quarter of its free memory."""),
}

HEAD = """# Benchmarks

<!-- made by benchmarks/page.py: run the benchmark instead of editing this page -->

Each table is made by one command. `make bench` runs them all and writes this page. Times are CPU times in one thread.
understudy and the other library take turns in one process. A ratio is the mean over the turns with its 95 % interval
(Student's t on logarithms).

A goal counts as met if the interval reaches it. The other numbers are medians over the
same turns. They depend on the machine; ratios depend on it less. Each benchmark installs the library that it compares
with into a separate environment, with the same PyTorch and NumPy.
"""


# Sections at the end of the page whose tables are the scripts' own (`page()`): title, and what is compared.
TABLES = {
    "return_curves": ("CPU seconds to a return", """
SAC and TD3 on Pendulum-v1, PPO and DQN on CartPole-v1, with the same settings as stable-baselines3 2.9.2 and SBX 0.28.0
(TD3 and DQN: those of understudy, as far as the peers have them). CleanRL's files of SAC and TD3, and GAIL of imitation
1.0.1, have their own settings. Ours acts in eight environments, and with half of the noise of the others in TD3. Five
seeds. One thread, and compilation counts. Other programs kept both cores busy.

SAC reaches its level in 37 CPU seconds here in the mean of five seeds, in 54 and 56 in stable-baselines3 and CleanRL,
and in 34 in SBX. Ours and SBX ran one after the other, seed by seed; the first table has the medians. Their difference
is within the spread of five seeds, and that counts as met. With `--compile` ours takes 54, of which compilation is 30:
it does not pay in so short a training.

TD3 takes as long here as in SBX, and half as long as in the other two, which need more steps; one seed of
stable-baselines3 does not reach the level.

DQN reaches its level here in 4 of 5 seeds, and in none of stable-baselines3, but ends below it in both.

PPO and GAIL, and TD3 on Hopper, ran on another, slower machine than the other tasks, an Intel Xeon, ours and the peers'
by turns or at the same time. On CartPole PPO takes as long to its level as in stable-baselines3.

GAIL is compared until it has nine tenths of the mean return of its demonstrations. It needs fewer steps here, but
40,960 steps take 3.6 times the CPU seconds of imitation, which updates its policy half as often. The plan asked for
half of imitation's CPU seconds to that level. That is not met: they are 5 here and 6 there.

On Hopper SAC is trained until 20 episodes have a mean return of 2,300, and for 200,000 steps at most. All three seeds
of ours reach it, one of two of stable-baselines3, and two of three of SBX.

PPO has 500,000 steps at most. All five seeds of each library reach the level, after 249,000 steps here, 288,000 in
stable-baselines3 and 216,000 in SBX. The intervals overlap, of steps and of CPU seconds.

TD3 reaches it in one of three seeds of ours, one of three of stable-baselines3, none of three of SBX, and not in the
one of CleanRL that was run. 200,000 steps are too few to compare them. A step takes 10.5 to 11.2 ms of CPU time here,
6.4 to 13.4 ms in stable-baselines3, 5.3 to 10.8 ms in SBX and 13.9 ms in CleanRL, depending on what other programs ran
at the time.

CPU seconds of SAC on Hopper leave out what ran on the slower machine: seeds 1 and 2 of SBX, seed 2 of
stable-baselines3, and seed 1 of ours, which took 140,000 steps where the others took 80,000 and 75,000. At their pace
that is about 1,500 CPU seconds, so that the row is too favorable."""),
    "learner_lines": ("Lines of a learner", """
Code of each learner beside d3rlpy's and OGBench's, without docstrings, comments, imports and blank lines. Lines have up
to 120 characters here and in OGBench, and 80 in d3rlpy, so that statements, in parentheses, compare better than lines.

"Alone" is the file of the method here, the files of config and of losses in d3rlpy, and the agent's file in OGBench.
"With what it extends" adds the files of other learners that these import. Networks, heads and data are not counted,
except OGBench's networks, which are in what all of its agents share.

The second table has all lines of the files of methods, with docstrings and imports, before a method became one class
and now. Many learners were in `learn/` then and are in the file of their method now, so that the last row compares best
(`python benchmarks/learner_lines.py --methods`)."""),
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
    parts = [HEAD, _overview([*(result["lines"] for result in results.values()), *judged.values()])]
    for name, (title, says) in ROWS.items():
        parts.append(f"## {title}\n\n{says.strip()}")
        if name in results:
            parts.append(_table(results[name]))
        elif (measure.HERE / f"{name}.py").exists():
            parts.append(f"`python benchmarks/{name}.py` has not been run.")
    for name, (title, says) in TABLES.items():
        goals = f"{_lines_table(judged[name])}\n\n" if name in judged else ""
        parts.append(f"## {title}\n\n{says.strip()}\n\n{goals}{tables[name].page()}\n\n"
                     f"<small>`python benchmarks/{name}.py`</small>")
    PAGE.write_text("\n\n".join(p.strip() for p in parts) + "\n")
    print(PAGE)


def _overview(lines_of_tables: list[list[dict]]) -> str:
    goals = [line for lines in lines_of_tables for line in lines if line["met"] is not None]
    met = sum(line["met"] for line in goals)
    return (f"Of {len(goals)} goals that were set in advance, {met} are met and {len(goals) - met} are not. "
            "The tables show which.")


def _table(result: dict) -> str:
    machine, versions = result["machine"], result["versions"]
    origin = (f"`{result['command']}` · {result['date']}, {machine['cpu']}, {machine['cores']} cores "
            f"({machine['has'] or 'no AVX2'}) · " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    pictures = "".join(f"\n\n{words}:\n\n![{words}](images/{name})"
                       for name, words in result.get("pictures", {}).items())
    remark = f"\n\n{result['says']}" if "says" in result else ""
    return _lines_table(result["lines"]) + remark + pictures + f"\n\n<small>{origin}</small>"


def _lines_table(lines: list[dict]) -> str:
    return "\n".join(["| | ours | peer | ratio | goal | |", "|---|--:|--:|--:|--:|---|", *map(_row, lines)])


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
