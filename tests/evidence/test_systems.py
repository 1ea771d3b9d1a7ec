"""The table of systems: its entries exist, and its status follows from them."""

from collections import Counter
from dataclasses import replace

import pytest

from evidence import systems
from evidence.systems import STATUSES, System, problems
from evidence.tables import Comparison
from understudy.core import UserError

ALL = systems.systems()
ONE = System("001", "One", "offline-rl", "", "", "understudy train iql",
             "tests/evidence/test_systems.py::test_every_entry_exists (itself)", "", "")


@pytest.mark.parametrize("system", ALL, ids=lambda system: system.row)
def test_every_entry_exists(system):
    assert not problems(system)


@pytest.mark.parametrize("word, works, status", [
    ("better", "t | a | b", "works"), ("equal", "t | a | b | success | lower cost: 2 steps in place of 10", "works"),
    ("equal", "t | a | b", "no gain"), ("worse", "t | a | b", "no gain"), ("open", "t | a | b", "not at this scale"),
    (None, "not at this scale: no expert", "not at this scale"), (None, "", "missing")])
def test_the_status_follows_from_the_comparison(monkeypatch, word, works, status):
    compared = None if word is None else Comparison("a", "b", "success", 0.0, 0.0, 0.0, word)
    monkeypatch.setattr(System, "comparison", compared)
    monkeypatch.setattr(System, "shows_nothing", False)
    assert replace(ONE, works=works).status == status
    assert replace(ONE, works=works, right="").status == ("experiment only" if word else "missing")


@pytest.mark.parametrize("changes, problem", [
    ({"use": "understudy train iqll"}, "no method 'iqll'"), ({"use": "understudy trian"}, "no command 'trian'"),
    ({"use": "understudy train iql --expectle 1"}, "no option --expectle"),
    ({"use": "understudy curate DATA --score beauty"}, "does not know beauty"),
    ({"use": "understudy.core:Nothing"}, "no attribute 'Nothing'"),
    ({"use": "understudy.core:Feature(colour)"}, "no argument colour"), ({"use": "iql"}, "neither a command"),
    ({"right": "tests/nothing.py::test_a (x)"}, "does not exist"),
    ({"right": "tests/evidence/test_systems.py::test_nothing (x)"}, "has no test_nothing"),
    ({"works": "no-table | a | b"}, "no table 'no-table'")])
def test_what_does_not_exist_is_named(changes, problem):
    assert not problems(ONE)
    (found,) = problems(replace(ONE, **changes))
    assert problem in found


def test_the_table_is_whole(monkeypatch, tmp_path):
    assert len(ALL) == 296 and set(Counter(system.status for system in ALL)) <= set(STATUSES)
    broken = tmp_path / "systems.tsv"
    broken.write_text(systems.FILE.read_text() + "001\tOne\n")
    monkeypatch.setattr(systems, "FILE", broken)
    with pytest.raises(UserError, match="2 columns"):
        systems.systems()


def test_the_printed_table_has_the_status_of_each_row():
    rows = systems.table()
    assert list(rows[0]) == ["row", "name", "family", "use", "right", "works", "note", "status"]
    assert [row["status"] for row in rows] == [system.status for system in ALL]
