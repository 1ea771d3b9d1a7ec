"""The command understudy choose."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ..hints import format_duration, pluralize
from .parts.common import (
    Output,
    command_line,
    env_trust_options,
    given_options,
    open_data,
    parse,
    parse_duration,
    plain_table,
    trust_options,
    unused_path,
)
from .parts.conditions import example_evaluation
from .parts.groups import (
    ColumnsOption,
    DeviceOption,
    HtmlOption,
    IgnoredCodes,
    JsonOption,
    PositiveCount,
    Seed,
    TrustOption,
    command_options,
)
from .parts.options import options_of, split_arguments
from .parts.run_options import option_texts, run_options

if TYPE_CHECKING:
    from ..choose import MethodChoice, Standing
    from ..core import Schema
    from ..learn.method import Method


@command_options
class ChooseOptions(DeviceOption, ColumnsOption, HtmlOption, JsonOption, TrustOption):
    """Choose a method for demonstrations by short trials, and say how certain the choice is.

    Methods that suit what is measured in the data are trained for a short time each, with the same seeds, and judged on
    the same starts of ENV. Methods that are worse are dropped, and the remaining methods get further training seeds,
    until one is left or the time is over. Without ENV the methods are judged by the error of the actions that they
    predict in held-out episodes, which is weaker evidence. After Ctrl-C the same command continues.

    Options of the methods are set as in `understudy train`, such as --batch-size 64, for all candidates. If only some
    methods have an option, name these methods with --methods.
    """

    data: Annotated[Path, Positional, arg(metavar="DATA")]
    """a file or folder of demonstrations"""
    env: Annotated[str | None, arg(metavar="ENV")] = None
    """environment in which the policies act"""
    budget: Annotated[str, arg(metavar="TIME")] = "30m"
    """time for all trials, such as 90s, 30m or 1h30m; the first round is always finished"""
    out: Annotated[Path, arg(metavar="DIR")] = Path("choice")
    """the folder of the trials; each is an ordinary run"""
    methods: Annotated[tuple[str, ...], arg(metavar="METHOD")] = ()
    """the methods to compare; by default those that suit the data"""
    episodes: PositiveCount = 100
    """number of starts on which every trial is judged"""
    seed: Seed = 0
    """first seed of the trainings"""
    ignore: IgnoredCodes = ()
    """train although an audit finds an error with this code"""


FLAGS = tuple(option.flag for option in options_of(ChooseOptions))


def main(args: list[str]) -> None:
    own, options, changes = split_arguments(args, ChooseOptions)
    o = parse(ChooseOptions, "choose", own)
    from ..choose import ROWS, choose_method, trial_run
    from ..envs import make
    from ..learn.devices import choose_device
    from ..learn.method import Method
    from .parts.method import build_method

    def build(name: str, features: Schema) -> Method:
        return build_method(name, options, changes, features, o.trust, flags=FLAGS)

    with Output(o.json) as out:
        budget, device = parse_duration(o.budget), str(choose_device(o.device))
        data = open_data(o.data, ignore=o.ignore, columns=o.columns)
        env = None if o.env is None else make(o.env, min(o.episodes, ROWS), o.trust)
        try:
            choice = choose_method(data, o.out, env=env, budget=budget, methods=o.methods, episodes=o.episodes,
                                   seed=o.seed, device=device, trust=o.trust,
                                   say=lambda line: print(line, file=sys.stderr), build=build,
                                   training={"command": "understudy choose " + shlex.join(args),
                                             "options": run_options("choose", o, option_texts([*options, *changes]))})
        finally:
            if env is not None:
                env.close()
        _print_choice(choice, out)
        trial = Method.load(trial_run(o.out, choice.recommended, o.seed), o.trust)
        acts, env_options = example_evaluation(data, trial, o.env, env) or (None, None)
        commands = _next_commands(o, [*options, *changes], choice, acts, env_options)
        if o.html is not None:
            write_choice_page(choice, o.html, commands)
            out.print(f"Report written to {o.html}")
        again = _again(o, "--html", unused_path("choice.html"), *options, *changes)
        out.suggest(*(command for command, _ in commands), *([again] if o.html is None else []))
        out.print_json(choice.to_json())


def _print_choice(c: MethodChoice, out: Output) -> None:
    out.print(*c.properties.sentences(), "")
    rows = ((*_cells(c, s), s.reason if s.dropped_after is None else f"dropped after round {s.dropped_after}")
            for s in c.standings)
    out.print(plain_table((*_header(c), ""), rows),
              *(f"not tried: {name}, {why}" for name, why in c.skipped.items()),
              *(f"failed: {name}, {why}" for name, why in c.failed.items()), "", " ".join(c.verdict_parts()))


def _header(c: MethodChoice) -> tuple[str, ...]:
    metric = {"success": "success", "return": "mean return", "error": "action error"}[c.metric]
    return "", metric, "95% interval", "seeds", "updates", "a trial"


def _cells(c: MethodChoice, s: Standing) -> tuple[str, ...]:
    """Returns the table row of a candidate, for `_header`."""
    e = c.printed_estimate(s)
    show = (lambda v: f"{v:.1%}") if c.metric == "success" else (lambda v: f"{v:.4g}")
    limits = "unknown to unknown" if math.isnan(e.low) else f"{show(e.low)} to {show(e.high)}"  # too few values
    return s.method, show(e.estimate), limits, str(s.seeds), f"{s.updates} of {s.full_updates}", f"{s.seconds:.3g} s"


def write_choice_page(c: MethodChoice, path: Path, commands: list[tuple[str, str]]) -> None:
    """Writes the page of `understudy choose --html`."""
    from ..evaluate import plots
    from ..evaluate.report import Commands, Content, Figures, Paragraph, Section, Table, write_page

    table = Table((*_header(c), "dropped after", "tried because"), tuple(
        (*_cells(c, s), "" if s.dropped_after is None else f"round {s.dropped_after}", s.reason) for s in c.standings))
    contents: list[Content] = [table]
    if c.metric == "success":
        bars = [(s.method, s.estimate, f"{s.seeds} seeds") for s in c.standings]
        contents.insert(0, Figures((("", plots.success_bars(bars), "Success of each candidate; the line is the 95% "
                                     "interval over training seeds and starts (with one seed, over starts)."),)))
    sections = [Section("The data", tuple(map(Paragraph, c.properties.sentences()))),
                Section("The trials", tuple(contents))]
    for title, reasons in (("Not tried", c.skipped), ("Failed", c.failed)):
        if reasons:
            sections.append(Section(title, tuple(Paragraph(f"{name}: {why}.") for name, why in reasons.items())))
    sections.append(Section("What to do next", (Commands(tuple(commands)),)))
    write_page(path, "Which method suits these demonstrations", sections, verdict=c.verdict_parts(),
               footer=f"{pluralize(c.rounds, 'round')} in {format_duration(c.seconds)}; candidates were dropped by "
                      "sign-flip tests on the same starts, at 5 % for all tests together.")


def _next_commands(o: ChooseOptions, method_options: list[str], c: MethodChoice, acts: str | None,
                   conditions: list[str] | None) -> list[tuple[str, str]]:
    """Returns useful next commands, each with a description.

    Args:
        method_options: Options of the methods that were given, as words.
        acts: The environment in which the policies act, if one is known.
        conditions: What the policy must be told while it acts, with examples. None if there are none.
    """
    from ..choose import trial_run

    run, trial = unused_path("run"), trial_run(o.out, c.recommended, o.seed)
    function = c.recommended if ":" in c.recommended else None
    commands = [(command_line("train", c.recommended, o.data, "--out", run, *given_options(o, "columns", "ignore"),
                              *method_options, *trust_options(o.trust, function, trial)),
                 "Train the recommended method in full:")]
    if acts:
        trust, own = trust_options(o.trust, acts, trial), env_trust_options(acts)
        if conditions is not None:
            commands.append((command_line("eval", run, acts, "--episodes", 100, *conditions, *trust, *_new(own, trust)),
                             "Judge it on new starts:"))
        if c.env is None and not conditions:  # a candidate must find all that it reads in the environment
            commands.append((_again(o, "--env", acts, "--out", unused_path("choice"), *method_options,
                                    *_new(own, o.trust)), "Choose again, with policies that act:"))
    return commands


def _again(o: ChooseOptions, *more: object) -> str:
    keep = given_options(o, *(name for name in ("env", "budget", "out") if f"--{name}" not in more), "methods")
    number_options = [part for name, value, usual in (("--episodes", o.episodes, 100), ("--seed", o.seed, 0))
                      if value != usual for part in (name, value)]
    return command_line("choose", o.data, *keep, *number_options, *given_options(o, "columns", "ignore"), *more,
                        *given_options(o, "trust"))


def _new(option: list[str], trusted: Sequence[str]) -> list[str]:
    """Returns a --trust option for a package, unless it is trusted already."""
    return [] if option and option[1] in trusted else option
