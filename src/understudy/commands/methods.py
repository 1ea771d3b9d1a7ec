"""The command understudy methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Group
from tyro.conf import Positional, arg

from ..advice import advice_about
from ..methods import describe_method, describe_methods, find_method, method_families
from .parts.common import Output, command_line, parse, plain_table
from .parts.groups import JsonOption, TrustOption, command_options
from .parts.help_page import OptionTable
from .parts.options import flag_of, settable_fields

if TYPE_CHECKING:
    from ..learn.method import Method


@command_options
class MethodsOptions(TrustOption, JsonOption):
    """List the methods that can be trained by name, with what each needs and costs, and when to choose it. With the
    name of a family, such as offline-rl: its methods. With the name of a method: its parts and everything that can be
    set.
    """

    name: Annotated[str | None, Positional, arg(metavar="[NAME]")] = None
    """a method's name, or a family's; all methods if left out"""


def main(args: list[str]) -> None:
    o = parse(MethodsOptions, "methods", args)
    with Output(o.json) as out:
        if o.name is None:
            _print_methods(describe_methods(), out)
            _print_schemes(out)
        elif (family := o.name.replace("-", "_")) in method_families():
            _print_methods([m for m in describe_methods() if m["family"] == family], out)
        else:
            _print_method(o.name, o.trust, out)
            return
        out.suggest("understudy methods NAME", "understudy train NAME DATA --out RUN")


def _print_methods(descriptions: Sequence[Mapping[str, Any]], out: Output) -> None:
    """Prints a table of each family."""
    families = method_families()
    for family in dict.fromkeys(m["family"] for m in descriptions):
        rows = []
        for m in [m for m in descriptions if m["family"] == family]:
            needs = "; ".join(m["needs"])
            sentences = [m["summary"], m["when"] and f"Choose it {m['when']}", needs and f"Needs {needs}."]
            _, *costs = cost_texts(m["cost"]) or ("", "", "")
            rows.append((m["name"], "\n".join(filter(None, sentences)), *costs))
        header = (family.replace("_", "-"), "what it is, when to choose it, and what it needs", "training", "plan")
        out.print(families.get(family, family), plain_table(header, rows), "")
    out.print(f"training, plan: {COST_NOTE}")
    out.print_json(descriptions)


def _print_schemes(out: Output) -> None:
    from ..execute.schemes import EXECUTION_SCHEMES

    schemes = plain_table(("execution scheme", "what it does", "paper", "needs"), (
        (name, s.summary, s.paper, s.needs) for name, s in EXECUTION_SCHEMES.items()))
    out.print("", "Execution schemes for --executor of train, eval, compare and robustness:", schemes)


def _print_method(name: str, trust: tuple[str, ...], out: Output) -> None:
    from .parts.method import method_options, method_options_to_json

    method, described = find_method(name, trust=trust), describe_method(name)
    if described is not None:
        details = {"Paper": described["paper"],
                   "Rows of the table of systems": ", ".join(described["rows"]), "Needs": "; ".join(described["needs"])}
        if costs := cost_texts(described["cost"]):
            details["Costs"] = "{} weights, {} of training and {} for a plan: {}".format(*costs, COST_NOTE)
        out.print(f"{described['name']}: {described['summary']}", f"Choose it {described['when']}",
                  *(f"{title}: {text}" for title, text in details.items() if text),
                  *advice_about(f"methods {name}"), "")
    out.print(settings_table(name, method, trust))
    trusted = [part for package in trust for part in ("--trust", package)]
    out.suggest(command_line("train", name, "DATA", "--out", "RUN", *trusted),
                command_line("train", name, "--help", *trusted))
    fields = {path: value for path, _, value in settable_fields(method)}
    options = method_options_to_json({**fields, **method_options(name, trust)})
    out.print_json([] if described is None else [{**described, "options": options}])


COST_NOTE = "CPU time on one core, on 20 observed numbers or on what the method needs (images of 64 x 64 pixels)"


def cost_texts(cost: Mapping[str, float] | None) -> tuple[str, str, str] | None:
    """Returns the number of weights, the time of a training and the time of a plan, as text.

    Args:
        cost: The costs of a method: see `method_costs`. None if they are not known.
    """
    if cost is None:
        return None
    weights, seconds, plan = cost["weights"], cost["train_seconds"], cost["plan_ms"]
    size = f"{weights / 1e6:.2g} M" if weights >= 1e6 else f"{weights / 1e3:.0f} k"
    took = (f"{seconds / 3600:.2g} h" if seconds >= 3600 else f"{seconds / 60:.2g} min" if seconds >= 60 else
            f"{seconds:.2g} s")
    return size, took, f"{plan:.2g} ms" if plan < 100 else f"{plan:.0f} ms"


def settings_table(name: str, method: Method, trust: tuple[str, ...] = ()) -> Group:
    """Builds tables of the options of a method's function and of all fields of the method, with defaults."""
    from .parts.method import method_option_texts, method_options

    # --steps is an option of train
    options = {flag_of(key): value for key, value in method_options(name, trust).items() if key != "steps"}
    fields = {flag_of(path): value for path, _, value in settable_fields(method) if path != "learner.steps"}
    texts = {flag_of(key): text for key, text in method_option_texts(name, method, trust).items()}
    own = {**options, **{flag: value for flag, value in fields.items() if flag in texts and flag not in options}}
    tables = [OptionTable([("to set", "default", "meaning"), *(
        (flag, _value_text(value), texts.get(flag, "")) for flag, value in own.items())]), ""] if own else []
    return Group(*tables, OptionTable([("to set", "default"), *(
        (flag, _value_text(value)) for flag, value in fields.items() if flag not in own)]))


def _value_text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
