"""The pages about evidence are what the tables say, and what names a page finds it."""

import re

import pytest
from folders import REPOSITORY

from evidence.pages import pages
from evidence.systems import STATUSES, systems
from evidence.tables import Comparison, Measure


def test_the_committed_pages_are_what_the_tables_say():
    written = pages()
    stale = [path.name for path, text in written.items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"write them again: python -m evidence pages ({', '.join(stale)})"
    names = {path.name for path in written}
    assert {path.name for path in (REPOSITORY / "docs/evidence").glob("*.md")} <= names, "pages of no family"


def test_a_picture_has_its_interval_on_the_side_of_its_sign():
    """A difference of 0.5 with an interval from 0 to 1, where the edge is at 1.1 times 1: 0 is at 50 %."""
    from evidence.pages import picture
    text = picture(Comparison("a", "b", "success", 0.5, 0.0, 1.0, "open"), Measure(0.11), 1.0)
    assert [int(v) for v in re.findall(r"--\w+:(\d+)", text)] == [50, 95, 73, 55]
    negative = picture(Comparison("a", "b", "success", -0.5, -1.0, 0.0, "open"), Measure(0.11), 1.0)
    assert [int(v) for v in re.findall(r"--\w+:(\d+)", negative)] == [5, 50, 27, 55]


def test_each_system_has_a_row_that_the_choice_of_its_family_and_status_shows():
    text = (REPOSITORY / "docs/evidence/systems.md").read_text(encoding="utf-8")
    shown: dict[str, list[tuple[str, ...]]] = {}
    for line in text.splitlines():
        if heading := re.fullmatch(r"## .+ \{#(.+)\}", line):
            shown[heading[1]] = []
        elif re.match(r"\| \d{3} ", line):
            number, name, status = line.split(" | ")[:3]
            name = re.sub(r"^\[(.+)\]\(.+\)$", r"\1", name)
            shown[list(shown)[-1]].append((number[2:], name, status.removesuffix(" |")))
    assert [(family, *row) for family, rows in shown.items() for row in rows] == sorted(
        ((system.family, system.row, system.name, system.status) for system in systems()), key=lambda row: row[0])
    family_choice, status_choice = re.findall(r"<select.+?</select>", text)
    assert re.findall(r'value="([\w-]+)"', family_choice) == sorted(shown)
    assert re.findall(r"<option>(.+?)</option>", status_choice) == list(STATUSES)


def test_pages_that_were_moved_lead_to_pages_that_exist():
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    moved = re.findall(r"^        ([\w/-]+\.md): ([\w/-]+\.md)$", text, re.MULTILINE)
    assert len(moved) >= 28 and ("ledger.md", "evidence/index.md") in moved
    assert not [old for old, _ in moved if (REPOSITORY / "docs" / old).exists()]
    assert not [new for _, new in moved if not (REPOSITORY / "docs" / new).exists()]


def pages_named():
    """Each page that the package names, with its anchor."""
    named = re.compile(r"\bdocs/((?:evidence/)?[\w-]+\.md)(?:#([\w-]+))?")
    for file in sorted((REPOSITORY / "src").rglob("*.py")):
        for page, anchor in named.findall(file.read_text(encoding="utf-8")):
            yield file.name, page, anchor


@pytest.mark.parametrize("file, page, anchor", sorted(set(pages_named())))
def test_a_page_that_a_message_names_exists(file, page, anchor):
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    headings = {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-")
                for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)} | set(re.findall(r"\{#([\w-]+)\}", text))
    assert not anchor or anchor in headings, f"{file}: docs/{page} has no #{anchor}"
