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

from . import beside
from .common import (
    Count,
    Device,
    Out,
    Processes,
    Steps,
    Trust,
    bar,
    demonstrations,
    env_of,
    line,
    needed,
    opened,
    parse,
    reseeded,
    side_by_side,
)

if TYPE_CHECKING:
    from ..core import Schema
    from ..envs.base import Env
    from ..evaluate.judge import Evaluation
    from ..execute.actor import Actor, Plays

ROWS = 16  # of every batch that the network sees, so that no result depends on --rows


@dataclass(frozen=True)
class Eval:
    """How good is a trained policy, and how sure is that?

    In an environment: success (or return) over numbered episodes, with an interval; --against rolls a second policy
    out on the same starts and compares. With --sequential only as many episodes as it takes to settle which of two is
    better, or whether one succeeds in more or less --than a rate. With --interactive you judge trials of a real robot.
    On recorded episodes, where there is no simulator: how well it foretells what was done, which is not a success rate.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """a run (its last checkpoint), RUN/best, a checkpoint, or a file of understudy export"""
    on: Annotated[str | None, Positional, arg(metavar="ENV|DATA")] = None
    """where to act, or a file or folder of recorded episodes; with --interactive module:actor_loop, or nothing"""
    episodes: Steps = None
    """how many, each decided by its number and the seed: 100; with --sequential at most so many: 1000"""
    against: Annotated[Path | None, arg(metavar="RUN2")] = None
    """a second policy, on the same starts"""
    sequential: bool = False
    """look after every episode, and stop as soon as the question is settled, or would hardly be"""
    interactive: bool = False
    """ask you after every trial of a real robot how it went, in an order that hides whose it was; stops likewise"""
    than: Annotated[float | None, arg(metavar="RATE")] = None
    """with these two: does the policy succeed in more or in less than this share?"""
    labels: Annotated[tuple[str, ...], arg(metavar="LABEL")] = ("failure", "partial", "success")
    """what --interactive lets you say of a trial, worst first; only the last is a success"""
    seed: Annotated[int, arg(metavar="S")] = 0
    """of the starts; training and recording never use them"""
    device: Device = "auto"
    """where to compute"""
    rows: Count = 16
    """environments side by side; changes nothing but the time it takes"""
    workers: Processes = 1
    """processes that share the episodes, or `ray` for a cluster; changes nothing but the time it takes"""
    task: Annotated[str | None, arg(metavar="WORDS")] = None
    """what to do, told to a policy that was trained with --language"""
    save: Annotated[Path | None, arg(metavar="EPISODES")] = None
    """write the rollouts as a data set; then an interrupted evaluation goes on where it stopped. With --interactive:
    the file of the answers (trials.jsonl)"""
    demonstrations: Annotated[Path | None, arg(metavar="DATA")] = None
    """what its behaviour is compared with; by default what it learned from, where that is at hand and has no camera"""
    repeats: Count = 0
    """roll each of the first 16 starts out so often: how many ways does it know from one start?"""
    html: Annotated[Path | None, arg(metavar="FILE")] = None
    """write a report"""
    json: bool = False
    """one JSON document on standard output"""
    trust: Trust = ()
    """a package whose code may be loaded"""


class Asked(Protocol):
    """What rolling out reads of a command's options."""

    episodes: int
    seed: int
    device: Device
    task: str | None
    trust: tuple[str, ...]


def main(args: list[str]) -> None:
    o = parse(Eval, "eval", args)
    from ..core import UserError
    from ..data.formats.remote import address
    from ..envs import names
    from .interactive import interactive
    from .sequential import sequential

    with Out(o.json) as out:
        if sum(a.split("=")[0] == "--against" for a in args) > 1:
            raise UserError("expected one policy to compare with, found several", where="--against",
                            do="compare two at a time")
        if o.episodes is None:
            o = replace(o, episodes=1000 if o.sequential and not o.interactive else 100)
        if o.workers != 1 and (o.interactive or o.sequential):
            raise UserError(f"expected one worker, which looks after every episode, found {o.workers}",
                            where="--workers", do="leave it away")
        if not o.interactive and any(a.split("=")[0] == "--labels" for a in args):
            raise UserError("expected --interactive beside it, where somebody says how a trial went", where="--labels",
                            do="leave it out: in an environment, what is a success is its own matter")
        beside.check(o)
        if o.interactive:
            interactive(o, out)
            return
        if o.against is not None and place_of(o.run).resolve() == place_of(o.against).resolve():
            if o.sequential:
                raise UserError(f"expected different policies, found {o.run} and {o.against}, which are the same "
                                "checkpoint", where="--against", do="there is nothing to tell apart")
            out.say(f"{o.run} and {o.against} are the same checkpoint: there is nothing to tell apart")
            o = replace(o, against=None)
        if o.than is not None and not o.sequential:
            raise UserError("expected --sequential or --interactive beside it", where="--than",
                            do=line("eval", o.run, o.on or "ENV", "--sequential", "--than", o.than))
        if o.on is None:
            raise UserError("expected an environment or recorded episodes, found none", where="understudy eval",
                            do=line("eval", o.run, "ENV"))
        if (Path(o.on).exists() or address(o.on)) and o.on not in names():
            if o.sequential:
                raise UserError("expected an environment to act in, found recorded episodes", where=o.on,
                                do="--sequential decides how many episodes are rolled out")
            demonstrations(Path(o.on))
            _recorded(o, out)
        elif o.on.startswith((".", "/", "~")) or (":" not in o.on and Path(o.on).suffix):
            raise UserError("expected an environment or recorded episodes, found no such file", where=o.on,
                            do="check the path")
        else:
            (sequential if o.sequential else _rolled_out)(o, out)


# -- acting ---------------------------------------------------------------------------------------------------------


def _rolled_out(o: Eval, out: Out) -> None:
    from ..envs import make
    from ..evaluate.judge import finding, verdict

    wordless([o.run], o)
    shown = beside.demonstrated(o)
    env = make(o.on, min(o.rows, o.episodes), o.trust)
    try:
        mine = evaluated(o.run, env, o, o.save, name=o.on, workers=o.workers)
        other = None if o.against is None else evaluated(o.against, env, o, None, name=o.on, workers=o.workers)
        behaved = [beside.looked_at(run, acting(run, env, o)[0], env, e, shown, o)
                   for run, e in ((o.run, mine), (o.against, other)) if e is not None]
    finally:
        env.close()
    if other is not None:
        out.say(*(f"{run}: {finding(e)[1]}" for run, e in ((o.run, mine), (o.against, other))))
    names = (f"the policy in {o.run}", f"the policy in {o.against}") if other else ("this checkpoint", "")
    out.say(verdict(mine, other, names))
    if mine.success is not None and env.facts.get("success"):
        out.say(f"Success: {env.facts['success']}.")
    if o.save:
        out.say(f"Episodes written to {o.save}")
    runs = [r for r in (o.run, o.against) if r is not None]
    beside.say(dict(zip(called(runs), behaved, strict=True)), out)
    keep(o, {**mine.json(other, str(o.against)), "seed": o.seed, "each": {
        "success": None if mine.successes is None else mine.successes.tolist(), "return": mine.rewards.tolist()}})
    _report(o, env, mine, other, behaved, out)
    out.next(*_onward(o, mine, other))
    out.answer({**mine.json(other, str(o.against)), "beside": {
        **behaved[0].json(), "against": behaved[1].json() if other else None}})


def _onward(o: Eval, mine: Evaluation, other: Evaluation | None) -> list[str]:
    """What to do next: a second policy to compare with, more episodes where they would tell more, a page to look at."""
    from ..evaluate.judge import compare

    trust = needed(o.trust, o.on, o.run, *((o.against,) if o.against else ()))

    def again(episodes, *more):
        return line("eval", o.run, o.on, "--episodes", episodes, *(("--seed", o.seed) if o.seed else ()),
                    *(("--task", o.task) if o.task else ()), *beside.options(o), *more, *trust)
    told = []
    if other is not None:
        if o.against is not None and compare(mine, other).better is None:
            told.append(again(4 * o.episodes, "--against", o.against))
    elif not exported(o.run) and (second := reseeded(o.run)) is not None:
        told += [second[0], again(o.episodes, "--against", second[1])]
    if o.html is None:
        told.append(again(o.episodes, *(("--against", o.against) if o.against else ()), "--html", "report.html"))
    return told


def evaluated(run: Path, env, o: Asked, save: Path | None, *, name: str = "", workers: int | str = 1) -> Evaluation:
    """`run` in `env`, on the numbered starts; recorded into `save`, if given. name: of the environment, where `workers`
    make their own."""
    from ..evaluate.judge import judged
    from ..evaluate.record import record
    from ..evaluate.workers import Workers
    from .common import same_simulator, trained_rate

    plays, by = acting(run, env, o)
    same_simulator(env, run)
    seat = partial(_seat, run, o, name, side_by_side(env.rows, o.episodes, workers))
    began = time.perf_counter()
    with (bar(f"{run.name} in {env.facts['env']}", o.episodes) as progress,
          Workers(seat, workers, own=(plays, env)) as crew):
        def watch(number, episode):
            progress()
        if save is None:
            data = crew.rollout(o.episodes, o.seed, watch=watch)
        else:
            data = record(env, plays, o.episodes, save, o.seed, by=by, watch=watch, crew=crew,
                          fps=trained_rate(run))[:o.episodes]
        return judged(data, time.perf_counter() - began)


def _seat(run: Path, o: Asked, name: str, rows: int) -> tuple[Actor, Env]:
    """What each worker has."""
    from ..envs import make

    env = make(name, rows, o.trust)
    return acting(run, env, o)[0], env


def acting(run: Path, env, o: Asked) -> tuple[Actor, str]:
    """`run` as what acts in `env`, and who that is, in words. Raises UserError if they do not fit."""
    from ..execute.actor import Given

    plays, by = actor_of(run, o), f"policy {mark_of(place_of(run))}"
    words = told(run, env.features, o)
    features = {k: plays.policy.policy.features[k] for k in words}
    plays.policy.policy.check({**env.features, **features}, f"{run} in {env.facts['env']}", resized=True)
    return (Given(plays, words), f"{by}, told {o.task!r}") if words else (plays, by)


def exported(run: Path) -> bool:
    return run.suffix == ".onnx"


def place_of(run: Path) -> Path:
    """What holds the weights: a checkpoint's folder, or the file."""
    from ..policy import checkpoint

    return run if exported(run) else checkpoint(run)


def actor_of(run: Path, o: Asked, rows: int | None = ROWS) -> Plays:
    from ..core import UserError
    from ..deploy import onnx
    from ..learn.devices import device
    from ..learn.method import actor

    if not exported(run):
        return actor(run, device=device(o.device), rows=rows, trust=o.trust)
    if o.device not in ("auto", "cpu"):
        raise UserError(f"expected the CPU, where ONNX files are run, found {o.device}", where="--device",
                        do="evaluate the run that it was exported from")
    return onnx.actor(run, rows=rows)


def wordless(runs: Sequence[Path], o: Asked) -> None:
    """Raises UserError if words are given and none of these policies reads any."""
    from ..core import UserError
    from ..learn.method import Method
    from .method import says

    if o.task is not None and not any(says(Method.load(r, o.trust)) for r in runs if not exported(r)):
        raise UserError("expected no words, found some: this policy was trained without them", where="--task",
                        do="train it with --language, on data of several tasks")


def told(run: Path, features: Schema, o: Asked) -> dict:
    """The columns that the task's words become, for a policy that reads them where the environment shows none."""
    import torch

    from ..core import UserError
    from ..learn.method import Method
    from .method import says

    say = None if exported(run) else says(Method.load(run, o.trust))
    if say is None or o.task is None and say.into in features:
        return {}
    if o.task is None:
        raise UserError(f"expected the task in words, which {run} reads, found none", where="--task",
                        do="tell it as it was told in training: --task 'WORDS'")
    return {say.into: torch.from_numpy(say.bytes(o.task).copy())}


def mark_of(place: Path) -> str:
    """Which weights these are, and how they are run."""
    if place.is_file():
        return hashlib.sha256(place.read_bytes()).hexdigest()[:16]
    digest = hashlib.sha256()
    for name in ("weights.safetensors", "method.json"):
        digest.update((place / name).read_bytes())
    return digest.hexdigest()[:16]


def home_of(run: Path) -> Path:
    """The run's folder, or the checkpoint's where it stands alone."""
    from ..policy import checkpoint

    folder = checkpoint(run)
    return folder.parents[1] if folder.parent.name == "checkpoints" else folder


def keep(o: Eval, line: dict) -> None:
    """A line in RUN/eval/ENV.jsonl; an exported file stands for no run."""
    if exported(o.run):
        return
    from ..files import finite
    from ..policy import checkpoint

    folder = checkpoint(o.run)
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in Path(o.on).name)
    file = home_of(o.run) / "eval" / f"{name}.jsonl"
    about = {"checkpoint": folder.name, "mark": mark_of(folder),
             "date": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        file.parent.mkdir(exist_ok=True)
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(finite({**about, **line}), allow_nan=False) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
    except OSError as error:  # somebody else's run, say: what was found is worth telling all the same
        print(f"this evaluation could not be written down: {file}: {error.strerror}", file=sys.stderr)


# -- foretelling ----------------------------------------------------------------------------------------------------


def _recorded(o: Eval, out: Out) -> None:
    from ..core import UserError
    from ..evaluate.recorded import judged_on, recorded
    from ..files import read_json
    from ..learn.devices import device
    from ..learn.method import Method
    from ..policy import Policy, checkpoint

    if o.demonstrations is not None or o.repeats:
        raise UserError("expected an environment to act in, found recorded episodes", where=o.on,
                        do="leave out --demonstrations and --repeats: behaviour is seen where a policy acts")
    if o.against is not None:
        raise UserError("expected an environment to compare in, found recorded episodes", where=o.on,
                        do="evaluate each run on them alone: the energy scores compare")
    if exported(o.run):
        raise UserError("expected an environment, where an exported file can act, found recorded episodes", where=o.on,
                        do="evaluate the run that it was exported from")
    policy, method = Policy.load(o.run, o.trust, device(o.device)), Method.load(o.run, o.trust)
    data = opened(Path(o.on), next(iter(policy.frames.values()), None))
    provenance = checkpoint(o.run) / "provenance.json"
    episodes, origin = judged_on(read_json(provenance) if provenance.exists() else {}, data)
    for relabel in method.data:
        data = data.map(relabel)
    found = recorded(policy, data, episodes, origin)
    keep(o, found.json())
    out.say(found.words(), "", _parts("component", found.dimensions, found.unit), "",
            _parts("of the episode", found.time, found.unit))
    if o.html is not None:
        from ..evaluate.report import report_recorded

        report_recorded(found, o.html)
        out.say(f"Report written to {o.html}")
    env = env_of(data)
    out.next(*([line("eval", o.run, env, "--episodes", 100, *needed(o.trust, env, o.run))] if env else []),
             *([] if o.html else [line("eval", o.run, o.on, "--html", "report.html", *needed((), None, o.run))]))
    out.answer(found.json())


def _parts(name, parts, unit):
    from rich.table import Table

    table = Table(name, f"error{f' ({unit})' if unit else ''}", "spread of its samples", box=None, pad_edge=False)
    for p in parts:
        table.add_row(p.name, f"{p.error:.3g}", f"{p.spread:.3g}")
    return table


def _report(o: Eval, env, mine, other, behaved, out) -> None:
    if o.html is None:
        return
    from ..evaluate.report import report
    from ..learn.run import Run

    runs = {o.run: mine} if other is None else {o.run: mine, o.against: other}
    names = dict(zip(runs, called(list(runs)), strict=True))
    training = {names[run]: lines for run in runs if not exported(run)
                and (lines := Run(home_of(run)).lines())}
    report(o.html, env=env, runs={names[run]: found for run, found in runs.items()}, training=training,
           beside=dict(zip(names.values(), behaved, strict=True)))
    out.say(f"Report written to {o.html}")


def called(runs: Sequence[Path]) -> list[str]:
    """Their folders' names, in full where these are the same."""
    return [run.name if len({r.name for r in runs}) == len(runs) else str(run) for run in runs]
