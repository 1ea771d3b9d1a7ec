"""Tables of the arms of a claim, with letters for those that cannot be told apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..evaluate.multiple_comparisons import compact_letter_display, holm
from ..evaluate.stats import LEVEL, Kind, difference_p, two_level_difference, two_level_rate
from ..files import read_json
from .base import Claim, ClaimPart, Measurements, Unit, format_interval, measure_of
from .records import figures_path


def arm_tables(claim: Claim, record: dict) -> list[str]:
    """A table of all arms for each part of a claim that decides."""
    figures, lines = read_json(figures_path(claim.name)), []
    for part in claim.parts:
        judged = record["parts"].get(part.name)
        if part.is_decisive and judged:
            lines += [f"*{_world_title(part)}*, {judged['seeds']} training seeds:", "",
                      *arm_table(_columns(claim, part, judged["conditions"], figures[part.name])), ""]
    return lines


def _world_title(part: ClaimPart) -> str:
    """The world of a part in words, such as judged tasks for claims.judged.rated_episodes:JudgedTasks."""
    name = part.name.rpartition(":")[2]
    return name if "-" in name else re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", name).lower()  # Pendulum-v1 is an id


def _columns(claim: Claim, part: ClaimPart, conditions: Sequence[dict], figures: Measurements
             ) -> dict[str, ArmColumn]:
    """The measures that the rules of a part are about. All measures, if its rules are about none of a single arm."""
    sides = {c["label"].partition(":")[0]: c["side"] for c in reversed(conditions)}
    measured = dict.fromkeys(name for table in figures.values() for name in table)
    return {name: ArmColumn({arm: np.array(table[name]) for arm, table in figures.items() if name in table},
                            measure_of(name, dict(part.experiment.measures)).kind, "%" if claim.is_rate(name) else "",
                            sides.get(name) == "below")
            for name in [n for n in reversed(sides) if n in measured] or measured}


@dataclass(frozen=True)
class ArmColumn:
    """A measure of several arms.

    Args:
        values: Values of each arm, (training seeds, starts).
        lowest_first: Whether small values are better.
    """

    values: Mapping[str, np.ndarray]
    kind: Kind
    unit: Unit = ""
    lowest_first: bool = False


def arm_table(columns: Mapping[str, ArmColumn]) -> list[str]:
    """A Markdown table of arms, the best by the first measure first.

    Arms that share a letter cannot be told apart. Pairs are compared on the same training seeds and starts, and their
    p-values are adjusted by Holm's method. The first measure also has the difference of each arm to the best one, with
    its own interval, which is not adjusted.
    """
    (name, first), *_ = columns.items()
    cells = {name: _column_cells(first), "minus the best": _differences(first),
             **{other: _column_cells(column) for other, column in columns.items() if other != name}}
    arms = dict.fromkeys(arm for column in cells.values() for arm in column)
    return [f"| arm | {' | '.join(cells)} |", f"|---{'|---' * len(cells)}|",
            *(f"| {arm} | {' | '.join(column.get(arm, '') for column in cells.values())} |" for arm in arms)]


def _best_first(column: ArmColumn) -> list[str]:
    return sorted(column.values, key=lambda arm: column.values[arm].mean(), reverse=not column.lowest_first)


def _column_cells(column: ArmColumn) -> dict[str, str]:
    """The mean of each arm with its interval and letters, the best first."""
    arms = _best_first(column)
    is_different = _told_apart([column.values[arm] for arm in arms], column.kind)
    return {arm: f"{format_interval(two_level_rate(column.values[arm], kind=column.kind), column.unit)} {letters}"
            for arm, letters in zip(arms, compact_letter_display(is_different), strict=True)}


def _differences(column: ArmColumn) -> dict[str, str]:
    """The paired difference of each arm to the best, which has none."""
    best, *others = _best_first(column)
    differences = {arm: two_level_difference(column.values[arm], column.values[best], kind=column.kind)[0]
                   for arm in others}
    unit: Unit = "points" if column.unit else ""
    return {arm: format_interval(difference, unit) for arm, difference in differences.items()}


def _told_apart(tables: Sequence[np.ndarray], kind: Kind) -> np.ndarray:
    """Whether two arms differ, (n, n)."""
    pairs = list(combinations(range(len(tables)), 2))
    p_values = [2 * min(difference_p(sign * (tables[i] - tables[j]), 0.0, kind) for sign in (1, -1)) for i, j in pairs]
    is_different = np.zeros((len(tables), len(tables)), bool)
    for (i, j), p in zip(pairs, holm(np.clip(p_values, 0, 1)), strict=True):
        is_different[i, j] = is_different[j, i] = p < 1 - LEVEL
    return is_different
