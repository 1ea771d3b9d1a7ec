"""The command understudy robustness."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ..core import UserError
from ..files import file_name
from ..hub import is_downloaded
from .parts.common import (
    EnvName,
    Output,
    acting_options,
    batch_rows,
    command_line,
    given_options,
    has_no_run,
    parse,
    plain_table,
    progress_bar,
    trust_options,
    unused_path,
)
from .parts.groups import PositiveCount, RolloutOptions, command_options
from .parts.policies import load_actor, refuse_unused_conditions, run_folder, weights_digest, weights_path

if TYPE_CHECKING:
    from ..envs import shifts
    from ..envs.base import Env as World
    from ..evaluate.robustness import SeveritySweep
    from ..execute.actor import Actor

SCRIPTED_ACTOR = "scripted"  # given in the place of a run


@command_options
class RobustnessOptions(RolloutOptions):
    """Measure how the success of a policy falls as the environment differs more and more from the one it was trained
    in.

    Reports success on the same numbered starts without a shift and at each level of each shift, with intervals, and the
    level at which success has fallen to half. All results are kept: the same command continues from there, and more
    episodes or levels add to them.
    """

    run: Annotated[str, Positional, arg(metavar="RUN")]
    """a run (its last checkpoint), RUN/best, a checkpoint, a file of understudy export, a run or checkpoint of LeRobot
    (ACT or Diffusion Policy), or scripted (ENV's expert)"""
    env: EnvName
    """a toy's name, a Gymnasium id, metaworld/NAME, or module:factory"""
    shifts: Annotated[tuple[str, ...] | None, arg(metavar="KIND ...")] = None
    """the shifts; by default all that the environment supports"""
    levels: Annotated[tuple[str, ...] | None, arg(metavar="KIND=L,L,... ...")] = None
    """other levels than the default ones, in increasing order, in the unit of the shift"""
    episodes: PositiveCount = 50
    """number of episodes at each level"""
    save: Annotated[Path | None, arg(metavar="FILE")] = None
    """file of the results; by default in RUN/robustness, or in ./robustness for an exported file or the expert"""


def main(args: list[str]) -> None:
    o = parse(RobustnessOptions, "robustness", args)
    from ..envs import make
    from ..evaluate import robustness

    def build(rows: int) -> World:
        return make(o.env, rows, o.trust)
    with Output(o.json) as out:
        with closing(build(min(o.rows, o.episodes))) as env:
            actor, by = _load_actor(o, env, tell=True)
            shifts = _selected_shifts(o, robustness.available_shifts(env), actor, build)
            file = o.save or _results_path(o)
            total = o.episodes * (1 + sum(len(s.levels) for s in shifts))
            with progress_bar(f"{Path(o.run).name} in {o.env}", total) as progress:
                climbs = robustness.sweep_severities(
                    actor, partial(build, min(o.rows, o.episodes)), shifts, o.episodes, o.seed,
                    results=robustness.ResultsFile(file, by), watch=progress,
                    workers=robustness.SweepWorkers(o.workers, partial(_worker_setup, o)))
            out.print(*robustness.verdict_parts(climbs), "", _results_table(climbs))
            if any(s.unit == "steps" for s in shifts) and env.metadata.get("fps"):
                out.print("", f"A step is {1 / env.metadata['fps']:g} s.")
            if o.html is not None:
                hardest_episodes = {
                    c.shift.name: episode
                    for c in climbs
                    if (episode := robustness.hardest_episode(actor, build, c, o.seed))
                }
                robustness.write_report(o.html, climbs, Path(o.run).name, env, hardest_episodes)
                out.print("", f"Report written to {o.html}")
        out.suggest(*_next_commands(o, climbs))
        out.print_json({"policy": o.run, "env": o.env, "episodes": o.episodes, "seed": o.seed,
                        "shifts": robustness.sweeps_to_json(climbs)})


def _load_actor(o: RobustnessOptions, env: World, tell: bool = False) -> tuple[Actor, str]:
    """Loads the actor, and returns it with the name under which its results are stored. See `policies.load_actor`."""
    from .. import __version__
    from ..evaluate.recording import expert_actor

    if o.run == SCRIPTED_ACTOR and not Path(o.run).exists():
        if o.executor is not None:
            raise UserError("the expert plans no chunks", where="--executor", hint="leave it out, or name a run")
        return expert_actor(env), f"{SCRIPTED_ACTOR}, {__version__}"
    run = Path(o.run)
    refuse_unused_conditions([run], o)
    scheme = "" if o.executor is None else f", {o.executor}"
    scheme += "".join(f", {text}" for text in o.condition)
    actor, _ = load_actor(run, env, o, tell=tell)
    return actor, f"{weights_digest(weights_path(run))}, {o.task}, {__version__}{scheme}"


def _worker_setup(o: RobustnessOptions, name: str | None, severity: float) -> tuple[Actor, World]:
    from ..envs import make
    from ..evaluate import robustness

    env = make(o.env, batch_rows(o.rows, o.episodes, o.workers), o.trust)
    actor = _load_actor(o, env)[0]
    if name is None:
        return actor, env
    shift = robustness.available_shifts(env)[name]
    return shift.actor(actor, severity), shift.world(env, severity)


def _selected_shifts(o: RobustnessOptions, available: Mapping[str, shifts.Shift], actor: Actor,
                     build: Callable[[int], World]) -> list[shifts.Shift]:
    """Returns the shifts that the user asked for, each with its levels."""
    levels = dict(_parse_levels(text) for text in o.levels or ())
    for flag, names in (("--shifts", o.shifts or ()), ("--levels", levels)):
        for name in names:
            if name not in available:
                raise UserError(f"there is no shift {name!r}; there are {', '.join(available)}", where=flag,
                                hint=f"these are the shifts that {o.env} can have")
    kinds = tuple(dict.fromkeys(o.shifts or available))
    if unselected := [name for name in levels if name not in kinds]:
        raise UserError(f"these are levels of {unselected[0]!r}, which is not tested", where="--levels",
                        hint=f"add {unselected[0]} to --shifts")
    selected = [replace(available[name], levels=levels.get(name, available[name].levels)) for name in kinds]
    for shift in selected:
        for level in levels.get(shift.name, ()):  # before anything is run
            try:
                shift.actor(actor, level)
                shift.world(build(1), level).close()
            except UserError as error:
                usual = ",".join(f"{v:g}" for v in available[shift.name].levels)
                raise UserError(error.problem, where=error.where,
                                hint=error.hint or f"such as --levels {shift.name}={usual}") from None
    return selected


def _parse_levels(text: str) -> tuple[str, tuple[float, ...]]:
    """Parses an option such as "noise=0.1,0.2"."""
    name, _, levels_text = text.partition("=")
    try:
        levels = tuple(float(v) for v in levels_text.split(","))
    except ValueError:
        levels = ()
    if not levels or any(not b > a for a, b in zip((0.0, *levels), levels, strict=False)) or math.isinf(levels[-1]):
        raise UserError(f"levels must be KIND=L,L,..., with increasing numbers above 0, not {text!r}", where="--levels",
                        hint="for example --levels noise=0.1,0.2,0.4")
    return name, levels


def _results_path(o: RobustnessOptions) -> Path:
    from ..checkpoint import is_lerobot_checkpoint

    name, run = file_name(o.env), Path(o.run)
    if ((o.run == SCRIPTED_ACTOR and not run.exists()) or has_no_run(run) or is_downloaded(run)
            or is_lerobot_checkpoint(run_folder(run))):
        return Path("robustness") / f"{run.stem}-{name}.jsonl"
    return run_folder(run) / "robustness" / f"{name}.jsonl"


def _results_table(sweeps: Sequence[SeveritySweep]):
    first = sweeps[0]
    show = (lambda v: f"{v:.0%}") if first.success is not None else (lambda v: f"{v:.4g}")
    metric = "return" if first.success is None else "success"
    rows = []
    for c in sweeps:
        each = "  ".join(f"{s:g}: {show(r.estimate)}" for s, r in zip(c.severities, c.success_rates(), strict=True))
        rows.append((c.shift.name, each, c.shift.unit, c.half_success_level()))
    return plain_table(("shift", f"level: {metric}", "unit", "halves at"), rows)


def _next_commands(o: RobustnessOptions, sweeps: Sequence[SeveritySweep]) -> list[str]:
    trust = trust_options(o.trust, o.env, *(() if o.run == SCRIPTED_ACTOR else (Path(o.run),)))
    shared_options = [*given_options(o, "shifts", "levels"), *acting_options(o), *given_options(o, "save"), *trust]

    def again(episodes: int, *more: object) -> str:
        return command_line("robustness", o.run, o.env, "--episodes", episodes, *shared_options, *more)
    page = [] if o.html else [again(o.episodes, "--html", unused_path("robustness.html"))]
    return [*page, again(4 * o.episodes)]
