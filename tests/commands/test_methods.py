"""understudy methods: what it lists."""

from __future__ import annotations

import json
import re

import pytest

from understudy.cli import main
from understudy.commands.parts.method import build_method
from understudy.commands.parts.options import flag_of
from understudy.methods import describe_methods, find_method, method_families


def listed(capsys, *arguments):
    assert main(["methods", *arguments]) == 0
    return capsys.readouterr().out


def test_all_methods_are_listed_in_their_families(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = listed(capsys)
    for family, summary in method_families().items():
        assert re.fullmatch(r"[A-Z][A-Za-z ]+: they .*\.", summary)
        table = text.partition(f"{summary}\n{family.replace('_', '-')} ")[2].partition("\n\n")[0]
        names = [m["name"] for m in describe_methods() if m["family"] == family]
        assert [line.split()[0] for line in table.splitlines()[1:] if not line.startswith(" ")] == names


def test_a_family_is_listed_alone(capsys):
    text = listed(capsys, "offline-rl")
    assert "\niql " in text and "\nact " not in text and "Execution schemes" not in text
    described = json.loads(listed(capsys, "offline_rl", "--json"))
    assert described == [m for m in describe_methods() if m["family"] == "offline_rl"]


@pytest.mark.parametrize("name", ["offline", "offline-rl", "offline_rl"])
def test_a_family_that_stands_in_place_of_a_method_is_told(name, capsys):
    assert main(["train", name, "data.npz", "--out", "run", "--help"]) == 2
    assert f"{name!r} is not a method, but a family of methods\n  -> understudy methods offline-rl lists them" in (
        capsys.readouterr().err)


@pytest.mark.parametrize(("name", "meaning"), [
    ("dqn", "Number of collection rounds. 0 to learn"), ("history-iql", "Number of observations in a history.")])
def test_options_of_functions_and_of_classes_are_explained(name, meaning, capsys):
    assert meaning in listed(capsys, name)


def test_the_document_of_a_method_has_its_options_by_the_names_that_train_takes(capsys):
    """And by which runs store them."""
    [document] = json.loads(listed(capsys, "iql", "--json"))
    options = document["options"]
    assert (options["expectile"], options["batch_size"], options["optimizer.lr"]) == (0.7, 256, 3e-4)
    words = [str(word) for name in ("expectile", "batch_size", "optimizer.lr", "policy.trunk.width")
             for word in (flag_of(name), options[name])]
    assert build_method("iql", words[:-2], words[-2:], None, ()) == find_method("iql")
    [document] = json.loads(listed(capsys, "act", "--json"))
    assert document["options"]["policy.window.horizon"] == find_method("act").policy.window.horizon
