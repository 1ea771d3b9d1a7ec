"""Practice with the command improve: what is deployed and stored, and what is refused."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.cli import TINY, proposed, refused
from fixtures.collections import collected, contents
from fixtures.killed_training import killed_command

from understudy import make
from understudy.cli import main
from understudy.data.formats import open_dataset, write_dataset
from understudy.evaluate.evaluation import evaluate, evaluation_of, validation_seed
from understudy.execute.wrappers import NoiseSteeringWrapper, ResidualWrapper, WrappedActor
from understudy.improve.promotion import Promotion
from understudy.learn.critics.off_policy_actor_critic import ActorCritic
from understudy.learn.method import load_actor
from understudy.learn.run import Run

SHORT = ["--rounds", "2", "--episodes", "2", "--steps", "2", "--compare", "6", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Demonstrations of the fork, and runs of a flow policy and of one without noise."""
    path = tmp_path_factory.mktemp("practice")
    assert main(["record", "fork", "--out", str(path / "fork"), "--episodes", "6"]) == 0
    for run, method, options in (("flow", "flow-policy", ["--n-obs-steps", "1", "--steps", "60"]),
                                 ("bc", "bc", ["--steps", "100"])):
        args = ["train", method, str(path / "fork"), "--out", str(path / run), *TINY, *options]
        assert main(args) == 0
    return path


@pytest.fixture
def improve(folder, capsys, monkeypatch):
    def run(name, *args, base="bc"):
        monkeypatch.setattr("understudy.commands.improve._Command._compare_base", _without_check)
        capsys.readouterr()
        return main(["improve", str(folder / base), "--with", name, *map(str, args)]), *capsys.readouterr()
    return run


def _without_check(command, run, env, base):
    """The comparison of rounds, also for a base that never succeeds, as after 60 updates."""
    from understudy.improve.promotion import Promotion

    promotion = Promotion(env, command.o.compare, command.o.seed, run)
    return Promotion(env, command.o.compare, command.o.seed, run, promotion.evaluate(base))


@pytest.mark.parametrize(("name", "base"), [("residual", "bc"), ("porl", "bc"), ("dsrl", "flow"),
                                            ("dsrl-na", "flow"), ("dppo", "flow")])
def test_the_whole_is_deployed_and_the_run_stays_as_it_is(name, base, folder, improve, tmp_path, capsys):
    before, out = contents(folder / base), tmp_path / "better"
    status, text, progress = improve(name, "--out", out, *SHORT, base=base)
    assert status == 0, progress
    assert contents(folder / base) == before and "It cost no human steps." in text
    env = make("fork", 16)
    actor, base_actor = load_actor(out, rows=16), load_actor(folder / base, rows=16)
    lines = [line for line in Run(out).read_metrics() if "outcomes" in line]
    assert lines[-1]["outcomes"] == evaluate(actor, env, 6, validation_seed(0)).successes.tolist()
    if name == "residual":
        assert isinstance(actor, WrappedActor) and isinstance(actor.wrapper, ResidualWrapper)
    if name in ("residual", "porl"):  # the policy of RUN until the critic has learned
        assert lines[0]["outcomes"] == evaluate(base_actor, env, 6, validation_seed(0)).successes.tolist()
    if name in ("dsrl", "dsrl-na"):
        assert isinstance(actor, WrappedActor) and isinstance(actor.wrapper, NoiseSteeringWrapper)
        data = open_dataset(out / "random" / "episodes.npz")
        assert np.abs(data[0].steps["action"]).max() <= actor.wrapper.bound
    for data in collected(out):  # the reward is the success
        for episode in data:
            assert episode.steps["next.reward"].sum() == float(episode.metadata["success"])
    stored = contents(out)
    assert improve(name, "--out", out, *SHORT, base=base)[0] == 0  # nothing left to do
    assert contents(out) == stored
    refused(improve(name, "--out", out, *SHORT, "--rounds", "3", base=base), "begun with --rounds 2, not 3",
            f"choose another --out{', or improve' if name in ('porl', 'dppo') else ''}")
    if name not in ("porl", "dppo"):  # whose policy is one, as that of RUN
        assert main(["export", str(out), "--out", str(tmp_path / "x.onnx")]) == 2
        assert "without " + type(actor.wrapper).__name__ in capsys.readouterr().err


@pytest.mark.parametrize(("name", "base", "reason"), [
    ("residual", "bc", []), ("dsrl", "flow", ["NoiseSteeringWrapper cannot tell which of its actions"])])
def test_what_practised_is_diagnosed(name, base, reason, improve, tmp_path, capsys):
    """Corrections of a base are about 0, and no noise is recorded: neither has a fit to recorded actions."""
    assert improve(name, "--out", tmp_path / "run", *SHORT, base=base)[0] == 0
    capsys.readouterr()
    assert main(["diagnose", str(tmp_path / "run"), "--env", "fork", "--episodes", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert not {"underfit", "overfit", "no-held-out"} & {finding["code"] for finding in document["findings"]}
    assert all(text in line for text, line in zip(reason, document["unchecked"], strict=True))


def test_the_doubt_of_a_policy_whose_actions_are_noise_is_refused(improve, tmp_path, capsys):
    assert improve("dsrl", "--out", tmp_path / "run", *SHORT, base="flow")[0] == 0
    capsys.readouterr()
    status = main(["calibrate", str(tmp_path / "run"), "fork", "--episodes", "2"])
    refused((status, *capsys.readouterr()), "these do not have its actions, from which NoiseSteeringWrapper makes",
            "calibrate the run that it was made of")


def test_what_practised_can_be_improved_again(improve, tmp_path):
    """Its demonstrations are there, although its learner read its own episodes alone."""
    assert improve("dppo", "--out", tmp_path / "first", *SHORT, base="flow")[0] == 0
    args = ["--env", "fork", "--supervisor", "scripted", *SHORT, "--out", tmp_path / "second"]
    status, text, progress = improve("dagger", *args, base=tmp_path / "first")
    assert status == 0 and "2 episodes in each, beside the 6 of RUN" in text + progress


def test_dsrl_says_before_it_begins_that_a_policy_with_a_history_is_not_steered(folder, improve, tmp_path):
    base, out = tmp_path / "base", tmp_path / "second"
    assert main(["train", "flow-policy", str(folder / "fork"), "--out", str(base), *TINY]) == 0  # it reads two steps
    refused(improve("dsrl", "--env", "fork", *SHORT, "--out", out, base=base), "reads 2", "n-obs-steps 1")
    assert not out.exists()


def test_a_policy_that_corrects_another_one_is_not_improved_again(improve, tmp_path):
    assert improve("residual", "--out", tmp_path / "first", *SHORT, base="bc")[0] == 0
    args = ["--env", "fork", *SHORT, "--out", tmp_path / "second"]
    for name, who in (("dagger", ["--supervisor", "scripted"]), ("filtered", [])):
        reason = "a supervisor does may lie beyond" if who else "filtered would train it alone"
        refused(improve(name, *args, *who, base=tmp_path / "first"), "corrects or steers", reason,
                "that it was made of")
    assert not (tmp_path / "second").exists()


@pytest.fixture(scope="module")
def base(folder) -> Path:
    """A run that succeeds now and then, as one that practices must."""
    assert main(["train", "flow-policy", str(folder / "fork"), "--out", str(folder / "base"), *TINY,
                 "--n-obs-steps", "1", "--steps", "600", "--save-freq", "600"]) == 0
    return folder / "base"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["filtered", "residual", "residual-ppo", "rlpd", "porl", "dsrl", "dsrl-na", "dppo"])
def test_killed_at_any_time_it_is_the_same_run(name, base, tmp_path, monkeypatch):
    """kill -9 at random moments: before, in and between rounds."""
    args = ["improve", str(base), "--with", name, "--out", "run", "--rounds", "3", "--episodes", "4", "--steps", "40",
            "--compare", "30", "--device", "cpu"]
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert main(args) == 0
    (tmp_path / "killed").mkdir()
    assert killed_command(args, tmp_path / "killed", 3), "it was never killed"
    assert contents(tmp_path / "killed" / "run") == contents(tmp_path / "whole" / "run")


@pytest.mark.parametrize("name", ["residual", "rlpd"])
def test_a_critic_that_is_not_finite_is_named_with_the_update(name, improve, tmp_path, monkeypatch):
    value, number = ActorCritic.bootstrapped, itertools.count(1)
    monkeypatch.setattr(ActorCritic, "bootstrapped",
                        lambda *args: value(*args) * (torch.nan if next(number) == 3 else 1))
    refused(improve(name, "--out", tmp_path / "run", *SHORT), "update 3", "the loss of 'critic' is nan",
            "lower the learning rate")


@pytest.mark.parametrize(("name", "base"), [("residual", "bc"), ("rlpd", "bc"), ("porl", "bc"), ("dsrl", "flow"),
                                            ("dppo", "flow")])
def test_a_base_that_never_succeeds_has_nothing_to_practise_on(name, base, folder, tmp_path, capsys, monkeypatch):
    evaluate_base = Promotion.evaluate

    def evaluate_as_failures(self, actor):
        data = evaluate_base(self, actor).episodes
        return evaluation_of(data.map(lambda e: replace(e, metadata={**e.metadata, "success": False})))
    monkeypatch.setattr(Promotion, "evaluate", evaluate_as_failures)
    status = main(["improve", str(folder / base), "--with", name, "--out", str(tmp_path / "run"), *SHORT])
    refused((status, *capsys.readouterr()), "succeeded in none of 6 episodes", "a first success")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["residual", "residual-ppo", "rlpd", "porl", "dppo"])
def test_actions_that_are_classes_are_refused(name, folder, improve, tmp_path):
    """Episodes of the fork whose actions are two classes, and a policy of them."""
    data = open_dataset(folder / "fork").map(lambda e: e.replace(
        {"action": (np.asarray(e.steps["action"])[:, 0] > 0).astype(np.int64)}))
    write_dataset(data, tmp_path / "classes.npz", "npz")
    assert main(["train", "bc", str(tmp_path / "classes.npz"), "--out", str(tmp_path / "classes"), *TINY]) == 0
    refused(improve(name, "--env", "fork", "--out", tmp_path / "run", *SHORT, base=tmp_path / "classes"),
            f"--with {name}", "is for actions that are numbers, and these are classes", "--with filtered")
    assert not (tmp_path / "run").exists()


def test_the_environment_is_that_of_the_data_also_of_an_own_loop(folder, improve, tmp_path, capsys):
    """Their episodes name it, without the version of its simulator."""
    def train(name, env):
        own = open_dataset(folder / "fork").map(lambda e: replace(e, metadata={"env": env}))
        write_dataset(own, tmp_path / f"{name}.npz", "npz")
        assert main(["train", "bc", str(tmp_path / f"{name}.npz"), "--out", str(tmp_path / name), *TINY]) == 0

    train("own", "fork")
    status, _, progress = improve("filtered", "--out", tmp_path / "run", *SHORT, base=tmp_path / "own")
    assert status == 0, progress
    train("mine", "own_tasks:make")
    refused(improve("filtered", "--out", tmp_path / "other", *SHORT, base=tmp_path / "mine"), "add --trust own_tasks")
    assert main(["plot", str(tmp_path / "mine"), "--html", str(tmp_path / "curves.html")]) == 0
    assert proposed(capsys.readouterr().out)[0][-2:] == ["--trust", "own_tasks"]
