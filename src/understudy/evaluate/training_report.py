"""Writes the page of `understudy plot`: the curves of one or several trainings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..hints import format_duration, join_and
from ..learn.training_curves import HELD_OUT_ERROR, LOSS, SCORE, TrainingCurves
from . import plots
from .report import Content, Figures, Section, Table, next_step_section, training_figures, write_page

OVERFIT_RATIO = 1.1  # a held-out error that ends at more than this times its minimum is worth a sentence
TITLES = {"gradient": "Norm of the gradient", "rate": "Learning rate",
          "validation/mean": "Held-out episodes: mean distance of a plan",
          "validation/best": "Held-out episodes: distance of the nearest plan"}


def training_verdict(runs: Mapping[str, TrainingCurves]) -> tuple[str, str, str]:
    """Says what the curves show, in three sentences at most: the best checkpoint, and what to keep in mind.
    """
    return _verdict_of_one(*next(iter(runs.items()))) if len(runs) == 1 else _verdict_of_several(runs)


def _verdict_of_one(name: str, run: TrainingCurves) -> tuple[str, str, str]:
    key, held_out_errors = run.chosen_by, run.curves.get(HELD_OUT_ERROR)
    if key is None or run.best is None or run.curves[key].at(run.best) is None:
        loss = run.curves.get(LOSS)
        head = f"The loss of {name} went from {loss.values[0]:.3g} to {loss.values[-1]:.3g}." if loss else (
            f"No loss was measured in {name}.")
        return head, "No episode was held out and nothing was rolled out, so no checkpoint is known to be better.", ""
    what = "score in rollouts" if key == SCORE else run.held_out_name
    head = f"The best checkpoint of {name} is that of update {run.best:,}: {what} {run.curves[key].at(run.best):.3g}."
    sure = ("It was chosen by this score, which is therefore too good. Judge it on new starts." if key == SCORE else
            f"An error {'on recorded actions' if run.error_of == 'actions' else f'of {run.error_of}'} is not a success "
            "rate. "
            "Roll the policy out to know whether it works.")
    least = min(held_out_errors.values) if held_out_errors else math.nan
    more = ""
    if key != SCORE and held_out_errors and held_out_errors.values[-1] > OVERFIT_RATIO * least > 0:
        at = held_out_errors.steps[held_out_errors.values.index(least)]
        more = (f"The {run.held_out_name} was lowest at update {at:,} and is "
                f"{held_out_errors.values[-1] / least - 1:.0%} higher at the end: the policy overfits. Train for fewer "
                "updates, or on more data.")
    return head, sure, more


def _verdict_of_several(runs: Mapping[str, TrainingCurves]) -> tuple[str, str, str]:
    if all(SCORE in run.curves for run in runs.values()):
        best = {name: max(run.curves[SCORE].values) for name, run in runs.items()}
        top = [name for name, value in best.items() if value == max(best.values())]
        head = (f"{join_and(top)} reached the highest score in rollouts during training"
                f"{', the same' * (len(top) > 1)}: {best[top[0]]:.3g}.")
        sure = ("These scores chose the checkpoints, and they come from few episodes. They do not show which run is "
                "better. To know, roll the policies out on the same new starts.")
    elif same_data(runs) and all(HELD_OUT_ERROR in run.curves and run.error_of == "actions" for run in runs.values()):
        best = {name: min(run.curves[HELD_OUT_ERROR].values) for name, run in runs.items()}
        top = min(best, key=best.__getitem__)
        head = f"{top} has the lowest error on held-out episodes: {best[top]:.3g}."
        sure = "An error on recorded actions is not a success rate. Roll the policies out to know which is better."
    else:
        head = f"{len(runs)} trainings."
        sure = "They have no measurement in common that could be compared. Roll the policies out to compare them."
    different = "" if same_data(runs) else ("The runs were trained on different data or held out different episodes, "
                                            "so their errors on held-out episodes cannot be compared.")
    return head, sure, different


def same_data(runs: Mapping[str, TrainingCurves]) -> bool:
    """Returns whether all runs have the same data and hold out the same episodes."""
    return len({run.data for run in runs.values()}) == 1


def write_training_report(path: Path | str, runs: Mapping[str, TrainingCurves],
                          commands: Sequence[tuple[str, str]] = ()) -> Path:
    """Writes a page with the curves of runs. Nothing in it is loaded from elsewhere.

    Args:
        commands: (command, what it does) of what to do next.

    Example:
        >>> write_training_report("curves.html", {"bc": TrainingCurves.load("runs/bc")})
    """
    figures = tuple(training_figures(runs, mark_best=True))
    sections = [Section("Curves", (Figures(figures), run_table(runs)))]
    if further := _further_figures(runs):
        sections.append(Section("Everything else that was measured", (Figures(tuple(further)),)))
    if evaluations := _evaluations(runs):
        sections.append(Section("Evaluated afterwards", evaluations,
                                "By understudy eval, on starts that training did not use. The interval is that of the "
                                "evaluation."))
    sections += next_step_section({}, commands)
    title = f"Training of {next(iter(runs))}" if len(runs) == 1 else f"{len(runs)} trainings"
    return write_page(path, title, sections, verdict=training_verdict(runs),
                      footer="Curves: means over equally many updates, as in metrics.jsonl.")


def run_table(runs: Mapping[str, TrainingCurves]) -> Table:
    """Builds a table with one row for each run: how long it trained, and its best checkpoint."""
    header = ["", "updates", "time", "best update"]
    keys = [(LOSS, "last loss"), (HELD_OUT_ERROR, "held-out error"), (SCORE, "score")]
    keys = [(key, title) for key, title in keys if any(key in run.curves for run in runs.values())]
    rows = []
    for name, run in runs.items():
        row = [name, _or_nan(run.last), format_duration(run.seconds) if run.seconds is not None else "–",
               _or_nan(run.best)]
        for key, _ in keys:
            curve = run.curves.get(key)
            row.append(math.nan if curve is None else curve.values[-1] if key == LOSS else _or_nan(curve.at(run.best)))
        rows.append(tuple(row))
    return Table((*header, *(f"{title} there" if key != LOSS else title for key, title in keys)), tuple(rows))


def _further_figures(runs: Mapping[str, TrainingCurves]) -> list[tuple[str, plots.Figure, str]]:
    keys = dict.fromkeys(key for run in runs.values() for key in run.curves)
    out = []
    for key in keys:
        if key not in (LOSS, HELD_OUT_ERROR, SCORE):
            series = {name: (c.steps, c.values) for name, run in runs.items() if (c := run.curves.get(key))}
            smooth = {} if key.startswith("validation/") else {
                name: (s.steps, s.values) for name in series if len(runs[name].curves[key].values) >= 50
                for s in [runs[name].curves[key].smoothed()]}
            figure = plots.curves(series, plots.Axis("updates", low=0), plots.Axis(key), smooth=smooth,
                                  dots=key.startswith("validation/"))
            out.append((TITLES.get(key, key.replace("_", " ")), figure, ""))
    return out


def _evaluations(runs: Mapping[str, TrainingCurves]) -> tuple[Content, ...]:
    rows = []
    for name, run in runs.items():
        for e in run.evaluations:
            interval = e.get("success") or e.get("return")
            if isinstance(interval, Mapping):
                scale = 100 if e.get("success") else 1
                value = interval.get("estimate", interval.get("mean"))
                rows.append((name, str(e.get("checkpoint", "–")), str(e["where"]),
                             "success (%)" if e.get("success") else "return", e.get("episodes", math.nan),
                             *(_or_nan(v if v is None else round(scale * v, 1) if scale == 100 else v)
                               for v in (value, interval.get("low"), interval.get("high")))))
    if not rows:
        return ()
    header = ("", "checkpoint", "in", "what", "episodes", "estimate", "low", "high")
    return (Table(header, tuple(dict.fromkeys(rows))),)  # the same evaluation, done twice, is one


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
