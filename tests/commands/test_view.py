"""The command understudy view: conditions, and what its errors name."""

from dataclasses import replace

import pytest
from fixtures.cli import refused

from understudy.data.episode import Dataset
from understudy.data.formats import open_dataset, write_dataset


@pytest.fixture
def mixed(place, tmp_path):
    """Twelve demonstrations, four of them failures."""
    data = open_dataset(place / "demos")
    labeled = Dataset([replace(e, metadata={**e.metadata, "success": i % 3 > 0}) for i, e in enumerate(data)])
    write_dataset(labeled, tmp_path / "mixed.npz")
    return tmp_path / "mixed.npz"


@pytest.mark.parametrize("word", ["true", "True", "TRUE"])
def test_true_is_understood_in_any_case(call, mixed, tmp_path, word):
    assert call("view", "make", mixed, "--out", tmp_path / "v.json", "--filter", f"success={word}")[0] == 0
    assert len(open_dataset(tmp_path / "v.json")) == 8
    assert call("view", "make", mixed, "--out", tmp_path / "w.json", "--label", f"checked={word}")[0] == 0
    assert {e.metadata["checked"] for e in open_dataset(tmp_path / "w.json")} == {True}


def test_a_condition_that_no_episode_satisfies_says_what_the_values_are(call, mixed, tmp_path):
    refused(call("view", "make", mixed, "--out", tmp_path / "v.json", "--filter", "success=yes"),
            "--filter: no episode satisfies 'success=yes'\n  -> values of success: false, true\n")
    refused(call("view", "make", mixed, "--out", tmp_path / "v.json", "--delete", *range(12)),
            f"understudy: {mixed}: the view has no episodes\n")
    assert not (tmp_path / "v.json").exists()


def test_what_a_subcommand_needs(call, mixed, tmp_path):
    refused(call("view", "make", mixed), "understudy view make: make needs --out FILE\n")
    refused(call("view", "show", mixed, "--out", tmp_path / "v.json"), "show writes nothing, so it takes no --out\n")
    refused(call("view", "make", "--out", tmp_path / "v.json"), "make needs a path\n")
