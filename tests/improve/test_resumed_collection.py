"""A collection that was stopped or killed resumes exactly."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.collections import (
    Comparing,
    ComparingLearner,
    Constant,
    Stop,
    contents,
    everything,
    fork,
    method,
    rounds,
    run,
)
from fixtures.killed_training import FORKED, collect_and_train, start

from understudy.checkpoint import FromStage
from understudy.core import UserError
from understudy.data.episode import Dataset
from understudy.data.formats import open_dataset
from understudy.envs.base import EnvWrapper
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.improve.collection import (
    RolloutCollector,
)
from understudy.improve.gates import RandomGate
from understudy.improve.retention import LastRounds
from understudy.learn.algorithm import Engine
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.run import Run


@pytest.fixture(scope="module")
def demos() -> Dataset:
    env = fork(6)
    return rollout(env.expert(), env, 6, recording_seed(0))


@pytest.fixture(scope="module", params=[False, True], ids=["kept", "reset"])
def whole(request, demos, tmp_path_factory) -> Path:
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(out, everything(reset_learner=request.param), demos)
    return out


@pytest.mark.slow
def test_stopped_at_any_update_it_is_the_same_run_bit_by_bit(whole, demos, tmp_path):
    """One run is stopped at each update. A copy of it is completed from there."""
    stored_method, stopped, expected = Method.load(whole), tmp_path / "stopped", contents(whole)
    for at in range(1, max(Run(whole).saved_steps()) + 1):
        with pytest.raises(KeyboardInterrupt):
            run(stopped, stored_method, demos, callbacks=[Stop(at)])
        assert Run(stopped).saved_steps()[-1] == at
        shutil.copytree(stopped, out := tmp_path / str(at))
        run(out, stored_method, demos)
        assert contents(out) == expected, at


class Overflowing(EnvWrapper):
    def step(self, action):
        out = self.env.step(action)
        return replace(out, reward=torch.full_like(out.reward, 3e38))


def test_a_round_whose_return_is_no_number_is_logged_once(demos, tmp_path):
    def stop(step, learner, metrics):
        if metrics.get("round") == 1:
            raise KeyboardInterrupt
    made = method(rounds(2, collector=RolloutCollector(2), relabel=()))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, made, demos, Overflowing(fork()), callbacks=[stop])
    run(tmp_path, made, demos, Overflowing(fork()))
    lines = [line for line in Run(tmp_path).read_metrics() if "round" in line]
    assert [(line["round"], line["round/return"]) for line in lines] == [(0, None), (1, None)]


def test_demonstrations_beside_the_batches_are_those_of_a_run_that_nothing_stopped(demos, tmp_path):
    comparing, batches = replace(method(rounds(2, retention=LastRounds(1))), learner=Comparing(30, 8)), {}
    for name, stops in (("whole", ()), ("stopped", (2, 5))):
        ComparingLearner.batches.clear()
        for at in stops:
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / name, comparing, demos, callbacks=[Stop(at)])
        run(tmp_path / name, comparing, demos)
        batches[name] = list(ComparingLearner.batches)
    assert batches["stopped"] == batches["whole"] and len(batches["whole"]) > 6
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_stopped_while_it_collects_or_annotates_it_is_the_same_run(whole, demos, tmp_path, monkeypatch):
    before = Engine.annotate
    calls = []

    def annotate(self, episodes, round):
        calls.append(round)
        if len(calls) in (1, 3, 5):
            raise KeyboardInterrupt
        return before(self, episodes, round)
    monkeypatch.setattr(Engine, "annotate", annotate)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", Method.load(whole), demos)
        assert not list((tmp_path / "run" / "collection").glob(".*"))
    run(tmp_path / "run", Method.load(whole), demos)
    assert calls == [None, None, 0, 0, 1, 1, 2]  # each again if it was stopped, and no other
    shutil.rmtree(tmp_path / "run" / "annotated")
    assert contents(tmp_path / "run") == contents(whole)


def test_rounds_after_the_checkpoint_are_collected_again(whole, demos, tmp_path):
    """As after the loss of the newest checkpoint: what was collected with its weights does not stay."""
    out, early = tmp_path / "run", tmp_path / "early"

    def keep(step, learner, metrics):
        if metrics.get("round") == 1:
            shutil.copytree(out / "checkpoints", early)
            shutil.copy(out / "run.json", tmp_path / "run.json")
    run(out, Method.load(whole), demos, callbacks=[keep])
    shutil.rmtree(out / "checkpoints")
    shutil.copytree(early, out / "checkpoints")
    shutil.copy(tmp_path / "run.json", out / "run.json")
    third = out / "collection" / "000002" / "episodes.npz"
    first = third.parents[1] / "000000" / "episodes.npz"
    collected_at = {p: p.stat().st_mtime_ns for p in (first, third)}
    run(out, Method.load(whole), demos)
    assert first.stat().st_mtime_ns == collected_at[first] and third.stat().st_mtime_ns > collected_at[third]
    assert contents(out) == contents(whole)


def test_rounds_with_a_person_are_never_dropped(demos, tmp_path):
    collector = RolloutCollector(2, supervisor="person", gate=RandomGate())
    gated_method, out = method(rounds(collector=collector)), tmp_path / "run"
    with pytest.raises(UserError, match="with a person, and there is nobody"):
        run(out, gated_method, demos)
    kept = []

    def note(step, learner, metrics):
        if "round" in metrics:
            kept.append((step, Run(out).saved_steps()))
            shutil.copytree(out, tmp_path / f"{metrics['round']}")
    run(out, gated_method, demos, person=Constant(0.3), callbacks=[note])
    assert all(step in saved for step, saved in kept)  # a checkpoint of these very weights
    resumed = tmp_path / "2"
    people = {p.name: open_dataset(p / "episodes.npz").fingerprint() for p in (resumed / "collection").iterdir()}
    run(resumed, gated_method, demos, person=Constant(-0.3))  # who would act otherwise now
    assert people == {p.name: open_dataset(p / "episodes.npz").fingerprint()
                      for p in (resumed / "collection").iterdir()}
    assert contents(resumed) == contents(out)
    other_run = tmp_path / "1"
    shutil.copytree(out / "collection" / "000002", other_run / "collection" / "000002")
    with pytest.raises(UserError, match="round 2 was collected with a person after"):
        run(other_run, gated_method, demos, person=Constant(0.3))
    assert (other_run / "collection" / "000002" / "episodes.npz").exists()


def test_copies_of_rounds_that_somebody_put_beside_them_are_left_alone(demos, tmp_path):
    run(tmp_path, method(rounds(2)), demos)
    stored, names = contents(tmp_path), ("000001.bak", "unfinished-000001.old")
    copies = [tmp_path / "collection" / name for name in names]
    for copy in copies:
        copy.mkdir()
    run(tmp_path, method(rounds(2)), demos)
    assert contents(tmp_path) == stored and all(copy.is_dir() for copy in copies)


def test_a_run_goes_on_only_as_it_began(demos, tmp_path):
    run(tmp_path / "run", method(rounds(1)), demos)
    with pytest.raises(UserError, match="collection.n_rounds was 1, is 2"):
        run(tmp_path / "run", method(rounds(2)), demos)
    other = fork()
    other.metadata = {**other.metadata, "env": "another"}
    with pytest.raises(UserError, match="environment was fork, is another"):
        run(tmp_path / "run", method(rounds(1)), demos, other)


def test_a_stage_may_collect(demos, tmp_path):
    staged_method = method(None, steps=2, stages=(Stage("base", method(rounds(2))),),
                           initialize_from=(InitializeFrom(FromStage("base")),))
    run(tmp_path / "whole", staged_method, demos)
    for at in (4, 2):
        with pytest.raises(KeyboardInterrupt):
            Interrupt = Stop(at)
            with pytest.MonkeyPatch.context() as patch:
                update = Engine.update

                def stopping(self, batch, update=update, Interrupt=Interrupt):
                    metrics = update(self, batch)
                    Interrupt(self.n_updates, self, metrics)
                    return metrics
                patch.setattr(Engine, "update", stopping)
                run(tmp_path / "run", staged_method, demos)
    run(tmp_path / "run", staged_method, demos)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_any_time_it_is_the_same_run(whole, demos, tmp_path):
    """kill -9, again and again, at times that fall into rollouts, into storing and into updates."""
    out, rng, kills = tmp_path / "run", np.random.default_rng(0), 0
    while True:
        ready = FORKED.Event()
        process = start(collect_and_train, out, Method.load(whole).collection.reset_learner, ready)
        assert ready.wait(60)
        process.join(rng.uniform(0.05, 0.05 + 0.08 * 1.3**kills))
        if process.exitcode is not None:
            assert process.exitcode == 0
            break
        process.kill()
        process.join()
        kills += 1
    assert kills >= 3 and contents(out) == contents(whole)


@pytest.mark.slow
def test_with_updates_in_another_process_the_policy_of_the_round_before_acts(demos, tmp_path, monkeypatch):
    """Also if it is stopped while it collects: no round that is stored is collected again."""
    made, collect, calls = method(rounds(3, updates_meanwhile=True)), RolloutCollector.collect, []

    def counted(self, actor, number, training):
        calls.append((number, training.n_updates))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return collect(self, actor, number, training)
    monkeypatch.setattr(RolloutCollector, "collect", counted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", made, demos)
    run(tmp_path / "stopped", made, demos)
    lines = Run(tmp_path / "stopped").read_metrics()
    after = next(line["step"] for line in lines if line.get("round") == 1)
    assert after > 3 and calls == [(0, 3), (1, 3), (2, after), (2, after)]
    run(tmp_path / "whole", made, demos)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    with pytest.raises(UserError, match="no policy that could act while it is trained"):
        rounds(updates_meanwhile=True, reset_learner=True)
