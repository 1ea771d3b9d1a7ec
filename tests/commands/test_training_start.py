"""What train says and refuses before the data are read, and how long it says that it takes."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from understudy.commands import train as train_command
from understudy.commands.train import ProgressPrinter
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import write_dataset
from understudy.learn.preflight import preflight
from understudy.learn.run import Run
from understudy.methods import find_method


def episodes(*lengths: int) -> Dataset:
    return Dataset([Episode({"observation.state": np.linspace(0, 1, n)[:, None].astype(np.float32),
                             "action": np.linspace(1, 0, n)[:, None].astype(np.float32)}) for n in lengths])


@pytest.mark.parametrize("option", ("--horizn", "--policy.window.horizn", "--executor.n-action-stepz"))
def test_options_are_refused_before_the_data_are_audited_and_decoded(call, tmp_path, monkeypatch, option):
    write_dataset(episodes(4, 4), tmp_path / "d.npz", "npz")
    monkeypatch.setattr(train_command, "check_and_decode", lambda *a, **b: pytest.fail("the data were read"))
    status, _, err = call("train", "bc", tmp_path / "d.npz", "--out", tmp_path / "run", option, 3)
    assert status == 2 and option.rpartition(".")[2].replace("-", "_") in err.replace("-", "_")
    assert not (tmp_path / "run").exists()


def test_options_are_refused_before_random_episodes_are_recorded(call, tmp_path):
    status, _, err = call("train", "td3", "--env", "particle", "--out", tmp_path / "run", "--n-roundz", 3)
    assert status == 2 and "--n-roundz" in err and not (tmp_path / "run").exists()


def test_the_first_line_waits_neither_for_pytorch_nor_for_the_data(tmp_path):
    """There is no PyTorch, and a fifo has no data as long as nobody writes them."""
    os.mkfifo(tmp_path / "d.npz")
    without_pytorch = "import sys; sys.modules['torch'] = None; from understudy.cli import main; main(sys.argv[1:])"
    words = ["train", "bc", str(tmp_path / "d.npz"), "--out", str(tmp_path / "r"), "--steps", "3"]
    command = [sys.executable, "-c", without_pytorch, *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == f"reading {tmp_path / 'd.npz'} to train bc; the run is {tmp_path / 'r'}\n"
        process.kill()


def test_the_remaining_time_is_that_of_the_other_updates(tmp_path, capsys, monkeypatch):
    """2 s for each update of this process, of which the first 100 were made before."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    printer = ProgressPrinter(Run(tmp_path), 400, 50, has_validation=False)
    for step in range(101, 401):
        printer(step, None, {"loss": 1.0})
        now += 2
    lines = [line.partition("loss 1, about ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == [f"{n} minutes left" for n in ("8.3", "6.7", "5", "3.3", "1.7")] + [""]


def test_the_remaining_time_is_that_of_the_other_rounds(tmp_path, capsys, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    printer = ProgressPrinter(Run(tmp_path), None, None, has_validation=False, rounds=10)
    for number in range(4, 10):
        printer(number, None, {"round": number, "round/episodes": 1, "round/steps": 5})
        now += 60
    lines = [line.partition("5 steps")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["", ", about 4 minutes left", ", about 3 minutes left", ", about 2 minutes left",
                     ", about 60 seconds left", ""]


@pytest.mark.parametrize(("lengths", "text"), [((5,), "There is one episode"), ((1, 1, 1), "more than one step")])
def test_one_episode_and_single_steps_are_worth_a_warning(call, tmp_path, lengths, text):
    few, several = (preflight(find_method("bc"), episodes(*n)).warnings for n in (lengths, (2, 1)))
    assert any(text in warning for warning in few) and not several
    write_dataset(episodes(*lengths), tmp_path / "d.npz", "npz")
    status, _, err = call("train", "bc", tmp_path / "d.npz", "--out", tmp_path / "run", "--steps", 2)
    assert status == 0 and text in " ".join(err.split())
