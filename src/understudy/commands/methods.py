"""understudy methods"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rich.table import Table
from tyro.conf import Positional, arg

from .common import Output, parse


@dataclass(frozen=True)
class MethodsOptions:
    """The methods that can be trained by name; of one, its parts and everything that can be set."""

    name: Annotated[str | None, Positional, arg(metavar="[NAME]")] = None
    """a method's name; all of them if left out"""
    json: bool = False
    """one JSON document on standard output"""


def main(args: list[str]) -> None:
    o = parse(MethodsOptions, "methods", args)
    from ..methods import describe_methods, find_method

    with Output(o.json) as out:
        known = describe_methods()
        if o.name is None:
            table = Table("method", "what it is", "paper", "needs", box=None, pad_edge=False)
            for m in known:
                table.add_row(m["name"], m["summary"], m["paper"], "; ".join(m["needs"]))
            out.print(table)
            out.suggest("understudy methods NAME", "understudy train NAME DATA --out RUN")
            out.print_json(known)
            return
        method = find_method(o.name)
        chosen = [m for m in known if m["name"] == o.name.replace("_", "-")]
        for m in chosen:
            out.print(f"{m['name']}: {m['summary']}", f"Paper: {m['paper']}", f"Ledger: {', '.join(m['rows'])}",
                    f"Needs: {'; '.join(m['needs'])}", "")
            out.print(_settings_table(m["name"], method))
            out.suggest(f"understudy train {m['name']} DATA --out RUN", f"understudy train {m['name']} --help")
        out.print_json(chosen)


def _settings_table(name, method) -> Table:
    from .method import method_options, method_settings

    table = Table("to set", "default", box=None, pad_edge=False)
    for key, value in method_options(name).items():
        table.add_row(f"--method.{key}", str(value))
    for key, value in method_settings(method):
        table.add_row(f"--{key}", str(value))
    return table
