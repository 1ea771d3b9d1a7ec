"""Tables of the arms of a claim, with letters for those that cannot be told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..evaluate.multiple_comparisons import compact_letter_display, holm
from ..evaluate.stats import LEVEL, Interval, Kind, difference_p, two_level_difference, two_level_rate
from ..files import read_json
from .base import format_number, measure_of
from .records import figures_path, find_claim


def arm_tables(claim: str, record: dict) -> list[str]:
    """A table of all arms for each part of a claim that decides."""
    figures, lines = read_json(figures_path(claim)), []
    for part in find_claim(claim).parts:
        judged = record["parts"].get(part.name)
        if part.is_decisive and judged:
            columns: dict[str, ArmColumn] = {}
            for condition in reversed(judged["conditions"]):
                name = condition["label"].partition(":")[0]
                values = {arm: np.array(table[name]) for arm, table in figures[part.name].items() if name in table}
                if not values:  # a statistic over arms
                    continue
                kind = measure_of(name, dict(part.experiment.measures)).kind
                columns[name] = ArmColumn(values, kind, condition["side"] == "below")
            if not columns:
                continue
            lines += [f"*{part.name.rpartition(':')[2]}*, {judged['seeds']} training seeds:", "",
                      *arm_table(dict(reversed(columns.items()))), ""]
    return lines


@dataclass(frozen=True)
class ArmColumn:
    """A measure of several arms.

    Args:
        values: Values of each arm, (training seeds, starts).
        lowest_first: Whether small values are better.
    """

    values: Mapping[str, np.ndarray]
    kind: Kind
    lowest_first: bool = False


def arm_table(columns: Mapping[str, ArmColumn]) -> list[str]:
    """A Markdown table of arms, the best by the first measure first.

    Arms that share a letter cannot be told apart. Pairs are compared on the same training seeds and starts, and their
    p-values are adjusted by Holm's method. The first measure also has the difference of each arm to the best one, with
    its own interval, which is not adjusted.
    """
    (name, first), *_ = columns.items()
    cells = {name: _column_cells(first), _difference_header(first): _differences(first),
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
    return {arm: f"{_with_interval(two_level_rate(column.values[arm], kind=column.kind), column.kind)} {letters}"
            for arm, letters in zip(arms, compact_letter_display(is_different), strict=True)}


def _difference_header(column: ArmColumn) -> str:
    return "minus the best (points)" if column.kind == "rate" else "minus the best"


def _differences(column: ArmColumn) -> dict[str, str]:
    """The paired difference of each arm to the best, in points for rates. The best has none."""
    best, *others = _best_first(column)
    differences = {arm: two_level_difference(column.values[arm], column.values[best], kind=column.kind)[0]
                   for arm in others}
    return {arm: _with_interval(difference, column.kind, is_difference=True) for arm, difference in differences.items()}


def _told_apart(tables: Sequence[np.ndarray], kind: Kind) -> np.ndarray:
    """Whether two arms differ, (n, n)."""
    pairs = list(combinations(range(len(tables)), 2))
    p_values = [2 * min(difference_p(sign * (tables[i] - tables[j]), 0.0, kind) for sign in (1, -1)) for i, j in pairs]
    is_different = np.zeros((len(tables), len(tables)), bool)
    for (i, j), p in zip(pairs, holm(np.clip(p_values, 0, 1)), strict=True):
        is_different[i, j] = is_different[j, i] = p < 1 - LEVEL
    return is_different


def _with_interval(interval: Interval, kind: Kind, is_difference: bool = False) -> str:
    numbers = interval.estimate, interval.low, interval.high
    if kind == "rate":
        texts = [f"{100 * v:+.0f}" if is_difference else f"{100 * v:.0f}\N{NO-BREAK SPACE}%" for v in numbers]
    elif max(map(abs, numbers)) >= 100:
        texts = [f"{v:,.0f}" for v in numbers]
    else:
        texts = [format_number(v) for v in numbers]
    mean, low, high = (text.replace("-", "\N{MINUS SIGN}") for text in texts) if is_difference else texts
    return f"{mean} [{low}, {high}]"
