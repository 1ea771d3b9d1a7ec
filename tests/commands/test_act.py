"""What act counts and stores of each episode, and its exit status, with a policy behind a real websocket."""

import re
import time

import numpy as np
import pytest

pytest.importorskip("websockets", reason="extra serve not installed")

from fixtures.replies import RIGHT, description, reply, server  # noqa: E402

from understudy.cli import main  # noqa: E402
from understudy.data.formats import open_dataset  # noqa: E402

ARM = ["--robot", "simulated_arm", "--robot.slow-start", "0", "--fps", "20"]


def counts(line):
    return {name: int(n) for n, name in re.findall(r"(\d+) (steps|clipped|stale|late)", line)}


def test_a_run_of_clipped_actions_says_so_and_ends_with_status_3(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with server(description(), lambda number, id: reply(id, actions=RIGHT + 500)) as url:
        command = ["act", url, *ARM, "--episode-time-s", "0.7"]
        assert main([*command, "--episodes", "2", "--out", "acted"]) == 3
        captured = capsys.readouterr()
        assert main([*command, "--max-bad-share", "1"]) == 0
    first, second, both, *_ = captured.out.splitlines()
    assert first.startswith("episode 0: ") and both.startswith("2 episodes: ")
    assert counts(first)["clipped"] == counts(first)["steps"] > 8
    assert counts(both)["steps"] == counts(first)["steps"] + counts(second)["steps"] == counts(both)["clipped"]
    assert captured.err.startswith("100% of the steps were clipped, stale or late, and --max-bad-share allows 20%")
    for episode, line in zip(open_dataset("acted"), (first, second), strict=True):
        stored = episode.metadata["execution"]
        assert {k: n for k, n in stored.items() if n and k != "retries"} == counts(line)


@pytest.mark.parametrize("executor", ["receding-horizon", "server"])
def test_a_server_that_stands_still_is_counted(executor, capsys):
    """The third request takes 2 s, in an episode of 3 s. Chunks have 8 actions, which are 0.4 s."""
    def answer(number, id):
        if number == 3:
            time.sleep(2)
        if executor == "server":
            return reply(id, **({"actions": RIGHT[0, :1]} if number else {"rows": np.zeros(1, np.int64)}))
        return reply(id, actions=RIGHT)
    with server(description(), answer) as url:
        assert main(["act", url, *ARM, "--episode-time-s", "3", "--executor", executor]) == 3
    captured = capsys.readouterr()
    assert counts(captured.out.splitlines()[0])["stale"] > 15
    assert "of the steps were clipped, stale or late" in captured.err


def test_steps_as_the_policy_commands_them_are_not_counted(capsys):
    with server(description(), lambda number, id: reply(id, actions=RIGHT)) as url:
        assert main(["act", url, *ARM, "--episode-time-s", "0.5", "--max-bad-share", "1"]) == 0
        assert main(["act", url, *ARM, "--max-bad-share", "1.5"]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"episode 0: \d+ steps(, \d+ late)?\n", captured.out)
    assert "--max-bad-share: must be from 0 to 1" in captured.err
