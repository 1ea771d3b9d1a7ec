"""The command understudy merge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ..core import UserError
from ..files import check_absent
from .parts.common import Output, command_line, demonstrations_path, parse
from .parts.groups import IgnoredCodes, JsonOption, command_options

if TYPE_CHECKING:
    from ..audit.base import Finding


@command_options
class MergeOptions(JsonOption):
    """Merge several data sets into one: a view of them, which copies nothing.

    First their columns, units, rates, normalization and the meaning of their actions are compared. Each disagreement is
    reported.
    """

    data: Annotated[tuple[Path, ...], Positional, arg(metavar="A B ...")]
    """files or folders of demonstrations, or views; at least two"""
    out: Annotated[Path, arg(metavar="VIEW")]
    """where to write the view; nothing may be there"""
    ignore: IgnoredCodes = ()
    """merge although an error with this code was found; columns that cannot be merged are left out"""


def main(args: list[str]) -> None:
    o = parse(MergeOptions, "merge", args)
    from ..audit import check_usable
    from ..audit.base import AuditReport
    from ..audit.compatibility import check_exact, find_disagreements, unmergeable_columns
    from ..audit.leakage import find_leakage
    from ..data.formats import open_dataset
    from ..data.opening import views
    from ..data.operations import Merge as Operation

    if len(o.data) < 2:
        raise UserError(f"needs at least two data sets, but has {len(o.data)}", where="understudy merge",
                        hint="understudy merge A B --out VIEW")
    check_absent(o.out)
    with Output(o.json) as out:
        sets = {}
        for path in o.data:
            name = str(path) if str(path) not in sets else f"{path} (again)"
            sets[name] = open_dataset(demonstrations_path(path))
            if not len(sets[name]):
                raise UserError("has no episodes", where=path, hint="leave it out")
            check_usable(sets[name], path, o.ignore)
        findings = [*find_disagreements(sets), *find_leakage(sets)]
        print_findings(out, findings)
        errors = list(dict.fromkeys(f.code for f in findings if f.severity == "error" and f.code not in o.ignore))
        if errors:
            raise UserError(f"they cannot become one as they are: {', '.join(errors)}", where="understudy merge",
                            hint=_correction_hint(o, findings) + "fix it in a view of each (understudy view make), or "
                            "accept it: " + " ".join(f"--ignore {c}" for c in errors))
        dropped_columns = unmergeable_columns(sets)
        if "action" in dropped_columns:
            raise UserError("the actions differ too much to be merged",
                            where="understudy merge", hint="merge data of one robot")
        check_exact(sets, dropped_columns)
        view = views.write_view(o.out, o.data, Operation(dropped_columns), created_with={
            "command": "merge", "ignore": list(o.ignore), "findings": [f"{f.code}: {f.message}" for f in findings]})
        out.print(f"{view.episodes} episodes, {view.steps} steps. Written to {o.out}",
                *([f"left out: {', '.join(dropped_columns)}"] if dropped_columns else []))
        out.suggest(command_line("inspect", o.out), command_line("view", "show", o.out))
        out.print_json({"view": str(o.out), "episodes": view.episodes, "steps": view.steps,
                        "left_out": list(dropped_columns),
                        "findings": AuditReport(tuple(findings)).to_json()["findings"]})


def _correction_hint(o: MergeOptions, findings: Sequence[Finding]) -> str:
    """Returns the commands that correct the data, and that merge the corrected data. Empty if there is nothing."""
    options: dict[str, list[str]] = {}
    for f in findings:
        if f.correction and f.where.file in map(str, o.data):
            options.setdefault(str(f.where.file), []).extend(f.correction)
    if not options:
        return ""
    views = {path: o.out.with_name(f"{Path(path).stem}_corrected.json") for path in options}
    commands = [command_line("view", "make", path, *words, "--out", views[path]) for path, words in options.items()]
    merge = command_line("merge", *(views.get(str(path), path) for path in o.data), "--out", o.out)
    return f"correct it: {' && '.join([*commands, merge])}; otherwise "


def print_findings(out: Output, findings) -> None:
    """Prints findings with their remedies."""
    for f in findings:
        out.print(f"{f.severity}: {f.code}: {f.message}\n  -> {f.remedy}")
