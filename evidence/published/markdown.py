"""The page docs/published.md."""

from collections import Counter
from pathlib import Path

from .cells import CELLS
from .figures import cells, load

KINDS = ("reproduced", "above", "below", "approached", "no published figure", "not run")
HEAD = ("| cell | published | here | updates here, there | CPU s | status |", "|---|--:|--:|--:|--:|---|")
TEXT = Path(__file__).with_name("page.md")


def page() -> str:
    """Returns the Markdown of the page, which is page.md with its tables."""
    rows = cells()
    counts = Counter(next(kind for kind in KINDS if row["status"].startswith(kind)) for row in rows)
    waiting = [row for row in rows if row["status"].startswith("not run")]
    tables = {"counts": [f"Of {len(rows)} cells: " + ", ".join(f"{counts[kind]} {kind}" for kind in KINDS) + "."],
              "cells": [*HEAD, *(_line(row) for row in rows if row not in waiting)], "not run": _not_run(waiting)}
    text = TEXT.read_text(encoding="utf-8")
    for name, lines in tables.items():
        text = text.replace(f"<!-- {name} -->", "\n".join(lines))
    return text


def _not_run(rows: list[dict]) -> list[str]:
    """Cells without a figure, by what they wait for: a line each."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        published = CELLS[row["cell"]].published
        text = f"`{row['cell']}`" + ("" if published is None else f" ({_number(published)})")
        by_reason.setdefault(row["status"], []).append(text)
    return [f"- {_wants(reason)}: {', '.join(texts)}." for reason, texts in by_reason.items()]


def _wants(status: str) -> str:
    """What a cell that has not run wants, from its status."""
    wants = status.removeprefix("not run: ")
    return "Can be run" if wants == status else f"{wants[0].upper()}{wants[1:]}"


def _line(row: dict) -> str:
    name, cell, here, updates = row["cell"], CELLS[row["cell"]], row["here"], row["updates"]
    seconds = [figure["seconds"] for figure in load(name) if figure["seconds"] is not None]
    texts = (f"`{name}`", "" if cell.published is None else _number(cell.published),
             f"{_number(here['mean'])} [{_number(here['low'])}, {_number(here['high'])}]" if here else "",
             ", ".join(f"{count:,}" for count in updates.values() if count) if updates else "",
             f"{sum(seconds) / len(seconds):,.0f}" if seconds else "", row["status"].split(" (")[0])
    return "| " + " | ".join(texts) + " |"


def _number(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.1f}" if abs(x) >= 5 else f"{x:.3g}"
