"""The stored figures of training seeds, and what they say about a published one (EVIDENCE.md, section 4)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from understudy.core import UserError
from understudy.evaluate.stats import Interval
from understudy.files import read_json

from .cells import CELLS, Cell

FIGURES, SEEDS = Path(__file__).parent / "figures", (0, 1, 2)
KEYS = ("seed", "value", "updates", "seconds", "versions", "commit")


def load(name: str, folder: Path = FIGURES) -> list[dict[str, Any]]:
    """Returns the stored figures of a cell, one for each training seed. Empty if there are none.

    Raises:
        UserError: A figure does not say how it was made, or two are of one seed.
    """
    path = folder / f"{name}.json"
    figures = read_json(path) if path.exists() else []
    for number, figure in enumerate(figures):
        missing = [key for key in KEYS if key not in figure]
        if missing or not re.fullmatch("[0-9a-f]{40}", str(figure["commit"])):
            raise UserError(f"the figure has no {', '.join(missing) or 'full name of a commit'}",
                            where=f"{path}, figure {number}",
                            hint=f"delete it, and make it again: python -m evidence run {name}")
    if len({figure["seed"] for figure in figures}) < len(figures):
        raise UserError("two figures are of one training seed", where=path, hint="delete one of them")
    return figures


def interval(values: Sequence[float]) -> Interval:
    """Returns the mean and its 95 % interval over training seeds, by Student's t."""
    mean, margin = float(np.mean(values)), np.inf
    if len(values) > 1:
        margin = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - margin, mean + margin, 0.95)


def status(cell: Cell, figures: Sequence[dict[str, Any]]) -> str:
    """Returns what the figures say about the published one.

    It is "reproduced", "above" or "below" after half of the published updates, at the published sizes, with three seeds
    and a half-width of at most 10 points, or 10 % of a score. Else it is "approached", with the fraction of updates.
    """
    if not figures:
        return f"not run: needs {cell.needs}" if cell.needs else "not run"
    if cell.published is None:
        return "no published figure"
    share, mean = _updates(figures) / cell.updates, interval([figure["value"] for figure in figures])
    widest = 10 if cell.unit == "%" else abs(cell.published) / 10
    if share < 0.5 or not cell.same_sizes or len(figures) < 3 or (mean.high - mean.low) / 2 > widest:
        return f"approached ({100 * min(share, 1):.3g} % of the updates)"
    if mean.low <= cell.published <= mean.high:
        return "reproduced"
    return "above" if mean.low > cell.published else "below"


def _updates(figures: Sequence[dict[str, Any]]) -> int:
    return min(figure["updates"] for figure in figures)


def cells(folder: Path = FIGURES) -> list[dict[str, Any]]:
    """Returns a row for each cell: what was published, what is found here, updates here and there, and the status."""
    rows = []
    for name, cell in CELLS.items():
        here, figures = None, load(name, folder)
        if figures:
            mean = interval([figure["value"] for figure in figures])
            here = {"mean": mean.estimate, "low": mean.low, "high": mean.high, "seeds": len(figures)}
        updates = {"here": _updates(figures), "published": cell.updates} if figures else None
        rows.append({"cell": name, "published": cell.published, "here": here, "updates": updates,
                     "status": status(cell, figures)})
    return rows
