"""The tables of pages that answer questions: for each, all arms of the claims about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core import UserError
from ..files import read_json, write_text
from .arm_tables import arm_tables
from .ledger import find_row
from .records import all_claims, all_texts, figures_path, find_claim, record_path
from .text import IMPROVEMENT_DECISIONS, LEARNER_DECISIONS

GUIDES = {"learners.md": LEARNER_DECISIONS,  # page in docs/: what it helps to decide
          **{f"improvement/{decision.replace(',', '').replace(' ', '-')}.md": (decision,)
             for decision in IMPROVEMENT_DECISIONS}}
BEGIN, END = "<!-- made by understudy claims table -->\n", "<!-- end of the tables -->"


def write_guides(docs: Path) -> None:
    """Writes the tables into the pages of `GUIDES` that are in a folder."""
    for name, decisions in GUIDES.items():
        if (docs / name).exists():
            write_guide(docs / name, decisions, "../" * name.count("/"))


def write_guide(page: Path, decisions: Sequence[str], top: str = "") -> None:
    """Replaces what is between `BEGIN` and `END` in a page by the tables.

    Args:
        top: Path from the folder of the page to that of the ledger.
    """
    before, begin, after = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = after.partition(END)
    if not begin or not end:
        raise UserError("the page has no place for the tables of claims", where=page,
                        hint=f"put the lines {BEGIN.strip()} and {END} there")
    write_text(page, before + begin + "\n" + "\n".join(guide_lines(decisions, top)) + "\n" + end + after)


def guide_lines(decisions: Sequence[str], top: str = "") -> list[str]:
    """For each question the advice, the strongest result against it, and all arms."""
    texts = all_texts()
    names = [name for name in sorted(all_claims()) if figures_path(name).exists()]
    lines = []
    for decision in decisions:
        if answered := [name for name in names if texts[name].decision == decision]:
            lines += [f"## {decision.capitalize()}", ""] if len(decisions) > 1 else []
            for name in answered:
                claim, record = find_claim(name), read_json(record_path(name))
                page = f"{top}ledger/{find_row(claim.rows[0], name).family}.md#{name}"
                lines += [f"[{name}]({page}) **{record['verdict']}**. {texts[name].advice} *Against it:* "
                          f"{texts[name].against}", "", *arm_tables(claim, record)]
    return lines
