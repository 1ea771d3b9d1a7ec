"""understudy shift"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from .common import Count, Device, Env, Out, Processes, Trust, bar, line, needed, parse, side_by_side
from .evaluate import acting, exported, home_of, mark_of, place_of, wordless

if TYPE_CHECKING:
    from ..envs import shifted
    from ..envs.base import Env as World
    from ..evaluate.ladder import Climb
    from ..execute.actor import Actor

SCRIPTED = "scripted"  # in the place of a run


@dataclass(frozen=True)
class Shift:
    """What becomes of a policy as the world differs more and more from the one it was trained in?

    Success on the same numbered starts without a shift and at each level of each shift, with intervals, and the level
    at which it has come down to half. Everything that has been run is kept: the same command goes on from there, and
    more episodes or levels add to it.
    """

    run: Annotated[str, Positional, arg(metavar="RUN")]
    """a run (its last checkpoint), RUN/best, a checkpoint, a file of understudy export, or scripted (ENV's expert)"""
    env: Env
    """a toy's name, a Gymnasium id, metaworld/NAME, or module:factory"""
    kinds: Annotated[tuple[str, ...] | None, arg(metavar="KIND ...")] = None
    """which shifts; all that the environment can have, unless named"""
    levels: Annotated[tuple[str, ...] | None, arg(metavar="KIND=L,L,... ...")] = None
    """other levels than those of the documents, upward, in the shift's own unit"""
    episodes: Count = 50
    """how many at each level"""
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
    save: Annotated[Path | None, arg(metavar="FILE")] = None
    """where what has been run is kept; by default in RUN/shift, or in ./shift for what is no run"""
    html: Annotated[Path | None, arg(metavar="FILE")] = None
    """write a report"""
    json: bool = False
    """one JSON document on standard output"""
    trust: Trust = ()
    """a package whose code may be loaded"""


def main(args: list[str]) -> None:
    o = parse(Shift, "shift", args)
    from ..envs import make
    from ..evaluate import ladder


    def build(rows: int) -> World:
        return make(o.env, rows, o.trust)
    with Out(o.json) as out:
        env = build(min(o.rows, o.episodes))
        try:
            actor, by = _acting(o, env)
            shifts = _asked(o, ladder.shifts(env), actor, build)
            file = o.save or _place_of(o)
            total = o.episodes * (1 + sum(len(s.levels) for s in shifts))
            with bar(f"{Path(o.run).name} in {o.env}", total) as progress:
                climbs = ladder.ladder(actor, build, shifts, o.episodes, o.seed, rows=o.rows, kept=file, by=by,
                                       watch=progress, seat=partial(_seat, o), workers=o.workers)
            out.say(*ladder.words(climbs), "", _table(climbs))
            if any(s.unit == "steps" for s in shifts) and env.facts.get("fps"):
                out.say("", f"A step is {1 / env.facts['fps']:g} s.")
            if o.html is not None:
                seen = {c.shift.name: found for c in climbs if (found := ladder.look(actor, build, c, o.seed))}
                ladder.report(o.html, climbs, Path(o.run).name, env, seen)
                out.say("", f"Report written to {o.html}")
        finally:
            env.close()
        out.next(*_onward(o, climbs))
        out.answer({"policy": o.run, "env": o.env, "episodes": o.episodes, "seed": o.seed,
                    "shifts": ladder.document(climbs)})


def _acting(o: Shift, env: World) -> tuple[Actor, str]:
    """Who acts, and by which name what they did is kept."""
    from .. import __version__
    from ..evaluate.record import expert

    if o.run == SCRIPTED and not Path(o.run).exists():
        return expert(env), f"{SCRIPTED}, {__version__}"
    run = Path(o.run)
    wordless([run], o)
    return acting(run, env, o)[0], f"{mark_of(place_of(run))}, {o.task}, {__version__}"


def _seat(o: Shift, name: str | None, severity: float) -> tuple[Actor, World]:
    """What each worker has."""
    from ..envs import make
    from ..evaluate import ladder

    env = make(o.env, side_by_side(o.rows, o.episodes, o.workers), o.trust)
    actor = _acting(o, env)[0]
    if name is None:
        return actor, env
    shift = ladder.shifts(env)[name]
    return shift.actor(actor, severity), shift.world(env, severity)


def _asked(o: Shift, there: Mapping[str, shifted.Shift], actor: Actor,
           build: Callable[[int], World]) -> list[shifted.Shift]:
    """The shifts that are wanted, each with its levels."""
    from ..core import UserError

    levels = dict(_levels(text) for text in o.levels or ())
    for where, names in (("--kinds", o.kinds or ()), ("--levels", levels)):
        for name in names:
            if name not in there:
                raise UserError(f"expected one of {', '.join(there)}, found {name!r}", where=where,
                                do=f"these are the shifts that {o.env} can have")
    kinds = tuple(dict.fromkeys(o.kinds or there))
    if odd := [name for name in levels if name not in kinds]:
        raise UserError(f"expected levels of {', '.join(kinds)}, found some of {odd[0]!r}", where="--levels",
                        do=f"add {odd[0]} to --kinds")
    wanted = [replace(there[name], levels=levels.get(name, there[name].levels)) for name in kinds]
    for shift in wanted:
        for level in levels.get(shift.name, ()):  # before anything is run
            try:
                shift.actor(actor, level)
                shift.world(build(1), level).close()
            except UserError as error:
                usual = ",".join(f"{v:g}" for v in there[shift.name].levels)
                raise UserError(error.what, where=error.where,
                                do=error.do or f"such as --levels {shift.name}={usual}") from None
    return wanted


def _levels(text: str) -> tuple[str, tuple[float, ...]]:
    """ "noise=0.1,0.2"."""
    from ..core import UserError

    name, _, rest = text.partition("=")
    try:
        levels = tuple(float(v) for v in rest.split(","))
    except ValueError:
        levels = ()
    if not levels or any(not b > a for a, b in zip((0.0, *levels), levels, strict=False)) or math.isinf(levels[-1]):
        raise UserError(f"expected KIND=L,L,..., numbers that rise from above 0, found {text!r}", where="--levels",
                        do="for example --levels noise=0.1,0.2,0.4")
    return name, levels


def _place_of(o: Shift) -> Path:
    """The file that takes what is run, unless one was named."""
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in o.env)
    run = Path(o.run)
    if (o.run == SCRIPTED and not run.exists()) or exported(run):
        return Path("shift") / f"{run.stem}-{name}.jsonl"
    return home_of(run) / "shift" / f"{name}.jsonl"


def _table(climbs: Sequence[Climb]):
    from rich.table import Table

    first = climbs[0]
    show = (lambda v: f"{v:.0%}") if first.success is not None else (lambda v: f"{v:.4g}")
    table = Table("shift", "level: " + ("success" if first.success is not None else "return"), "unit", "halves at",
                  box=None, pad_edge=False)
    for c in climbs:
        each = "  ".join(f"{s:g}: {show(r.estimate)}" for s, r in zip(c.severities, c.rates(), strict=True))
        table.add_row(c.shift.name, each, c.shift.unit, str(c.falls()))
    return table


def _onward(o: Shift, climbs: Sequence[Climb]) -> list[str]:
    trust = needed(o.trust, o.env, *(() if o.run == SCRIPTED else (Path(o.run),)))
    told = [*(("--kinds", *o.kinds) if o.kinds else ()), *(("--levels", *o.levels) if o.levels else ()),
            *(("--seed", o.seed) if o.seed else ()), *(("--task", o.task) if o.task else ()),
            *(("--save", o.save) if o.save else ()), *trust]
    page = [] if o.html else [line("shift", o.run, o.env, "--episodes", o.episodes, *told, "--html", "shift.html")]
    return [*page, line("shift", o.run, o.env, "--episodes", 4 * o.episodes, *told)]
