"""The command understudy audit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ..core import UserError
from ..hints import pluralize
from .parts.common import Output, command_line, demonstrations_path, given_options, parse, progress_bar
from .parts.groups import ColumnsOption, HtmlFile, JsonOption, MapOption, command_options

if TYPE_CHECKING:
    from ..audit.purposes import Ranking

MAX_SHOWN = 3  # episodes of a purpose for which evidence is printed; --json has all


@command_options
class AuditOptions(MapOption, ColumnsOption, JsonOption):
    """Check a data set: contradictions in its files (errors), doubtful properties (warnings, notes), and a score of
    each episode.

    Exit status: 0 without an error, 3 with one, 2 if nothing could be opened. Nothing is changed.
    """

    data: Annotated[Path, Positional, arg(metavar="DATA")]
    """a file or folder of demonstrations"""
    html: HtmlFile = None
    """write a page of the audit, with the episodes to look at"""


def main(args: list[str]) -> None:
    o = parse(AuditOptions, "audit", args)
    from ..audit import audit
    from ..audit.checks import FRAME_CHECKS, INTEGRITY_CHECKS, QUALITY_CHECKS
    from ..audit.purposes import rank_episodes
    from ..data.opening.column_selection import parse_columns

    with Output(o.json) as out:
        path = demonstrations_path(o.data)
        with progress_bar("checks", len(INTEGRITY_CHECKS + QUALITY_CHECKS + FRAME_CHECKS)) as progress:
            report = audit(path, o.map, columns=parse_columns(o.columns), progress=lambda done, total: progress(done))
        for f in report.findings:
            out.print(f"{f.severity}  {f.code}" + (f"  ({f.where})" if str(f.where) else ""), f"  {f.message}",
                    *([f"  -> {f.remedy}"] if f.severity != "note" else []))
        rankings = rank_episodes(report, o.data, o.map is None and not o.columns)
        kinds = {s: sum(f.severity == s for f in report.findings) for s in ("error", "warning", "note")}
        out.print(*([""] if report.findings else []), ", ".join(pluralize(n, s) for s, n in kinds.items()))
        for ranking in rankings:
            out.print("", *_ranking_lines(ranking))
        if rankings and o.columns:
            out.print("", "To leave episodes out, give the columns the names of policies first: "
                      + command_line("convert", o.data, "DST", "--columns", *o.columns))
        if report.scores and not rankings:
            out.print("No episode is far from the others by any score.")
        if o.html is not None:
            from ..audit.report_page import write_audit_page

            write_audit_page(o.html, path, report, o.map, rankings=rankings, columns=parse_columns(o.columns))
            out.print(f"Written to {o.html}")
        if not report.ok:
            if _can_be_inspected(path, o):
                out.suggest(command_line("inspect", o.data, *given_options(o, "map", "columns")))
            else:
                out.print(f"It cannot be opened as it is. {command_line('repair', o.data, '--out', 'DST')} saves what "
                          "can be read, if anything can.")
        out.print_json({**report.to_json(), "purposes": [ranking.to_json() for ranking in rankings]})
    if not report.ok:
        raise SystemExit(3)


def _ranking_lines(ranking: Ranking) -> list[str]:
    """Returns lines on the episodes that are listed for a purpose, with evidence and the command to leave them out."""
    from ..data.formats.parts.column_names import format_list

    numbers = format_list(e.episode for e in ranking.episodes)
    lines = [f"{ranking.name}: {pluralize(len(ranking.episodes), 'episode')}: {numbers}", f"  {ranking.meaning}"]
    lines += [f"  episode {e.episode}: " + "; ".join(reason.text for reason in e.evidence)
              for e in ranking.episodes[:MAX_SHOWN]]
    return lines + ([f"  -> {ranking.command}"] if ranking.command else [])


def _can_be_inspected(path: Path, o: AuditOptions) -> bool:
    """Returns whether the data can be opened and all of their numbers read."""
    from ..data.formats import preview_dataset
    from ..data.opening.column_selection import open_columns, parse_columns

    try:
        for episode in open_columns(path, parse_columns(o.columns), open=preview_dataset, mapping=o.map):
            for name in (n for n, f in episode.features().items() if f.kind != "image"):
                episode.steps[name]  # read, and not kept
    except UserError:
        return False
    return True
