"""understudy view"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.table import Table
from tyro.conf import Positional, UseAppendAction, arg

from .common import Despite, Out, demonstrations, line, parse
from .convert import Format
from .merge import absent

if TYPE_CHECKING:
    from ..core import UserError
    from ..data.operations import Operation

Texts = UseAppendAction[tuple[str, ...]]


@dataclass(frozen=True)
class View:
    """Views: small JSON files that say which data, and what is done to them. The data stay as they are.

    make DATA --out VIEW: a new one; what is asked for is done in the order below. list [DIR]: those in a folder.
    show VIEW: what it was made from, and how. materialise VIEW --out DST: as data of their own.
    """

    what: Annotated[Literal["make", "list", "show", "materialise"], Positional,
                    arg(metavar="make|list|show|materialise")]
    """what to do"""
    path: Annotated[Path | None, Positional, arg(metavar="[DATA|DIR|VIEW]")] = None
    """the data, the folder (here, otherwise) or the view"""
    out: Annotated[Path | None, arg(metavar="VIEW|DST")] = None
    """where to write; nothing may be there"""
    where: Annotated[Texts, arg(metavar="CONDITION")] = ()
    """keep episodes by a field: success=true, operator=Ada,Grace, operator!=Ada, length>=50, length<=400; all that are
    given must hold"""
    delete: Annotated[tuple[int, ...], arg(metavar="N N ...")] = ()
    """leave out these episodes, by their numbers in what is left so far"""
    pick: Annotated[tuple[int, ...], arg(metavar="N N ...")] = ()
    """only these episodes, in this order"""
    sample: Annotated[int | None, arg(metavar="N")] = None
    """as many episodes, drawn"""
    seed: int = 0
    """of the draw"""
    order: Annotated[str | None, arg(metavar="FIELD")] = None
    """sort by a field, the smallest first"""
    descending: bool = False
    """the largest first"""
    crop: Annotated[str | None, arg(metavar="A:B")] = None
    """steps A up to B of every episode, as Python counts: 5: leaves out the first five, :-5 the last"""
    fps: Annotated[float | None, arg(metavar="N")] = None
    """steps a second"""
    rule: Literal["last", "nearest", "linear"] = "last"
    """what a step shows at another rate: the last row by then, the nearest, or between the two about it"""
    rename: Annotated[Texts, arg(metavar="OLD=NEW")] = ()
    """a column"""
    drop: Annotated[Texts, arg(metavar="COLUMN")] = ()
    """leave out a column"""
    label: Annotated[Texts, arg(metavar="FIELD=VALUE")] = ()
    """say this of every episode: "task=put it there", success=false, operator=Ada"""
    to: Format | None = None
    """materialise: the format to write; by the suffix of FILE unless given, and LeRobot where it has none"""
    strict: bool = False
    """materialise: refuse, if the format cannot hold everything by itself"""
    despite: Despite = ()
    """materialise: although an audit finds this kind of error"""
    json: bool = False
    """one JSON document on standard output"""


def main(args: list[str]) -> None:
    o = parse(View, "view", args)
    if o.what != "list" and o.path is None:
        raise _usage("a path, found none", o)
    if (o.out is not None) != (o.what in ("make", "materialise")):
        raise _usage("--out FILE with make and materialise, and only there", o)
    with Out(o.json) as out:
        {"make": _make, "list": _list, "show": _show, "materialise": _materialise}[o.what](o, out)


def _usage(what: str, o: View) -> UserError:
    from ..core import UserError

    return UserError(f"expected {what}", where=f"understudy view {o.what}",
                     do="understudy view --help says what each takes")


def _make(o: View, out: Out) -> None:
    from ..audit.merge import convention
    from ..data import views
    from ..data.episode import Dataset

    absent(o.out)
    data = Dataset.open(demonstrations(o.path))
    what = []
    for operation in _operations(o):
        if callable(operation):  # a condition, whose value is read as what the data hold
            operation = operation(data)
        what.append(operation)
        data = operation.apply(data)
    if o.fps is not None and convention(data) == "delta":
        out.say("warning: the actions look like differences per step, and another rate means another speed")
    view = views.write(o.out, o.path, *what, made={"command": "view make"})
    out.say(f"{view.episodes} episodes, {view.steps} steps. Written to {o.out}")
    out.next(line("inspect", o.out), line("view", "show", o.out))
    out.answer(views.lineage(o.out))


def _operations(o: View) -> list[Operation]:
    from functools import partial

    from ..data import operations as op

    found: list = [partial(_condition, text) for text in o.where]
    found += [op.Delete(o.delete)] if o.delete else []
    found += [op.Pick(o.pick)] if o.pick else []
    found += [op.Sample(o.sample, o.seed)] if o.sample is not None else []
    found += [op.Order(o.order, o.descending)] if o.order else []
    found += [op.Crop(*_range(o.crop))] if o.crop is not None else []
    found += [op.Resample(o.fps, o.rule)] if o.fps is not None else []
    found += [op.Rename(*_halves("--rename", text)) for text in o.rename]
    found += [op.Drop(o.drop)] if o.drop else []
    return found + [op.Label(name, _said(text) if name != "task" else text)
                    for name, text in (_halves("--label", text) for text in o.label)]


def _condition(text: str, data) -> Operation:
    from ..core import UserError
    from ..data.operations import Filter, values

    for sign in ("!=", ">=", "<=", "="):
        name, found, value = text.partition(sign)
        if found and name and value:
            if sign in (">=", "<="):
                number = _said(value)
                if isinstance(number, (int, float)) and not isinstance(number, bool):
                    return Filter(name, **{"at_least" if sign == ">=" else "at_most": number})
                break
            texts = any(isinstance(w, str) for v in values(data, name) for w in (v if isinstance(v, list) else [v]))
            return Filter(name, tuple(v if texts else _said(v) for v in value.split(",")), unless=sign == "!=")
    raise UserError(f"expected a field, =, !=, >= or <=, and a value, found {text!r}", where="--where",
                    do="such as --where success=true --where 'length>=50'")


def _halves(option: str, text: str) -> tuple[str, str]:
    from ..core import UserError

    first, found, second = text.partition("=")
    if not (found and first and second):
        raise UserError(f"expected two names with = between them, found {text!r}", where=option,
                        do=f"such as {option} {'task=put it there' if option == '--label' else 'OLD=NEW'!r}")
    return first, second


def _range(text: str) -> tuple[int, int | None]:
    from ..core import UserError

    if not (found := re.fullmatch(r"(-?\d*):(-?\d*)", text)) or "-" in found.groups():
        raise UserError(f"expected A:B, found {text!r}", where="--crop", do="such as --crop 5:-5 or --crop=:-5")
    return int(found[1] or 0), int(found[2]) if found[2] else None


def _said(text: str):
    """A number, true or false, or else text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (bool, int, float)) and math.isfinite(value) else text


def _list(o: View, out: Out) -> None:
    from ..core import UserError
    from ..data import views

    folder = o.path or Path()
    if not folder.is_dir():
        raise UserError("expected a folder, found none", where=folder, do="understudy view show FILE shows one view")
    found = []
    for path in views.listing(folder):
        try:
            view = views.read(path)
            states = [views.state(view, p) for p in view.parents]
            worst = next((s for s in ("missing", "changed") if s in states), "as it was")
            found.append({"path": str(path), "episodes": view.episodes, "steps": view.steps, "state": worst,
                          "parents": [str(view.place(p)) for p in view.parents]})
        except UserError as error:
            found.append({"path": str(path), "episodes": None, "steps": None, "state": f"damaged: {error.what}",
                          "parents": []})
    table = Table("view", "episodes", "steps", "of", "which is", box=None, pad_edge=False)
    for v in found:
        table.add_row(v["path"], *("" if v[k] is None else str(v[k]) for k in ("episodes", "steps")),
                      ", ".join(v["parents"]), v["state"])
    out.say(table if found else f"no views in {folder}")
    out.answer(found)


def _show(o: View, out: Out) -> None:
    from ..data import views

    found = views.lineage(o.path)
    out.say(*_tree(found))
    for key, value in found["made"].items():
        said = json.dumps(value, ensure_ascii=False)
        out.say(f"{key}: {value if isinstance(value, str) else said if len(said) < 200 else f'{len(value)} of them'}")
    out.answer(found)


def _tree(node, indent: str = "") -> list[str]:
    state = "" if node["state"] == "as it was" else f", {node['state'].upper()}"
    lines = [f"{indent}{node['path']}: {node['episodes']} episodes, {node['steps']} steps{state}"]
    lines += [f"{indent}  {i}. {o}" for i, o in enumerate(node.get("operations", ()), 1)]
    for parent in node.get("parents", ()):
        lines += _tree(parent, indent + "  of " if not indent else "     " + indent)
    return lines


def _materialise(o: View, out: Out) -> None:
    from ..data import views
    from ..data.formats import formats_of
    from .convert import main as convert

    views.read(o.path)  # what is no view says so
    absent(o.out)
    to = o.to or formats_of(o.out)[0]
    convert([str(o.path), str(o.out), *(["--to", o.to] if o.to else []), *(["--strict"] if o.strict else []),
             *(part for code in o.despite for part in ("--despite", code))])
    out.answer({"path": str(o.out), "format": to, **views.lineage(o.path)})
