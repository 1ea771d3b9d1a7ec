"""Which checkpoint the name of a run stands for, what commands say about it, and when two should be compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from understudy.checkpoint import find_checkpoint
from understudy.cli import main
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.learn.run import Run
from understudy.learn.training_curves import TrainingCurves, describe_checkpoint

TRAIN = ["--steps", "200", "--save-freq", "50", "--device", "cpu", "--policy.trunk.width", "32"]
LEAST = "the lowest error on held-out episodes"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with episodes of random actions ("noise"), and a run that can only learn them by heart ("run")."""
    folder = tmp_path_factory.mktemp("choice")
    assert main(["record", "fork", "--actor", "random", "--out", str(folder / "noise"), "--episodes", "12"]) == 0
    assert main(["train", "bc", str(folder / "noise"), "--out", str(folder / "run"), *TRAIN]) == 0
    return folder


def measured(folder: Path, key: str, values: dict[int, float], **names: int) -> Path:
    """A run with checkpoints of these names, and one measurement of each step."""
    run = Run(folder)
    for step in names.values():
        run.checkpoint_path(step).mkdir(parents=True, exist_ok=True)
    run.name_checkpoints(**names)
    for step, value in values.items():
        run.log_metrics(step=step, **{key: value})
    return folder


@pytest.mark.parametrize(("key", "values", "names", "last", "best"), [
    ("validation/energy", {10: 0.5, 20: 0.6}, {"last": 20, "best": 10},
     "checkpoint 000020, the last one; RUN/best has the lowest error on held-out episodes",
     "checkpoint 000010, with the lowest error on held-out episodes; the last one is RUN/last"),
    ("score", {10: 0.9, 20: 0.6}, {"last": 20, "best": 10},
     "checkpoint 000020, the last one; RUN/best has the highest score in rollouts",
     "checkpoint 000010, with the highest score in rollouts; the last one is RUN/last"),
    ("score", {10: 0.2, 20: 0.6}, {"last": 20, "best": 20},
     "checkpoint 000020, the last one, which also has the highest score in rollouts",
     "checkpoint 000020, the last one, which also has the highest score in rollouts"),
    ("loss", {10: 0.2, 20: 0.6}, {"last": 20}, "checkpoint 000020, the last one", None),
])
def test_one_line_says_which_checkpoint_a_name_stands_for_and_why(tmp_path, key, values, names, last, best):
    run = measured(tmp_path / "run", key, values, **names)
    for name, line in ((run, last), (run / "last", last), (run / "best", best)):
        if line is not None:
            assert describe_checkpoint(name) == f"{name}: {line}".replace("RUN", str(run))
    (run / "checkpoints" / "000020" / "policy.json").write_text("{}")
    assert describe_checkpoint(run / "checkpoints" / "000020") is None  # the user has chosen it


def test_the_last_checkpoint_of_a_run_of_lerobot_is_named(tmp_path):
    for step in ("000100", "000200"):
        model = tmp_path / "checkpoints" / step / "pretrained_model"
        model.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (model / name).write_text("")
    line = describe_checkpoint(tmp_path)
    assert line == f"{tmp_path}: {Path('checkpoints/000200/pretrained_model')}, the last checkpoint"
    assert describe_checkpoint(tmp_path / "checkpoints" / "000100" / "pretrained_model") is None


@pytest.mark.parametrize(("values", "rises"), [({10: 0.5, 20: 0.6}, True), ({10: 0.5, 20: 0.4}, False),
                                               ({10: 0.5, 20: 0.4, 30: 0.4}, False), ({}, False)])
def test_an_error_rises_if_it_was_lower_before_the_end(tmp_path, values, rises):
    run = measured(tmp_path / "run", "validation/energy", values, last=20)
    assert TrainingCurves.load(run).has_rising_error == rises


@pytest.mark.slow
def test_commands_that_load_a_run_say_which_checkpoint_on_standard_error(place, tmp_path, capsys):
    run = place / "run"
    assert TrainingCurves.load(run).has_rising_error  # noise cannot be learned
    ends = {run: f"the last one; {run / 'best'} has {LEAST}", run / "best": f"with {LEAST}; the last one is"}
    episodes = ["--episodes", "2"]
    commands = [["eval", run, "fork", *episodes, "--json"], ["eval", run / "best", place / "noise", "--json"],
                ["eval", run, "fork", "--episodes", "10", "--sequential", "--threshold", "0.5"],
                ["export", run / "best", "--out", tmp_path / "x.onnx", "--inputs", "2"],
                ["robustness", run, "fork", *episodes, "--shifts", "noise", "--levels", "noise=0.1", "--json"],
                ["train", "bc", place / "noise", "--from", run / "best", "--out", tmp_path / "more", *TRAIN]]
    for command in commands:
        name = next(part for part in command if part in ends)
        capsys.readouterr()
        status = main([str(part) for part in command])
        out, err = capsys.readouterr()
        line = f"{name}: checkpoint {find_checkpoint(name).name}, {ends[name]}"
        assert status == 0 and err.count(line) == 1 and line not in out, command
        if command[0] == "eval" and "--json" in command:
            assert json.loads(out)["checkpoint"] == str(find_checkpoint(name))
    assert main(["compare", str(run / "last"), str(run / "best"), "--env", "fork", *episodes]) == 0
    err = capsys.readouterr().err
    assert f"{run / 'last'}: checkpoint 000200" in err and f"{run / 'best'}: checkpoint" in err
    assert main(["eval", str(find_checkpoint(run)), "fork", *episodes]) == 0  # the user has chosen it
    assert "checkpoint" not in capsys.readouterr().err


def test_training_offers_to_compare_the_last_and_the_best_checkpoint_after_the_error_has_risen(place, tmp_path, capsys):
    def suggested(run: Path, *args: object) -> str:
        capsys.readouterr()
        assert main(["train", "bc", *map(str, args), "--out", str(run), *TRAIN]) == 0
        return capsys.readouterr().out.split("next:")[1]

    run = place / "run"
    command = f"understudy compare {run / 'last'} {run / 'best'} --env fork\n"
    assert command in suggested(run, place / "noise")
    assert main(["record", "fork", "--out", str(tmp_path / "shown"), "--episodes", "12"]) == 0
    falls = suggested(tmp_path / "falls", tmp_path / "shown", "--optimizer.lr", "1e-5")
    assert "compare" not in falls and not TrainingCurves.load(tmp_path / "falls").has_rising_error
    assert "compare" not in suggested(tmp_path / "all", place / "noise", "--val-fraction", "0")


def test_without_an_environment_a_person_compares_them_on_the_robot(place, tmp_path, capsys):
    episodes = [Episode(e.steps, {}) for e in open_dataset(place / "noise")]
    write_dataset(Dataset(episodes, {"fps": 10, "robot_type": "so101_follower"}), tmp_path / "arm")
    run = tmp_path / "run"
    assert main(["train", "bc", str(tmp_path / "arm"), "--out", str(run), *TRAIN]) == 0
    assert (f"understudy eval {run / 'last'} --against {run / 'best'} --interactive --robot so101_follower "
            "--robot.port PORT\n") in capsys.readouterr().out
