"""`python -m evidence`: the tables that it prints, and what it says of names that do not exist."""

import json

import pytest

from evidence import __main__ as command
from evidence.tables import all_tables, families


@pytest.mark.parametrize("table, keys", [
    ("systems", ["row", "name", "family", "use", "right", "works", "note", "status"]),
    ("advice", ["sentence", "worlds", "differences", "survives"]),
    ("published", ["cell", "published", "here", "updates", "status"])])
def test_a_table_is_printed_as_json(capsys, table, keys):
    assert command.main([table, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows and all(list(row) == keys for row in rows)


@pytest.mark.parametrize("name, tables", [
    ("dsrl", ["dsrl"]), ("frozen_policy", ["dsrl", "chunk-critic", "resip", "resfit"]),
    ("pushes", ["pushes-here", "pushes-there"])])
def test_a_table_a_family_or_a_sentence_is_run(monkeypatch, name, tables):
    ran = []
    monkeypatch.setattr(command, "run_table", lambda table: ran.append(table.name))
    assert command.main(["run", name]) == 0 and ran == tables


def test_a_name_that_does_not_exist_is_told_the_nearest(capsys):
    assert command.main(["run", "dsrll"]) == 2 and "did you mean 'dsrl'" in capsys.readouterr().err


def test_an_exploratory_table_says_where_its_code_is(capsys):
    table = next(t for t in all_tables().values() if t.experiment is None)
    assert command.main(["run", table.name]) == 2
    assert f"git show {table.record['commits'][0]}:{table.was}" in capsys.readouterr().err


def test_a_run_that_is_interrupted_says_that_it_continues(monkeypatch, capsys):
    def interrupted(table):
        raise KeyboardInterrupt
    monkeypatch.setattr(command, "run_table", interrupted)
    assert command.main(["run", next(iter(families()["frozen_policy"].tables))]) == 130
    assert "the same command continues" in capsys.readouterr().err
