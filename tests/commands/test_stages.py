"""Commands on methods with stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fixtures.staged import call, contents, method, parameters, run, tuned

from understudy.checkpoint import FromStage
from understudy.cli import main
from understudy.core import keys
from understudy.data.augment import ConditionDropout
from understudy.data.window import Window
from understudy.execute.planners import Guided
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.likelihood.regression import Regression
from understudy.improve.updates import PerRound
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import (
    InitializeFrom,
    Method,
    Stage,
    TrainedRun,
    with_steps,
)
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.run import Run
from understudy.methods import find_method
from understudy.nets.mlp import MLP
from understudy.policy import ClassifierFreeGuidance, Policy, PolicyConfig


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("demos") / "particle"
    assert call("record", "particle", "--out", path, "--episodes", 6)[0] == 0
    return path


def pretrained() -> Method:
    """Pre-training, then fine-tuning of the network alone."""
    base = Method(PolicyConfig(Regression(), trunk=MLP(width=8, depth=1)), learner=BehaviorCloning(3, 8))
    return replace(base, stages=(Stage("base", base),),
                   initialize_from=(InitializeFrom(FromStage("base"), train=("net",)),))


def guided() -> Method:
    """Classifier-free guidance: the observation is dropped in a half of the training windows."""
    column = "observation.state"
    config = PolicyConfig(Diffusion(n_steps=2), trunk=MLP(width=8, depth=1), window=Window(1, 2),
                          augmentations=(ConditionDropout(column, 0.5),))
    return Method(config, learner=BehaviorCloning(3, 8),
                  inference=(Guided(guides=(ClassifierFreeGuidance((column,), 3.0),)),))


def test_one_command_pretrains_fine_tunes_and_evaluates(demos, tmp_path):
    out = tmp_path / "run"
    command = ("train", f"{__name__}:pretrained", demos, "--trust", "tests", "--out", out, "--device", "cpu")
    assert call(*command)[0] == 0
    base, policy = Policy.load(out / "stages/base"), Policy.load(out)
    assert all(map(torch.equal, parameters(policy, "encoder"), parameters(base, "encoder")))
    assert call("eval", out, "particle", "--episodes", 2, "--device", "cpu")[0] == 0
    assert Method.load(out) == pretrained()
    # Its stage is taken from that run, and nothing but the network is trained on from it.
    stage_run = tmp_path / "given"
    assert call(*command[:5], "--out", stage_run, "--device", "cpu", "--stage", f"base={out}/stages/base")[0] == 0
    assert Policy.load(stage_run).state_dict().keys() == policy.state_dict().keys()
    assert all(map(torch.equal, Policy.load(stage_run).parameters(), policy.parameters()))
    tuned = tmp_path / "tuned"
    status, text = call("train", out, demos, "--from", out, "--freeze", "encoder", "--out", tuned, "--device", "cpu")
    assert status == 0, text
    assert all(map(torch.equal, parameters(Policy.load(tuned), "encoder"), parameters(policy, "encoder")))
    assert [s.name for s in Method.load(tuned).stages] == ["from"]
    status, text = call("train", out, demos, "--from", out, "--freeze", "encoder.map", "--out", tmp_path / "none")
    assert status == 2 and "InitializeFrom.frozen, 'encoder.map': the policy has no submodule" in text
    assert not (tmp_path / "none").exists()  # where the run was copied to before it was refused
    for options, says in ((["--freeze", "encoder"], "--freeze: needs --from RUN"),
                          (["--from", out, "--freeze", "maps"], "--freeze: 'maps' is not codec, encoder, net"),
                          (["--from", out, "--freeze", "net", "--load", "encoder"], "--freeze: net is not loaded"),
                          (["--from", out, "--freeze", "net", "encoder"], "--freeze: nothing is left to train"),
                          (["--stage", "base"], "'base' is not two names with ="),
                          (["--stage", f"rest={out}"], "no stage 'rest'")):
        status, text = call("train", "bc", demos, "--out", tmp_path / "none", *options)
        assert status == 2 and says in text


def test_a_stage_and_prior_episodes_of_another_environment_are_warned_of(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("push", "particle"):  # both have eight numbers of state and two of action
        assert main(["record", name, "--episodes", "5", "--out", name]) == 0
    train = ["train", "bc-inverse-dynamics", "--device", "cpu", "--steps", "2"]
    assert main([*train, "particle", "--out", "encoder"]) == 0
    capsys.readouterr()
    assert main([*train, "push", "--stage", "encoder=encoder", "--out", "other"]) == 0
    assert "the run of stage encoder, encoder, was trained on data of particle, and these are of push" in \
        capsys.readouterr().err
    assert main([*train, "particle", "--stage", "encoder=encoder", "--out", "same"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert main([*train, "push", "--prior", "particle", "--out", "prior"]) == 0
    assert "warning: --prior particle has data of particle, and these are of push" in capsys.readouterr().err


def test_steps_change_the_updates_of_all_stages_and_rounds_by_one_factor():
    onedp, half = find_method("onedp"), with_steps(find_method("onedp"), find_method("onedp").learner.steps // 2)
    assert half.stages[0].method.learner.steps == onedp.stages[0].method.learner.steps // 2
    assert replace(half, learner=onedp.learner, stages=onedp.stages) == onedp
    kept = with_steps(onedp, 2, {onedp.stages[0].name})
    assert kept.stages == onedp.stages and kept.learner.steps == 2
    assert with_steps(onedp, 2).stages[0].method.learner.steps == max(round(
        onedp.stages[0].method.learner.steps * 2 / onedp.learner.steps), 1)
    nested = method(8, stages=(Stage("outer", method(40, stages=(Stage("inner", method(400)),))),))
    scaled = with_steps(nested, 2).stages[0].method
    assert (scaled.learner.steps, scaled.stages[0].method.learner.steps) == (10, 100)
    offline = find_method("td3-bc")
    tried = with_steps(offline, 10)
    factor = 10 / offline.learner.steps
    assert tried.collection.initial_updates == max(round(offline.collection.initial_updates * factor), 1)
    assert tried.collection.updates == PerRound(1)  # a round has one update at least
    longer = with_steps(offline, 4000).collection
    total = longer.initial_updates + longer.n_rounds * longer.updates.count
    assert total == pytest.approx(4000, abs=longer.n_rounds / 2)
    assert with_steps(method(0), 5).learner.steps == 5


def test_the_updates_of_a_method_that_its_stage_trains_are_those_of_the_stage():
    """They were multiplied: 1,000 became 5,000,000."""
    for name in ("play-lmp", "groot-2"):
        longer = with_steps(find_method(name), 1000)
        assert (longer.learner.steps, longer.stages[0].method.learner.steps) == (1, 1000)
    given = with_steps(find_method("play-lmp"), 7, ("plans",))
    assert given.learner.steps == 1 and given.stages == find_method("play-lmp").stages
    assert with_steps(find_method("knn"), 7).learner.steps == 7  # without stages
    once = method(1, stages=(Stage("from", method(9)),), initialize_from=(InitializeFrom(FromStage("from")),))
    assert with_steps(once, 7).learner.steps == 7  # it trains on from the stage
    frozen_encoder = replace(once, initialize_from=(InitializeFrom(FromStage("from"), ("encoder",), ()),))
    assert with_steps(frozen_encoder, 7).learner.steps == 7
    assert with_steps(find_method("retrieve-align-replay"), 7).stages[1].method.learner.steps == 7


def test_a_method_with_stages_is_tried_in_a_few_updates(demos, tmp_path):
    """The plan is printed before the training, and an option of a stage wins over the factor."""
    command = ("train", f"{__name__}:pretrained", demos, "--trust", "tests", "--device", "cpu", "--steps", "6")
    status, text = call(*command, "--out", tmp_path / "run")
    assert status == 0 and "plan: stage base: 6 updates; then the method: 6 updates" in text
    assert [Run(tmp_path / f).saved_steps()[-1] for f in ("run", "run/stages/base")] == [6, 6]
    status, text = call(*command, "--out", tmp_path / "set", "--stages.0.method.learner.steps", "2")
    assert status == 0 and "plan: stage base: 2 updates; then the method: 6 updates" in text
    status, text = call(*command, "--out", tmp_path / "given", "--stage", f"base={tmp_path / 'set/stages/base'}")
    assert status == 0 and "plan: stage base: taken from its run; then the method: 6 updates" in text


def test_more_updates_continue_a_run_whose_stages_are_finished(tmp_path):
    constant = replace(tuned(), learner=replace(tuned().learner, optimizer=OptimizerConfig(lr_schedule="constant")))
    run(tmp_path / "run", constant, steps=4)
    stage = contents(tmp_path / "run/stages")
    run(tmp_path / "run", constant, steps=8)
    assert Run(tmp_path / "run").saved_steps()[-1] == 8
    assert contents(tmp_path / "run/stages") == stage


def test_guidance_acts_wherever_the_checkpoint_does(demos, tmp_path):
    out = tmp_path / "run"
    status, text = call("train", f"{__name__}:guided", demos, "--trust", "tests", "--out", out, "--device", "cpu",
                        "--eval", "particle", "--rollouts", 2)
    assert status == 0, text
    status, text = call("eval", out, "particle", "--episodes", 2, "--json", "--device", "cpu")
    assert status == 0, text
    loaded = TrainedRun.load(out)
    planner, policy = loaded.planner(), loaded.modules["policy"]
    rng = torch.Generator().manual_seed(0)
    obs = {k: torch.randn(50, 1, *policy.features[k].shape, generator=rng) for k in policy.inputs}
    noise = policy.noise(keys(0, range(50)), torch.zeros(50, dtype=torch.int64))
    plans = planner.plan(obs, noise)
    assert torch.equal(plans, policy.plan(obs, noise, guided().inference[0].guides))
    assert not torch.allclose(plans, policy.plan(obs, noise))
    status, text = call("export", out, "--out", tmp_path / "policy.onnx")
    assert status == 2 and "without Guided" in text


def test_the_stage_that_gives_actions_their_meaning_comes_with_the_weights(demos, tmp_path):
    """A new skill autoencoder has other latents: the policy chose among those of the old one."""
    short = ("--device", "cpu", "--steps", 2, "--batch-size", 4, "--stages.0.method.learner.steps", 2,
             "--stages.0.method.learner.batch-size", 4)
    skills = tmp_path / "a/stages/skills"
    assert call("train", "opal", demos, "--out", tmp_path / "a", *short)[0] == 0
    status, text = call("train", "opal", demos, "--out", tmp_path / "b", *short[:6], "--seed", 1, "--from",
                        tmp_path / "a")
    assert status == 0 and "plan: stage skills: taken from its run; then stage from: taken from its run" in text
    assert all(map(torch.equal, Policy.load(tmp_path / "b/stages/skills").parameters(),
                   Policy.load(skills).parameters()))
    status, text = call("train", "play-lmp", demos, "--out", tmp_path / "c", "--from", tmp_path / "a")
    assert status == 2 and f"--stage plans={tmp_path / 'a/stages/plans'}" in text and "'plans', which starts" in text


@pytest.mark.parametrize(("name", "options", "steps"), [
    ("td3", {"n_rounds": 2}, 1000), ("td3", {"n_rounds": 3, "n_steps": 7}, 10), ("sac", {}, 5000),
    ("ppo", {"n_rounds": 4}, 1000), ("dagger", {"n_rounds": 1}, 600), ("td3-bc", {"n_rounds": 5}, 1000)])
def test_a_collection_makes_as_many_updates_as_asked_in_any_number_of_rounds(name, options, steps):
    collection = with_steps(find_method(name, **options), steps).collection
    total = collection.initial_updates + collection.n_rounds * collection.updates.number(20, 3000, 64)
    assert total == pytest.approx(steps, abs=collection.n_rounds / 2)
    assert collection.n_rounds == options.get("n_rounds", collection.n_rounds)
    assert collection.n_rounds == 1 and not collection.initial_updates or f"{total:,} in all" in collection.describe()


def test_steps_and_updates_of_each_step_contradict_each_other(tmp_path, capsys):
    train = ["train", "td3", "--env", "particle", "--out", str(tmp_path / "run"), "--random-steps", "20"]
    assert main([*train, "--updates-per-step", "2", "--steps", "10"]) == 2
    assert ("--steps: is the number of all updates, and --updates-per-step sets that of each round to 2 updates "
            "per collected step") in " ".join(capsys.readouterr().err.split())
