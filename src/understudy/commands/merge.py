"""understudy merge"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from .common import Despite, Out, demonstrations, line, parse


@dataclass(frozen=True)
class Merge:
    """Several data sets as one: a view of them, which copies nothing.

    They are compared first, columns, units, rate, normalisation, what actions mean; each disagreement is named.
    """

    data: Annotated[tuple[Path, ...], Positional, arg(metavar="A B ...")]
    """files or folders of demonstrations, or views; at least two"""
    out: Annotated[Path, arg(metavar="VIEW")]
    """where to write the view; nothing may be there"""
    despite: Despite = ()
    """merge although this kind of error was found; what then cannot be merged is left out"""
    json: bool = False
    """one JSON document on standard output"""


def main(args: list[str]) -> None:
    o = parse(Merge, "merge", args)
    from ..audit import guard
    from ..audit.base import Report
    from ..audit.leaks import leaks
    from ..audit.merge import disagreements, lost
    from ..core import UserError
    from ..data import views
    from ..data.episode import Dataset
    from ..data.operations import Merge as Operation

    if len(o.data) < 2:
        raise UserError(f"expected at least two data sets, found {len(o.data)}", where="understudy merge",
                        do="understudy merge A B --out VIEW")
    absent(o.out)
    with Out(o.json) as out:
        sets = {}
        for path in o.data:
            name = str(path) if str(path) not in sets else f"{path} (again)"
            sets[name] = Dataset.open(demonstrations(path))
            if not len(sets[name]):
                raise UserError("expected at least one episode, found none", where=path, do="leave it out")
            guard(sets[name], path, o.despite)
        findings = [*disagreements(sets), *leaks(sets)]
        say(out, findings)
        errors = list(dict.fromkeys(f.code for f in findings if f.severity == "error" and f.code not in o.despite))
        if errors:
            raise UserError(f"they cannot become one as they are: {', '.join(errors)}", where="understudy merge",
                            do="mend it in a view of each (understudy view make), or accept it: "
                            + " ".join(f"--despite {c}" for c in errors))
        gone = lost(sets)
        if "action" in gone:
            raise UserError("expected actions that are alike, found none that could be merged",
                            where="understudy merge", do="merge data of one robot")
        view = views.write(o.out, o.data, Operation(gone), made={
            "command": "merge", "despite": list(o.despite), "findings": [f"{f.code}: {f.message}" for f in findings]})
        out.say(f"{view.episodes} episodes, {view.steps} steps. Written to {o.out}",
                *([f"left out: {', '.join(gone)}"] if gone else []))
        out.next(line("inspect", o.out), line("view", "show", o.out))
        out.answer({"view": str(o.out), "episodes": view.episodes, "steps": view.steps, "left_out": list(gone),
                    "findings": Report(tuple(findings)).document()["findings"]})


def say(out: Out, findings) -> None:
    for f in findings:
        out.say(f"{f.severity}: {f.code}: {f.message}\n  -> {f.remedy}")


def absent(path: Path) -> None:
    """Before the work, not after it."""
    from ..core import UserError

    if path.exists():
        raise UserError("expected nothing here, found a file or folder", where=path,
                        do="choose another place, or remove it first")
