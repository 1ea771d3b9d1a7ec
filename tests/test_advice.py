"""Commands quote the advice that was tested."""

from dataclasses import replace

import pytest

from understudy import advice, cli
from understudy.choose import DataProperties
from understudy.data.episode import Dataset
from understudy.data.formats import write_dataset
from understudy.envs import make
from understudy.evaluate.rollout import rollout
from understudy.files import write_json


@pytest.fixture
def tested(tmp_path, monkeypatch):
    """Replaces the advice that ships with the package."""
    monkeypatch.setattr(advice, "FILE", tmp_path / "advice.json")
    write_json(advice.FILE, [
        {"name": "one", "topics": ["inspect failures", "methods iql"], "sentence": "Look first.",
         "figures": "90 % against 50 %"},
        {"name": "other", "topics": ["choose ways"], "sentence": "Try two.", "figures": "80 % against 70 %"}])


def test_sentences_are_found_by_their_topics(tested):
    assert advice.advice_about("inspect failures") == ["Tested advice: Look first. 90 % against 50 %."]
    assert len(advice.advice_about("choose ways", "methods iql")) == 2 and advice.advice_about("methods bc") == []


def test_inspect_and_methods_quote_it(tested, tmp_path, capsys):
    env = make("fork", 2)
    episodes = rollout(env.expert(), env, 2, 0)
    failed = replace(episodes[1], metadata={**episodes[1].metadata, "success": False})
    write_dataset(Dataset([episodes[0], failed]), tmp_path / "data")
    write_dataset(episodes, tmp_path / "sound")
    for command in (["inspect", str(tmp_path / "data")], ["methods", "iql"]):
        assert cli.main(command) == 0
        printed = capsys.readouterr().out
        assert "Tested advice: Look first. 90 % against 50 %." in printed and "Try two." not in printed
    for command in (["inspect", str(tmp_path / "sound")], ["methods", "bc"]):
        assert cli.main(command) == 0 and "Tested advice" not in capsys.readouterr().out


def test_choose_quotes_it_where_demonstrations_go_several_ways(tested):
    said = {ways: DataProperties(20, 400, 10.0, 0, "numbers", ways).sentences() for ways in (0.05, 0.0)}
    assert "Tested advice: Try two. 80 % against 70 %." in said[0.05] and len(said[0.05]) == len(said[0.0]) + 1


def test_what_ships_can_be_read():
    advice.advice_about("choose ways")
