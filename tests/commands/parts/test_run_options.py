"""The options of a command, as its run stores them: from the words of a user to JSON, and back to words."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from fixtures.cli import refused

from understudy.checkpoint import find_checkpoint
from understudy.cli import main
from understudy.commands.parts.common import read_options, read_provenance
from understudy.commands.parts.improve_options import ImproveOptions
from understudy.commands.parts.options import parse_options, split_arguments
from understudy.commands.parts.run_options import (
    improve_options_of,
    reseeded_command,
    run_options,
    stored_options,
    train_arguments,
    train_options_of,
    trained_on,
)
from understudy.commands.parts.train_options import TrainOptions
from understudy.core import ConfigError
from understudy.hints import command_line
from understudy.learn.method import Method

ODD = ["--prior", "other's \"prior\" data/*.npz", "--columns", "state=q 1,q2", "action=u;ü", "--env=--seed 9",
       "--reward-clip", "-1", "2.5", "--image-size", "48", "64", "--stage", "a b=runs/-é", "--stage", "c=$HOME",
       "--freeze", "net", "encoder.maps", "--ignore", "nan", "--val-fraction", "0", "--load", "net", "--language",
       "--executor", "real-time-chunking", "--wandb=-project", "--save-freq=7"]
METHOD_OPTIONS = {
    "horizon": 8, "executor.delay": 3, "optimizer.lr": 0.0003, "optimizer.betas": [0.5, 0.9],
    "optimizer.compile": False, "policy.codec.relative": None, "policy.target": "-- action's",
    "policy.encoder.named": ["a b", "ü"], "policy.window.obs_pad_mask": True}


@pytest.fixture
def provenance(place, tmp_path, monkeypatch):
    """provenance(**entries): a run in "run", whose provenance has these entries, or lacks them if they are ...."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "a", "run")

    def write(**entries):
        for file in Path("run").glob("checkpoints/*/provenance.json"):
            document = {**json.loads(file.read_text(encoding="utf-8")), **entries}
            file.write_text(json.dumps({k: v for k, v in document.items() if v is not ...}), encoding="utf-8")
        return Path("run")
    return write


def parsed(words):
    """Options and options of the method of the words after `understudy train`."""
    own, *of_method = split_arguments([str(word) for word in words], TrainOptions)
    return read_options(TrainOptions, "train", own), [word for part in of_method for word in part]


def test_odd_values_come_back(provenance):
    o, _ = parsed(["bc", "./-demos of 'Ann'", "--out", "./-run \u65e5\u672c", *ODD])
    assert o.data == Path("-demos of 'Ann'") and o.reward_clip == (-1, 2.5)
    run = provenance(options=json.loads(json.dumps(run_options("train", o, METHOD_OPTIONS), allow_nan=False)))
    assert train_options_of(run) == o and stored_options(run)["reward_clip"] == [-1.0, 2.5]
    words = shlex.split(command_line(*train_arguments(run)))
    again, of_method = parsed(words[2:])
    assert words[:2] == ["understudy", "train"] and again == o
    assert of_method == ["--horizon", "8", "--executor.delay", "3", "--optimizer.lr", "0.0003", "--optimizer.betas",
                         "0.5", "0.9", "--optimizer.compile", "false", "--policy.codec.relative", "none",
                         "--policy.target=-- action's", "--policy.encoder.named", "a b", "ü",
                         "--policy.window.obs-pad-mask"]


def test_options_of_improve_come_back(provenance):
    words = ["./-base", "--with", "dagger", "--out", "be'tter", "--supervisor", "scripted", "--data", "my demos",
             "--robot.max-velocity", "1", "2.5", "--robot.cameras", "{front: {type: opencv}}", "--yes"]
    o = parse_options(ImproveOptions, words, "improve")
    run = provenance(options=json.loads(json.dumps(run_options("improve", o), allow_nan=False)))
    assert improve_options_of(run) == o and train_options_of(run) is train_arguments(run) is None


def test_a_run_stores_what_was_given_to_it_and_is_trained_again_with_it(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "demos", "-demos of 'Ann'")
    words = ["./-demos of 'Ann'", "--prior", str(place / "demos"), "--out", "rün 1", "--steps", "2", "--device", "cpu",
             "--optimizer.lr", "3e-4", "--policy.encoder.points.widths", "8", "16", "--batch-size=16", "--ema.decay",
             "0.5", "--policy.window.obs-pad-mask"]
    assert main(["train", "--seed", "4", "bc", *words]) == 0
    stored = read_provenance(Path("rün 1"))["options"]
    assert {name: stored[name] for name in ("command", "method", "data", "prior", "seed", "out", "load")} == {
        "command": "train", "method": "bc", "data": "-demos of 'Ann'", "prior": str(place / "demos"), "seed": 4,
        "out": "rün 1", "load": ["codec", "encoder", "net"]}
    assert stored["method_options"] == {"optimizer.lr": 0.0003, "policy.encoder.points.widths": [8, 16],
                                        "batch_size": 16, "ema.decay": 0.5, "policy.window.obs_pad_mask": True}
    command, folder = reseeded_command(Path("rün 1"))
    assert folder == "rün 1-seed5" and main(shlex.split(command)[1:]) == 0
    again = read_provenance(Path(folder))["options"]
    assert again == {**stored, "out": folder, "seed": 5}
    methods = [json.loads((find_checkpoint(Path(run)) / "method.json").read_text()) for run in ("rün 1", folder)]
    assert methods[0] == methods[1]


def test_a_run_of_another_program_has_no_options(provenance):
    """Its command is for people to read."""
    for command in ("understudy demo --out d", "python mine.py", None):
        run = provenance(options=None, command=command)
        assert train_options_of(run) is improve_options_of(run) is reseeded_command(run) is None


@pytest.mark.parametrize(("change", "key", "problem"), [
    ({"steps": "many"}, "options.steps", "'many' is not an integer"), ({"load": "net"}, "options.load", "not texts"),
    ({"data": 3}, "options.data", "3 is not a path"), ({"compile": None}, "options.compile", "not true or false"),
    ({"image_size": [1, 2, 3]}, "options.image_size", "is not an integer or two integers"),
    ({"device": "tpu"}, "options.device", "is not auto, cpu, cuda or mps"), ({"sede": 3}, "options.sede", "'seed'"),
    ({"method": ...}, "options", "has no method"), ({"command": 3}, "options.command", "3 is not text"),
    ({"method_options": []}, "options.method_options", "is not an object"),
])
def test_a_damaged_entry_is_named_with_its_file(provenance, change, key, problem):
    options = stored_options(provenance()) | change
    run = provenance(options={name: value for name, value in options.items() if value is not ...})
    with pytest.raises(ConfigError) as error:
        train_arguments(run)
    assert str(error.value).startswith(f"{find_checkpoint(run) / 'provenance.json'}: {key}: ")
    assert problem in str(error.value)


def test_an_entry_without_options_of_the_method_has_none(provenance):
    options = {name: value for name, value in stored_options(provenance()).items() if name != "method_options"}
    assert train_arguments(provenance(options=options))[0] == "train"


def test_a_command_names_the_damaged_entry(provenance, call):
    refused(call("diagnose", provenance(options=["train"])), "provenance.json: options: ['train'] is not an object",
            "take the file from a copy")


def test_the_trials_of_choose_store_its_options(place, call, tmp_path):
    words = ["choose", place / "demos", "--methods", "bc", "bc-gmm", "--steps", 20, "--out", tmp_path / "choice",
             "--budget", "9s", "--seed", 2, "--device", "cpu", "--batch-size", 16]
    status, out, err = call(*words, "--optimizer.lr=0.002")
    assert status == 0, err
    assert sum(line.count(" --steps 20 --batch-size 16 --optimizer.lr=0.002") for line in out.splitlines()) == 3
    run = tmp_path / "choice" / "bc-gmm-2"
    stored, learner = read_provenance(run)["options"], Method.load(run).learner
    assert {name: stored[name] for name in ("command", "data", "methods", "seed", "method_options")} == {
        "command": "choose", "data": str(place / "demos"), "methods": ["bc", "bc-gmm"], "seed": 2,
        "method_options": {"steps": "20", "batch_size": "16", "optimizer.lr": "0.002"}}
    assert (learner.steps, learner.batch_size, learner.optimizer.lr) == (20, 16, 0.002)
    assert trained_on(run).resolve() == (place / "demos").resolve()
    refused(call(*words), "have method options {", "another --out")
    refused(call("choose", place / "demos", "--methods", "bc", "knn", "--expectile", 0.9, "--out", tmp_path / "other"),
            "understudy train bc: there is no option --expectile")
    refused(call("choose", place / "demos", "--bugdet", "1s", "--out", tmp_path / "other"), "did you mean '--budget'?")
    assert not (tmp_path / "other").exists()


def test_options_of_a_method_are_set_in_improve(place, call, tmp_path):
    words = ["improve", place / "a", "--with", "dagger", "--supervisor", "scripted", "--rounds", 1, "--episodes", 2,
             "--steps", 1, "--compare", 2, "--device", "cpu", "--out", tmp_path / "run"]
    refused(call(*words, "--batch-sise", 4), "understudy improve: there is no option --batch-sise", "'--batch-size'?")
    refused(call(*words, "--optimizer.lr", -1), "--optimizer.lr: lr is -1.0, but must be above 0")
    assert not (tmp_path / "run").exists()
    status, _, err = call(*words, "--env", "fork", "--batch-size", 4, "--optimizer.lr", 3e-5)
    assert status == 0, err
    learner = Method.load(tmp_path / "run").learner
    assert (learner.batch_size, learner.optimizer.lr) == (4, 3e-5)
    stored = stored_options(tmp_path / "run")
    assert stored["method_options"] == {"batch_size": 4, "optimizer.lr": 3e-5}
    assert (stored["command"], stored["run"], stored["method"]) == ("improve", str(place / "a"), "dagger")
