"""Success of all policy heads, and their latency: python benchmarks/heads.py [TASK ... | OPTION]

Every head of the library that predicts continuous actions learns the same demonstrations with the same trunk, window,
batch size and number of updates, and acts from the same starts. A cell may take 90 CPU seconds: heads that learn
slowly have fewer updates (`FEWER`). The settings are written here before any run and nothing is tuned: heads have their
defaults, or what the library's own method with this head sets. `variants` has the exceptions, and docs/heads.md names
them. The shared network, learning rate, batch and number of updates were chosen in pilots with regression, flow, DDIM,
MIP and mixtures on the seed 100, which is not judged. With 1,000 updates of 128 windows and a network of 128 x 128
units, most heads had hardly learned to reach the two goals of particle.

--more runs four further tasks with regression and the best eight others (`BEST`), chosen by the first seed of the first
three tasks before any of these cells ran. They need the simulators, OGBench (`pip install 'understudy[sim,ogbench]'`),
the recorded demonstrations of UNDERSTUDY_DATA, and for block pushing what published.py says. The settings are the same,
but block pushing has the 1,000 demonstrations of published.py and five times as many updates, and one block on a square
counts. Pilots with the seed 100 decided this. With 100 demonstrations and 4,000 updates regression and flow never
pushed a block onto a square. With 1,000 and 10,000 flow did in 1 of 30 episodes, whether it executed 1 or 4 steps of a
chunk, and regression did not. On the other tasks the pilots with 4,000 updates could tell heads apart or had success:
regression .55 and flow .80 on peg-insert, .90 and .90 on cube, .05 and .20 on the door (MIP .35; 10,000 updates: 0 and
.20).

--again judges the aim again for two of the heads that the seeds 0 to 2 left open, `reflow-sample-1` and
`reflow-sample-2`: four new training seeds, and 200 starts on each task.

--told-apart runs ten heads on fork and particle with ten new training seeds, so that the spread between seeds can be
judged. The network is as small as these tasks allow, so that many seeds are cheap: in pilots with the seed 100, six
heads, 200 starts, 4,000 updates and batches of 128, the best of 64 x 2 units reached .99 on fork and .92 on particle,
and of 128 x 2 units 1.00 and .95. MIP reached .08 on particle with 64 units and .62 with 128, so 128 were taken. No
head has fewer updates. The heads are those that most users would choose from, one or two of a kind.

The cells, one for each task, seed and head, are kept in results/heads/. All tasks and heads of a seed come before the
next seed, so that a run can be stopped at any time: what was finished is kept, and the same command continues. The page
uses the seeds with which all heads ran, or else what there is of the first seed. A seed takes some 70 minutes of a
core; --budget 8m stops at the first cell that begins later, and --seeds 3 runs the first three seeds only. --tiny takes
minutes, keeps its cells in results/heads-tiny/, and shows only that everything runs. --page writes the tables of
docs/heads.md and the figures from the cells that there are, and prints all tables, also those that the page leaves out.
Latencies are those of head_speed.py.
"""

from __future__ import annotations

import measure

measure.one_thread()

import functools  # noqa: E402
import itertools  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Mapping  # noqa: E402
from dataclasses import dataclass, field, replace  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import scipy.stats  # noqa: E402
import torch  # noqa: E402
from labeled_points import labeled_points  # noqa: E402
from published_toys import push_demonstrations  # noqa: E402

from understudy.checkpoint import FromStage  # noqa: E402
from understudy.data.codec import Normalizer  # noqa: E402
from understudy.data.column_changes import LastAction  # noqa: E402
from understudy.data.episode import Dataset, Episode  # noqa: E402
from understudy.data.formats import open_dataset  # noqa: E402
from understudy.data.window import Window  # noqa: E402
from understudy.envs import make  # noqa: E402
from understudy.evaluate.comparison import Comparison, compare_all  # noqa: E402
from understudy.evaluate.evaluation import Evaluation, compare, evaluation_of, recording_seed  # noqa: E402
from understudy.evaluate.multiple_comparisons import holm  # noqa: E402
from understudy.evaluate.noninferiority import noninferiority_p_value  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402
from understudy.evaluate.stats import seeds_caveat  # noqa: E402
from understudy.execute.chunking import RecedingHorizon  # noqa: E402
from understudy.execute.streaming_flow import StreamingFlowExecutor  # noqa: E402
from understudy.files import read_json, write_json, write_text  # noqa: E402
from understudy.heads.base import Head  # noqa: E402
from understudy.heads.denoising.adaflow import AdaFlow  # noqa: E402
from understudy.heads.denoising.diffusion import Diffusion  # noqa: E402
from understudy.heads.denoising.edm import EDM  # noqa: E402
from understudy.heads.denoising.flow import Flow  # noqa: E402
from understudy.heads.denoising.interpolant import Interpolant  # noqa: E402
from understudy.heads.denoising.streaming_flow import StreamingFlow  # noqa: E402
from understudy.heads.energy.energy import AutoregressiveEnergy, EnergyModel  # noqa: E402
from understudy.heads.likelihood.bins import Bins  # noqa: E402
from understudy.heads.likelihood.cvae import CVAE  # noqa: E402
from understudy.heads.likelihood.gaussian import Gaussian  # noqa: E402
from understudy.heads.likelihood.gmm import GMM  # noqa: E402
from understudy.heads.likelihood.normalizing_flow import NormalizingFlow  # noqa: E402
from understudy.heads.likelihood.regression import Regression  # noqa: E402
from understudy.heads.memory.mcnn import MCNN  # noqa: E402
from understudy.heads.memory.neighbors import Neighbors  # noqa: E402
from understudy.heads.one_step.consistency import Consistency  # noqa: E402
from understudy.heads.one_step.mean_flow import MeanFlow  # noqa: E402
from understudy.heads.one_step.mip import MIP  # noqa: E402
from understudy.heads.one_step.one_step import OneStepGenerator  # noqa: E402
from understudy.heads.one_step.shortcut import Shortcut  # noqa: E402
from understudy.heads.solvers import DDPM  # noqa: E402
from understudy.heads.tokens.behavior_transformer import BeT  # noqa: E402
from understudy.heads.tokens.fast import FAST  # noqa: E402
from understudy.heads.tokens.vq_bet import VQBeT  # noqa: E402
from understudy.learn.behavior_cloning import BehaviorCloning  # noqa: E402
from understudy.learn.fit_method import FitResult, fit_method  # noqa: E402
from understudy.learn.method import InitializeFrom, Method, Stage, build_actor  # noqa: E402
from understudy.learn.optimizer import OptimizerConfig  # noqa: E402
from understudy.methods.generative.consistency_policy import ConsistencyPolicy  # noqa: E402
from understudy.methods.generative.onedp import OneDP  # noqa: E402
from understudy.methods.generative.reflow_policy import ReflowPolicy  # noqa: E402
from understudy.nets.encoders import ConcatEncoder, TokenEncoder  # noqa: E402
from understudy.nets.mlp import MLP  # noqa: E402
from understudy.nets.transformer import Transformer  # noqa: E402
from understudy.policy import Policy, PolicyConfig  # noqa: E402

PICTURES = measure.HERE.parent / "docs" / "images"
REFERENCE = "ddpm-100"
DRAWN = ("fork", "particle")  # on pick-place nearly all heads succeed
MARGIN, FASTER = 0.05, 20.0  # the aim: at most 5 points worse than the reference, and 20 times as fast
OBSERVED, HORIZON, EXECUTED = 2, 8, 4  # steps
BATCH = 256
SEARCHES = "1, and a search for each number"
# The updates of heads that would otherwise take longer, measured on one core before any run.
FEWER = {"reflow-1": 2400, "reflow-sample-1": 2400, "onedp-1": 2600, "streaming-flow": 2000, "mean-flow-1": 3300,
         "normalizing-flow": 1800, "energy": 3500, "energy-autoregressive": 2400, "fast": 550}


@dataclass(frozen=True)
class Task:
    """An environment, how many demonstrations of its expert a policy learns from, and how many starts it acts from.

    Attributes:
        recorded: Demonstrations below UNDERSTUDY_DATA instead of the expert's. All seeds learn the same ones.
        kept: Whether the demonstrations are recorded once, for all seeds, and kept: those of published.py.
        times: How many times as many updates as on the first three tasks.
        fewer: Updates that differ from `FEWER`, because actions with more components take these heads longer.
        executed: Steps of a chunk that are executed before the next plan.
        outcome: What counts: the success of the environment, or another part of its metadata.
        counts: The outcome in words, if it is not success.
        rows: Most environments side by side.
    """

    env: str
    n_demonstrations: int
    starts: int
    options: Mapping[str, int] = field(default_factory=dict)
    recorded: str = ""
    kept: bool = False
    times: float = 1
    fewer: Mapping[str, int] = field(default_factory=dict)
    executed: int = EXECUTED
    outcome: str = "success"
    counts: str = ""
    rows: int = 200


@dataclass(frozen=True)
class Size:
    """How much is run. The first numbers are those of the table."""

    folder: str = "heads"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    updates: int = 4000
    starts: int | None = None  # for all tasks, in place of their own number
    heads: tuple[str, ...] = ()  # all
    network: MLP = MLP(256, 3)
    batch_size: int = BATCH


FULL = Size()
AGAIN = Size("heads-again", (5, 6, 7, 8), starts=200, heads=("ddpm-100", "reflow-sample-1", "reflow-sample-2"))
TOLD_APART = Size("heads-told-apart", tuple(range(10, 20)), network=MLP(128, 2), batch_size=128, heads=(
    "ddpm-100", "flow-10", "flow-sample-10", "reflow-sample-1", "mip", "cvae", "gmm", "bet", "gaussian", "regression"))
TINY = Size("heads-tiny", (0, 1), 40, 4, ("ddpm-100", "flow-1", "consistency-distilled-1", "regression"))
TASKS = {
    "fork": Task("fork", 100, 400),
    "particle": Task("particle", 200, 400),
    "pick-place": Task("metaworld/pick-place-v3", 25, 20, {"limit": 100},
                       fewer={"fast": 300, "energy-autoregressive": 1100}),
}
MORE = {
    "block-pushing": Task("block_pushing/multimodal", 1000, 30, kept=True, times=5, outcome="one",
                          counts="one block on a square counts", rows=15),
    "adroit-door": Task("AdroitHandDoor-v1", 25, 20, recorded="hand_dapg/adroit_door_human.npz"),
    "peg-insert": Task("metaworld/peg-insert-side-v3", 25, 20, {"limit": 150}),
    "cube": Task("ogbench/cube-single-v0", 50, 20, rows=10),
}
BEST = ("flow-sample-10", "ddpm-100", "ddim-10", "reflow-sample-2", "reflow-sample-1", "cvae", "mip",
        "normalizing-flow")
ALL = TASKS | MORE


@dataclass(frozen=True)
class Variant:
    """A head as it acts.

    Attributes:
        head: The head that acts.
        method: What is trained.
        weights: The variant whose weights it has, where only sampling differs. None if it is trained itself.
        n_evaluations: Evaluations of the network for one chunk, as a text for the table.
    """

    head: Head
    method: Method
    n_evaluations: str = "1"
    weights: str | None = None


def optimizer(updates: int, lr: float = 3e-3) -> OptimizerConfig:
    return OptimizerConfig(lr=lr, warmup_steps=min(100, updates // 10))


def _method(head: Head, updates: int, lr: float = 3e-3, batch: int = BATCH, executed: int = EXECUTED,
           network: MLP = FULL.network, **parts) -> Method:
    """Behavior cloning with this head. `parts` are fields of the policy that differ from those of the others."""
    policy = replace(PolicyConfig(head, network, window=Window(OBSERVED, HORIZON)), **parts)
    return Method(policy, RecedingHorizon(executed), BehaviorCloning(updates, batch, optimizer=optimizer(updates, lr)))


def variants(size: Size = FULL, task: str = "fork") -> dict[str, Variant]:
    """All heads, by the names of the table, with the settings of a task."""
    times, executed = ALL[task].times, ALL[task].executed
    n = round(size.updates * times)
    method = functools.partial(_method, batch=size.batch_size, executed=executed, network=size.network)
    most_updates = FEWER | ALL[task].fewer if size.network == FULL.network else {}
    fewer = {head: min(n, round(most_updates.get(head, n) * times)) for head in FEWER}
    diffusion, flow, edm = (method(h, n) for h in (Diffusion(100, DDPM(), prediction="sample"), Flow(), EDM()))
    heads = {REFERENCE: Variant(diffusion.policy.head, diffusion, "100")}
    heads["ddim-10"] = Variant(Diffusion(prediction="sample"), diffusion, "10", REFERENCE)
    heads["edm-10"] = Variant(edm.policy.head, edm, "10")
    heads["flow-10"] = Variant(flow.policy.head, flow, "10")
    heads["flow-1"] = Variant(Flow(1), flow, "1", "flow-10")
    of_edm = Stage("edm-10", edm)
    source, started = FromStage("edm-10"), (InitializeFrom(FromStage("edm-10")),)
    straight = method(Flow(prediction="sample"), n)
    heads["flow-sample-10"] = Variant(straight.policy.head, straight, "10")
    for name, teacher in (("reflow-1", "flow-10"), ("reflow-sample-1", "flow-sample-10")):
        first = heads[teacher].method
        head = replace(first.policy.head, n_steps=1)
        heads[name] = Variant(head, replace(
            method(head, n), learner=ReflowPolicy(FromStage(teacher), fewer[name], size.batch_size, optimizer(n),
                                                   teacher_steps=10),
            stages=(Stage(teacher, first),), initialize_from=(InitializeFrom(FromStage(teacher)),)))
    heads["reflow-sample-2"] = Variant(replace(head, n_steps=2), heads["reflow-sample-1"].method, "2",
                                       "reflow-sample-1")
    head = Consistency()
    heads["consistency-distilled-1"] = Variant(head, replace(
        method(head, n), learner=ConsistencyPolicy(source, n, BATCH, optimizer=optimizer(n)), stages=(of_edm,),
        initialize_from=started))
    head = OneStepGenerator()
    heads["onedp-1"] = Variant(head, replace(
        method(head, n), learner=OneDP(source, fewer["onedp-1"], BATCH), stages=(of_edm,),
        initialize_from=started))
    steps = Interpolant()
    named = {"encoder": TokenEncoder(named=(steps.source,)), "codec": Normalizer(obs="minmax")}
    heads["interpolant-5"] = Variant(steps, replace(method(steps, n, **named),
                                                    transforms=(LastAction(into=steps.source),)), "5")
    streaming = method(StreamingFlow(), fewer["streaming-flow"], window=Window(OBSERVED, HORIZON + 1, action_offset=-1))
    heads["streaming-flow"] = Variant(streaming.policy.head,
                                      replace(streaming, executor=StreamingFlowExecutor(executed)), "8, one per action")
    few = {"shortcut-1": (Shortcut(1, n_train_steps=16), "1"), "mean-flow-1": (MeanFlow(), "1"),
           "consistency-1": (Consistency(), "1"), "adaflow": (AdaFlow(), "1 to 5"), "mip": (MIP(), "2"),
           "normalizing-flow": (NormalizingFlow(), "6 networks"),
           "cvae": (CVAE(), "1"), "regression": (Regression(), "1"), "gaussian": (Gaussian(), "1"),
           "gmm": (GMM(), "1"), "bins": (Bins(), "1"), "bet": (BeT(joint=True), "1"),
           "vq-bet": (VQBeT(fit_batch_size=BATCH), "1")}
    heads |= {name: Variant(head, method(head, fewer.get(name, n)), note) for name, (head, note) in few.items()}
    energy = method(EnergyModel(n_negatives=16, n_candidates=128), fewer["energy"], batch=64)
    heads["energy"] = Variant(energy.policy.head, energy, "4 x 128")
    numbers = method(AutoregressiveEnergy(), fewer["energy-autoregressive"], batch=64)
    heads["energy-autoregressive"] = Variant(numbers.policy.head, numbers, SEARCHES)
    tokens = method(FAST(vocab_size=256), fewer["fast"], 1e-3, trunk=Transformer(128, 2, 4),
                    codec=Normalizer(target="quantile"))
    heads["fast"] = Variant(tokens.policy.head, tokens, "1 per token")
    memories = method(MCNN(), n, encoder=ConcatEncoder())
    heads["mcnn"] = Variant(memories.policy.head, memories)
    nearest = method(Neighbors(1, weights="equal"), 1, encoder=ConcatEncoder())
    heads["neighbors"] = Variant(nearest.policy.head, nearest, "none")
    return {name: v for name, v in heads.items() if not size.heads or name in size.heads}


# -- cells --------------------------------------------------------------------------------------------------------


@functools.cache
def environment(name: str, rows: int):
    """The environment of a task, with at most this number of copies."""
    task = ALL[name]
    return make(task.env, rows=min(rows, task.rows), **task.options)


@functools.cache
def demonstrations(name: str, seed: int) -> Dataset:
    """Successful episodes of the expert: others for each training seed, the same for all heads. Or those recorded."""
    task = ALL[name]
    if task.kept:
        return push_demonstrations(task.n_demonstrations)
    if task.recorded:
        return open_dataset(Path(os.environ.get("UNDERSTUDY_DATA", "../shared/data")) / task.recorded)
    n, env = task.n_demonstrations, environment(name, min(task.n_demonstrations, 100))
    return rollout(env.expert(), env, n, recording_seed(seed)).filter(lambda e: e.metadata["success"])


def train(task: str, name: str, data: Dataset, seed: int, results: dict[str, FitResult], size: Size) -> FitResult:
    """The trained weights of a variant, from `made` or into it."""
    chosen = variants(replace(size, heads=()), task)[name]
    if chosen.weights is not None:
        return train(task, chosen.weights, data, seed, results, size)
    if name not in results:
        stages = {stage.name: train(task, stage.name, data, seed, results, size) for stage in chosen.method.stages}
        results[name] = fit_method(chosen.method, data, seed, stages=stages)
    return results[name]


def acting(chosen: Variant, result: FitResult) -> tuple[Method, Policy]:
    """The trained policy with the head that acts."""
    policy = result.policy
    if chosen.head == policy.config.head:
        return result.method, policy
    other = policy.with_head(chosen.head)
    return replace(result.method, policy=other.config), other


def heads_of(size: Size, task: str) -> tuple[str, ...]:
    """The heads that run on a task."""
    return tuple(head for head in variants(size) if task in TASKS or head in (*BEST, "regression"))


def cell_path(size: Size, task: str, seed: int, head: str) -> Path:
    """The file of a cell."""
    return measure.RESULTS / size.folder / f"{task}-{seed}-{head}.json"


def run_cell(size: Size, task: str, seed: int, head: str, results: dict[str, FitResult]) -> None:
    """Trains and judges a head, unless its cell exists."""
    path = cell_path(size, task, seed, head)
    if path.exists():
        return
    began = time.process_time()
    data = demonstrations(task, seed)
    recorded = time.process_time()
    result = train(task, head, data, seed, results, size)
    trained = time.process_time()
    built, policy = acting(variants(size, task)[head], result)
    starts = size.starts or ALL[task].starts
    env = environment(task, min(starts, 200))
    rollouts = rollout(build_actor(built, {"policy": policy}, features=env.features), env, starts, seed=0)
    seconds = {"recording": recorded - began, "training": trained - recorded, "acting": time.process_time() - trained}
    won = [int(e.metadata[ALL[task].outcome]) for e in rollouts]
    write_json(path, {"task": task, "seed": seed, "head": head, "updates": result.method.learner.steps,
                      "demonstrations": len(data), "parameters": sum(p.numel() for p in policy.parameters()),
                      "success": won,
                      "seconds": {k: round(v, 1) for k, v in seconds.items()}})
    print(f"{task} seed {seed} {head}: {sum(won) / len(won):.2f}; "
          + ", ".join(f"{k} {v:.1f} s" for k, v in seconds.items()), file=sys.stderr, flush=True)


def run(size: Size, tasks: list[str], until: float = float("inf")) -> bool:
    """Runs the missing cells. False if time ran out before they were done."""
    for seed in size.seeds:
        for task in tasks:
            results: dict[str, FitResult] = {}
            for head in heads_of(size, task):
                if time.monotonic() > until:
                    return False
                run_cell(size, task, seed, head, results)
    return True


# -- the page -----------------------------------------------------------------------------------------------------


def finished_seeds(size: Size, task: str) -> list[int]:
    """The training seeds for which every head ran."""
    return [s for s in size.seeds if all(cell_path(size, task, s, head).exists() for head in heads_of(size, task))]


def outcomes(size: Size, task: str) -> dict[str, list[list[int]]]:
    """Success of each head: (seeds, starts), of the finished seeds. If there are none, of the heads that ran with the
    first seed, if the reference is one of them."""
    seeds = finished_seeds(size, task) or [size.seeds[0]]
    cells = {head: [cell_path(size, task, s, head) for s in seeds] for head in heads_of(size, task)}
    success_of = {head: [read_json(path)["success"] for path in paths] for head, paths in cells.items()
                  if all(path.exists() for path in paths)}
    return success_of if len(success_of) > 1 and REFERENCE in success_of else {}


def evaluations(task: str, won: list[list[int]]) -> list[Evaluation]:
    """The evaluations that `compare_all` compares, one for each seed."""
    env = ALL[task].env
    return [evaluation_of(Dataset([Episode({"next.reward": np.full(1, float(w))}, {
        "success": bool(w), "env": env, "seed": 0, "number": i}) for i, w in enumerate(row)])) for row in won]


def compared(task: str, success_of: Mapping[str, list[list[int]]]) -> Comparison:
    """All pairs of heads on a task."""
    return compare_all({head: evaluations(task, won) for head, won in success_of.items()})


def speeds() -> dict[str, dict[str, dict]]:
    """The lines of head_speed.py by head and what they measure. Empty if it has not been run."""
    path, lines = measure.RESULTS / "head_speed.json", {}
    for line in read_json(path)["lines"] if path.exists() else ():
        head, _, what = line["what"].partition(": ")
        lines.setdefault(head, {})[what] = line
    return lines


def judged(line: dict | None, differences: Mapping[str, tuple[float, float, float]]) -> str:
    """Whether a head reaches the aim on all tasks: the interval of the speed and those of the differences decide."""
    if line and line["ratio"]["high"] < FASTER:
        return "no: too slow"
    if worse := [task for task, (_, _, high) in differences.items() if high < -MARGIN]:
        return f"no: worse on {', '.join(worse)}"
    if line is None:
        return "cannot tell: its speed has not been measured"
    ratio = line["ratio"]
    sure = [task for task, (low, _, _) in differences.items() if low >= -MARGIN]
    if ratio["low"] >= FASTER and len(sure) == len(differences):
        return "**yes**"
    return f"cannot tell on {', '.join(t for t in differences if t not in sure)}" if len(sure) < len(differences) \
        else "cannot tell: speed"


def page_table(size: Size, compared_on: Mapping[str, Comparison], fast: Mapping[str, dict]) -> list[str]:
    """Success of each head on each task and its speed, best mean first."""
    tasks = list(compared_on)
    of = {task: dict(zip(c.names, c.estimates, strict=True)) for task, c in compared_on.items()}
    of_head = {h: [of[t][h].estimate for t in tasks if h in of[t]] for h in variants(size)}
    rows = []
    for head in sorted(filter(of_head.get, of_head), key=lambda h: -sum(of_head[h]) / len(of_head[h])):
        cells = [measure.percent(e.low, e.estimate, e.high) if (e := of[t].get(head)) else "not run" for t in tasks]
        speed = f"{fast[head]['one chunk']['ratio']['estimate']:.3g}×" if head in fast else ""
        rows.append(f"| {head} | " + " | ".join(cells) + f" | {speed} |")
    return ["| head | " + " | ".join(tasks) + " | faster than DDPM-100 |",
            "|---|" + "--:|" * (len(tasks) + 1), *rows]


def success_table(compared_on: Mapping[str, Comparison]) -> list[str]:
    """Success of each head on each task, best mean first, with the letters of the heads that cannot be told apart."""
    tasks = list(compared_on)
    of = {task: dict(zip(c.names, zip(c.estimates, c.letters, strict=True), strict=True))
          for task, c in compared_on.items()}
    of_head = {h: [of[t][h][0].estimate for t in tasks if h in of[t]] for t in tasks for h in of[t]}
    out = ["| head | " + " | ".join(f"{task} | letters" for task in tasks) + " |", "|---|" + "--:|---|" * len(tasks)]
    for head in sorted(of_head, key=lambda h: -sum(of_head[h]) / len(of_head[h])):
        cells = [f"{measure.percent(e.low, e.estimate, e.high)} | {letters}" if e else "not run |"
                 for e, letters in (of[t].get(head, (None, "")) for t in tasks)]
        out.append(f"| {head} | " + " | ".join(cells) + " |")
    return out


def speed_table(size: Size, fast: Mapping[str, dict]) -> list[str]:
    """Evaluations, latency, ONNX files, training speed and size of each head, fastest first."""
    def ms(line):
        return f"{line['ours']['value']:.3g}" if line else ""
    heads, rows, exported = variants(size), [], any("one chunk, ONNX file" in line for line in fast.values())
    for head, line in fast.items():
        if head not in heads:
            continue
        plan, file, training = line["one chunk"], line.get("one chunk, ONNX file"), line.get("training")
        ratio = plan["ratio"]
        refused = line.get("ONNX file")
        shared = heads[head].weights
        samples = f"as {shared}" if shared else f"{training['ours']['value']:,.0f}" if training else "not trained"
        count = next((read_json(path)["parameters"] for path in
                      (measure.RESULTS / size.folder).glob(f"fork-*-{head}.json")), None)
        rows.append((plan["ours"]["value"], f"| {head} | {heads[head].n_evaluations} | {ms(plan)} | "
                     f"{ratio['estimate']:.3g}× [{ratio['low']:.3g}, {ratio['high']:.3g}] | "
                     + (f"{'no (see below)' if refused else ms(file)} | " if exported else "") + f"{samples} | "
                     f"{'' if count is None else f'{count / 1000:,.0f}'} |"))
    return ["| head | evaluations of the network | ms a chunk | faster than DDPM-100 | "
            + "ms, ONNX file | " * exported + "training, samples/s | thousand weights |",
            "|---|---|--:|--:|" + "--:|" * exported + "--:|--:|",
            *(row for _, row in sorted(rows))]


def aim_table(size: Size, outcomes_of: Mapping[str, dict], fast: Mapping[str, dict]) -> list[str]:
    """The aim for each head that makes a chunk in one pass, or in two."""
    tasks, rows = list(outcomes_of), []
    heads = [h for h, v in variants(size).items() if v.n_evaluations in ("none", "1", "2", "6 networks")
             and any(h in of for of in outcomes_of.values())]
    rows_of = {(h, t): np.squeeze(np.array(won, float), 0) if len(won) == 1 else np.array(won, float)
               for t in tasks for h, won in outcomes_of[t].items()}
    p_values = {(h, t): noninferiority_p_value(rows_of[h, t], rows_of[REFERENCE, t], MARGIN)
                for h in heads for t in tasks if h in outcomes_of[t]}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    for head in heads:
        line, differences, cells = fast.get(head, {}).get("one chunk"), {}, []
        for task in tasks:
            if head not in outcomes_of[task]:
                cells.append("not run")
                continue
            d = compare(evaluations(task, outcomes_of[task][head]), evaluations(task, outcomes_of[task][REFERENCE]))
            differences[task] = d.low, d.difference, d.high
            text = measure.percent(d.low, d.difference, d.high, "+")
            cells.append(text + (" ✓" if adjusted[head, task] < 0.05 else ""))
        ratio = line["ratio"] if line else None
        speed = f"{ratio['estimate']:.3g}× [{ratio['low']:.3g}, {ratio['high']:.3g}]" if ratio else ""
        verdict = judged(line, differences)
        if verdict == "**yes**" and len(differences) < len(TASKS):
            verdict = f"yes on {', '.join(differences)}, other tasks have not run"
        rows.append(f"| {head} | {speed} | " + " | ".join(cells) + f" | {verdict} |")
    return ["| head | faster than DDPM-100 | " + " | ".join(tasks) + " | aim |",
            "|---|--:|" + "--:|" * len(tasks) + "---|", *rows]


def pictures(size: Size, compared_on: Mapping[str, Comparison], fast: Mapping[str, dict]) -> list[str]:
    """One figure for each task: success against the speed of a plan."""
    many, one_answer = ("100", "10", "5", "4 x 128", SEARCHES, "1 per token", "1 to 5", "8, one per action"), (
        "mip", "regression", "gaussian", "cvae", "mcnn", "neighbors", "fast")
    kinds = {h: "one answer, no noise" if h in one_answer else "several evaluations" if v.n_evaluations in many
             else "one or two passes from noise" for h, v in variants(size).items()}
    parts = []
    for task, c in compared_on.items():
        rate = dict(zip(c.names, c.estimates, strict=True))
        rows = [(h, fast[h]["one chunk"]["ratio"]["estimate"], rate[h], kinds[h]) for h in c.names if h in fast]
        if not rows:
            continue
        figure = labeled_points(rows, "times faster than DDPM-100 (one chunk, batch size 1)", f"Success on {task}",
                                guides=(FASTER, rate[REFERENCE].estimate - MARGIN))
        write_text(PICTURES / f"heads-{task}.svg", figure.standalone_svg())
        parts += [f"![Success on {task} against the speed of a plan](images/heads-{task}.svg)", ""]
    return parts


def page_text(size: Size) -> str:
    """The tables and figures of the documentation."""
    outcomes_of = {task: of for task in TASKS if (of := outcomes(size, task))}
    fast, parts = speeds(), [" ".join(seeds_said(size, outcomes_of)), ""]
    if outcomes_of:
        compared_on = {task: compared(task, won) for task, won in outcomes_of.items()}
        parts += ["### Success and speed", "", "Percent of successful episodes, with the 95% interval over training "
                  "seeds and starts, and how many times as fast as DDPM-100 a head makes a chunk.", "",
                  *measure.folded(page_table(size, compared_on, fast), "heads"), ""]
        if fast:
            parts += ["Dashed: 20 times as fast as DDPM-100, and 5 points below its success. Vertical lines are 95% "
                      "intervals.", "",
                      *pictures(size, {t: c for t, c in compared_on.items() if t in DRAWN}, fast)]
    if size == FULL and (apart := {task: of for task in TASKS if (of := outcomes(TOLD_APART, task))}):
        parts += ["### Ten heads with ten new training seeds", "", *apart_text(apart), ""]
    if size == TINY:
        parts.insert(0, "**These numbers are from the smallest size of the benchmark, which only shows that it runs. "
                        "The policies are barely trained.**\n")
    return "\n".join(parts).rstrip()


def all_tables(size: Size) -> str:
    """The tables of the documentation in detail, and those that it leaves out."""
    outcomes_of = {task: of for task in TASKS if (of := outcomes(size, task))}
    more = {task: of for task in MORE if (of := outcomes(size, task))}
    fast, parts = speeds(), [state_of(size, outcomes_of)]
    if outcomes_of:
        compared_on = {task: compared(task, won) for task, won in outcomes_of.items()}
        parts += ["### Success", "", *success_text(size, compared_on)]
    if more:
        parts += ["### Success on more tasks", "", " ".join(seeds_said(size, more)), "",
                  *success_text(size, {task: compared(task, won) for task, won in more.items()})]
    if size == FULL and (apart := {task: of for task in TASKS if (of := outcomes(TOLD_APART, task))}):
        parts += ["### How many training seeds the rest of ten heads would take", "",
                  *(f"- {task}: {seeds_text(of)}" for task, of in apart.items()), ""]
    if fast:
        parts += ["### Speed", "", *measure.folded(speed_table(size, fast), "heads"), ""]
    if refused := {h: line["ONNX file"]["note"] for h, line in fast.items() if "ONNX file" in line}:
        parts += ["These heads have no ONNX file:", "", *(f"- {h}: {note}" for h, note in refused.items()), ""]
    if outcomes_of:
        parts += ["### The aim: 20 times as fast as DDPM-100, at most 5 points worse", "",
                  "Difference of success to DDPM-100 in points, paired by seed and start, with its 95% interval. The "
                  "column *aim* compares each interval with 5 points and each interval of the speed with 20, without "
                  "an adjustment for the number of entries. ✓ is stricter: not inferior by 5 points after Holm's "
                  "adjustment for all entries of the table.\n\nSo a task without ✓ may still count as reached in the "
                  "column *aim*. If two heads have the same outcome at every start, no spread between seeds is "
                  "visible, and a wider interval (Tango's) stands in.", "",
                  *measure.folded(aim_table(size, outcomes_of, fast), "heads"), ""]
    if size == FULL and (again := {task: of for task in TASKS if (of := outcomes(AGAIN, task))}):
        parts += ["### The aim, judged again", "", "Two of the heads that this table leaves open, with "
                  f"{len(finished_seeds(AGAIN, next(iter(again))))} training seeds that had no part in choosing them, "
                  f"and {AGAIN.starts} starts on each task.", "", *aim_table(AGAIN, again, fast)]
    return "\n".join(parts).rstrip()


def state_of(size: Size, outcomes_of: Mapping[str, dict]) -> str:
    """How many cells there are, and of how many seeds the tables are."""
    n_heads = len(variants(size))
    cells = sum(cell_path(size, task, seed, head).exists() for task in TASKS for seed in size.seeds
                for head in variants(size))
    lines = [f"There are {cells} cells of {n_heads} heads, {len(TASKS)} tasks and up to {len(size.seeds)} seeds, with "
             f"{size.updates:,} updates each{_fewer_said(size)}."]
    if lacking := [task for task in TASKS if task not in outcomes_of]:
        lines.append(f"The tables lack {' and '.join(lacking)}: too few of these cells exist.")
    return "\n\n".join((" ".join(lines), " ".join(seeds_said(size, outcomes_of)))) + "\n"


def _fewer_said(size: Size) -> str:
    """The heads with fewer updates, in brackets."""
    parts = [f"{head} {most:,}" + "".join(f", on {name} {task.fewer[head]:,}" for name, task in TASKS.items()
                                          if head in task.fewer) for head, most in FEWER.items() if most < size.updates]
    return f" ({'; '.join(parts)})" if parts else ""


def seeds_said(size: Size, outcomes_of: Mapping[str, dict]) -> list[str]:
    """Of how many seeds and starts the tables are."""
    same: dict[str, list[str]] = {}  # what is said of tasks -> the tasks, with their starts
    for task in outcomes_of:
        seeds, heads, n_heads = finished_seeds(size, task), len(outcomes_of[task]), len(heads_of(size, task))
        text = f"{len(seeds)} training seeds" if len(seeds) > 1 else "1 training seed"
        if heads < n_heads:
            text += f" and {heads} of the {n_heads} heads (the others have not run yet)"
        caveat = "" if len(seeds) > 1 else " Intervals are about these policies, and not about other training seeds."
        starts = len(next(iter(outcomes_of[task].values()))[0])
        counts = f"; {ALL[task].counts}" if ALL[task].counts else ""
        same.setdefault(f"The tables have {text} of {{}}.{caveat}", []).append(f"{task} ({starts} starts{counts})")
    return [text.format(" and ".join(filter(None, (", ".join(of[:-1]), of[-1])))) for text, of in same.items()]


def success_text(size: Size, compared_on: Mapping[str, Comparison]) -> list[str]:
    """The table of success, and what it can tell."""
    parts = ["Percent of successful episodes, with the 95% interval. Heads that share a letter cannot be told apart on "
             "this task (all pairs, Holm).", "", *measure.folded(success_table(compared_on), "heads"), ""]
    for task, c in compared_on.items():
        head, sure, _ = c.verdict_parts()
        parts.append(f"- {task}: {sure} {_few_names(head)}")
    several = [n for task in compared_on if (n := len(finished_seeds(size, task))) > 1]
    return [*parts, "", *([seeds_caveat(min(several)), ""] if several else [])]


def apart_text(won: Mapping[str, Mapping[str, list[list[int]]]]) -> list[str]:
    """Which of the ten heads differ as methods, and how many seeds the rest would take."""
    network, n_seeds = TOLD_APART.network, {task: len(finished_seeds(TOLD_APART, task)) for task in won}
    compared_on = {task: compared(task, of) for task, of in won.items()}
    parts = [f"A network of {network.depth} layers of {network.width} units, {TOLD_APART.updates:,} updates of "
             f"{TOLD_APART.batch_size} windows, and "
             + ", ".join(f"{n} training seeds on {task}" for task, n in n_seeds.items())
             + ". Neither the heads nor their settings were chosen with these seeds.", "",
             "Heads that share a letter cannot be told apart on this task (all pairs, Holm).", "",
             *success_table(compared_on), ""]
    return [*parts, seeds_caveat(min(n_seeds.values()))]


def seeds_text(won: Mapping[str, list[list[int]]]) -> str:
    """How many training seeds it takes to tell heads apart that differ by 5 points, with the spread of these seeds."""
    pairs = list(itertools.combinations(won.values(), 2))
    spreads = [float(np.std(np.mean(first, 1) - np.mean(second, 1), ddof=1)) for first, second in pairs]
    half, most = (seeds_needed(float(np.quantile(spreads, q)), 0.05 / len(pairs)) for q in (0.5, 0.9))
    return (f"To detect 5 points in 80 % of the comparisons takes {half} seeds for half of the pairs and {most} for "
            f"nine of ten (t-test over seeds, 5 % divided by {len(pairs)} pairs).")


def seeds_needed(spread: float, alpha: float, effect: float = 0.05, power: float = 0.8) -> int:
    """The number of seeds with which a two-sided paired t-test detects an effect.

    Args:
        spread: Standard deviation of the difference over seeds.
    """
    for n in range(2, 10_000):
        limit = scipy.stats.t.isf(alpha / 2, n - 1)
        if scipy.stats.nct.sf(limit, n - 1, effect / max(spread, 1e-9) * np.sqrt(n)) >= power:
            return n
    return 10_000


def _few_names(text: str) -> str:
    """A verdict without its long list of names, which the letters show."""
    return text if len(text) < 120 else text.partition(":")[0] + "."


def main() -> None:
    torch.set_num_threads(1)
    o = measure.task_options(__doc__, ALL, flags=("more", "again", "told-apart"), numbers=("seeds",))
    size = TINY if o.tiny else FULL
    if not o.page:
        size_run = AGAIN if o.again else TOLD_APART if o.told_apart else size
        tasks = MORE if o.more else ("fork", "particle") if o.told_apart else TASKS
        finished = run(replace(size_run, seeds=size_run.seeds[:o.seeds]), o.tasks or list(tasks), o.until)
        print("finished" if finished else "stopped: run again to continue", file=sys.stderr)
    if (o.page or o.tiny) and (text := page_text(size)):
        measure.insert("heads", text, "heads.md")
        print(text, all_tables(size), sep="\n\n")


if __name__ == "__main__":
    main()
