"""Policies in an environment that shows the task of each episode in words: no other words may be told."""

from __future__ import annotations

import pytest

from understudy.cli import main


@pytest.mark.parametrize("options, message", [
    (("--language",), "the environment shows 'observation.task' itself"),
    ((), "the policy reads the words that the environment shows")])
def test_no_task_is_told_where_the_environment_shows_it(options, message, tmp_path, capsys):
    data, run = str(tmp_path / "data"), str(tmp_path / "run")
    assert main(["record", "tabletop", "--episodes", "2", "--out", data]) == 0
    assert main(["train", "bc", data, "--out", run, "--steps", "1", "--device", "cpu", *options]) == 0
    assert "--task" not in capsys.readouterr().out
    evaluate = ["eval", run, "tabletop", "--episodes", "1", "--device", "cpu"]
    assert main([*evaluate, "--task", "put the blue block into the left bin"]) == 2
    assert message in capsys.readouterr().err
    assert main(evaluate) == 0
