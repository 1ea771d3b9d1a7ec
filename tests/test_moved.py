"""Files of the version before modules were moved are read as they were then."""

import json
import shutil
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from fixtures.runs import Stop, everything, made_up
from folders import TESTS
from safetensors.torch import load_file

from understudy import config, moved
from understudy.checkpoint import FromStage, find_checkpoint
from understudy.core import ConfigError, Feature, UserError, keys
from understudy.data.missing_actions import LabeledSteps
from understudy.execute.bidirectional import BidirectionalDecoding
from understudy.execute.planners import (
    BestOfN,
    Guided,
    Hierarchical,
    InverseDynamicsPlanner,
    IteratedPlanner,
    KernelDensity,
    MaskedGoalPlanner,
    SampleSelector,
)
from understudy.execute.self_guidance import SelfGuided
from understudy.execute.steering import ComposedPolicies, ScorerGuided, Steered
from understudy.heads.likelihood.regression import Regression
from understudy.learn.critics.sac import SAC
from understudy.learn.critics.td3 import TD3
from understudy.learn.method import load_actor
from understudy.learn.train import train
from understudy.learn.training_curves import TrainingCurves
from understudy.learn.validation import Validation
from understudy.methods import find_method
from understudy.methods.offline_rl.cql import CQL
from understudy.methods.offline_rl.spot import SPOT
from understudy.policy import ClassifierFreeGuidance

BEFORE = TESTS / "fixtures" / "before_moves"
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
FIRST_SINCE_THEN = {"decision-diffuser": (LabeledSteps(followed=True),)}  # transforms
OLD_PLANNERS, GUIDE = "understudy.execute.planner_config", ClassifierFreeGuidance(("observation.goal",), 2.0)
CRITIC = {"$": "understudy.checkpoint:FromStage", "stage": "critic", "module": "critic"}


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
    before = config.load(METHODS[name])
    before = replace(before, transforms=(*FIRST_SINCE_THEN.get(name, ()), *before.transforms))
    assert before == find_method(name, SPECIAL.get(name, FEATURES))


def test_td3_sac_and_cql_were_one_class():
    old = {"$": "understudy.learn.critics.off_policy_actor_critic:OffPolicyActorCritic", "n_conservative_samples": 4,
           "target_noise": 0.3, "policy_delay": 1, "bc_weight": 0.0, "temperature": None, "conservative_weight": 0.0}
    assert config.load(old) == TD3(target_noise=0.3, policy_delay=1)
    assert config.load({**old, "temperature": 0.5}) == SAC(temperature=0.5, target_entropy=None)
    conservative = config.load({**old, "temperature": 0.5, "target_entropy": -2.0, "conservative_weight": 3.0})
    assert conservative == CQL(temperature=0.5, target_entropy=-2.0, conservative_weight=3.0, n_samples=4)
    assert config.load({"$": old["$"]}) == TD3(bc_weight=0.4)  # the defaults of before
    spot = {**old, "$": "understudy.methods.offline_rl.spot:SupportedActorCritic"}
    assert config.load(spot) == SPOT(target_noise=0.3, policy_delay=1, bc_weight=0.0)
    with pytest.raises(UserError, match="temperature"):  # which would be ignored
        config.load({**spot, "temperature": 0.5})


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


STOPPED = "checkpoints/000005"


def continued(run):
    """The last weights of a run of `everything` that was stopped."""
    train(everything(), made_up(image=True), run, device="cpu", save_freq=4, progress=False,
          validation=Validation(6, 2))
    return load_file(find_checkpoint(run) / "weights.safetensors")


def test_a_run_that_was_stopped_before_is_continued_bit_by_bit_as_one_of_today(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(everything(), made_up(image=True), tmp_path / "today", device="cpu", save_freq=4, progress=False,
              validation=Validation(6, 2), callbacks=[Stop(5)])
    for name in ("weights.safetensors", "checksums.json", "train/learner.safetensors", "train/state.json",
                 "train/checksums.json"):  # numbers alone: what names modules stays that of today
        shutil.copy(BEFORE / "stopped" / STOPPED / name, tmp_path / "today" / STOPPED / name)
    shutil.copytree(BEFORE / "stopped", tmp_path / "before")
    of_before, of_today = continued(tmp_path / "before"), continued(tmp_path / "today")
    assert of_before.keys() == of_today.keys()
    assert all(torch.equal(of_before[name], of_today[name]) for name in of_today)


def test_a_run_that_was_stopped_before_learns_what_it_would_have_learned_then(tmp_path):
    """Of all weights together: where a gradient is nearly 0, Adam turns the rounding of a processor into a step.

    With and without vector instructions, the error is at most 0.05 % of the change, since few weights have such
    gradients.
    """
    shutil.copytree(BEFORE / "stopped", tmp_path / "run")
    weights, expected = continued(tmp_path / "run"), load_file(BEFORE / "whole.safetensors")
    stopped = load_file(BEFORE / "stopped" / STOPPED / "weights.safetensors")
    assert weights.keys() == expected.keys()
    error, change = (sum((a[name] - b[name]).square().sum() for name in expected).sqrt()
                     for a, b in ((weights, expected), (expected, stopped)))
    assert error < 1e-3 * change  # other random numbers change all of it


PLANNER_DOCUMENTS = {  # as version 0.1 wrote them
    "GuidanceConfig": ({"guides": [config.dump(GUIDE)]}, Guided(guides=(GUIDE,))),
    "BestOfNConfig": ({"scorer": CRITIC, "n": 3}, BestOfN(scorer=FromStage("critic", "critic"), n=3)),
    "SampleSelectorConfig": ({"scorer": config.dump(KernelDensity(0.2)), "n": 3},
                             SampleSelector(scorer=KernelDensity(0.2), n=3)),
    "BidirectionalDecodingConfig": ({"weak": "early", "n": 9, "n_kept": 3, "decay": 0.1},
                                    BidirectionalDecoding(weak="early", n=9, n_kept=3, decay=0.1)),
    "SelfGuidanceConfig": ({"scale": 0.5, "lag": 2}, SelfGuided(scale=0.5, lag=2)),
    "CompositionConfig": ({"others": ["other", CRITIC], "weights": [0.5, 0.25, 0.25]},
                          ComposedPolicies(others=("other", FromStage("critic", "critic")), weights=(0.5, 0.25, 0.25))),
    "SteeringConfig": ({"points": [[0.1, 0.2]], "column": "observation.at", "components": [1, 0], "step": 0.1,
                        "scale": 2.0}, Steered(None, ((0.1, 0.2),), "observation.at", (1, 0), 0.1, 2.0)),
    "ScorerGuidanceConfig": ({"scorer": "value", "scale": -1.0}, ScorerGuided(scorer="value", scale=-1.0)),
    "HierarchyConfig": ({"high": "prior", "column": "observation.goal", "inference": [
        {"$": f"{OLD_PLANNERS}:GuidanceConfig", "guides": [config.dump(GUIDE)]},
        {"$": f"{OLD_PLANNERS}:BestOfNConfig", "scorer": "value", "n": 3}]},
        Hierarchical(BestOfN(Guided("prior", (GUIDE,)), "value", 3), as_key="observation.goal")),
    "IterationConfig": ({"column": "observation.count", "n_steps": 3},
                        IteratedPlanner(column="observation.count", n_steps=3)),
    "InverseDynamicsConfig": ({"high": CRITIC, "column": "observation.at", "as_key": "observation.then",
                               "inference": []},
                              InverseDynamicsPlanner(FromStage("critic", "critic"), None, "observation.at",
                                                     "observation.then")),
    "MaskedGoalConfig": ({"column": "observation.at", "action": "action", "goal": "observation.g", "time_left": "t"},
                         MaskedGoalPlanner(None, "observation.at", "action", "observation.g", "t")),
}


@pytest.mark.parametrize("name", PLANNER_DOCUMENTS)
def test_planner_configs_of_before_are_planners(name):
    fields, planner = PLANNER_DOCUMENTS[name]
    assert config.load({"$": f"{OLD_PLANNERS}:{name}", **fields}) == planner
    assert config.load(json.loads(json.dumps(config.dump(planner)))) == planner


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
    monkeypatch.setitem(moved.NAMES, "understudy.old:Streams", "understudy.heads.denoising.flow:Flow")
    train(everything(), made_up(image=True), tmp_path / "run", **options)
    assert TrainingCurves.load(tmp_path / "run").last == 11
