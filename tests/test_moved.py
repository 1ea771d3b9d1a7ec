"""Files of the version before modules were moved are read as they were then."""

import json
import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_resume import everything, made_up

from understudy import config, moved
from understudy.core import ConfigError, Feature, UserError, keys
from understudy.heads.regression import Regression
from understudy.learn.method import load_actor
from understudy.learn.train import train
from understudy.learn.training_curves import TrainingCurves
from understudy.learn.validation import Validation
from understudy.methods import find_method
from understudy.policy import find_checkpoint

BEFORE = Path(__file__).parent / "fixtures" / "before_moves"
METHODS = json.loads((BEFORE / "methods.json").read_text())
FEATURES = {"observation.environment_state": Feature("float32", (3,)), "observation.state": Feature("float32", (2,)),
            "action": Feature("float32", (2,))}
CELLS = {"observation.grid": Feature("int64", (3, 3), "discrete", num_classes=(3,) * 9),
         "observation.cell": Feature("int64", (2,), "discrete", num_classes=(3, 3))}
PROMPTS = {"observation.objects": Feature("float32", (2, 3)), "observation.prompt.objects": Feature("float32", (7, 3)),
           "observation.prompt.words": Feature("int64", (7,), "discrete", num_classes=(4,) * 7)}
SPECIAL = {"procedure-cloning": {**CELLS, "action": FEATURES["action"]},  # the columns of the fixtures
           "thought-cloning": {**FEATURES, "thought": Feature("string", (), "string")},
           "interactive-language": {**FEATURES, "subtask": Feature("string", (), "string")},
           "arp": {**FEATURES, "observation.task": Feature("uint8", (8,), "text")},
           "dualmind": {**FEATURES, "observation.task": Feature("uint8", (8,), "text")},
           "midas": {**PROMPTS, "action": FEATURES["action"]},
           "maskdp": {**FEATURES, "observation.goal": FEATURES["observation.state"]},
           "attention-tuner": {**FEATURES, "recalled": Feature("int64", (1,))},
           "fourier-transporter": {"observation.images.top": Feature("uint8", (24, 24, 3), "image"),
                                   "action": Feature("float32", (5,))},
           "dp3": {**FEATURES, "observation.points": Feature("float32", (16, 3))},
           "vinn-byol": {**FEATURES, "observation.images.top": Feature("uint8", (16, 16, 3), "image")}}


def resolve(name):
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def test_every_entry_names_something_of_today():
    for new in moved.MODULES.values():
        assert find_spec(new) and new not in moved.MODULES  # some need a simulator to be imported
    for new in moved.NAMES.values():
        assert resolve(new).__module__ == new.partition(":")[0] and moved.current_name(new) == new


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_before_are_those_of_today(name):
    assert config.load(METHODS[name]) == find_method(name, SPECIAL.get(name, FEATURES))


@pytest.mark.parametrize("run", sorted((BEFORE / "trained").iterdir()), ids=lambda run: run.name)
def test_runs_of_before_act_as_they_did(run):
    with np.load(BEFORE / "plans.npz") as plans:
        stored = {k.removeprefix(f"{run.name}/"): plans[k] for k in plans.files if k.startswith(f"{run.name}/")}
    obs = {k.removeprefix("obs/"): torch.as_tensor(v) for k, v in stored.items() if k.startswith("obs/")}
    actor = load_actor(run, device="cpu")
    state = actor.start(obs, keys(0, range(2)))
    for expected in stored["actions"]:
        action, state = actor.act(obs, state)
        np.testing.assert_allclose(action.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_run_that_was_stopped_before_is_continued(tmp_path):
    shutil.copytree(BEFORE / "stopped", tmp_path / "run")
    train(everything(), made_up(image=True), tmp_path / "run", device="cpu", save_freq=4, progress=False,
          validation=Validation(6, 2))
    weights = load_file(find_checkpoint(tmp_path / "run") / "weights.safetensors")
    expected = load_file(BEFORE / "whole.safetensors")
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)


# -- entries ------------------------------------------------------------------------------------------------------

NOW = f"{Regression.__module__}:Regression"


@pytest.mark.parametrize(("table", "key", "entry", "old"), [
    ("MODULES", "understudy.old", Regression.__module__, "understudy.old:Regression"),
    ("NAMES", "understudy.old:Mean", NOW, "understudy.old:Mean"),
])
def test_an_old_name_is_loaded_and_stays_untrusted_elsewhere(monkeypatch, table, key, entry, old):
    with pytest.raises(UserError):
        config.load({"$": old})
    monkeypatch.setitem(getattr(moved, table), key, entry)
    assert config.load([{"$": old, "norm": "l1"}]) == (Regression("l1"),)
    with pytest.raises(config.UntrustedCode):
        config.load({"$": old}, trust=("other",))


def test_old_fields_become_those_of_today(monkeypatch):
    monkeypatch.setitem(moved.NAMES, "understudy.old:Mean", NOW)
    with pytest.raises(ConfigError, match="no field 'power'"):
        config.load({"$": "understudy.old:Mean", "power": 1})
    monkeypatch.setitem(moved.UPGRADES, "understudy.old:Mean", lambda fields: {"norm": f"l{fields['power']}"})
    assert config.load({"$": "understudy.old:Mean", "power": 1}) == Regression("l1")


def renamed(document, old):
    """A method.json whose head has an old name."""
    return {**document, "policy": {**document["policy"], "head": {**document["policy"]["head"], "$": old}}}


def test_a_run_that_names_an_old_place_is_continued(tmp_path, monkeypatch):
    """The settings are compared as values. With another value they are still refused."""
    shutil.copytree(BEFORE / "stopped", tmp_path / "run")
    options = {"device": "cpu", "save_freq": 4, "progress": False, "validation": Validation(6, 2)}
    for path in tmp_path.rglob("method.json"):
        path.write_text(json.dumps(renamed(json.loads(path.read_text()), "understudy.old:Streams")))
    with pytest.raises(UserError, match="started with other settings: method.policy.head was Streams"):
        train(everything(), made_up(image=True), tmp_path / "run", **options)
    monkeypatch.setitem(moved.NAMES, "understudy.old:Streams", "understudy.heads.flow:Flow")
    train(everything(), made_up(image=True), tmp_path / "run", **options)
    assert TrainingCurves.load(tmp_path / "run").last == 11
