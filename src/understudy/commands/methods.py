"""The command understudy methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from rich.table import Table
from tyro.conf import Positional, arg

from .common import Output, TrustedPackages, parse

if TYPE_CHECKING:
    from ..learn.method import Method


@dataclass(frozen=True)
class MethodsOptions:
    """List the methods that can be trained by name. With a name: the parts of the method and everything that can be
    set.
    """

    name: Annotated[str | None, Positional, arg(metavar="[NAME]")] = None
    """a method's name; all of them if left out"""
    trust: TrustedPackages = ()
    """a package whose code may be loaded"""
    json: bool = False
    """one JSON document on standard output"""


def main(args: list[str]) -> None:
    o = parse(MethodsOptions, "methods", args)
    from ..methods import describe_method, describe_methods

    with Output(o.json) as out:
        if o.name is None:
            from ..execute.schemes import EXECUTION_SCHEMES

            known = describe_methods()
            table = Table("method", "what it is", "paper", "needs", box=None, pad_edge=False)
            for m in known:
                table.add_row(m["name"], m["summary"], m["paper"], "; ".join(m["needs"]))
            out.print(table)
            schemes = Table("execution scheme", "what it does", "paper", "needs", box=None, pad_edge=False)
            for name, s in EXECUTION_SCHEMES.items():
                schemes.add_row(name, s.summary, s.paper, s.needs)
            out.print("", "Execution schemes for --executor of train, eval, compare and robustness:", schemes)
            out.suggest("understudy methods NAME", "understudy train NAME DATA --out RUN")
            out.print_json(known)
            return
        from ..methods import find_method

        method, described = find_method(o.name, trust=o.trust), describe_method(o.name)
        if described is not None:
            told = {"Paper": described["paper"], "Ledger": ", ".join(described["rows"]),
                    "Needs": "; ".join(described["needs"])}
            out.print(f"{described['name']}: {described['summary']}",
                      *(f"{name}: {text}" for name, text in told.items() if text), "")
        out.print(settings_table(o.name, method, o.trust))
        trusted = "".join(f" --trust {package}" for package in o.trust)
        out.suggest(f"understudy train {o.name} DATA --out RUN{trusted}", f"understudy train {o.name} --help{trusted}")
        out.print_json([] if described is None else [described])


def settings_table(name: str, method: Method, trust: tuple[str, ...] = ()) -> Table:
    """A table of the options of a method's function and of all fields of the method, with their defaults.

    Args:
        name: Name of the method.
        method: The method with its defaults.
        trust: Packages besides understudy whose code may be loaded.
    """
    from .method import method_options
    from .options import settable_fields

    table = Table("to set", "default", box=None, pad_edge=False)
    for key, value in method_options(name, trust).items():
        table.add_row(f"--method.{key}", str(value))
    for key, _, value in settable_fields(method):
        table.add_row(f"--{key}", " ".join(map(str, value)) if isinstance(value, tuple) else str(value))
    return table
