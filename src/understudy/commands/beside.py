"""What `understudy eval` tells beside success."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .common import Out, bar
from .common import demonstrations as no_run

if TYPE_CHECKING:
    from ..data.episode import Dataset
    from ..envs.base import Env
    from ..evaluate.beside import Beside
    from ..evaluate.judge import Evaluation
    from ..execute.actor import Actor

STARTS = 16  # that --repeats rolls out again and again
CHEAP = 200_000  # steps of demonstrations that are looked at without being asked for


class Asked(Protocol):
    """What this reads of a command's options."""

    run: Path
    episodes: int
    seed: int
    demonstrations: Path | None
    repeats: int
    sequential: bool
    interactive: bool
    html: Path | None


def check(o: Asked) -> None:
    from ..core import UserError

    if o.repeats < 0 or o.repeats == 1:
        raise UserError(f"expected 2 rollouts of the same start or more, or 0 for none, found {o.repeats}",
                        where="--repeats", do="such as --repeats 8")
    if (o.sequential or o.interactive) and (asked := options(o)):
        raise UserError("expected an evaluation of a fixed number of episodes, found --sequential or --interactive",
                        where=asked[0], do="leave one of them out: behaviour is told of a whole evaluation")


def options(o: Asked) -> list[object]:
    """What of this was asked for, for a line that asks for it again."""
    return [*(["--demonstrations", o.demonstrations] if o.demonstrations is not None else []),
            *(["--repeats", o.repeats] if o.repeats else [])]


def demonstrated(o: Asked) -> Dataset | None:
    """What --demonstrations names, else what the run learned from, where its command still finds just that, and where
    it is no great cost: no cameras, and not too many steps."""
    from ..core import UserError
    from ..data.episode import Dataset
    from ..files import read_json
    from ..policy import checkpoint

    if o.demonstrations is not None:
        data = Dataset.open(no_run(o.demonstrations))
        if not len(data):
            raise UserError("expected demonstrations, found no episode", where=o.demonstrations,
                            do="leave out --demonstrations, or name others")
        return data
    if o.run.suffix == ".onnx" or not (file := checkpoint(o.run) / "provenance.json").exists():
        return None
    said = read_json(file)
    words = shlex.split(str(said.get("command") or ""))
    known = said.get("data") or {}
    if words[:2] != ["understudy", "train"] or len(words) < 4 or int(known.get("steps") or 0) > CHEAP:
        return None
    try:
        if not (path := Path(words[3])).exists():
            return None
        data = Dataset.open(path)
        if any(f.kind == "image" for f in data.features().values()):
            return None
        return data if data.fingerprint() == known.get("fingerprint") else None
    except (UserError, OSError):  # nobody asked for it
        return None


def looked_at(run: Path, actor: Actor, env: Env, ran: Evaluation, shown: Dataset | None, o: Asked) -> Beside:
    """actor: `run` as it acts in `env`."""
    from ..core import UserError
    from ..evaluate.behaviour.latency import latency
    from ..evaluate.behaviour.modes import repeated
    from ..evaluate.beside import beside
    from ..evaluate.failures import pictures

    again = None
    if o.repeats:
        starts = min(STARTS, o.episodes)
        with bar(f"{run.name}, the same starts", starts * o.repeats) as progress:
            again = repeated(actor, env, starts, o.repeats, o.seed, watch=lambda number, episode: progress())
    found = beside(ran.episodes, env, shown, repeated=again, latency=latency(
        _alone(actor), ran.episodes, env.facts.get("fps")))
    if o.html is None:
        return found
    try:
        return replace(found, pictures=tuple(pictures(found.failures, ran.episodes, env)))
    except UserError as error:  # the rest of the report is worth having
        print(f"failures without pictures: {error}", file=sys.stderr)
        return found


def _alone(actor: Actor) -> Actor:
    """As one robot runs it: without the rows that fill a batch up to a fixed size."""
    from ..execute.actor import Given, Plays
    from ..execute.planners import Fixed

    if isinstance(actor, Given):
        return replace(actor, actor=_alone(actor.actor))
    return replace(actor, policy=actor.policy.policy) if isinstance(actor, Plays) and isinstance(
        actor.policy, Fixed) else actor


def say(found: Mapping[str, Beside], out: Out) -> None:
    """found: name -> what was found, of one policy or two."""
    from rich.table import Table

    first = next(iter(found.values()))
    theirs = {m.key: m.demonstrations for b in found.values() for m in b.measures if m.demonstrations is not None}
    table = Table("beside success", *(found if len(found) > 1 else ["mean of an episode"]), *(
        ["demonstrations"] if theirs else []), box=None, pad_edge=False)
    for key in dict.fromkeys(m.key for b in found.values() for m in b.measures):
        each = [next((m for m in b.measures if m.key == key), None) for b in found.values()]
        known = next(m for m in each if m is not None)
        some = [f"{_short(m.found)}{'' if m.count == o else f' of {m.count}'}" if m is not None else "–"
                for m, o in zip(each, (max(x.count for x in b.measures) for b in found.values()), strict=True)]
        table.add_row(f"{known.name}{f' ({known.unit})' if known.unit else ''}", *some,
                      *([f"{theirs[key].estimate:.3g}" if key in theirs else ""] if theirs else []))
    out.say("", table)
    for name, b in found.items():
        lines = b.lines()
        out.say(*([f"{name}: {line}" for line in lines] if len(found) > 1 else lines))
    if first.why:
        out.say(*(f"Not measured: {w}." for w in first.why))


def _short(i) -> str:
    return f"{i.estimate:.3g}" if i.low != i.low else f"{i.estimate:.3g} [{i.low:.3g}, {i.high:.3g}]"
