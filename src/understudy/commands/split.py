"""understudy split"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from .common import Output, command_line, demonstrations_path, parse
from .merge import check_absent, print_findings

_DEFAULT_NAMES = {2: ("train", "test"), 3: ("train", "validation", "test")}


@dataclass(frozen=True)
class SplitOptions:
    """Parts that have no episode in common, each a view in one folder. What is in two parts all the same is reported.

    --by episode draws episodes. By anything else (task, operator, scene, any fact of episodes, a column that is the
    same throughout each), every value is a part of its own, or, with --fractions, stays whole in one of them.
    """

    data: Annotated[Path, Positional, arg(metavar="DATA")]
    """a file or folder of demonstrations, or a view"""
    by: Annotated[str, arg(metavar="FIELD")]
    """episode, or what the episodes of a part have in common"""
    out: Annotated[Path, arg(metavar="DIR")]
    """a new folder for the views"""
    fractions: Annotated[tuple[float, ...] | None, arg(metavar="F F ...")] = None
    """how much of the episodes each part gets; they sum to 1. 0.8 0.2 by episode, unless given"""
    names: Annotated[tuple[str, ...] | None, arg(metavar="NAME NAME ...")] = None
    """of the parts; train and test, or train, validation and test, otherwise"""
    seed: int = 0
    """which episodes or values are drawn"""
    json: bool = False
    """one JSON document on standard output"""


def main(args: list[str]) -> None:
    o = parse(SplitOptions, "split", args)
    from ..audit.base import AuditReport
    from ..audit.leakage import find_leakage
    from ..data import views
    from ..data.formats import open_dataset
    from ..data.operations import Select
    from ..data.operations import episode_values as of
    from ..files import whole_folder

    if o.by == "episode" and o.fractions is None:
        o = replace(o, fractions=(0.8, 0.2))
    _check_options(o)
    check_absent(o.out)
    with Output(o.json) as out:
        data = open_dataset(demonstrations_path(o.data))
        found = list(range(len(data))) if o.by == "episode" else of(data, o.by)
        parts = _random_parts(o, found) if o.fractions else _part_per_value(o, found)
        with whole_folder(o.out) as part:
            for name, (numbers, values) in parts.items():
                made = {"command": "split", "by": o.by, "part": name, "seed": o.seed,
                        "fractions": o.fractions and list(o.fractions)}
                views.write_view(part / f"{name}.json", o.data, Select(tuple(numbers)), location=o.out / f"{name}.json",
                            created_with={**made, **({} if o.by == "episode" else {"values": values})})
        for name, (numbers, values) in parts.items():
            listed = ", ".join(map(str, values[:5])) + ", ..." * (len(values) > 5)
            what = "" if o.by == "episode" else f", {o.by}: {listed}"
            out.print(f"{o.out / name}.json: {len(numbers)} episode{'s' * (len(numbers) != 1)}{what}")
        findings = find_leakage({f"{o.out / name}.json": data.select(n) for name, (n, _) in parts.items()})
        print_findings(out, findings)
        if not findings:
            out.print("no episode of one part is in another, and none is nearly the same")
        first = o.out / f"{next(iter(parts))}.json"
        out.suggest(command_line("inspect", first), command_line("view", "list", o.out))
        out.print_json({"parts": {name: {"view": f"{o.out / name}.json", "episodes": numbers, "values": values}
                              for name, (numbers, values) in parts.items()},
                    "findings": AuditReport(tuple(findings)).to_json()["findings"]})


def _check_options(o: SplitOptions) -> None:
    from ..core import UserError

    if o.fractions is None:
        if o.names is not None:
            raise UserError(
                "parts are named by their values", where="--names", hint="leave it out, or give --fractions"
            )
        return
    if not o.fractions or not min(o.fractions) > 0 or not abs(sum(o.fractions) - 1) <= 1e-6:
        raise UserError(f"expected shares above 0 that sum to 1, found {' '.join(map(str, o.fractions))}",
                        where="--fractions", hint="such as --fractions 0.8 0.2")
    if o.names is not None and (len(set(o.names)) != len(o.fractions) or any(_slug(n) != n for n in o.names)):
        raise UserError(f"expected {len(o.fractions)} different names of letters, digits and -, found "
                        f"{' '.join(o.names)}", where="--names", hint="such as --names train test")


def _random_parts(o: SplitOptions, found: list) -> dict[str, tuple[list[int], list]]:
    """Values in an order of the seed; each goes whole where most is missing."""
    from ..core import UserError
    from ..data.operations import permutation

    names = o.names or _DEFAULT_NAMES.get(len(o.fractions)) or [f"part-{i + 1}" for i in range(len(o.fractions))]
    groups = _group_by_value(found)
    if len(groups) < len(names):
        raise UserError(f"expected at least {len(names)} values of {o.by}, one for each part, found {len(groups)}",
                        where=o.data, hint="ask for fewer parts, or split by something else")
    order = [list(groups)[i] for i in permutation(len(groups), o.seed)]
    taken: list[list] = [[] for _ in names]
    missing = [f * len(found) for f in o.fractions]
    for n, value in enumerate(order):
        empty = [p for p, t in enumerate(taken) if not t]
        p = max(empty if len(order) - n <= len(empty) else range(len(names)), key=lambda p: missing[p])
        taken[p].append(value)
        missing[p] -= len(groups[value])
    return {name: (sorted(i for v in those for i in groups[v]), sorted(those, key=str))
            for name, those in zip(names, taken, strict=True)}


def _part_per_value(o: SplitOptions, found: list) -> dict[str, tuple[list[int], list]]:
    from ..core import UserError

    groups, parts = _group_by_value(found), {}
    if len(groups) < 2:
        raise UserError(f"expected at least two values of {o.by}, found {next(iter(groups), 'none')!r} throughout",
                        where=o.data, hint="split by something else, or by episode with --fractions 0.8 0.2")
    for value, numbers in sorted(groups.items(), key=lambda g: g[1]):
        name = base = _slug("+".join(map(str, value)) if isinstance(value, tuple) else
                            "unknown" if value is None else str(value)) or "part"
        while name.lower() in map(str.lower, parts):  # some systems know no difference between a and A
            name = f"{base}-{sum(n.startswith(base) for n in parts) + 1}"
        parts[name] = numbers, [value]
    return parts


def _group_by_value(found: list) -> dict:
    groups = defaultdict(list)
    for i, value in enumerate(found):
        groups[tuple(value) if isinstance(value, list) else value].append(i)
    return dict(groups)


def _slug(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.")[:60]
