"""Practice with the command improve: what is deployed, what is stored, what is refused, and what a kill changes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.cli import TINY, refused
from fixtures.collections import collected, contents

from understudy import make
from understudy.cli import main
from understudy.data.formats import open_dataset
from understudy.evaluate.evaluation import evaluate, validation_seed
from understudy.execute.wrappers import NoiseSteeringWrapper, ResidualWrapper, WrappedActor
from understudy.learn.method import load_actor
from understudy.learn.off_policy_actor_critic import OffPolicyActorCriticLearner
from understudy.learn.run import Run

SHORT = ["--rounds", "2", "--episodes", "2", "--steps", "2", "--compare", "6", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Demonstrations of the fork, and runs of a flow policy and of one without noise."""
    path = tmp_path_factory.mktemp("practice")
    assert main(["record", "fork", "--out", str(path / "fork"), "--episodes", "6"]) == 0
    for run, method, options in (("flow", "flow-policy", ["--method.n-obs-steps", "1", "--steps", "60"]),
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


@pytest.mark.parametrize(("name", "base"), [("residual", "bc"), ("residual-ppo", "flow"), ("rlpd", "bc"),
                                            ("dsrl", "flow")])
def test_the_whole_is_deployed_and_the_run_stays_as_it_is(name, base, folder, improve, tmp_path, capsys):
    before, out = contents(folder / base), tmp_path / "better"
    status, text, progress = improve(name, "--out", out, *SHORT, base=base)
    assert status == 0, progress
    assert contents(folder / base) == before and "It cost no human steps." in text
    env = make("fork", 16)
    actor, base_actor = load_actor(out, rows=16), load_actor(folder / base, rows=16)
    lines = [line for line in Run(out).read_metrics() if "outcomes" in line]
    assert lines[-1]["outcomes"] == evaluate(actor, env, 6, validation_seed(0)).successes.tolist()
    if name.startswith("residual"):
        assert isinstance(actor, WrappedActor) and isinstance(actor.wrapper, ResidualWrapper)
        assert lines[0]["outcomes"] == evaluate(base_actor, env, 6, validation_seed(0)).successes.tolist()
    if name == "dsrl":
        assert isinstance(actor, WrappedActor) and isinstance(actor.wrapper, NoiseSteeringWrapper)
        data = open_dataset(out / "random" / "episodes.npz")
        assert np.abs(data[0].steps["action"]).max() <= actor.wrapper.bound
    for data in collected(out):  # the reward is the success
        for episode in data:
            assert episode.steps["next.reward"].sum() == float(episode.metadata["success"])
    stored = contents(out)
    assert improve(name, "--out", out, *SHORT, base=base)[0] == 0  # nothing left to do
    assert contents(out) == stored
    capsys.readouterr()
    if name != "rlpd":
        assert main(["export", str(out), "--out", str(tmp_path / "x.onnx")]) == 2
        assert "without " + type(actor.wrapper).__name__ in capsys.readouterr().err


def test_what_starts_untrained_says_so(improve, tmp_path):
    status, text, progress = improve("rlpd", "--out", tmp_path / "run", *SHORT)
    assert status == 0 and "start: untrained, so" in progress and "untrained" in text


@pytest.mark.parametrize(("name", "base", "words"), [
    ("dsrl", "bc", ["uses no noise", "Flow"]),
    ("residual", "corrected", ["acts with ResidualWrapper", "improve the run that it was made of"])])
def test_runs_that_a_method_cannot_improve(name, base, words, folder, improve, tmp_path):
    if base == "corrected":
        assert improve("residual", "--out", folder / base, *SHORT)[0] == 0
    refused(improve(name, "--out", tmp_path / "run", *SHORT, "--data", folder / "fork", base=base), *words)


def test_classes_cannot_be_corrected(folder, improve, tmp_path):
    assert main(["record", "words", "--out", str(tmp_path / "words"), "--episodes", "4"]) == 0
    assert main(["train", "bc", str(tmp_path / "words"), "--out", str(tmp_path / "classes"), *TINY]) == 0
    for name in ("residual", "residual-ppo"):
        refused(improve(name, "--out", tmp_path / "run", *SHORT, base=tmp_path / "classes"), "actions are classes",
                "--with filtered")


def test_a_critic_that_is_not_finite_is_named_with_the_update(improve, tmp_path, monkeypatch):
    value = OffPolicyActorCriticLearner.target_value
    monkeypatch.setattr(OffPolicyActorCriticLearner, "target_value",
                        lambda self, batch, rng: value(self, batch, rng) * (torch.nan if self.n_updates == 2 else 1))
    refused(improve("residual", "--out", tmp_path / "run", *SHORT), "update 3", "the loss of 'critic' is nan",
            "lower the learning rate")


KILLED = """
    import os, sys
    os.chdir({folder!r})
    from understudy.cli import main
    import understudy.commands.improve, understudy.learn.train, understudy.envs, understudy.improve.improvement
    from understudy.improve.promotion import Promotion
    from understudy.learn.run import Run
    def compare_base(command, run, env, base):
        promotion = Promotion(env, command.o.compare, command.o.seed, run)
        return Promotion(env, command.o.compare, command.o.seed, run, promotion.evaluate(base))
    understudy.commands.improve._Command._compare_base = compare_base
    save = Run.save_checkpoint
    def save_or_die(self, step, *args, **kwargs):
        save(self, step, *args, **kwargs)
        if step == {step}: os._exit(9)
    collect = understudy.improve.improvement.RolloutCollector.collect
    def collect_or_die(self, actor, number, training):
        episodes = collect(self, actor, number, training)
        if number == {round}: os._exit(9)
        return episodes
    Run.save_checkpoint = save_or_die
    understudy.improve.improvement.RolloutCollector.collect = collect_or_die
    sys.exit(main({args!r}))
    """


@pytest.mark.slow
@pytest.mark.parametrize(("name", "base"), [("residual", "bc"), ("residual-ppo", "flow"), ("rlpd", "bc"),
                                            ("dsrl", "flow")])
def test_killed_in_and_between_rounds_it_is_the_same_run(name, base, folder, improve, tmp_path, monkeypatch):
    """The process ends within a round, and just after a checkpoint."""
    args = ["improve", str(folder / base), "--with", name, "--out", "run", "--rounds", "3", "--episodes", "3",
            "--steps", "3", "--compare", "6", "--device", "cpu"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert improve(name, *args[4:], base=base)[0] == 0
    codes, places = [], [(-1, 0), (0, -1), (-1, 1), (3, -1), (-1, 2), (6, -1), (9, -1), (-1, -1)]
    for step, number in places:
        code = textwrap.dedent(KILLED).format(folder=str(tmp_path / "killed"), args=args, step=step, round=number)
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                                env={**os.environ, "OMP_NUM_THREADS": "1"})
        codes.append(result.returncode)
    assert codes[-1] == 0, result.stderr
    assert codes.count(9) >= 4
    assert contents(tmp_path / "killed" / "run") == contents(tmp_path / "whole" / "run")
