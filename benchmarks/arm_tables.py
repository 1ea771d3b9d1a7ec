"""Tables of arms, with letters for those that cannot be told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from understudy.evaluate.multiple_comparisons import compact_letter_display, holm
from understudy.evaluate.stats import LEVEL, Interval, Kind, difference_p, two_level_rate

Unit = Literal["", "%"]


def format_interval(interval: Interval, unit: Unit) -> str:
    """Formats an estimate and its limits, such as 91 % [85, 94] or 0.443 [0.379, 0.506]."""
    estimate, low, high = (_format_number(v, unit) for v in (interval.estimate, interval.low, interval.high))
    return f"{estimate}\N{NO-BREAK SPACE}{unit} [{low}, {high}]" if unit else f"{estimate} [{low}, {high}]"


def _format_number(value: float, unit: Unit) -> str:
    """Formats a number without its unit: whole percents, or three significant digits or more."""
    if unit:
        return f"{100 * value:z.0f}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:z.3f}" if abs(value) >= 0.1 or not value else f"{value:.3g}"


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
    p-values are adjusted by Holm's method.
    """
    cells = {name: _column_cells(column) for name, column in columns.items()}
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


def _told_apart(tables: Sequence[np.ndarray], kind: Kind) -> np.ndarray:
    """Whether two arms differ, (n, n)."""
    pairs = list(combinations(range(len(tables)), 2))
    p_values = [2 * min(difference_p(sign * (tables[i] - tables[j]), 0.0, kind) for sign in (1, -1)) for i, j in pairs]
    is_different = np.zeros((len(tables), len(tables)), bool)
    for (i, j), p in zip(pairs, holm(np.clip(p_values, 0, 1)), strict=True):
        is_different[i, j] = is_different[j, i] = p < 1 - LEVEL
    return is_different
