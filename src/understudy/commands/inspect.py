"""The command understudy inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from tyro.conf import Positional, arg

from ..advice import advice_about
from ..core import Feature, UserError, role
from ..methods import find_method, recommend
from .parts.common import (
    Output,
    command_line,
    demonstrations_path,
    env_trust_options,
    given_options,
    parse,
    plain_table,
    progress_bar,
    recorded_env,
    unused_path,
)
from .parts.conditions import is_judged, shows_observations
from .parts.groups import HtmlFile, JsonOption, ReadingOptions, command_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..audit.base import AuditReport, Finding
    from ..data.episode import Dataset
    from ..learn.preflight import Preflight

_SHOWN_TASKS = 10


@command_options
class InspectOptions(ReadingOptions, JsonOption):
    """Show the content of a data set of any format, and its doubtful properties."""

    data: Annotated[Path, Positional, arg(metavar="DATA")]
    """a file or folder of demonstrations"""
    html: HtmlFile = None
    """write a page that opens from disk; large data also need the folder FILE-data next to it"""
    rerun: Annotated[Path | None, arg(metavar="FILE.rrd")] = None
    """a recording for the viewer of rerun.io (needs the extra rerun)"""


def main(args: list[str]) -> None:
    o = parse(InspectOptions, "inspect", args)
    from ..audit import audit, find_problems
    from ..audit.base import AuditReport
    from ..data.formats import preview_dataset
    from ..data.formats.describe import describe
    from ..data.opening.column_selection import open_columns, parse_columns

    with Output(o.json) as out:
        columns = parse_columns(o.columns)
        data = open_columns(demonstrations_path(o.data), columns, open=preview_dataset, mapping=o.map,
                            max_episode_steps=o.max_episode_steps)
        if o.html is not None:  # with scores, and without decoding every frame, as `understudy audit` does
            report = audit(o.data, o.map, frames=False, columns=columns,
                           max_episode_steps=o.max_episode_steps)
        else:
            report = AuditReport(find_problems(data, data.metadata["path"]))
        _write_views(data, report, o, out)  # first: what is damaged is looked at, too, and may end what follows
        checked = _check_training(data, report.findings)
        description = {**describe(data), "warnings": [*(f.message for f in report.findings), *checked.warnings]}
        _print_content(o, data, description, [*(f"{f.severity}: {f.message}" for f in report.findings),
                                              *(f"warning: {text}" for text in checked.warnings)], out)
        _suggest_next(o, data, description, report, checked.error, out)
        out.print_json(description)


def _print_content(o: InspectOptions, data: Dataset, content: Mapping[str, Any], findings: list[str], out: Output
                   ) -> None:
    """Prints what is in the data, and the findings."""
    from ..data.formats.describe import dataset_features, task_counts

    lengths = sorted(data.lengths.tolist())
    rate = f", {content['fps']:g} steps a second" if content["fps"] else ""
    out.print(f"{o.data}: {content['format']} {content['version']}".rstrip(),
            f"{content['episodes']} episode{'s' * (len(data) != 1)}, {content['steps']} steps{rate}"
            + ("" if len(data) < 2 else f"; each has {lengths[0]} steps" if lengths[0] == lengths[-1] else
               f"; episodes of {lengths[0]} to {lengths[-1]} steps, half of them at least "
               f"{lengths[len(lengths) // 2]}"))
    if "topics" in content:
        out.print("", plain_table(("topic", "type", "messages"),
                                  ((t["name"], t["type"], t["messages"]) for t in content["topics"])))
    out.print(*_success_lines(data), "")
    rows = ((name, role(name), _reading(f), f.dtype, " x ".join(map(str, f.shape)), ", ".join(f.names or ()),
             f.unit or "") for name, f in dataset_features(data).items())
    out.print(plain_table(("column", "role", "read as", "dtype", "shape", "components", "unit"), rows),
              *(["", _range_table(data)] if len(data) else []))
    if tasks := task_counts(data):
        out.print("", *_task_lines(tasks))
    out.print("", *(findings or ["no warnings"]))


def _suggest_next(o: InspectOptions, data: Dataset, content: Mapping[str, Any], report: AuditReport,
                  refusal: UserError | None, out: Output) -> None:
    """Prints how to train on the data, or why that is not possible."""
    from ..methods.needs import learners_for

    learners = learners_for(data) if len(data) else {}
    if not len(data) or "action" not in data.features():
        if learners:
            out.print("", *learners.values())
        if len(data) and (actions := [n for n in data.features() if role(n) == "action"]):
            out.suggest(command_line("inspect", o.data, "--columns", *o.columns, f"action={','.join(actions)}"))
        return
    env, method = recorded_env(data), recommend(data.features())
    if "topics" in content and o.map is None:
        out.print("", "Columns, joins and clock are a proposal. Correct it where it is wrong, and then use it:")
        out.suggest(f"{command_line('inspect', o.data, '--json')} > map.json",
                    command_line("convert", o.data, unused_path("demonstrations"), "--map", "map.json"),
                    command_line("train", method, o.data, "--map", "map.json", "--out", unused_path("run")))
        return
    if refusal is not None:
        out.print("", f"It cannot be trained on as it is. {refusal}")
    else:
        if learners:
            out.print("", *learners.values())
        if "preference-reward" in learners:
            method, env = "preference-reward", None  # an episode is two segments, which no environment repeats
        runs = {method: "run", **{name: f"run-{name}" for name in ("iql", "gcivl") if name in learners
                                  and _check_training(data, report.findings, name).error is None}}
        is_evaluated = env is not None and is_judged(data) and shows_observations(env, data.features())
        reading = given_options(o, "map", "columns", "max_episode_steps")
        cloned, commands = o.data, []
        if "bc" in learners and not reading:  # some episodes did not succeed, and a view opens the data
            cloned = Path(unused_path("successes.json"))
            commands = [command_line("view", "make", o.data, "--filter", "success=true", "--out", cloned)]
        for name, run in runs.items():
            evaluation = ("--eval", env, "--save-freq", 500) if is_evaluated else ()
            commands.append(command_line("train", name, cloned if name == method else o.data, *reading, "--out",
                                         unused_path(run), *evaluation, *env_trust_options(env)))
        if env and not o.columns:
            commands.append(command_line("replay", o.data, env, *env_trust_options(env)))
        out.suggest(*commands)


def _reading(f: Feature) -> str:
    """Describes how a policy reads the values of a column."""
    if f.kind == "discrete":
        return "classes" if f.num_classes is None else f"{max(f.num_classes)} classes"
    return "flags" if f.dtype == "bool" else {"vector": "quantities", "string": "text"}.get(f.kind, f.kind)


def _write_views(data, report, o: InspectOptions, out: Output) -> None:
    if o.html is not None:
        from ..studio.html_page import write_dataset_page

        with progress_bar("reading", len(data)) as progress:
            write_dataset_page(o.html, data, report, title=str(o.data), progress=lambda done, total: progress(done))
        out.print(f"Written to {o.html}")
    if o.rerun is not None:
        from ..studio.rrd import write_rrd

        with progress_bar("reading", len(data)) as progress:
            write_rrd(o.rerun, data, title=str(o.data), progress=lambda done, total: progress(done))
        out.print(f"Written to {o.rerun}: rerun {o.rerun} shows it")


def _check_training(data: Dataset, findings: Sequence[Finding], method: str | None = None) -> Preflight:
    """Returns what `understudy train` would say of the data before its first update. Nothing of data without actions.

    Args:
        findings: Findings of an audit.
        method: The method that is trained. None for a method that suits the columns.
    """
    from ..audit import raise_on_errors
    from ..learn.preflight import Preflight, preflight

    try:
        raise_on_errors(findings, data.metadata["path"], training_data=data)
        if not len(data) or "action" not in (features := data.features()):
            return Preflight(data, ())
    except UserError as error:
        return Preflight(data, (error,))
    return preflight(find_method(method or recommend(features), features), data)


def _range_table(data) -> Table:
    """Builds a table of the range of each component. Long vectors have one range for all components."""
    from ..data.formats.describe import value_ranges

    rows, features = [], data.features()
    for name, (low, mean, high) in value_ranges(data).items():
        if low.size > 8:
            rows.append((f"{name}, all {low.size}", low.min(), mean.mean(), high.max()))
        else:
            parts = features[name].names or [str(i) for i in range(low.size)]
            rows += [(f"{name}[{part}]" if features[name].shape else name, *numbers)
                     for part, *numbers in zip(parts, low, mean, high, strict=True)]
    return plain_table(("numbers", "min", "mean", "max"),
                       ((row, *(f"{n:.4g}" for n in numbers)) for row, *numbers in rows))


def _task_lines(tasks: Mapping[str, int]) -> list[str]:
    """Returns lines with the most frequent tasks, each with its number of episodes."""
    from ..hints import pluralize

    most = sorted(tasks.items(), key=lambda item: -item[1])[:_SHOWN_TASKS]
    others = len(tasks) - len(most)
    return [f"{pluralize(len(tasks), 'task')}" + (f", of which the {len(most)} most frequent are:" if others else ":"),
            *(f"  {pluralize(count, 'episode')}: {' '.join(text.split())}" for text, count in most)]


def _success_lines(data) -> list[str]:
    """Returns lines with the number of successful episodes, and advice if some failed."""
    from ..audit.label_checks import is_flag

    ended = [bool(e.metadata["success"]) for e in data if is_flag(e.metadata.get("success"))]
    unknown = len(data) - len(ended)
    if not ended:
        return []
    others = f"; {unknown} other{'s have' if unknown > 1 else ' has'} no outcome" if unknown else ""
    advice = advice_about("inspect failures") if 0 < sum(ended) < len(ended) else []
    return [f"{sum(ended)} of {len(ended)} succeeded{others}", *advice]
