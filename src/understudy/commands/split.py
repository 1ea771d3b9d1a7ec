"""The command understudy split."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..core import UserError
from ..files import check_absent, whole_folder
from .merge import print_findings
from .parts.common import Output, command_line, demonstrations_path, parse
from .parts.groups import JsonOption, Seed, command_options

_DEFAULT_NAMES = {2: ("train", "test"), 3: ("train", "validation", "test")}


@command_options
class SplitOptions(JsonOption):
    """Split a data set into parts without a common episode. Each part is a view in one new folder.

    --by episode draws episodes at random. --by FIELD (task, operator, scene, any metadata of episodes, or a column
    that is constant within each episode) makes one part for each value. With --fractions, all episodes of a value go
    to the same part. Episodes that are the same or nearly the same in two parts are reported.
    """

    data: Annotated[Path, Positional, arg(metavar="DATA")]
    """a file or folder of demonstrations, or a view"""
    by: Annotated[str, arg(metavar="FIELD")]
    """episode, or the field that all episodes of a part share"""
    out: Annotated[Path, arg(metavar="DIR")]
    """a new folder for the views"""
    fractions: Annotated[tuple[float, ...] | None, arg(metavar="F F ...")] = None
    """fraction of the episodes for each part; they sum to 1. The default is 0.8 0.2 with --by episode"""
    names: Annotated[tuple[str, ...] | None, arg(metavar="NAME NAME ...")] = None
    """names of the parts; by default train and test, or train, validation and test"""
    seed: Seed = 0
    """seed of the random assignment"""


def main(args: list[str]) -> None:
    o = parse(SplitOptions, "split", args)
    from ..audit.base import AuditReport
    from ..audit.leakage import find_leakage
    from ..data.formats import open_dataset
    from ..data.opening import views
    from ..data.operations import Select
    from ..data.operations import episode_values as of

    if o.by == "episode" and o.fractions is None:
        o = replace(o, fractions=(0.8, 0.2))
    _check_options(o)
    check_absent(o.out)
    with Output(o.json) as out:
        data = open_dataset(demonstrations_path(o.data))
        split_values = list(range(len(data))) if o.by == "episode" else of(data, o.by)
        parts = _random_parts(o, split_values) if o.fractions else _part_per_value(o, split_values)
        with whole_folder(o.out) as part:
            for name, (numbers, values) in parts.items():
                provenance = {"command": "split", "by": o.by, "part": name, "seed": o.seed,
                              "fractions": o.fractions and list(o.fractions)}
                views.write_view(part / f"{name}.json", o.data, Select(tuple(numbers)), location=o.out / f"{name}.json",
                                 created_with={**provenance, **({} if o.by == "episode" else {"values": values})})
        for name, (numbers, values) in parts.items():
            listed = ", ".join(map(str, values[:5])) + ", ..." * (len(values) > 5)
            what = "" if o.by == "episode" else f", {o.by}: {listed}"
            out.print(f"{o.out / name}.json: {len(numbers)} episode{'s' * (len(numbers) != 1)}{what}")
        findings = find_leakage({f"{o.out / name}.json": data.select(n) for name, (n, _) in parts.items()})
        print_findings(out, findings)
        if not findings:
            out.print("No episode is in two parts, and no two parts have nearly the same episode.")
        first = o.out / f"{next(iter(parts))}.json"
        out.suggest(command_line("inspect", first), command_line("view", "list", o.out))
        out.print_json({"parts": {name: {"view": f"{o.out / name}.json", "episodes": numbers, "values": values}
                                  for name, (numbers, values) in parts.items()},
                        "findings": AuditReport(tuple(findings)).to_json()["findings"]})


def _check_options(o: SplitOptions) -> None:
    if o.fractions is None:
        if o.names is not None:
            raise UserError(
                "without --fractions each part is named after its value", where="--names",
                hint="leave --names out, or pass --fractions"
            )
        return
    if not o.fractions or not min(o.fractions) > 0 or not abs(sum(o.fractions) - 1) <= 1e-6:
        raise UserError(f"the fractions {' '.join(map(str, o.fractions))} must be above 0 and sum to 1",
                        where="--fractions", hint="such as --fractions 0.8 0.2")
    if o.names is not None and (len(set(o.names)) != len(o.fractions) or any(_slug(n) != n for n in o.names)):
        raise UserError(f"{' '.join(o.names)} are not {len(o.fractions)} different names of letters, "
                        "digits and -", where="--names", hint="such as --names train test")


def _random_parts(o: SplitOptions, values: list) -> dict[str, tuple[list[int], list]]:
    """Assigns values of the field to parts, as close to the fractions as possible. The seed decides among ties."""
    from ..data.operations import assign_groups, permutation

    assert o.fractions is not None
    names = o.names or _DEFAULT_NAMES.get(len(o.fractions)) or [f"part-{i + 1}" for i in range(len(o.fractions))]
    groups = _group_by_value(values)
    if len(groups) < len(names):
        raise UserError(f"{len(names)} parts need at least {len(names)} values of {o.by}, and there are "
                        f"{len(groups)}", where=o.data, hint="ask for fewer parts, or split by another field")
    order = [list(groups)[i] for i in permutation(len(groups), o.seed)]
    values_of_parts: list[list] = [[] for _ in names]
    for value, p in zip(order, assign_groups([len(groups[v]) for v in order], o.fractions), strict=True):
        values_of_parts[p].append(value)
    return {name: (sorted(i for v in part_values for i in groups[v]), sorted(part_values, key=_numbers_first))
            for name, part_values in zip(names, values_of_parts, strict=True)}


def _numbers_first(value) -> tuple:
    """Returns a sorting key that puts numbers by size first, and then texts."""
    return (0, value, "") if isinstance(value, int | float) else (1, 0, str(value))


def _part_per_value(o: SplitOptions, values: list) -> dict[str, tuple[list[int], list]]:
    groups, parts = _group_by_value(values), {}
    if len(groups) < 2:
        raise UserError(f"all episodes have the same {o.by}, {next(iter(groups), None)!r}", where=o.data,
                        hint="split by another field, or by episode with --fractions 0.8 0.2")
    for value, numbers in sorted(groups.items(), key=lambda g: g[1]):
        name = base = _slug("+".join(map(str, value)) if isinstance(value, tuple) else
                            "unknown" if value is None else str(value)) or "part"
        numbered = (f"{base}-{i}" for i in count(2))
        while name.lower() in map(str.lower, parts):  # some systems know no difference between a and A
            name = next(numbered)
        parts[name] = numbers, [value]
    return parts


def _group_by_value(values: list) -> dict:
    groups = defaultdict(list)
    for i, value in enumerate(values):
        groups[tuple(value) if isinstance(value, list) else value].append(i)
    return dict(groups)


def _slug(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.")[:60]
