"""understudy eval"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

from tyro.conf import Positional, arg

from . import behavior_metrics
from .common import (
    DeviceName,
    Output,
    PositiveCount,
    StepCount,
    TrustedPackages,
    WorkerCount,
    batch_rows,
    command_line,
    demonstrations_path,
    open_data,
    parse,
    progress_bar,
    recorded_env,
    reseeded_command,
    trust_options,
)

if TYPE_CHECKING:
    from ..core import Schema
    from ..envs.base import Env
    from ..evaluate.evaluation import Evaluation
    from ..execute.actor import Actor, PolicyActor

ROWS = 16  # of every batch that the network sees, so that no result depends on --rows


@dataclass(frozen=True)
class EvalOptions:
    """How good is a trained policy, and how sure is that?

    In an environment: success (or return) over numbered episodes, with an interval; --against rolls a second policy
    out on the same starts and compares. With --sequential only as many episodes as it takes to settle which of two is
    better, or whether one succeeds in more or less --threshold a rate. With --interactive you judge trials of a real
    robot.
    On recorded episodes, where there is no simulator: how well it foretells what was done, which is not a success rate.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """a run (its last checkpoint), RUN/best, a checkpoint, or a file of understudy export"""
    target: Annotated[str | None, Positional, arg(metavar="ENV|DATA")] = None
    """where to act, or a file or folder of recorded episodes; with --interactive module:actor_loop, or nothing"""
    episodes: StepCount = None
    """how many, each decided by its number and the seed: 100; with --sequential at most so many: 1000"""
    against: Annotated[Path | None, arg(metavar="RUN2")] = None
    """a second policy, on the same starts"""
    sequential: bool = False
    """look after every episode, and stop as soon as the question is settled, or would hardly be"""
    interactive: bool = False
    """ask you after every trial of a real robot how it went, in an order that hides whose it was; stops likewise"""
    threshold: Annotated[float | None, arg(metavar="RATE")] = None
    """with these two: does the policy succeed in more or in less than this share?"""
    labels: Annotated[tuple[str, ...], arg(metavar="LABEL")] = ("failure", "partial", "success")
    """what --interactive lets you say of a trial, worst first; only the last is a success"""
    seed: Annotated[int, arg(metavar="S")] = 0
    """of the starts; training and recording never use them"""
    device: DeviceName = "auto"
    """where to compute"""
    rows: PositiveCount = 16
    """environments side by side; changes nothing but the time it takes"""
    workers: WorkerCount = 1
    """processes that share the episodes, or `ray` for a cluster; changes nothing but the time it takes"""
    task: Annotated[str | None, arg(metavar="WORDS")] = None
    """what to do, told to a policy that was trained with --language"""
    save: Annotated[Path | None, arg(metavar="EPISODES")] = None
    """write the rollouts as a data set; then an interrupted evaluation goes on where it stopped. With --interactive:
    the file of the answers (trials.jsonl)"""
    demonstrations: Annotated[Path | None, arg(metavar="DATA")] = None
    """what its behavior is compared with; by default what it learned from, where that is at hand and has no camera"""
    repeats: PositiveCount = 0
    """roll each of the first 16 starts out so often: how many ways does it know from one start?"""
    html: Annotated[Path | None, arg(metavar="FILE")] = None
    """write a report"""
    json: bool = False
    """one JSON document on standard output"""
    trust: TrustedPackages = ()
    """a package whose code may be loaded"""


class RolloutOptions(Protocol):
    """What rolling out reads of a command's options."""

    episodes: int
    seed: int
    device: DeviceName
    task: str | None
    trust: tuple[str, ...]


def main(args: list[str]) -> None:
    o = parse(EvalOptions, "eval", args)
    from ..core import UserError
    from ..data.formats.remote import url_of
    from ..envs import names
    from .interactive import run_interactive
    from .sequential import run_sequential

    with Output(o.json) as out:
        if sum(a.split("=")[0] == "--against" for a in args) > 1:
            raise UserError("expected one policy to compare with, found several", where="--against",
                            hint="compare two at a time")
        if o.episodes is None:
            o = replace(o, episodes=1000 if o.sequential and not o.interactive else 100)
        if o.workers != 1 and (o.interactive or o.sequential):
            raise UserError(f"expected one worker, which looks after every episode, found {o.workers}",
                            where="--workers", hint="leave it away")
        if not o.interactive and any(a.split("=")[0] == "--labels" for a in args):
            raise UserError("expected --interactive beside it, where somebody says how a trial went", where="--labels",
                            hint="leave it out: in an environment, what is a success is its own matter")
        behavior_metrics.check_options(o)
        if o.interactive:
            run_interactive(o, out)
            return
        if o.against is not None and weights_path(o.run).resolve() == weights_path(o.against).resolve():
            if o.sequential:
                raise UserError(f"expected different policies, found {o.run} and {o.against}, which are the same "
                                "checkpoint", where="--against", hint="there is nothing to tell apart")
            out.print(f"{o.run} and {o.against} are the same checkpoint: there is nothing to tell apart")
            o = replace(o, against=None)
        if o.threshold is not None and not o.sequential:
            raise UserError(
                "expected --sequential or --interactive beside it",
                where="--threshold",
                hint=command_line("eval", o.run, o.target or "ENV", "--sequential", "--threshold", o.threshold),
            )
        if o.target is None:
            raise UserError("expected an environment or recorded episodes, found none", where="understudy eval",
                            hint=command_line("eval", o.run, "ENV"))
        if (Path(o.target).exists() or url_of(o.target)) and o.target not in names():
            if o.sequential:
                raise UserError("expected an environment to act in, found recorded episodes", where=o.target,
                                hint="--sequential decides how many episodes are rolled out")
            demonstrations_path(Path(o.target))
            _evaluate_recorded(o, out)
        elif o.target.startswith((".", "/", "~")) or (":" not in o.target and Path(o.target).suffix):
            raise UserError("expected an environment or recorded episodes, found no such file", where=o.target,
                            hint="check the path")
        else:
            (run_sequential if o.sequential else _evaluate_rollouts)(o, out)


# -- acting ---------------------------------------------------------------------------------------------------------


def _evaluate_rollouts(o: EvalOptions, out: Output) -> None:
    from ..envs import make
    from ..evaluate.evaluation import verdict, verdict_parts

    refuse_unused_task([o.run], o)
    shown = behavior_metrics.demonstrations_of(o)
    env = make(o.target, min(o.rows, o.episodes), o.trust)
    try:
        mine = evaluate_run(o.run, env, o, o.save, name=o.target, workers=o.workers)
        other = None if o.against is None else evaluate_run(o.against, env, o, None, name=o.target, workers=o.workers)
        behaved = [behavior_metrics.measure_run(run, load_actor(run, env, o)[0], env, e, shown, o)
                   for run, e in ((o.run, mine), (o.against, other)) if e is not None]
    finally:
        env.close()
    if other is not None:
        out.print(*(f"{run}: {verdict_parts(e)[1]}" for run, e in ((o.run, mine), (o.against, other))))
    names = (f"the policy in {o.run}", f"the policy in {o.against}") if other else ("this checkpoint", "")
    out.print(verdict(mine, other, names))
    if mine.success is not None and env.metadata.get("success"):
        out.print(f"Success: {env.metadata['success']}.")
    if o.save:
        out.print(f"Episodes written to {o.save}")
    runs = [r for r in (o.run, o.against) if r is not None]
    behavior_metrics.print_metrics(dict(zip(run_names(runs), behaved, strict=True)), out)
    append_result(
        o,
        {
            **mine.to_json(other, str(o.against)),
            "seed": o.seed,
            "each": {
                "success": None if mine.successes is None else mine.successes.tolist(),
                "return": mine.episode_returns.tolist(),
            },
        },
    )
    _write_report(o, env, mine, other, behaved, out)
    out.suggest(*_next_commands(o, mine, other))
    out.print_json({**mine.to_json(other, str(o.against)), "behavior": {
        **behaved[0].to_json(), "against": behaved[1].to_json() if other else None}})


def _next_commands(o: EvalOptions, mine: Evaluation, other: Evaluation | None) -> list[str]:
    """What to do next: a second policy to compare with, more episodes where they would tell more, a page to look at."""
    from ..evaluate.evaluation import compare

    trust = trust_options(o.trust, o.target, o.run, *((o.against,) if o.against else ()))

    def again(episodes, *more):
        return command_line("eval", o.run, o.target, "--episodes", episodes, *(("--seed", o.seed) if o.seed else ()),
                    *(("--task", o.task) if o.task else ()), *behavior_metrics.given_options(o), *more, *trust)
    told = []
    if other is not None:
        if o.against is not None and compare(mine, other).better is None:
            told.append(again(4 * o.episodes, "--against", o.against))
    elif not is_exported(o.run) and (second := reseeded_command(o.run)) is not None:
        told += [second[0], again(o.episodes, "--against", second[1])]
    if o.html is None:
        told.append(again(o.episodes, *(("--against", o.against) if o.against else ()), "--html", "report.html"))
    return told


def evaluate_run(
    run: Path, env, o: RolloutOptions, save_path: Path | None, *, name: str = "", workers: int | str = 1
) -> Evaluation:
    """`run` in `env`, on the numbered starts; recorded into `save`, if given. name: of the environment, where `workers`
    make their own."""
    from ..evaluate.evaluation import evaluation_of
    from ..evaluate.recording import record_episodes
    from ..evaluate.workers import WorkerPool
    from .common import trained_rate, warn_simulator_mismatch

    plays, by = load_actor(run, env, o)
    warn_simulator_mismatch(env, run)
    seat = partial(_worker_setup, run, o, name, batch_rows(env.rows, o.episodes, workers))
    began = time.perf_counter()
    with (progress_bar(f"{run.name} in {env.metadata['env']}", o.episodes) as progress,
          WorkerPool(seat, workers, local=(plays, env)) as crew):
        def watch(number, episode):
            progress()
        if save_path is None:
            data = crew.rollout(o.episodes, o.seed, watch=watch)
        else:
            data = record_episodes(env, plays, o.episodes, save_path, o.seed, actor_name=by, watch=watch, workers=crew,
                          fps=trained_rate(run))[:o.episodes]
        return evaluation_of(data, time.perf_counter() - began)


def _worker_setup(run: Path, o: RolloutOptions, name: str, rows: int) -> tuple[Actor, Env]:
    """What each worker has."""
    from ..envs import make

    env = make(name, rows, o.trust)
    return load_actor(run, env, o)[0], env


def load_actor(run: Path, env, o: RolloutOptions) -> tuple[Actor, str]:
    """`run` as what acts in `env`, and who that is, in words. Raises UserError if they do not fit."""
    from ..execute.actor import ObservationWrapper

    plays, by = make_actor(run, o), f"policy {weights_digest(weights_path(run))}"
    words = task_columns(run, env.features, o)
    features = {k: plays.planner.planner.features[k] for k in words}
    plays.planner.planner.check_features({**env.features, **features}, f"{run} in {env.metadata['env']}", resized=True)
    return (ObservationWrapper(plays, words), f"{by}, told {o.task!r}") if words else (plays, by)


def is_exported(run: Path) -> bool:
    return run.suffix == ".onnx"


def weights_path(run: Path) -> Path:
    """What holds the weights: a checkpoint's folder, or the file."""
    from ..policy import find_checkpoint

    return run if is_exported(run) else find_checkpoint(run)


def make_actor(run: Path, o: RolloutOptions, rows: int | None = ROWS) -> PolicyActor:
    from ..core import UserError
    from ..deploy import onnx
    from ..learn.devices import choose_device
    from ..learn.method import load_actor

    if not is_exported(run):
        return load_actor(run, device=choose_device(o.device), rows=rows, trust=o.trust)
    if o.device not in ("auto", "cpu"):
        raise UserError(f"expected the CPU, where ONNX files are run, found {o.device}", where="--device",
                        hint="evaluate the run that it was exported from")
    return onnx.load_onnx_actor(run, rows=rows)


def refuse_unused_task(runs: Sequence[Path], o: RolloutOptions) -> None:
    """Raises UserError if words are given and none of these policies reads any."""
    from ..core import UserError
    from ..learn.method import Method
    from .method import task_relabel

    if o.task is not None and not any(task_relabel(Method.load(r, o.trust)) for r in runs if not is_exported(r)):
        raise UserError("expected no words, found some: this policy was trained without them", where="--task",
                        hint="train it with --language, on data of several tasks")


def task_columns(run: Path, features: Schema, o: RolloutOptions) -> dict:
    """The columns that the task's words become, for a policy that reads them where the environment shows none."""
    import torch

    from ..core import UserError
    from ..learn.method import Method
    from .method import task_relabel

    say = None if is_exported(run) else task_relabel(Method.load(run, o.trust))
    if say is None or o.task is None and say.into in features:
        return {}
    if o.task is None:
        raise UserError(f"expected the task in words, which {run} reads, found none", where="--task",
                        hint="tell it as it was told in training: --task 'WORDS'")
    return {say.into: torch.from_numpy(say.encode(o.task).copy())}


def weights_digest(place: Path) -> str:
    """Which weights these are, and how they are run."""
    if place.is_file():
        return hashlib.sha256(place.read_bytes()).hexdigest()[:16]
    digest = hashlib.sha256()
    for name in ("weights.safetensors", "method.json"):
        digest.update((place / name).read_bytes())
    return digest.hexdigest()[:16]


def run_folder(run: Path) -> Path:
    """The run's folder, or the checkpoint's where it stands alone."""
    from ..policy import find_checkpoint

    folder = find_checkpoint(run)
    return folder.parents[1] if folder.parent.name == "checkpoints" else folder


def append_result(o: EvalOptions, line: dict) -> None:
    """A line in RUN/eval/ENV.jsonl; an exported file stands for no run."""
    if is_exported(o.run):
        return
    from ..files import replace_nonfinite
    from ..policy import find_checkpoint

    folder = find_checkpoint(o.run)
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in Path(o.target).name)
    file = run_folder(o.run) / "eval" / f"{name}.jsonl"
    about = {"checkpoint": folder.name, "mark": weights_digest(folder),
             "date": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        file.parent.mkdir(exist_ok=True)
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(replace_nonfinite({**about, **line}), allow_nan=False) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
    except OSError as error:  # somebody else's run, say: what was found is worth telling all the same
        print(f"this evaluation could not be written down: {file}: {error.strerror}", file=sys.stderr)


# -- foretelling ----------------------------------------------------------------------------------------------------


def _evaluate_recorded(o: EvalOptions, out: Output) -> None:
    from ..core import UserError
    from ..evaluate.action_prediction import episodes_to_evaluate, evaluate_action_prediction
    from ..files import read_json
    from ..learn.devices import choose_device
    from ..learn.method import Method
    from ..policy import Policy, find_checkpoint

    if o.demonstrations is not None or o.repeats:
        raise UserError("expected an environment to act in, found recorded episodes", where=o.target,
                        hint="leave out --demonstrations and --repeats: behavior is seen where a policy acts")
    if o.against is not None:
        raise UserError("expected an environment to compare in, found recorded episodes", where=o.target,
                        hint="evaluate each run on them alone: the energy scores compare")
    if is_exported(o.run):
        raise UserError(
            "expected an environment, where an exported file can act, found recorded episodes",
            where=o.target,
            hint="evaluate the run that it was exported from",
        )
    policy, method = Policy.load(o.run, o.trust, choose_device(o.device)), Method.load(o.run, o.trust)
    data = open_data(Path(o.target), next(iter(policy.image_sizes.values()), None))
    provenance = find_checkpoint(o.run) / "provenance.json"
    episodes, origin = episodes_to_evaluate(read_json(provenance) if provenance.exists() else {}, data)
    for relabel in method.transforms:
        data = data.map(relabel)
    found = evaluate_action_prediction(policy, data, episodes, origin, executor=method.executor)
    append_result(o, found.to_json())
    out.print(found.describe(), "", _breakdown_table("component", found.by_dimension, found.unit), "",
            _breakdown_table("of the episode", found.by_time, found.unit))
    if o.html is not None:
        from ..evaluate.report import write_prediction_report

        write_prediction_report(found, o.html)
        out.print(f"Report written to {o.html}")
    env = recorded_env(data)
    out.suggest(
        *([command_line("eval", o.run, env, "--episodes", 100, *trust_options(o.trust, env, o.run))] if env else []),
        *(
            []
            if o.html
            else [command_line("eval", o.run, o.target, "--html", "report.html", *trust_options((), None, o.run))]
        ),
    )
    out.print_json(found.to_json())


def _breakdown_table(name, parts, unit):
    from rich.table import Table

    table = Table(name, f"error{f' ({unit})' if unit else ''}", "spread of its samples", box=None, pad_edge=False)
    for p in parts:
        table.add_row(p.name, f"{p.error:.3g}", f"{p.spread:.3g}")
    return table


def _write_report(o: EvalOptions, env, mine, other, behaved, out) -> None:
    if o.html is None:
        return
    from ..evaluate.report import write_report
    from ..learn.run import Run

    runs = {o.run: mine} if other is None else {o.run: mine, o.against: other}
    names = dict(zip(runs, run_names(list(runs)), strict=True))
    training = {names[run]: lines for run in runs if not is_exported(run)
                and (lines := Run(run_folder(run)).read_metrics())}
    write_report(o.html, env=env, runs={names[run]: found for run, found in runs.items()}, training=training,
           behavior=dict(zip(names.values(), behaved, strict=True)))
    out.print(f"Report written to {o.html}")


def run_names(runs: Sequence[Path]) -> list[str]:
    """Their folders' names, in full where these are the same."""
    return [run.name if len({r.name for r in runs}) == len(runs) else str(run) for run in runs]
