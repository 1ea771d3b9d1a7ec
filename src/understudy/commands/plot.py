"""The command understudy plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..core import UserError
from .parts.common import (
    Output,
    command_line,
    env_trust_options,
    parse,
    recorded_data_of,
    recorded_env_of,
    robot_arguments,
    trust_options,
)
from .parts.conditions import must_be_told
from .parts.groups import HtmlFile, JsonOption, command_options
from .parts.policies import run_names


@command_options
class PlotOptions(JsonOption):
    """Plot one or several trainings: curves of the loss, the held-out error and the score.

    Writes one page that needs no network. A run that is still training can be plotted too.
    """

    runs: Annotated[tuple[Path, ...], Positional, arg(metavar="RUN")]
    """one or several runs"""
    html: HtmlFile = None
    """the page to write; by default curves.html, or none with --json"""


def main(args: list[str]) -> None:
    o = parse(PlotOptions, "plot", args)
    from ..evaluate.training_report import training_verdict, write_training_report
    from ..learn.training_curves import TrainingCurves

    with Output(o.json) as out:
        curves = [TrainingCurves.load(run) for run in o.runs]
        if twice := next((run for i, run in enumerate(curves) if run.folder in [f.folder for f in curves[:i]]), None):
            raise UserError(f"the run {twice.folder} is named twice", where="understudy plot",
                            hint="name each run once")
        for run in curves:
            if not run.curves:
                raise UserError("nothing was measured in this run yet", where=run.folder,
                                hint="plot it after its first updates")
        runs = dict(zip(run_names([run.folder for run in curves]), curves, strict=True))
        out.print(*filter(None, training_verdict(runs)))
        commands = _next_commands(curves)
        page = o.html or (None if o.json else Path("curves.html"))
        if page is not None:
            write_training_report(page, runs, commands)
            out.print(f"Page written to {page}")
        out.suggest(*(command for command, _ in commands))
        out.print_json({"runs": [run.to_json() for run in curves]})


def _next_commands(runs) -> list[tuple[str, str]]:
    """Returns useful next commands, each with a description: evaluate the run, or compare all runs."""
    from ..checkpoint import find_checkpoint, load_features
    from ..envs.registry import WITH_GOALS, base_name

    env = recorded_env_of(runs[0].folder)
    is_recorded = env is not None
    if env is not None and base_name(env) in WITH_GOALS:  # nothing is a success there
        env = None
    trust = [*env_trust_options(env), *trust_options((), None, *(run.folder for run in runs))]
    if len({recorded_env_of(run.folder) for run in runs} - {None}) > 1:
        return []
    if len(runs) > 1:
        return [(command_line("compare", *(run.folder for run in runs), "--env", env or "ENV", *trust),
                 "Which of them is better, on the same starts:")]
    run = runs[0]
    best = run.folder / "best" if run.best is not None else run.folder
    recorded = recorded_data_of(run.folder)
    if not is_recorded and recorded["robot_type"]:
        features = load_features(find_checkpoint(run.folder), "train it again")
        if robot := robot_arguments(recorded, features):
            return [(command_line("act", best, *robot), "How it acts on the robot:")]
    if must_be_told(run.folder):  # the data with its examples are not open here
        return []
    return [(command_line("eval", best, env or "ENV", "--episodes", 100, *trust),
             "How good the best checkpoint is, on new starts:")]
