"""The tables of "Which learner for which data": for each question all arms of the claims about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from ..core import UserError
from ..evaluate.multiple_comparisons import compact_letter_display, holm
from ..evaluate.stats import LEVEL, Interval, Kind, difference_p, two_level_rate
from ..files import read_json, write_text
from .base import format_number, measure_of
from .ledger import find_row
from .records import all_claims, all_texts, figures_path, find_claim, record_path
from .text import LEARNER_DECISIONS

BEGIN, END = "<!-- made by understudy claims table -->\n", "<!-- end of the tables -->"


def write_guide(page: Path) -> None:
    """Replaces what is between `BEGIN` and `END` in a page by the tables."""
    before, begin, after = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = after.partition(END)
    if not begin or not end:
        raise UserError("the page has no place for the tables of claims", where=page,
                        hint=f"put the lines {BEGIN.strip()} and {END} there")
    write_text(page, before + begin + "\n" + "\n".join(guide_lines()) + "\n" + end + after)


def guide_lines() -> list[str]:
    """For each question the advice, the strongest result against it, and all arms."""
    texts = all_texts()
    names = [name for name in sorted(all_claims()) if figures_path(name).exists()]
    lines = []
    for decision in LEARNER_DECISIONS:
        if answered := [name for name in names if texts[name].decision == decision]:
            lines += [f"## {decision.capitalize()}", ""]
            for name in answered:
                record = read_json(record_path(name))
                page = f"ledger/{find_row(find_claim(name).rows[0], name).family}.md#{name}"
                lines += [f"[{name}]({page}) **{record['verdict']}**. {texts[name].advice} *Against it:* "
                          f"{texts[name].against}", "", *_arm_tables(name, record)]
    return lines


def _arm_tables(claim: str, record: dict) -> list[str]:
    figures, lines = read_json(figures_path(claim)), []
    for part in find_claim(claim).parts:
        judged = record["parts"].get(part.name)
        if part.is_decisive and judged:
            columns: dict[str, ArmColumn] = {}
            for condition in reversed(judged["conditions"]):
                name = condition["label"].partition(":")[0]
                values = {arm: np.array(table[name]) for arm, table in figures[part.name].items() if name in table}
                kind = measure_of(name, dict(part.experiment.measures)).kind
                columns[name] = ArmColumn(values, kind, condition["side"] == "below")
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
    p-values are adjusted by Holm's method.
    """
    cells = [_column_cells(column) for column in columns.values()]
    arms = dict.fromkeys(arm for column in cells for arm in column)
    return [f"| arm | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|",
            *(f"| {arm} | {' | '.join(column.get(arm, '') for column in cells)} |" for arm in arms)]


def _column_cells(column: ArmColumn) -> dict[str, str]:
    """The mean of each arm with its interval and letters, the best first."""
    intervals = {arm: two_level_rate(table, kind=column.kind) for arm, table in column.values.items()}
    arms = sorted(intervals, key=lambda arm: intervals[arm].estimate, reverse=not column.lowest_first)
    is_different = _told_apart([column.values[arm] for arm in arms], column.kind)
    return {arm: f"{_with_interval(intervals[arm], column.kind)} {letters}"
            for arm, letters in zip(arms, compact_letter_display(is_different), strict=True)}


def _told_apart(tables: Sequence[np.ndarray], kind: Kind) -> np.ndarray:
    """Whether two arms differ, (n, n)."""
    pairs = list(combinations(range(len(tables)), 2))
    p_values = [2 * min(difference_p(sign * (tables[i] - tables[j]), 0.0, kind) for sign in (1, -1)) for i, j in pairs]
    is_different = np.zeros((len(tables), len(tables)), bool)
    for (i, j), p in zip(pairs, holm(np.clip(p_values, 0, 1)), strict=True):
        is_different[i, j] = is_different[j, i] = p < 1 - LEVEL
    return is_different


def _with_interval(interval: Interval, kind: Kind) -> str:
    numbers = interval.estimate, interval.low, interval.high
    mean, low, high = (f"{100 * v:.0f}\N{NO-BREAK SPACE}%" if kind == "rate" else format_number(v) for v in numbers)
    return f"{mean} [{low}, {high}]"
