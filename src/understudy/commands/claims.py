"""understudy claims"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from rich.table import Table
from tyro.conf import Positional, arg

from .common import Out, Processes, parse

UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "": 1}
LEDGER = Path("docs/ledger.md")


@dataclass(frozen=True)
class Claims:
    """Published statements as small experiments that can fail.

    list: all of them, with their verdicts. run NAME: one, from where it was stopped. run --all: what has no record, or
    whose code or data have changed since; the cheapest by its last record first. check [NAME ...]: compare a short
    probe of each claim with the stored one; status 3 if a claim is due for a run because its numbers differ. table:
    the page of the whole ledger, claimed or not.
    """

    what: Annotated[Literal["list", "run", "check", "table"], Positional, arg(metavar="list|run|check|table")]
    """what to do"""
    name: Annotated[tuple[str, ...], Positional, arg(metavar="[NAME ...]")] = ()
    """of the claim to run, or of the claims to check; without, all are checked"""
    all: bool = False
    """run all that are due; status 3 if one failed, or did not fit into the budget"""
    budget: Annotated[str | None, arg(metavar="TIME")] = None
    """with --all: start nothing that would not fit, and stop then (90s, 30m, 2h)"""
    workers: Processes = 1
    """with --all: how many at once, or `ray` for a cluster"""
    family: Annotated[str | None, arg(metavar="FAMILY")] = None
    """only claims of this family of the ledger (list, run --all)"""
    verdict: Annotated[Literal["holds", "fails", "undecided", "not run"] | None, arg(metavar="VERDICT")] = None
    """only claims with this verdict: holds, fails, undecided, "not run" (list)"""
    unchanged: bool = False
    """with check: do not probe claims whose source code has not changed since their record; changed packages are then
    not seen"""
    stale: bool = False
    """only those whose code or data have changed since their record (list)"""
    out: Annotated[Path, arg(metavar="FILE")] = LEDGER
    """where `table` writes the page; pictures go to images/claims beside it"""
    html: Annotated[Path | None, arg(metavar="FILE")] = None
    """with table: a page to search and filter, in one file, in place of that"""
    json: bool = False
    """one JSON document on standard output"""


def main(args: list[str]) -> None:
    o = parse(Claims, "claims", args)
    from ..core import UserError

    if o.what == "run" and bool(o.name) == o.all:
        raise UserError("expected a claim's name or --all" + (", found both" if o.all else ", found neither"),
                        where="understudy claims run", do="understudy claims list names them")
    if o.what == "run" and len(o.name) > 1:
        raise UserError("understudy claims run takes one name", where=" ".join(o.name),
                        do="run them one after the other, or all that are due with --all")
    if o.what in ("list", "table") and o.name:
        raise UserError("expected a claim's name after run, and none after list and table",
                        where=f"understudy claims {o.what}", do="understudy claims list names them")
    wrong = {"--all": (o.all, "run"), "--budget": (o.budget is not None, "run"), "--workers": (o.workers != 1, "run"),
             "--unchanged": (o.unchanged, "check"), "--verdict": (o.verdict is not None, "list"),
             "--stale": (o.stale, "list"), "--html": (o.html is not None, "table"),
             "--out": (o.out != LEDGER, "table")}
    for option, (given, where) in wrong.items():
        if given and (o.what != where or where == "run" and not o.all):
            raise UserError(f"expected {option} with {where}{' --all' * (where == 'run' and option != '--all')} only",
                            where=f"understudy claims {o.what}", do=f"leave {option} out")
    with Out(o.json) as out:
        {"list": _list, "run": _run_all if o.all else _run, "check": _check, "table": _table}[o.what](o, out)


def _chosen(o: Claims) -> list[dict]:
    from ..claims.listed import listing

    return [e for e in listing() if _in_family(o.family, e) and (o.verdict is None or e["verdict"] == o.verdict)
            and (not o.stale or e["stale"])]


def _in_family(family: str | None, entry: dict) -> bool:
    if family is None:
        return True
    import difflib

    from ..claims.ledger import row, rows
    from ..core import UserError

    families = sorted({r.family for r in rows().values()})
    if family not in families:
        near = difflib.get_close_matches(family, families, 1)
        raise UserError(f"expected a family of the ledger, found {family!r}", where="--family",
                        do=(f"did you mean {near[0]}? " if near else "") + f"There are {', '.join(families)}")
    return family in {row(number, entry["name"]).family for number in entry["rows"]}


def _list(o: Claims, out: Out) -> None:
    entries = _chosen(o)
    table = Table("claim", "rows", "verdict here", "statement", box=None, pad_edge=False)
    for e in entries:
        table.add_row(e["name"], ", ".join(e["rows"]), e["verdict"] + (" (stale)" if e["stale"] else ""),
                      e["statement"])
    out.say(table if entries else "no claim is like that")
    out.next("understudy claims run NAME", "understudy claims run --all --budget 2h", "understudy claims table")
    out.answer(entries)


def _run(o: Claims, out: Out) -> None:
    from ..claims.records import find
    from ..claims.run import run

    record = run(find(o.name[0]), say=lambda text: print(text, file=sys.stderr))
    out.say(f"\n{record['name']}: {record['verdict']} here")
    out.next("understudy claims table")
    out.answer(record)


def _run_all(o: Claims, out: Out) -> None:
    from ..claims.due import due, missing, run_all
    from ..claims.records import find

    entries = due(_chosen(o))
    found = run_all([{**e, "missing": missing(find(e["name"]))} for e in entries], seconds(o.budget), o.workers,
                    say=lambda text: print(text, file=sys.stderr))
    if not entries:
        out.say("every claim has a record of the code as it is")
    for name, verdict in found.here.items():
        out.say(f"{name}: {verdict} here")
    for name, why in found.absent.items():
        out.say(f"{name}: not here, needs {why}")
    for name, why in found.failed.items():
        out.say(f"{name}: failed: {why}")
    for name, why in found.left.items():
        out.say(f"{name}: left: {why}")
    out.next("understudy claims table", *([] if found.whole else ["understudy claims run --all"]))
    out.answer({"ran": found.here, "not_here": found.absent, "failed": found.failed, "left": found.left})
    if not found.whole:
        raise SystemExit(3)


def _check(o: Claims, out: Out) -> None:
    from ..claims.probe import confirm
    from ..claims.records import all_claims, find

    answer = []
    for claim in [find(name) for name in o.name] or list(all_claims().values()):
        found = confirm(claim, trust_source=o.unchanged)
        answer.append({"name": claim.name, "status": found.status, "detail": found.detail,
                       "differences": list(found.differences), "seconds": round(found.seconds, 2)})
        text = f"{found.status}: {found.detail}" if found.detail else found.status
        out.say(f"{claim.name}: {text} ({found.seconds:.1f} s)")
    due = [entry["name"] for entry in answer if entry["status"] == "due"]
    out.next(*(f"understudy claims run {name}" for name in due))
    out.answer(answer)
    if due:
        raise SystemExit(3)


def seconds(budget: str | None) -> float | None:
    """Of "90s", "30m", "2h", "1.5h" or "1h30m". Raises UserError for anything else."""
    if budget is None:
        return None
    from ..core import UserError

    parts = re.findall(r"(\d+(?:\.\d+)?)(min|[smhd]?)", budget)
    if not parts or "".join(a + b for a, b in parts) != budget or any(not unit for _, unit in parts[:-1]):
        raise UserError(f"expected a time such as 90s, 30m or 2h, found {budget!r}", where="--budget",
                        do="such as --budget 2h")
    return sum(float(number) * UNITS[unit] for number, unit in parts)


def _table(o: Claims, out: Out) -> None:
    from ..claims.ledger import html, table

    path = table(o.out) if o.html is None else html(o.html)
    out.say(f"Written to {path}")
    out.answer({"page": str(path)})
