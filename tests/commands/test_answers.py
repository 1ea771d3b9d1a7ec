"""Answers to mistakes: what a command says when a login, memory, an option, a file or a class is not there."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from understudy import __version__, cli
from understudy.cli import main
from understudy.core import ConfigError, is_out_of_memory
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import write_dataset
from understudy.learn.method import Method


@pytest.fixture
def demos(tmp_path, monkeypatch):
    """Six demonstrations in a folder whose name has a space."""
    folder = tmp_path / "my arm"
    folder.mkdir()
    monkeypatch.chdir(folder)
    rng = np.random.default_rng(0)
    write_dataset(Dataset([Episode({"observation.state": rng.normal(size=(12, 2)).astype(np.float32),
                                    "action": rng.normal(size=(12, 2)).astype(np.float32)}) for _ in range(6)],
                          {"fps": 10}), "my demos.npz")
    return "my demos.npz"


def train(*args):
    return main(["train", *map(str, args), "--device", "cpu"])


# -- Weights & Biases -----------------------------------------------------------------------------------------------


class StandIn(types.ModuleType):
    """What is used of wandb 0.31.0, with its signatures. It records what is logged."""

    class Error(Exception):
        pass

    def __init__(self, mode="online", has_login=True):
        super().__init__("wandb")
        self.mode, self.has_login, self.runs = mode, has_login, []

    def setup(self, settings=None):
        return types.SimpleNamespace(settings=types.SimpleNamespace(mode=self.mode))

    def login(self, key=None, relogin=None, host=None, force=None, timeout=None, verify=True, referrer=None,
              prompt=True, anonymous=None) -> bool:
        assert prompt is False, "a command does not wait for an answer"
        return self.has_login

    def init(self, entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None,
             resume=None, mode=None, settings=None, **more):
        lines = []
        self.runs.append((dict(project=project, id=id, name=name, config=config, resume=resume), lines))
        return types.SimpleNamespace(define_metric=lambda name, step_metric=None: None, log=lines.append,
                                     finish=lambda exit_code=None: lines.append("finish"))


def test_training_without_a_login_is_refused_before_the_first_update(demos, monkeypatch, capsys):
    wandb = StandIn(has_login=False)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert train("bc", demos, "--out", "run", "--steps", 2, "--wandb", "toys") == 2
    error = capsys.readouterr().err
    assert "there is no login for Weights & Biases" in error and "WANDB_MODE=offline" in error
    assert not Path("run").exists() and not wandb.runs


def test_a_refused_login_is_our_error(demos, monkeypatch, capsys):
    wandb = StandIn()

    def refuse(*args, **options):
        raise StandIn.Error("401: invalid key")
    wandb.login = refuse
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert train("bc", demos, "--out", "run", "--steps", 2, "--wandb", "toys") == 2
    assert "refuses the login: 401: invalid key" in capsys.readouterr().err


def test_offline_needs_no_login_and_logs_the_configuration_and_evaluations(demos, monkeypatch, capsys):
    wandb = StandIn("offline", has_login=False)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert train("bc", demos, "--out", "run", "--steps", 2, "--wandb", "toys", "--batch-size", 7) == 0
    (begun, lines), = wandb.runs
    config = json.loads(json.dumps(begun["config"]))
    assert config["configuration"]["learner"]["batch_size"] == 7 and config["options"]["steps"] == 2
    assert config["understudy"] == __version__ and lines[-1] == "finish"
    assert main(["eval", "run", demos]) == 0
    (_, (resumed, lines)) = wandb.runs
    assert {k: resumed[k] for k in ("project", "id", "name")} == {k: begun[k] for k in ("project", "id", "name")}
    assert resumed["resume"] == "allow"
    stored = json.loads(Path("run/eval/my_demos.npz.jsonl").read_text())
    assert lines[0]["eval/my demos.npz/error/policy/estimate"] == stored["error"]["policy"]["estimate"]
    assert lines[0]["step"] == 2 and lines[-1] == "finish"


def test_an_evaluation_is_kept_when_it_cannot_be_logged(demos, monkeypatch, capsys):
    wandb = StandIn("offline")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert train("bc", demos, "--out", "run", "--steps", 2, "--wandb", "toys") == 0
    monkeypatch.setitem(sys.modules, "wandb", StandIn(has_login=False))
    capsys.readouterr()
    assert main(["eval", "run", demos]) == 0
    assert "not logged to Weights & Biases: Wandb: there is no login" in capsys.readouterr().err
    assert Path("run/eval/my_demos.npz.jsonl").exists()


# -- memory ---------------------------------------------------------------------------------------------------------


def test_a_full_memory_of_the_cpu_is_our_error(demos, capsys):
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator") as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value) and not is_out_of_memory(RuntimeError("shapes differ"))
    assert train("bc", demos, "--out", "run", "--steps", 2, "--policy.trunk.width", 10**14) == 2  # its first layer
    error = capsys.readouterr().err
    assert "memory is full" in error and "--batch-size" in error and "Traceback" not in error


# -- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typed", "meant"), [
    ("--lr", "did you mean '--optimizer.lr'?"), ("--weight_decay", "did you mean '--optimizer.weight-decay'?"),
    ("--learner.batch-size", "write --batch-size"), ("--learner.optimizer.lr", "write --optimizer.lr"),
    ("--method.horizon", "write --horizon")])
def test_an_option_by_its_last_or_its_earlier_name_is_found(demos, capsys, typed, meant):
    assert train("bc", demos, "--out", "run", typed, 8) == 2
    error = capsys.readouterr().err
    assert f"there is no option {typed}\n" in error and f"-> {meant}" in error


@pytest.mark.parametrize("written", [("--batch-size", 8), ("--batch_size=8",)])
def test_options_of_the_method_are_set_like_those_of_the_command(demos, written):
    assert train("bc", demos, "--horizon", 3, "--out", "run", *written, "--steps", 1, "--device", "cpu") == 0
    method = Method.load("run")
    assert (method.learner.batch_size, method.policy.window.horizon, method.learner.steps) == (8, 3, 1)


@pytest.mark.parametrize("words", [("--horizon", 3, "bc", "DATA"), ("bc", "--horizon", 3, "DATA")])
def test_options_of_the_method_come_after_method_and_data(demos, capsys, words):
    assert train(*(demos if word == "DATA" else word for word in words), "--out", "run") == 2
    assert "-> name METHOD and DATA first" in capsys.readouterr().err


def test_options_of_the_command_may_come_before_the_method(demos):
    words = ("--seed", 3, "bc", demos, "--horizon", 2, "--batch-size", 4, "--out", "run", "--steps", 1)
    assert train(*words, "--device", "cpu") == 0 and Method.load("run").policy.window.horizon == 2


def test_an_option_that_is_no_field_is_refused_as_before(demos, capsys):
    assert train("bc", demos, "--out", "run", "--ouput", 8) == 2
    assert "there is no option --ouput" in capsys.readouterr().err


# -- files of Python code -------------------------------------------------------------------------------------------


def test_a_python_file_is_read_and_not_run(demos, capsys):
    assert train("bc", demos, "--out", "run", "--steps", 2) == 0
    Path("myarm.py").write_text("open('was_run', 'w')\n\ndef _private(): ...\n\ndef helper(): ...\n\n"
                                "def make_arm(rows): ...\n")
    capsys.readouterr()
    assert main(["eval", "run", "myarm.py"]) == 2
    error = capsys.readouterr().err
    assert "-> understudy eval run myarm:make_arm --trust myarm\n" in error and not Path("was_run").exists()
    assert "it has helper, make_arm" in error
    Path("envs").mkdir()
    Path("envs/arm.py").write_text("class Arm: ...\n")
    assert main(["eval", "run", "envs/arm.py"]) == 2
    assert "understudy eval run envs.arm:Arm --trust envs\n" in capsys.readouterr().err
    Path("broken.py").write_text("def make(:\n")
    assert main(["eval", "run", "broken.py"]) == 2
    assert "cannot be parsed" in capsys.readouterr().err


# -- hints ----------------------------------------------------------------------------------------------------------


def test_a_hint_quotes_a_path_with_a_space(demos, capsys):
    assert train("bc", demos, "--out", "a run", "--steps", 2) == 0
    capsys.readouterr()
    assert main(["inspect", "a run"]) == 2
    assert "understudy eval 'a run' ENV judges it" in capsys.readouterr().err


# -- runs of other methods and versions -----------------------------------------------------------------------------


def test_weights_of_another_method_are_refused_before_training(demos, capsys):
    assert train("bc", demos, "--out", "first", "--steps", 2) == 0
    capsys.readouterr()
    assert train("bc-gmm", demos, "--out", "second", "--steps", 2, "--from", "first") == 2
    error = capsys.readouterr().err
    assert "--from first: was trained with another method (bc)" in error and not Path("second").exists()
    assert "head Regression" in error and "head GMM" in error and "--load codec encoder" in error
    assert train("bc", demos, "--out", "second", "--steps", 2, "--from", "first") == 0


def test_the_versions_are_named_where_another_method_wrote_the_weights(demos, capsys):
    assert train("bc", demos, "--out", "first", "--steps", 2) == 0
    set_version("first", "99.0.0")
    capsys.readouterr()
    assert train("bc-gmm", demos, "--out", "second", "--steps", 2, "--from", "first") == 2
    assert f"written by understudy 99.0.0, and this is {__version__}" in capsys.readouterr().err


def set_version(run, version):
    for file in Path(run).glob("checkpoints/*/provenance.json"):
        document = json.loads(file.read_text())
        document["versions"]["understudy"] = version
        file.write_text(json.dumps(document))


@pytest.mark.parametrize("old, new", [("heads.likelihood.regression:Regression", "heads.likelihood.regression:Gone"),
                                      ("heads.likelihood.regression:Regression", "heads.gone:Regression")])
def test_a_class_that_no_longer_exists_is_explained_with_versions(demos, capsys, old, new):
    assert train("bc", demos, "--out", "run", "--steps", 2) == 0
    set_version("run", "99.0.0")
    for file in Path("run").glob("checkpoints/*/*.json"):
        file.write_text(file.read_text().replace(old, new))
    capsys.readouterr()
    assert main(["eval", "run", demos]) == 2
    error = capsys.readouterr().err
    assert f"names understudy.{new}, which does not exist" in error
    assert f"it was written by understudy 99.0.0, and this is {__version__}: install 99.0.0" in error
    for file in Path("run").glob("checkpoints/*/provenance.json"):
        file.write_text("{")
    with pytest.raises(ConfigError, match="which does not exist"):
        Method.load("run")
    assert cli._user_error_message(ValueError("x"), []) is None
