"""Files of earlier versions: data since 0.2 and runs since 0.3 are read, and earlier runs are refused."""

import json
import shutil

import numpy as np
import pytest
from fixtures.recordings import holds
from fixtures.runs import made_up, plain
from fixtures.version_0_2.write import CALIBRATION, LIMITS, STEPS
from fixtures.version_0_3.write import outputs, train_run
from folders import TESTS

from understudy import __version__, config
from understudy.cli import main
from understudy.core import ConfigError, UserError
from understudy.data.formats import open_dataset
from understudy.heads.likelihood.regression import Regression
from understudy.learn.method import Method, load_actor, load_policy
from understudy.learn.train import train
from understudy.learn.training_curves import TrainingCurves
from understudy.robots.calibration import read_calibration
from understudy.robots.registry import read_limits

FILES = TESTS / "fixtures" / "version_0_3"
METHODS = json.loads((FILES / "methods.json").read_text())
OLD, NOW = "understudy.old:Mean", f"{Regression.__module__}:Regression"


def run(out, **options):
    train(plain(), made_up(), out, device="cpu", progress=False, **options)


@pytest.fixture(params=["version_0_2", "version_0_3"])
def files(tmp_path, request):
    """A copy of the files of an earlier version."""
    return shutil.copytree(TESTS / "fixtures" / request.param, tmp_path / "files")


# -- data -------------------------------------------------------------------------------------------------------------


def test_a_recording_and_its_journal_are_read(files):
    data = open_dataset(files / "recording")
    assert len(data) == 2 and all(holds(data[i], i, STEPS[i]) for i in range(2))
    assert main(["repair", str(files / "recording")]) == 0
    repaired, whole = open_dataset(files / "recording"), open_dataset(files / "whole")
    assert all(holds(data[i], i, steps) for data in (repaired, whole) for i, steps in enumerate(STEPS))
    assert repaired[2].metadata == {"interrupted": True}


def test_a_view_is_read(files):
    data = open_dataset(files / "view.json")
    assert len(data) == 2 and holds(data[0], 1, STEPS[1]) and holds(data[1], 0, STEPS[0])


def test_a_calibration_and_limits_are_read(files):
    assert read_calibration(files / "calibration.json", {"joint": 1}) == CALIBRATION
    assert all(read_limits(file) == LIMITS for file in files.glob("limits*.json"))


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def old_run(tmp_path):
    """A run of version 0.2."""
    run(tmp_path / "run", command="understudy train bc demos --out run")
    for file in tmp_path.glob("run/checkpoints/*/provenance.json"):
        document = json.loads(file.read_text())
        file.write_text(json.dumps({**document, "versions": {**document["versions"], "understudy": "0.2.0"}}))
    return tmp_path / "run"


@pytest.mark.parametrize("command", [
    "eval RUN fork", "diagnose RUN --env fork", "plot RUN", "export RUN --out a.onnx", "serve RUN",
    "improve RUN --env fork --with dagger --out b", "train bc demos --from RUN --out c"])
def test_a_run_is_refused_with_what_to_do(old_run, command, capsys):
    words = {"RUN": str(old_run), "demos": str(FILES / "whole")}
    assert main([words.get(word, word) for word in command.split()]) == 2
    *_, problem, hint = capsys.readouterr().err.strip().split("\n")
    assert problem == (f"understudy: {old_run}: understudy 0.2.0 wrote this run, and understudy {__version__} loads "
                       "none from before version 0.3")
    assert hint == ("  -> train it again, into another folder; its data can be used as they are: understudy train bc "
                    "demos --out run")


@pytest.mark.parametrize("load", [load_actor, load_policy, TrainingCurves.load, run,
                                  lambda folder: load_actor(folder / "checkpoints" / "000006")])
def test_a_run_is_neither_loaded_nor_continued(old_run, load):
    with pytest.raises(UserError, match="understudy 0.2.0 wrote this run"):
        load(old_run)


@pytest.mark.parametrize("version", ["0.3.0", "0.10.1", "1.0", "unknown", None])
def test_runs_since_then_are_loaded(old_run, version):
    for file in old_run.glob("checkpoints/*/provenance.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "versions": {"understudy": version}}))
    assert load_policy(old_run) is not None


def test_a_run_of_version_0_3_acts_and_is_continued(tmp_path):
    folder = shutil.copytree(FILES / "run", tmp_path / "run")
    stored, now = json.loads((FILES / "outputs.json").read_text()), outputs(folder)
    assert all(np.allclose(now[key], stored[key], atol=1e-5) for key in ("losses", "actions"))
    for out in (folder, tmp_path / "new"):
        train_run(out, steps=9)
    assert np.allclose(outputs(folder)["losses"], outputs(tmp_path / "new")["losses"], atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_configuration_of_version_0_3_is_read(name):
    assert isinstance(config.load(METHODS[name]), Method)


# -- entries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "entry"), [("understudy.old", Regression.__module__), (OLD, NOW)])
def test_an_old_name_is_loaded_and_stays_untrusted_elsewhere(monkeypatch, key, entry):
    old = OLD if ":" in key else "understudy.old:Regression"
    with pytest.raises(UserError):
        config.load({"$": old})
    monkeypatch.setitem(config.MOVED, key, entry)
    assert config.load([{"$": old, "norm": "l1"}]) == (Regression("l1"),)
    with pytest.raises(config.UntrustedCode):
        config.load({"$": old}, trust=("other",))


def test_old_fields_become_the_present_ones(monkeypatch):
    monkeypatch.setitem(config.MOVED, OLD, NOW)
    with pytest.raises(ConfigError, match="no field 'power'"):
        config.load({"$": OLD, "power": 1})
    monkeypatch.setitem(config.UPGRADES, OLD, lambda fields: {"norm": f"l{fields['power']}"})
    assert config.load({"$": OLD, "power": 1}) == Regression("l1")


def test_a_run_that_names_an_old_place_is_continued(tmp_path, monkeypatch):
    """The settings are compared as values. With another value they are refused."""
    run(tmp_path)
    for path in tmp_path.glob("checkpoints/*/method.json"):
        document = json.loads(path.read_text())
        document["policy"]["head"]["$"] = "understudy.old:Mean"
        path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="started with other settings: method.policy.head was Mean"):
        run(tmp_path)
    monkeypatch.setitem(config.MOVED, OLD, NOW)
    run(tmp_path)


def test_every_entry_names_something_of_today():
    for new in config.MOVED.values():
        assert config.current_name(new) == new and config.find_class(new, object)
