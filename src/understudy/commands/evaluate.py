"""understudy eval"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from .common import Count, Device, Out, Trust, bar, demonstrations, env_of, line, needed, opened, parse, reseeded

if TYPE_CHECKING:
    from ..evaluate.judge import Evaluation
    from ..execute.actor import Plays

ROWS = 16  # of every batch that the network sees, so that no result depends on --rows


@dataclass(frozen=True)
class Eval:
    """How good is a trained policy, and how sure is that?

    In an environment: success (or return) over numbered episodes, with an interval; --against rolls a second policy
    out on the same starts and compares. On recorded episodes, where there is no simulator: how well it foretells what
    was done, which is not a success rate.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """a run (its last checkpoint), RUN/best, a checkpoint, or a file of understudy export"""
    on: Annotated[str, Positional, arg(metavar="ENV|DATA")]
    """where to act, or a file or folder of recorded episodes"""
    episodes: Count = 100
    """how many, each decided by its number and the seed"""
    against: Annotated[Path | None, arg(metavar="RUN2")] = None
    """a second policy, on the same starts"""
    seed: Annotated[int, arg(metavar="S")] = 0
    """of the starts; training and recording never use them"""
    device: Device = "auto"
    """where to compute"""
    rows: Count = 16
    """environments side by side; changes nothing but the time it takes"""
    task: Annotated[str | None, arg(metavar="WORDS")] = None
    """what to do, told to a policy that was trained with --language"""
    save: Annotated[Path | None, arg(metavar="EPISODES")] = None
    """write the rollouts as a data set; then an interrupted evaluation goes on where it stopped"""
    html: Annotated[Path | None, arg(metavar="FILE")] = None
    """write a report"""
    json: bool = False
    """one JSON document on standard output"""
    trust: Trust = ()
    """a package whose code may be loaded"""


def main(args: list[str]) -> None:
    o = parse(Eval, "eval", args)
    from ..core import UserError
    from ..data.formats.remote import address
    from ..envs import names

    with Out(o.json) as out:
        if sum(a.split("=")[0] == "--against" for a in args) > 1:
            raise UserError("expected one policy to compare with, found several", where="--against",
                            do="compare two at a time")
        if o.against is not None and _place(o.run).resolve() == _place(o.against).resolve():
            out.say(f"{o.run} and {o.against} are the same checkpoint: there is nothing to tell apart")
            o = replace(o, against=None)
        if o.episodes < 1:
            raise UserError(f"expected at least one episode, found {o.episodes}", where="--episodes")
        if o.seed < 0:
            raise UserError(f"expected a seed of 0 or more, found {o.seed}", where="--seed",
                            do="negative seeds are kept for recording and training")
        if (Path(o.on).exists() or address(o.on)) and o.on not in names():
            demonstrations(Path(o.on))
            _recorded(o, out)
        elif o.on.startswith((".", "/", "~")) or (":" not in o.on and Path(o.on).suffix):
            raise UserError("expected an environment or recorded episodes, found no such file", where=o.on,
                            do="check the path")
        else:
            _rolled_out(o, out)


# -- acting ---------------------------------------------------------------------------------------------------------


def _rolled_out(o: Eval, out: Out) -> None:
    from ..envs import make
    from ..evaluate.judge import finding, verdict
    from .common import same_simulator

    env = make(o.on, min(o.rows, o.episodes), o.trust)
    same_simulator(env, o.run, *([o.against] if o.against else []))
    try:
        mine = _evaluated(o.run, env, o, o.save)
        other = None if o.against is None else _evaluated(o.against, env, o, None)
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
    _keep(o, {**mine.json(other, str(o.against)), "seed": o.seed, "each": {
        "success": None if mine.successes is None else mine.successes.tolist(), "return": mine.rewards.tolist()}})
    _report(o, env, mine, other, out)
    out.next(*_onward(o, mine, other))
    out.answer(mine.json(other, str(o.against)))


def _onward(o: Eval, mine: Evaluation, other: Evaluation | None) -> list[str]:
    """What to do next: a second policy to compare with, more episodes where they would tell more, a page to look at."""
    from ..evaluate.judge import compare

    trust = needed(o.trust, o.on, o.run, *((o.against,) if o.against else ()))

    def again(episodes, *more):
        return line("eval", o.run, o.on, "--episodes", episodes, *(("--seed", o.seed) if o.seed else ()),
                    *(("--task", o.task) if o.task else ()), *more, *trust)
    told = []
    if other is not None:
        if o.against is not None and compare(mine, other).better is None:
            told.append(again(4 * o.episodes, "--against", o.against))
    elif not _exported(o.run) and (second := reseeded(o.run)) is not None:
        told += [second[0], again(o.episodes, "--against", second[1])]
    if o.html is None:
        told.append(again(o.episodes, *(("--against", o.against) if o.against else ()), "--html", "report.html"))
    return told


def _evaluated(run: Path, env, o: Eval, save: Path | None) -> Evaluation:
    """`run` in `env`, on the numbered starts; recorded into `save`, if given."""
    from ..evaluate.judge import evaluate, judged
    from ..evaluate.record import record
    from ..execute.actor import Given

    plays, by = _actor(run, o), f"policy {_mark(_place(run))}"
    told = _told(run, env, o)
    features = {k: plays.policy.policy.features[k] for k in told}
    plays.policy.policy.check({**env.features, **features}, str(env.facts["env"]), resized=True)
    if told:
        plays, by = Given(plays, told), f"{by}, told {o.task!r}"
    with bar(f"{run.name} in {env.facts['env']}", o.episodes) as progress:
        def watch(number, episode):
            progress()
        if save is None:
            return evaluate(plays, env, o.episodes, o.seed, watch=watch)
        began = time.perf_counter()
        data = record(env, plays, o.episodes, save, o.seed, by=by, watch=watch)
        return judged(data[:o.episodes], time.perf_counter() - began)


def _exported(run: Path) -> bool:
    return run.suffix == ".onnx"


def _place(run: Path) -> Path:
    """What holds the weights: a checkpoint's folder, or the file."""
    from ..policy import checkpoint

    return run if _exported(run) else checkpoint(run)


def _actor(run: Path, o: Eval) -> Plays:
    from ..core import UserError
    from ..deploy import onnx
    from ..learn.devices import device
    from ..learn.method import actor

    if not _exported(run):
        return actor(run, device=device(o.device), rows=ROWS, trust=o.trust)
    if o.device not in ("auto", "cpu"):
        raise UserError(f"expected the CPU, where ONNX files are run, found {o.device}", where="--device",
                        do="evaluate the run that it was exported from")
    return onnx.actor(run, rows=ROWS)


def _told(run: Path, env, o: Eval) -> dict:
    """The columns that the task's words become, for a policy that reads them where the environment shows none."""
    import torch

    from ..core import UserError
    from ..learn.method import Method
    from .method import says

    say = None if _exported(run) else says(Method.load(run, o.trust))
    if say is None and o.task is not None and run == o.run:
        raise UserError("expected no words, found some: this policy was trained without them", where="--task",
                        do="train it with --language, on data of several tasks")
    if say is None or o.task is None and say.into in env.features:
        return {}
    if o.task is None:
        raise UserError("expected the task in words, which this policy reads, found none", where="--task",
                        do="tell it as it was told in training: --task 'WORDS'")
    return {say.into: torch.from_numpy(say.bytes(o.task).copy())}


def _mark(place: Path) -> str:
    """Which weights these are, and how they are run."""
    if place.is_file():
        return hashlib.sha256(place.read_bytes()).hexdigest()[:16]
    digest = hashlib.sha256()
    for name in ("weights.safetensors", "method.json"):
        digest.update((place / name).read_bytes())
    return digest.hexdigest()[:16]


def _home(run: Path) -> Path:
    """The run's folder, or the checkpoint's where it stands alone."""
    from ..policy import checkpoint

    folder = checkpoint(run)
    return folder.parents[1] if folder.parent.name == "checkpoints" else folder


def _keep(o: Eval, line: dict) -> None:
    """A line in RUN/eval/ENV.jsonl; an exported file stands for no run."""
    if _exported(o.run):
        return
    from ..files import finite
    from ..policy import checkpoint

    folder = checkpoint(o.run)
    file = _home(o.run) / "eval" / f"{''.join(c if c.isalnum() or c in '-_.' else '_' for c in Path(o.on).name)}.jsonl"
    about = {"checkpoint": folder.name, "mark": _mark(folder),
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

    if o.against is not None:
        raise UserError("expected an environment to compare in, found recorded episodes", where=o.on,
                        do="evaluate each run on them alone: the energy scores compare")
    if _exported(o.run):
        raise UserError("expected an environment, where an exported file can act, found recorded episodes", where=o.on,
                        do="evaluate the run that it was exported from")
    policy, method = Policy.load(o.run, o.trust, device(o.device)), Method.load(o.run, o.trust)
    data = opened(Path(o.on), next(iter(policy.frames.values()), None))
    provenance = checkpoint(o.run) / "provenance.json"
    episodes, origin = judged_on(read_json(provenance) if provenance.exists() else {}, data)
    for relabel in method.data:
        data = data.map(relabel)
    found = recorded(policy, data, episodes, origin)
    _keep(o, found.json())
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


def _report(o: Eval, env, mine, other, out) -> None:
    if o.html is None:
        return
    from ..evaluate.report import report
    from ..learn.run import Run

    runs = {o.run: mine} if other is None else {o.run: mine, o.against: other}
    called = (lambda run: run.name) if len({run.name for run in runs}) == len(runs) else str
    training = {called(run): lines for run in runs if not _exported(run)
                and (lines := Run(_home(run)).lines())}
    report(o.html, env=env, runs={called(run): found for run, found in runs.items()}, training=training)
    out.say(f"Report written to {o.html}")
