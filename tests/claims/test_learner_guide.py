"""The page "Which learner for which data"."""

import numpy as np
import pytest
from folders import REPOSITORY

from understudy.claims import learner_guide
from understudy.claims.arm_tables import ArmColumn, arm_table
from understudy.claims.learner_guide import BEGIN, END, FURTHER_QUESTIONS, GUIDES, claims_of_questions, write_guide
from understudy.core import UserError


def flags(*means, starts=200):
    """Successes of one arm, (seeds, starts): the first of the starts in each seed."""
    return np.array([[start < mean * starts for start in range(starts)] for mean in means], float)


def test_arms_share_a_letter_if_they_cannot_be_told_apart():
    columns = {"success": ArmColumn({"low": flags(0.1, 0.12, 0.11), "best": flags(0.9, 0.92, 0.91),
                                     "good": flags(0.91, 0.91, 0.9)}, "rate", "%"),
               "error": ArmColumn({"low": np.array([[3.0], [3.1], [3.2]]), "best": np.array([[1.0], [1.1], [1.2]])},
                                  "real", lowest_first=True)}
    head, _, *rows = arm_table(columns)
    assert head == "| arm | success | minus the best | error |"
    assert [row.split(" | ")[0] for row in rows] == ["| best", "| good", "| low"]
    cells = {row.split(" | ")[0][2:]: [cell.split()[-1] for cell in row.strip("| ").split(" | ")[1::2]] for row in rows}
    assert cells["best"] == ["a", "a"] and cells["low"] == ["b", "b"] and cells["good"][0] == "a"
    assert rows[0].startswith("| best | 91\N{NO-BREAK SPACE}% [78, 98] a |  | 1.100 [")
    assert rows[2].split(" | ")[2].startswith("-80.0\N{NO-BREAK SPACE}points [")


def test_each_claim_answers_one_question():
    answers = claims_of_questions()
    claims = [name for names in answers.values() for name in names]
    assert set(FURTHER_QUESTIONS) < set(answers) and len(claims) == len(set(claims)) and all(answers.values())
    assert answers["single wrong actions"] == ["replaced-actions"]
    assert "imagined-goals" in answers["goals named later"] and "encoder-ranks" in answers["an encoder of pictures"]


def test_a_statistic_over_arms_is_no_column():
    lines = learner_guide._claim_lines("encoder-ranks", "", True)
    assert lines[0].startswith("[encoder-ranks](ledger/") and lines[2].startswith("*Against it:*")
    assert not any("log variance over seeds" in line for line in lines if line.startswith("| arm"))


def test_only_the_tables_of_the_page_are_replaced(tmp_path, monkeypatch):
    page = tmp_path / "learners.md"
    page.write_text(f"before\n{BEGIN}old\n{END}\nafter\n")
    monkeypatch.setattr(learner_guide, "guide_lines", lambda decisions, top: [*decisions, top])
    for _ in range(2):
        write_guide(page, ["new"])
        assert page.read_text() == f"before\n{BEGIN}\nnew\n\n{END}\nafter\n"
    page.write_text("no place")
    with pytest.raises(UserError, match="no place for the tables"):
        write_guide(page, ["new"])


@pytest.mark.parametrize("page", GUIDES)
def test_the_pages_have_tables(page):
    assert "| arm | " in (REPOSITORY / "docs" / page).read_text(encoding="utf-8").partition(BEGIN)[2]
