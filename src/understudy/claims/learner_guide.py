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

# Questions beside those of `LEARNER_DECISIONS`, and the folders of claims whose remaining claims are about them.
FURTHER_QUESTIONS = {
    "single wrong actions": "mixed_quality", "few demonstrations, and the policy drifts": "corrective_data",
    "an encoder of states, from walks": "features_of_states", "an encoder of pictures": "features_of_pictures",
    "an observation with more than decides": "representation", "what a history must learn": "histories"}
GUIDES = {"learners.md": (*LEARNER_DECISIONS, *FURTHER_QUESTIONS),  # page in docs/: the questions that it answers
          **{f"improvement/{question.replace(',', '').replace(' ', '-')}.md": (question,)
             for question in IMPROVEMENT_DECISIONS}}
BEGIN, END = "<!-- made by understudy claims table -->\n", "<!-- end of the tables -->"

LEGEND = ("A number is a mean with its 95 % interval over training seeds and starts. Arms that share a letter cannot "
          "be told apart, by Holm's method for all pairs.")


def write_guides(docs: Path) -> None:
    """Writes the tables into the pages of `GUIDES` that are in a folder."""
    for name, questions in GUIDES.items():
        if (docs / name).exists():
            write_guide(docs / name, questions, "../" * name.count("/"))


def write_guide(page: Path, questions: Sequence[str], top: str = "") -> None:
    """Replaces what is between `BEGIN` and `END` in a page by the tables.

    Args:
        top: Path from the folder of the page to that of the ledger.
    """
    before, begin, after = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = after.partition(END)
    if not begin or not end:
        raise UserError("the page has no place for the tables of claims", where=page,
                        hint=f"put the lines {BEGIN.strip()} and {END} there")
    write_text(page, before + begin + "\n" + "\n".join(guide_lines(questions, top)) + "\n" + end + after)


def guide_lines(questions: Sequence[str], top: str = "") -> list[str]:
    """For each question the advice, the strongest result against it, and all arms, which fold if there are several."""
    answers, several = claims_of_questions(), len(questions) > 1
    lines = [] if several else [LEGEND, ""]
    for question in questions:
        lines += [f"## {question.capitalize()}", ""] if several else []
        lines += [line for name in answers[question] for line in _claim_lines(name, top, several)]
    return lines


def claims_of_questions() -> dict[str, list[str]]:
    """The claims with figures that answer each question, each claim once."""
    texts = all_texts()
    names = [name for name in sorted(all_claims()) if figures_path(name).exists()]
    decisions = LEARNER_DECISIONS + IMPROVEMENT_DECISIONS
    answers = {decision: [name for name in names if texts[name].decision == decision]
               for decision in decisions}
    is_shown = {name for answered in answers.values() for name in answered}
    answers |= {question: [name for name in names if name not in is_shown and _folder(name) == folder]
                for question, folder in FURTHER_QUESTIONS.items()}
    return answers


def _folder(claim: str) -> str:
    return record_path(claim).parent.parent.name


def _claim_lines(name: str, top: str, is_folded: bool) -> list[str]:
    text, claim, record = all_texts()[name], find_claim(name), read_json(record_path(name))
    page = f"{top}ledger/{find_row(claim.rows[0], name).family}.md#{name}"
    fold = ["<details markdown>", "<summary>All arms</summary>", ""], ["</details>", ""]
    before, after = fold if is_folded else ([], [])
    return [f"[{name}]({page}) **{record['verdict']}**. {text.advice}", "", f"*Against it:* {text.against}", "",
            *before, *arm_tables(claim, record), *after]
