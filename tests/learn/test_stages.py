"""Stages, initial weights and named modules: one method value that is trained, stopped, resumed and acts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from fixtures.staged import contents, episodes, method, parameters, run, tuned

from understudy import config
from understudy.checkpoint import FromStage, Scorer, load_module, save_module
from understudy.cli import main
from understudy.core import DataWarning, UserError, keys
from understudy.data.formats import write_dataset
from understudy.data.relabel import Hindsight
from understudy.data.window import Window
from understudy.execute.actor import PolicyActor
from understudy.execute.planners import BestOfN, Hierarchical
from understudy.heads.likelihood.regression import Regression
from understudy.heads.memory.neighbors import Neighbors
from understudy.learn.algorithm import Engine, Net, first, loss
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig, QFunction, ValueFunction
from understudy.learn.method import (
    InitializeFrom,
    Method,
    Stage,
    TrainedRun,
    find_references,
    load_actor,
    resolve_references,
)
from understudy.learn.run import Run
from understudy.learn.stages import check_stages, continue_from, stage_provenances, use_run
from understudy.learn.train import train
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_scorer

STATE = "observation.state"


class Stop:
    """Presses Ctrl-C during one update, counted over all stages."""

    def __init__(self, monkeypatch, at: int):
        self.left, before = at, Engine.update

        def update(learner, batch):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGINT)
            return before(learner, batch)
        monkeypatch.setattr(Engine, "update", update)


# -- stages ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Pre-training and fine-tuning that nothing stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(out, tuned())
    return out


def test_a_stage_is_a_run_of_its_own_and_gives_the_first_weights(whole):
    stage = whole / "stages" / "base"
    assert Run(stage).saved_steps()[-1] == 5 and Run(whole).saved_steps()[-1] == 4
    assert Method.load(stage) == method(5) and Method.load(whole) == tuned()
    provenance = json.loads((whole / "checkpoints" / "000004" / "provenance.json").read_text())
    assert provenance["stages"] == {"base": Run.fingerprint(stage / "checkpoints" / "000005")}
    alone = Policy.load(stage)
    again = tuned()
    first = train(replace(again, learner=replace(again.learner, steps=0)), episodes(), whole.with_name("first"),
                  device="cpu", progress=False)
    for (name, tensor), expected_tensor in zip(first.state_dict().items(), alone.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected_tensor), name


@pytest.mark.parametrize("at", [1, 3, 5, 6, 8, 9])
def test_stopped_in_any_stage_it_is_the_same_run_bit_by_bit(whole, tmp_path, monkeypatch, at):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        Stop(patch, at)
        with pytest.raises(KeyboardInterrupt):
            run(out, tuned())
    assert (out / "checkpoints").exists() == (at > 5)
    run(out, tuned())
    assert contents(out) == contents(whole)


def test_a_finished_stage_is_not_trained_again(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr(Engine, "update", None)
    before = contents(tmp_path / "run")
    run(tmp_path / "run", tuned())
    assert contents(tmp_path / "run") == before


def test_a_stage_of_another_method_data_or_seed_is_refused(tmp_path, monkeypatch):
    Stop(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", tuned())
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # as if it had been stopped between the two
    other = replace(tuned(), stages=(Stage("base", method(6)),))
    settings, more = "with other settings", "stages/base: this run has 5 updates.* cannot be continued to 6"
    for changed, data, seed, says in ((other, None, 0, more), (tuned(), episodes(seed=1), 0, settings),
                                      (tuned(), None, 1, settings)):
        with pytest.raises(UserError, match=says):
            run(tmp_path / "run", changed, data, seed=seed)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_same_episodes_are_held_out_of_every_stage(tmp_path):
    data = episodes(6, part="play") + episodes(6, seed=1, part="demos")
    staged_method = replace(tuned(), stages=(Stage("base", method(5), dataset="demos"),))
    run(tmp_path / "run", staged_method, data, val_fraction=[1, 7, 10])
    provenance = json.loads((tmp_path / "run/stages/base/checkpoints/000005/provenance.json").read_text())
    assert provenance["held_out"] == [1, 4] and provenance["data"]["episodes"] == 6
    assert provenance["data"]["fingerprint"] == data[6:].fingerprint()
    with pytest.raises(UserError, match="no part 'rest'; they have demos, play"):
        run(tmp_path / "other", replace(staged_method, stages=(Stage("base", method(5), dataset="rest"),)), data)


# -- initial weights ------------------------------------------------------------------------------------------------


def test_frozen_parts_do_not_move(tmp_path):
    policy = run(tmp_path / "run", tuned(train=("net",)))
    base = Policy.load(tmp_path / "run" / "stages" / "base")
    assert all(map(torch.equal, parameters(policy, "encoder", "codec"), parameters(base, "encoder", "codec")))
    assert not any(map(torch.equal, policy.net.parameters(), base.net.parameters()))
    moved = run(tmp_path / "all", tuned())
    assert not all(map(torch.equal, parameters(moved, "encoder"), parameters(base, "encoder")))


def test_statistics_are_the_stages_or_fitted_to_the_new_data(tmp_path):
    run(tmp_path / "base", method(5))
    shifted_data = episodes(shift=100.0, seed=2)
    for load, old in ((("codec", "encoder", "net"), True), (("encoder", "net"), False)):
        continued = continue_from(method(1), tmp_path / "base", load)
        policy = run(tmp_path / f"old-{old}", continued, shifted_data, stages={"from": tmp_path / "base"})
        same = [torch.equal(a, b) for a, b in zip(policy.codec.state_dict().values(),
                                                  Policy.load(tmp_path / "base").codec.state_dict().values(),
                                                  strict=True)]
        assert all(same) == old
        mean = policy.codec.encode_obs({STATE: torch.full((1, 1, 3), 100.0)})[STATE].abs().max()
        assert (mean > 10) == old, "coordinates far away are near 0 in new statistics alone"


def test_a_memory_is_of_the_new_data(tmp_path):
    base = method(0, Neighbors())
    run(tmp_path / "base", base)
    continued = continue_from(base, tmp_path / "base")
    data = episodes(3, seed=4)
    policy = run(tmp_path / "run", continued, data, stages={"from": tmp_path / "base"}, val_fraction=0)
    assert len(policy.net.keys) == data.steps


def test_only_a_part_may_be_loaded_and_names_are_checked(tmp_path):
    base = tmp_path / "base"
    run(base, method(5))
    with pytest.raises(UserError, match="no submodule 'encodr'; it has codec, encoder, net"):
        run(tmp_path / "r", continue_from(method(), base, ("encodr",)), stages={"from": base})
    with pytest.raises(UserError, match="(?s)the weights of the stage 'from' do not fit: .*leave it out"):
        wide = replace(method().policy, trunk=MLP(width=9, depth=1))
        run(tmp_path / "s", continue_from(replace(method(), policy=wide), base), stages={"from": base})
    narrow = episodes().map(lambda e: replace(e, steps={**e.steps, STATE: e.steps[STATE][:, :2]}))
    with pytest.raises(UserError, match=r"'codec': observation.state has the shape \(2,\) in these data, but .*"
                       r"trained with \(3,\)"):
        run(tmp_path / "t", continue_from(method(), base), narrow, stages={"from": base})


# -- existing runs as stages ----------------------------------------------------------------------------------------


def test_a_run_is_continued_and_the_folder_needs_nothing_else(tmp_path):
    run(tmp_path / "base", method(5))
    continued = continue_from(method(3), tmp_path / "base")
    out = tmp_path / "run"
    run(out, continued, stages={"from": tmp_path / "base"})
    assert not (out / "stages/from/checkpoints/000005/train").exists()
    whole = contents(out)
    run(out, continued, stages={"from": tmp_path / "base"})
    run(out, continued)  # the copy is there
    assert contents(out) == whole
    shutil.rmtree(tmp_path / "base")
    run(out, continued, stages={"from": tmp_path / "base"})
    assert contents(out) == whole
    run(tmp_path / "other", method(6))
    with pytest.raises(UserError, match="copied from other weights"):
        run(out, continued, stages={"from": tmp_path / "other"})
    Run(tmp_path / "other").name_checkpoints(best=6)
    with pytest.raises(UserError, match="copied from other weights"):
        run(out, continued, stages={"from": tmp_path / "other/best"})


def test_what_the_run_before_was_trained_on_is_not_held_out(tmp_path, capsys):
    data, base, out = episodes(), tmp_path / "base", tmp_path / "run"
    run(base, method(1), data, val_fraction=[0])
    continued = continue_from(method(1), base)
    with pytest.warns(DataWarning, match="held-out episodes that the run in stages/from was trained on: 1 of 2"):
        run(out, continued, data, stages={"from": base}, val_fraction=[0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        run(tmp_path / "other", continued, data, stages={"from": base}, val_fraction=[0])
    assert stage_provenances(out).keys() == {"from"} and stage_provenances(base) == {}
    write_dataset(data.select([1]), tmp_path / "one.npz")
    capsys.readouterr()
    assert main(["eval", str(out), str(tmp_path / "one.npz"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["origin"] == "trained on"


def test_continuing_begins_where_the_run_ended(tmp_path):
    base = run(tmp_path / "base", method(5))
    continued = continue_from(replace(method(), learner=BehaviorCloning(0, 8)), tmp_path / "base")
    policy = run(tmp_path / "run", continued, stages={"from": tmp_path / "base"})
    assert all(map(torch.equal, policy.state_dict().values(), base.state_dict().values()))


def test_a_given_run_takes_the_place_of_a_stage(tmp_path, monkeypatch):
    run(tmp_path / "base", method(7, Regression()))
    changed_method = use_run(replace(tuned(), policy=method(head=Regression()).policy), "base", tmp_path / "base")
    assert changed_method.stages[0].method == method(7, Regression())
    run(tmp_path / "run", changed_method, stages={"base": tmp_path / "base"})
    assert Run(tmp_path / "run/stages/base").saved_steps() == [7]
    with pytest.raises(UserError, match="no stage 'bose'; it has base"):
        use_run(tuned(), "bose", tmp_path / "base")
    reads_critic = replace(tuned(), initialize_from=(InitializeFrom(FromStage("base", "critic")),))
    with pytest.raises(UserError, match=r"base: the run has no module 'critic'.*stage 'base'; it has policy"):
        use_run(reads_critic, "base", tmp_path / "base")


# -- references -----------------------------------------------------------------------------------------------------


def hierarchy() -> Method:
    """The high policy says where to be; the low one reads that as a column of its data."""
    high = Method(PolicyConfig(Regression(), trunk=MLP(width=8, depth=1), window=Window(1, 1), target=STATE),
                  learner=BehaviorCloning(3, 8))
    low = PolicyConfig(Regression(), trunk=MLP(width=8, depth=1), window=Window(1, 1),
                       inputs=(STATE, "observation.subgoal"))
    return Method(low, learner=BehaviorCloning(3, 8), transforms=(Hindsight(into="observation.subgoal"),),
                  stages=(Stage("high", high),),
                  inference=(Hierarchical(FromStage("high")),))


def test_a_reference_in_a_field_is_the_stages_module(tmp_path):
    run(tmp_path / "run", hierarchy())
    assert Method.load(tmp_path / "run") == hierarchy(), "method.json holds the reference"
    loaded = TrainedRun.load(tmp_path / "run")
    planner = loaded.planner()
    assert isinstance(planner, Hierarchical) and isinstance(planner.high, Policy)
    obs, key = {STATE: torch.randn(2, 1, 3)}, keys(0, range(2))
    noise = planner.noise(key, torch.zeros_like(key))
    high, low = Policy.load(tmp_path / "run/stages/high"), Policy.load(tmp_path / "run")
    subgoal = high.plan(obs, high.noise(key, key))
    expected = low.plan({**obs, "observation.subgoal": subgoal}, low.noise(key, key))
    assert torch.equal(planner.plan(obs, noise), expected)
    a = load_actor(tmp_path / "run", rows=4)
    assert isinstance(a, PolicyActor) and a.start({STATE: torch.zeros(2, 3)}, key)
    shutil.rmtree(tmp_path / "run/stages")
    with pytest.raises(UserError, match="stage 'high' is missing"):
        load_actor(tmp_path / "run")


def test_references_are_resolved_wherever_they_stand():
    staged_method = replace(hierarchy(), initialize_from=(InitializeFrom(FromStage("high")),))
    assert list(find_references(staged_method)) == [FromStage("high")]
    marker = Policy.__new__(Policy)
    resolved = resolve_references(staged_method, {FromStage("high"): marker})
    assert resolved.inference[0].high is marker and not list(find_references(resolved))
    assert resolved.stages == staged_method.stages and resolved.initialize_from == staged_method.initialize_from
    assert staged_method == replace(hierarchy(),
                                    initialize_from=staged_method.initialize_from), "the value itself stays as it was"
    with pytest.raises(UserError, match="no module 'policy' of a stage 'high'"):
        resolve_references(staged_method, {})
    plain = method()
    assert resolve_references(plain, {}) is plain


@pytest.mark.parametrize(("wrong", "says"), [
    (lambda: tuned(stages=()), "stages"),
    (lambda: replace(tuned(), stages=()), "no stage 'base' before it"),
    (lambda: replace(tuned(), stages=(Stage("base", method()), Stage("base", method()))), "two stages are called"),
    (lambda: replace(method(), stages=(Stage("a", replace(method(), initialize_from=(
        InitializeFrom(FromStage("b")),))), Stage("b", method()))), "no stage 'b' before it"),
    (lambda: Stage("../up", method()), "cannot be called"),
])
def test_stages_that_make_no_sense_are_refused(wrong, says):
    with pytest.raises((UserError, TypeError), match=says):
        check_stages(wrong())


def test_a_stage_may_use_the_one_before_it(tmp_path):
    second = replace(method(2), initialize_from=(InitializeFrom(FromStage("a")),))
    staged_method = replace(tuned(), stages=(Stage("a", method(3)), Stage("b", second)),
                            initialize_from=(InitializeFrom(FromStage("b")),))
    run(tmp_path / "run", staged_method)
    assert (tmp_path / "run/stages/b/checkpoints/000002").is_dir()
    assert not (tmp_path / "run/stages/b/stages").exists()


def test_methods_with_everything_survive_their_file():
    staged_method = replace(hierarchy(), initialize_from=(InitializeFrom(FromStage("high"), ("encoder",)),),
                            inference=(*hierarchy().inference, BestOfN(n=4)))
    assert config.load(json.loads(json.dumps(config.dump(staged_method)))) == staged_method


# -- named modules --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WithCritic(BehaviorCloning):
    """BehaviorCloning, beside which a critic learns that the first action component should be small."""

    critic: CriticConfig = CriticConfig(hidden=(16,), n_critics=1)

    def networks(self, policy, data):
        return {**super().networks(policy, data), "critic": Net(self.critic.build(policy), self.optimizer)}

    @first
    @loss("critic")
    def critic_loss(self, nets, batch, rng):
        """A plan's score is to be the negative of its first component."""
        plan = torch.randn(batch.action.shape, generator=rng)
        return (nets.critic.scores(batch.obs, plan) + plan[:, 0, 0]).square().mean(0)


def test_a_checkpoint_holds_named_modules_and_best_of_n_uses_them(tmp_path):
    staged_method = replace(method(), learner=WithCritic(4, 8), inference=(BestOfN(scorer="critic", n=5),))
    acting = []
    run(tmp_path / "run", staged_method, score=lambda actor: acting.append(actor) or 0.0)
    folder = tmp_path / "run/checkpoints/000004/modules/critic"
    assert {"module.json", "critic.json", "features.json", "weights.safetensors", "checksums.json"} == {
        p.name for p in folder.iterdir()}
    loaded = TrainedRun.load(tmp_path / "run", trust=("tests",))
    planner = loaded.planner()
    assert isinstance(planner, BestOfN) and isinstance(loaded.modules["critic"], QFunction)
    obs, key = {STATE: torch.randn(3, 1, 3)}, keys(0, range(3))
    noise = planner.noise(key, torch.zeros_like(key))
    plans = torch.stack([loaded.modules["policy"].plan(obs, noise[:, i]) for i in range(5)], 1)
    score = torch.stack([loaded.modules["critic"](obs, plans[:, i]) for i in range(5)], 1)
    chosen = planner.plan(obs, noise)
    assert torch.allclose(chosen, plans[torch.arange(3), score.argmax(1)], atol=1e-6)
    assert len(set(score.argmax(1).tolist())) > 0
    assert isinstance(acting[0].planner.planner, BestOfN), "scored as it acts"
    with pytest.raises(UserError, match="no module 'value'; it has policy, critic"):
        replace(loaded, method=replace(staged_method, inference=(BestOfN(scorer="value"),))).planner()
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="damaged"):
        TrainedRun.load(tmp_path / "run", trust=("tests",))


def test_critics_share_the_codec_and_survive_their_files(tmp_path):
    data = episodes()
    policy = Policy(method().policy, data.features()).fit_statistics(data)
    for action, kind in ((True, QFunction), (False, ValueFunction)):
        critic = CriticConfig(hidden=(16, 16), layer_norm=True).build(policy, action)
        assert type(critic) is kind and critic.codec is policy.codec
        save_module(critic, tmp_path / kind.__name__)
        again = load_module(tmp_path / kind.__name__)
        assert isinstance(again, Scorer) and type(again) is kind and again.codec is not policy.codec
        batch = policy.windows(data).batch(6, 0)
        critic_values = critic.eval()(batch.obs, batch.action)
        assert critic_values.shape == (6,) and torch.equal(again(batch.obs, batch.action), critic_values)
        assert torch.equal(critic.scores(batch.obs, batch.action).amin(0), critic_values)
        check_scorer(critic, batch.obs, batch.action)
        other = critic(batch.obs, batch.action + 0.5)
        assert torch.equal(other, critic_values) == (kind is ValueFunction)
    class Random(QFunction):
        def forward(self, obs, plan):
            return torch.randn(len(plan))
    batch = policy.windows(data).batch(6, 0)
    small_critic = CriticConfig(hidden=(16,)).build(policy)
    with pytest.raises(AssertionError, match="the same plan must have the same score"):
        check_scorer(Random(small_critic.about, small_critic.features), batch.obs, batch.action)
    path = tmp_path / "QFunction" / "module.json"
    path.write_text(json.dumps({"$": "nobody_trusts_this:Critic"}))
    with pytest.raises(config.UntrustedCode):
        load_module(tmp_path / "QFunction")
    path.write_text(json.dumps({"$": "understudy.learn.algorithm:Engine"}))
    with pytest.raises(config.UntrustedCode, match="not a CheckpointModule"):
        load_module(tmp_path / "QFunction")
