"""Commands quote the advice that was tested."""

import pytest

from understudy import advice, cli
from understudy.data.formats import write_dataset
from understudy.envs import make
from understudy.evaluate.rollout import rollout
from understudy.files import write_json


@pytest.fixture
def tested(tmp_path, monkeypatch):
    """Replaces the advice that ships with the package."""
    monkeypatch.setattr(advice, "FILE", tmp_path / "advice.json")
    write_json(advice.FILE, [
        {"name": "one", "topics": ["inspect", "methods iql"], "sentence": "Look first.",
         "figures": "90 % against 50 %"},
        {"name": "other", "topics": ["choose"], "sentence": "Try two.", "figures": "80 % against 70 %"}])


def test_sentences_are_found_by_their_topics(tested):
    assert advice.advice_about("inspect") == ["Tested advice: Look first. 90 % against 50 %."]
    assert len(advice.advice_about("choose", "methods iql")) == 2 and advice.advice_about("methods bc") == []


def test_inspect_and_methods_quote_it(tested, tmp_path, capsys):
    env = make("fork", 2)
    write_dataset(rollout(env.expert(), env, 2, 0), tmp_path / "data")
    for command in (["inspect", str(tmp_path / "data")], ["methods", "iql"]):
        assert cli.main(command) == 0
        printed = capsys.readouterr().out
        assert "Tested advice: Look first. 90 % against 50 %." in printed and "Try two." not in printed
    assert cli.main(["methods", "bc"]) == 0 and "Tested advice" not in capsys.readouterr().out


def test_what_ships_can_be_read():
    advice.advice_about("choose")
