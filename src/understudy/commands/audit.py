"""understudy audit"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from .common import Mapped, Out, bar, demonstrations, line, parse


@dataclass(frozen=True)
class Audit:
    """Is a data set whole, and is it good: what contradicts itself in it (errors), what deserves a second look
    (warnings, notes), and a score of each episode.

    Exit status: 0 without an error, 3 with one, 2 where nothing could be opened. Nothing is changed.
    """

    data: Annotated[Path, Positional, arg(metavar="DATA")]
    """a file or folder of demonstrations"""
    json: bool = False
    """one JSON document on standard output"""
    map: Mapped = None
    """which topics of a bag become which columns, in place of what is proposed"""
    html: Annotated[Path | None, arg(metavar="FILE")] = None
    """a page of it, with the best and the worst episodes"""


def main(args: list[str]) -> None:
    o = parse(Audit, "audit", args)
    from ..audit import audit
    from ..audit.checks import FRAMES, QUALITY, WHOLE
    from ..audit.words import count

    with Out(o.json) as out:
        path = demonstrations(o.data)
        with bar("checks", len(WHOLE + QUALITY + FRAMES)) as progress:
            report = audit(path, o.map, progress=lambda done, total: progress(done))
        for f in report.findings:
            out.say(f"{f.severity}  {f.code}" + (f"  ({f.where})" if str(f.where) else ""), f"  {f.message}",
                    *([f"  -> {f.remedy}"] if f.severity != "note" else []))
        kinds = {s: sum(f.severity == s for f in report.findings) for s in ("error", "warning", "note")}
        out.say(*([""] if report.findings else []), ", ".join(count(n, s) for s, n in kinds.items()))
        if o.html is not None:
            from ..audit.page import write

            write(o.html, path, report, o.map)
            out.say(f"Written to {o.html}")
        if not report.ok:
            out.next(line("inspect", path))
        out.answer(report.document())
    if not report.ok:
        raise SystemExit(3)
