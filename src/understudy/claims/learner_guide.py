"""The tables of "Which learner for which data": for each question all arms of the claims about it."""

from __future__ import annotations

from pathlib import Path

from ..core import UserError
from ..files import read_json, write_text
from .arm_tables import arm_tables
from .ledger import find_row
from .records import all_claims, all_texts, figures_path, find_claim, record_path
from .text import LEARNER_DECISIONS

# Questions beside those of `LEARNER_DECISIONS`, and the folders of claims whose remaining claims are about them.
FURTHER_QUESTIONS = {
    "single wrong actions": "mixed_quality", "few demonstrations, and the policy drifts": "corrective_data",
    "an encoder of states, from walks": "features_of_states", "an encoder of pictures": "features_of_pictures",
    "an observation with more than decides": "representation", "what a history must learn": "histories"}
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
    lines = []
    for question, names in claims_of_questions().items():
        lines += [f"## {question.capitalize()}", "", *(line for name in names for line in _claim_lines(name))]
    return lines


def claims_of_questions() -> dict[str, list[str]]:
    """The claims with figures that answer each question, each claim once."""
    texts = all_texts()
    names = [name for name in sorted(all_claims()) if figures_path(name).exists()]
    answers = {decision: [name for name in names if texts[name].decision == decision] for decision in LEARNER_DECISIONS}
    is_shown = {name for answered in answers.values() for name in answered}
    answers |= {question: [name for name in names if name not in is_shown and _folder(name) == folder]
                for question, folder in FURTHER_QUESTIONS.items()}
    return {question: answered for question, answered in answers.items() if answered}


def _folder(claim: str) -> str:
    return record_path(claim).parent.parent.name


def _claim_lines(name: str) -> list[str]:
    text, record = all_texts()[name], read_json(record_path(name))
    page = f"ledger/{find_row(find_claim(name).rows[0], name).family}.md#{name}"
    return [f"[{name}]({page}) **{record['verdict']}**. {text.advice}", "", f"*Against it:* {text.against}", "",
            "<details markdown>", "<summary>All arms</summary>", "", *arm_tables(name, record), "</details>", ""]
