"""The parts of collection rounds: numbers of updates and steps, exploration, and what learners add to episodes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures.collections import collected, contents, fork, method, rounds, run

from understudy import config, make
from understudy.core import Unsupported, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import ROUND
from understudy.data.window import ColumnSamplingWeights
from understudy.envs.toys.fork import Fork
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.recording import UniformRandomActor
from understudy.evaluate.rollout import rollout, rollout_steps
from understudy.execute.actor import NoisyActor
from understudy.heads.likelihood.regression import Regression
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.improve.collection import (
    FIRST_EPISODE,
    GaussianExploration,
    RolloutCollector,
    TemperatureExploration,
)
from understudy.improve.retention import LastRounds
from understudy.improve.updates import Epochs, PerNewStep, PerRound, PerStoredStep
from understudy.learn.algorithm import Engine
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method, load_actor
from understudy.learn.run import Run
from understudy.learn.train import train


@pytest.fixture(scope="module")
def demos() -> Dataset:
    env = fork(6)
    return rollout(env.expert(), env, 6, recording_seed(0))


# -- numbers of updates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "number"), [
    (PerNewStep(0.5), 50), (PerNewStep(1e-9), 1), (PerStoredStep(0.5), 150), (PerRound(7), 7), (Epochs(3), 29)])
def test_numbers_of_updates_by_hand(rule, number):
    assert rule.number(100, 300, 32) == number
    assert rule.describe() and config.load(config.dump(rule)) == rule


@pytest.mark.parametrize("rule", [PerRound(5), Epochs(0.5)])
def test_rounds_make_these_updates_and_resume(demos, tmp_path, rule):
    rounds_method = method(rounds(2, updates=rule, retention=LastRounds(1)))
    run(tmp_path / "run", rounds_method, demos)
    sizes = [part.steps for part in collected(tmp_path / "run")]
    assert Run(tmp_path / "run").saved_steps()[-1] == 3 + sum(rule.number(n, n, 8) for n in sizes)

    def stop(step, learner, metrics):
        if step == 5 and "loss" in metrics:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", rounds_method, demos, callbacks=[stop])
    run(tmp_path / "stopped", rounds_method, demos)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "run")


def test_sampling_weights_choose_where_windows_begin(demos):
    late = demos.map(lambda e: e.replace({"rate": (np.arange(len(e)) >= 4).astype(float)}))
    weighted = rounds(1, collector=RolloutCollector(2), relabel=(), sampling_weights=ColumnSamplingWeights("rate"))
    with pytest.raises(UserError, match="no column 'rate'"):  # collected episodes need it too
        fit_method(method(weighted), late, 0, env=fork())
    first = replace(weighted, collector=Late(2))
    rows = []

    class Sees(Engine):
        def update(self, batch):
            rows.append(batch.extra["index"].flatten())
            return super().update(batch)

    @dataclass(frozen=True)
    class Seeing(BehaviorCloning):
        def build(self, policy, seed, steps, data):
            return Sees(self, policy, seed, steps, data)
    fit_method(replace(method(first), learner=Seeing(30, 8)), late, 0, env=fork())
    steps = np.concatenate([np.arange(len(e)) for e in late])
    assert (steps[torch.cat(rows[:3]).numpy()] >= 4).all()


@dataclass(frozen=True)
class Late(RolloutCollector):
    def collect(self, actor, number, training):
        episodes = super().collect(actor, number, training)
        return episodes.map(lambda e: e.replace({"rate": np.ones(len(e))}))


# -- numbers of steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [1, 12, 13, 30])
def test_a_round_of_steps_has_whole_episodes_and_no_more_than_it_needs(n_steps):
    env = fork(1)
    data = rollout_steps(UniformRandomActor(env), env, n_steps, 3, first=7)
    again = rollout(UniformRandomActor(env), env, len(data), 3, first=7)
    assert data.fingerprint() == again.fingerprint()  # complete episodes, in order
    assert data.steps >= n_steps > data.steps - len(data[-1])
    for rows, usual_length in itertools.product((1, 2, 5), (1.0, 5.5, 100.0)):
        other = rollout_steps(UniformRandomActor(fork(rows)), fork(rows), n_steps, 3, first=7,
                              usual_length=usual_length)
        assert other.fingerprint() == data.fingerprint()


class Counted(Fork):
    n_calls = n_resets = 0

    def reset(self, which, key):
        self.n_resets += len(which)
        return super().reset(which, key)

    def step(self, action):
        self.n_calls += 1
        return super().step(action)


def test_all_rows_run_episodes_until_a_round_has_its_steps():
    env = Counted(4)
    episodes = rollout_steps(env.expert(), env, 50, 0)  # 2 would be enough if they ran into the limit of 40 steps
    assert len(episodes) == 4 and env.n_calls == episodes.lengths.max()
    env = Counted(1)
    assert len(rollout_steps(env.expert(), env, 50, 0)) == env.n_resets == 4


@pytest.mark.parametrize(("usual_length", "n_begun"), [(1000.0, [1, 1, 1, 1]), (25.0, [2, 1, 1]), (13.0, [4])])
def test_as_many_episodes_begin_as_a_round_is_likely_to_need(usual_length, n_begun):
    env = Counted(8)  # its episodes have 13 to 15 steps
    assert len(rollout_steps(env.expert(), env, 50, 0, usual_length=usual_length)) == env.n_resets == 4
    assert len(n_begun) * 13 <= env.n_calls <= len(n_begun) * 15


def test_rounds_of_steps_are_collected(demos, tmp_path):
    rounds_method = method(rounds(2, collector=RolloutCollector(n_steps=30), relabel=()))
    run(tmp_path / "run", rounds_method, demos)
    first, second = collected(tmp_path / "run")
    assert all(30 <= part.steps < 30 + 12 for part in (first, second))
    assert [e.metadata["number"] for e in second] == [FIRST_EPISODE + 30 + i for i in range(len(second))]


class LateReports(Fork):
    """Like some environments of others, it does not tell of success at first."""

    n_quiet = 60

    def step(self, action):
        self.n_quiet -= 1
        result = super().step(action)
        return replace(result, info={}) if self.n_quiet >= 0 else result


def test_success_that_is_reported_late_is_in_all_episodes_of_a_round():
    env = LateReports(1)
    late = rollout_steps(env.expert(), env, 100, 0)
    assert [e.metadata["success"] for e in late] == [e.steps["next.success"].any() for e in late]
    assert not late[0].metadata["success"] and late[-1].metadata["success"]


def test_a_training_that_continues_knows_that_the_environment_reports_success(demos):
    stored = Dataset([replace(e, metadata={**e.metadata, ROUND: 0}) for e in demos])
    actor = NoisyActor(None, 2, 0.1)

    def collect(stored):
        training = SimpleNamespace(env=LateReports(1, limit=3), seed=0, stored=stored, data=demos,
                                   transform=lambda data: data)
        return RolloutCollector(n_episodes=2).collect(actor, 1, training)
    assert [e.metadata["success"] for e in collect(stored)] == [False, False]
    assert "success" not in collect(demos)[0].metadata  # which others have recorded


def test_rounds_have_episodes_or_steps():
    for fields in ({}, {"n_episodes": 2, "n_steps": 10}):
        with pytest.raises(UserError, match=r"give one of the two\n.*n_steps=1000"):
            RolloutCollector(**fields)
    with pytest.raises(UserError, match="n_steps is 0, but must be at least 1"):
        RolloutCollector(n_steps=0)


# -- exploration ----------------------------------------------------------------------------------------------------


def test_the_policy_explores_with_a_temperature_and_is_deployed_without(demos, tmp_path):
    collector = RolloutCollector(2, TemperatureExploration(1.0))
    rounds_method = method(rounds(1, collector=collector, relabel=()), SquashedGaussian())
    deployed = []

    def note(step, learner, metrics):
        if "round" in metrics:
            deployed.append(load_actor(tmp_path / "run", rows=16))
    run(tmp_path / "run", rounds_method, demos, callbacks=[note])
    episodes, (actor,) = collected(tmp_path / "run")[0], deployed
    policy = actor.planner.planner
    assert policy.config.head == SquashedGaussian()
    exploring = replace(actor, planner=replace(actor.planner, planner=policy.with_head(
        SquashedGaussian(temperature=1.0))))
    for one, is_equal in ((exploring, True), (actor, False)):
        again = rollout(one, fork(5), 2, recording_seed(0), first=FIRST_EPISODE)
        assert np.array_equal(again[0].steps["action"], episodes[0].steps["action"]) == is_equal
    assert episodes[0].steps["action"].std(0).min() > 0.01


@pytest.mark.parametrize(("largest", "limit"), [(0.5, 2.0), (3.0, 3.0)])
def test_stored_actions_with_noise_are_those_that_the_environment_executes(largest, limit, tmp_path):
    """Pendulum clips torques at 2. Recorded ones that are larger keep their range."""
    env, rng = make("Pendulum-v1", 2, max_episode_steps=20), np.random.default_rng(0)
    actions = np.linspace(-largest, largest, 20, dtype=np.float32)[:, None]
    columns = {"observation.state": rng.normal(size=(21, 3)).astype(np.float32), "action": actions}
    data = Dataset([Episode(columns)], {"fps": 20})
    collector = RolloutCollector(2, GaussianExploration(5.0))
    made = method(rounds(1, collector=collector, relabel=(), updates=PerRound(1)))
    train(made, data, tmp_path / "run", env=env, device="cpu", progress=False, val_fraction=0)
    stored = np.concatenate([episode.steps["action"] for episode in collected(tmp_path / "run")[0]])
    assert stored.max() == pytest.approx(limit) and (np.abs(stored) == stored.max()).mean() > 0.2


def test_a_head_without_temperature_is_refused(demos):
    collector = RolloutCollector(2, TemperatureExploration(1.0))
    with pytest.raises(Unsupported, match=r"Regression has no temperature\n.*GaussianExploration"):
        fit_method(method(rounds(1, collector=collector, relabel=()), Regression()), demos, 0, env=fork())


# -- what learners add to episodes ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Annotating(BehaviorCloning):
    """Reads a column that only the learner itself adds."""

    def build(self, policy, seed, steps, data):
        return AnnotatingLearner(self, policy, seed, steps, data)


class AnnotatingLearner(Engine):
    calls: list = []

    def annotate(self, episodes, round):
        self.calls.append((round, self.n_updates))
        number = -1.0 if round is None else float(round)
        return episodes.map(lambda e: e.replace({"advantage": np.full(len(e), number, np.float32)}))

    def batch_sampler(self, data, sampling_weights=None):
        return self.policy.training_windows(data, extra=("advantage",), sampling_weights=sampling_weights)

    def update(self, batch):
        assert batch.extra["advantage"].shape == batch.mask.shape
        return {**super().update(batch), "advantage": float(batch.extra["advantage"].mean())}


@pytest.mark.parametrize("initial_updates", [0, 3])
def test_the_first_episodes_are_annotated_before_a_sampler_is_built(demos, tmp_path, initial_updates):
    AnnotatingLearner.calls = []
    rounds_method = replace(method(rounds(2, initial_updates=initial_updates)), learner=Annotating(30, 8))
    run(tmp_path / "run", rounds_method, demos)
    first = collected(tmp_path / "run")[0].steps // 4
    assert AnnotatingLearner.calls == [(None, 0), (0, initial_updates), (1, initial_updates + first)]
    AnnotatingLearner.calls = []
    run(tmp_path / "run", rounds_method, demos)  # finished
    assert AnnotatingLearner.calls == []
    result = fit_method(rounds_method, demos, 0, env=fork())
    assert [number for number, _ in AnnotatingLearner.calls] == [None, 0, 1] and result.policy is not None


def test_without_collection_too_and_a_resumed_run_reads_what_was_stored(tmp_path):
    env = make("fork", 4, limit=12)
    data = rollout(env.expert(), env, 6, recording_seed(0)).map(lambda e: e.replace(
        {"observation.images.top": np.zeros((len(e) + 1, 4, 4, 3), np.uint8)}))
    learned = Method(method(None).policy, learner=Annotating(9, 8))
    AnnotatingLearner.calls = []

    def stop(step, learner, metrics):
        if step == 4 and "loss" in metrics:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train(learned, data, tmp_path / "run", device="cpu", progress=False, callbacks=[stop])
    train(learned, data, tmp_path / "run", device="cpu", progress=False)
    train(learned, data, tmp_path / "whole", device="cpu", progress=False)
    assert AnnotatingLearner.calls == [(None, 0), (None, 0)]  # once for each run
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    with np.load(tmp_path / "run" / "annotated" / "episodes.npz") as stored:
        names = " ".join(stored.files)
    assert "advantage" in names and "images" not in names


def test_a_learner_that_adds_nothing_stores_nothing(demos, tmp_path):
    assert not BehaviorCloning(3, 8).build(fit_method(method(None), demos, 0).policy, 0, 1, demos).annotates
    run(tmp_path / "run", method(rounds(1)), demos)
    assert not (tmp_path / "run" / "annotated").exists()
