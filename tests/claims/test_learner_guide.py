"""The page "Which learner for which data"."""

import numpy as np
import pytest
from folders import REPOSITORY

from understudy.claims import learner_guide
from understudy.claims.arm_tables import ArmColumn, arm_table
from understudy.claims.learner_guide import BEGIN, END, GUIDES, write_guide
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
    assert head == "| arm | success | error |"
    assert [row.split(" | ")[0] for row in rows] == ["| best", "| good", "| low"]
    cells = {row.split(" | ")[0][2:]: [cell.split()[-1] for cell in row.strip("| ").split(" | ")[1:]] for row in rows}
    assert cells["best"] == ["a", "a"] and cells["low"] == ["b", "b"] and cells["good"][0] == "a"
    assert rows[0].startswith("| best | 91\N{NO-BREAK SPACE}% [78, 98] a | 1.100 [")


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
