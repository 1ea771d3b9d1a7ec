"""understudy methods"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rich.table import Table
from tyro.conf import Positional, arg

from .common import Out, parse


@dataclass(frozen=True)
class Methods:
    """The methods that can be trained by name; of one, its parts and everything that can be set."""

    name: Annotated[str | None, Positional, arg(metavar="[NAME]")] = None
    """a method's name; all of them if left out"""
    json: bool = False
    """one JSON document on standard output"""


def main(args: list[str]) -> None:
    o = parse(Methods, "methods", args)
    from ..recipes import describe, find

    with Out(o.json) as out:
        known = describe()
        if o.name is None:
            table = Table("method", "what it is", "paper", "needs", box=None, pad_edge=False)
            for m in known:
                table.add_row(m["name"], m["summary"], m["paper"], "; ".join(m["needs"]))
            out.say(table)
            out.next("understudy methods NAME", "understudy train NAME DATA --out RUN")
            out.answer(known)
            return
        method = find(o.name)
        chosen = [m for m in known if m["name"] == o.name.replace("_", "-")]
        for m in chosen:
            out.say(f"{m['name']}: {m['summary']}", f"Paper: {m['paper']}", f"Ledger: {', '.join(m['rows'])}",
                    f"Needs: {'; '.join(m['needs'])}", "")
            out.say(_settings(m["name"], method))
            out.next(f"understudy train {m['name']} DATA --out RUN", f"understudy train {m['name']} --help")
        out.answer(chosen)


def _settings(name, method) -> Table:
    from .method import options_of, settings

    table = Table("to set", "default", box=None, pad_edge=False)
    for key, value in options_of(name).items():
        table.add_row(f"--recipe.{key}", str(value))
    for key, value in settings(method):
        table.add_row(f"--{key}", str(value))
    return table
