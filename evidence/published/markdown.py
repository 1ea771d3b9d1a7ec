"""The page docs/published.md."""

from collections import Counter
from pathlib import Path

from .cells import CELLS, SOURCES
from .figures import cells, load

KINDS = ("reproduced", "above", "below", "approached", "no published figure", "not run")
TEXT = Path(__file__).with_name("page.md")


def page() -> str:
    """Returns the Markdown of the page."""
    rows = cells()
    counts = Counter(next(kind for kind in KINDS if row["status"].startswith(kind)) for row in rows)
    introduction, notes = TEXT.read_text(encoding="utf-8").split("<!-- tables -->\n\n")
    lines = ["# Published numbers", "",
             f"Of {len(rows)} cells: " + ", ".join(f"{counts[kind]} {kind}" for kind in KINDS) + ".", "", introduction]
    for source, words in SOURCES.items():
        lines += [f"## {source}", "", words[0].upper() + words[1:] + ".", "",
                  "| cell | task | published | here | seeds | updates here, there | CPU s a seed | status |",
                  "| --- | --- | --- | --- | --- | --- | --- | --- |"]
        lines += [_line(row) for row in rows if CELLS[row["cell"]].source == source] + [""]
    return "\n".join([*lines, notes])


def _line(row: dict) -> str:
    name, cell, here, updates = row["cell"], CELLS[row["cell"]], row["here"], row["updates"]
    seconds = [figure["seconds"] for figure in load(name) if figure["seconds"] is not None]
    texts = (f"`{name}`", cell.task, "" if cell.published is None else _number(cell.published),
             f"{_number(here['mean'])} [{_number(here['low'])}, {_number(here['high'])}]" if here else "",
             str(here["seeds"]) if here else "", f"{updates['here']:,}, {updates['published']:,}" if updates else "",
             f"{sum(seconds) / len(seconds):,.0f}" if seconds else "", row["status"])
    return "| " + " | ".join(texts) + " |"


def _number(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.1f}" if abs(x) >= 5 else f"{x:.3g}"
