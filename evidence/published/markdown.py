"""The page docs/published.md."""

from collections import Counter
from pathlib import Path

from .cells import CELLS
from .figures import cells, load

KINDS = ("reproduced", "above", "below", "approached", "no published figure", "not run")
HEAD = ("| cell | task | published | here | seeds | updates here, there | CPU s a seed | status |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |")
TEXT = Path(__file__).with_name("page.md")


def page() -> str:
    """Returns the Markdown of the page, which is page.md with its tables."""
    rows = cells()
    counts = Counter(next(kind for kind in KINDS if row["status"].startswith(kind)) for row in rows)
    tables = {"counts": [f"Of {len(rows)} cells: " + ", ".join(f"{counts[kind]} {kind}" for kind in KINDS) + "."]}
    for row in rows:
        tables.setdefault(CELLS[row["cell"]].source, list(HEAD)).append(_line(row))
    text = TEXT.read_text(encoding="utf-8")
    for name, lines in tables.items():
        text = text.replace(f"<!-- {name} -->", "\n".join(lines))
    return text


def _line(row: dict) -> str:
    name, cell, here, updates = row["cell"], CELLS[row["cell"]], row["here"], row["updates"]
    seconds = [figure["seconds"] for figure in load(name) if figure["seconds"] is not None]
    texts = (f"`{name}`", cell.task, "" if cell.published is None else _number(cell.published),
             f"{_number(here['mean'])} [{_number(here['low'])}, {_number(here['high'])}]" if here else "",
             str(here["seeds"]) if here else "",
             ", ".join(f"{count:,}" for count in updates.values() if count) if updates else "",
             f"{sum(seconds) / len(seconds):,.0f}" if seconds else "", row["status"])
    return "| " + " | ".join(texts) + " |"


def _number(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.1f}" if abs(x) >= 5 else f"{x:.3g}"
