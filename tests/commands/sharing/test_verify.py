"""understudy verify: stored evaluations are repeated and compared."""

from __future__ import annotations

import json
import shutil

import pytest
from fixtures.cli import document, refused


@pytest.fixture
def evaluated(call, place, tmp_path):
    """A run with an evaluation of 20 episodes."""
    shutil.copytree(place / "a", tmp_path / "run")
    assert call("eval", tmp_path / "run", "fork", "--episodes", 20, "--seed", 3)[0] == 0
    return tmp_path / "run"


def change(run, **values):
    """Stores other results."""
    file = run / "eval" / "fork.jsonl"
    line = json.loads(file.read_text().splitlines()[-1])
    file.write_text(json.dumps({**line, **values}) + "\n")
    return line


def test_equal_outcomes_hold_here_and_from_the_hub(call, evaluated, hub):
    status, out, _ = call("verify", evaluated, "--episodes", 6)
    assert status == 0
    assert out == "fork, seed 3, the first 6 episodes of 20: all end as stored.\nThe stored evidence holds.\n"
    assert call("push", evaluated, "owner/run")[0] == 0
    told = document(call("verify", "hf:owner/run", "--episodes", 6, "--json"))
    assert told["holds"] and told["evaluations"][0]["verdict"] == "equal"
    assert told["evaluations"][0]["differing"] == []


def test_other_outcomes_hold_only_within_the_interval(call, evaluated):
    line = change(evaluated)
    flipped = [not success for success in line["each"]["success"]]
    change(evaluated, each={**line["each"], "success": [flipped[0], *line["each"]["success"][1:]]})
    status, out, _ = call("verify", evaluated, "--episodes", 6)
    assert status == 0 and "1 episode ended otherwise" in out and " overlaps the stored one" in out
    change(evaluated, each={**line["each"], "success": flipped},
           success={**line["success"], "low": 2.0, "high": 3.0})
    status, out, _ = call("verify", evaluated, "--episodes", 6)
    assert status == 3 and "6 episodes ended otherwise" in out and "does not overlap the stored one" in out
    assert out.endswith("The stored evidence does not hold.\n")


def test_a_run_without_an_evaluation_of_this_checkpoint(call, place, evaluated):
    change(evaluated, mark="another")
    refused(call("verify", evaluated), "no evaluation of this checkpoint is stored", "understudy eval")
