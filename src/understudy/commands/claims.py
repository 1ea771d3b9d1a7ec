"""understudy claims"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from rich.table import Table
from tyro.conf import Positional, arg

from .common import Out, parse


@dataclass(frozen=True)
class Claims:
    """Published statements as small experiments that can fail.

    list: all of them, with their verdicts. run NAME: one, from where it was stopped. table: the page of all.
    """

    what: Annotated[Literal["list", "run", "table"], Positional, arg(metavar="list|run|table")]
    """what to do"""
    name: Annotated[str | None, Positional, arg(metavar="[NAME]")] = None
    """of the claim to run"""
    out: Annotated[Path, arg(metavar="FILE")] = Path("docs/ledger.md")
    """where `table` writes the page"""
    json: bool = False
    """one JSON document on standard output"""


def main(args: list[str]) -> None:
    o = parse(Claims, "claims", args)
    from ..core import UserError

    if (o.name is None) == (o.what == "run"):
        raise UserError("expected a claim's name after run, and none after list and table",
                        where=f"understudy claims {o.what}", do="understudy claims list names them")
    with Out(o.json) as out:
        {"list": _list, "run": _run, "table": _table}[o.what](o, out)


def _list(o: Claims, out: Out) -> None:
    from ..claims.records import listing

    entries = listing()
    table = Table("claim", "rows", "verdict here", "statement", box=None, pad_edge=False)
    for e in entries:
        table.add_row(e["name"], ", ".join(e["rows"]), e["verdict"] + (" (stale)" if e["stale"] else ""),
                      e["statement"])
    out.say(table)
    out.next("understudy claims run NAME", "understudy claims table")
    out.answer(entries)


def _run(o: Claims, out: Out) -> None:
    from ..claims.records import find
    from ..claims.run import run

    record = run(find(o.name), say=lambda text: print(text, file=sys.stderr))
    out.say(f"\n{record['name']}: {record['verdict']} here")
    out.next("understudy claims table")
    out.answer(record)


def _table(o: Claims, out: Out) -> None:
    from ..claims.records import table

    path = table(o.out)
    out.say(f"Written to {path}")
    out.answer({"page": str(path)})
