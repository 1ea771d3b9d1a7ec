"""What is learned from takeovers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.collections import STATE, fork, method, numbered

from understudy.core import DataWarning
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.heads.likelihood.regression import Regression
from understudy.improve.collection import CollectionRounds, RolloutCollector, TaskSequenceCollector
from understudy.improve.corrections import (
    SIRIUS_WEIGHTS,
    DemonstrationsWithoutInterventions,
    EndAtSuccess,
    PreInterventionLabel,
    iwr,
    rlif,
    sirius,
)
from understudy.improve.gates import DisagreementGate, RandomGate
from understudy.improve.updates import PerRound
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.sample_weights import ClassBalancedWeights
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_collection


def episode(acts: str, **columns) -> Episode:
    n = len(acts)
    return Episode({STATE: np.zeros((n + 1, 2), np.float32), "action": np.zeros((n, 2), np.float32),
                    "intervention": np.array([a == "x" for a in acts]), **columns})


@pytest.mark.parametrize(("acts", "classes"), [
    ("......xx...", "11333 3221 11".replace(" ", "")), ("..x..xx", "3323322"), ("x...x", "21332 ".strip()),
    ("xxxx", "2222"), ("....", "1111"), (".x.x.x", "323232"), ("....x", "11332")])
def test_the_steps_before_a_takeover_have_a_class_of_their_own(acts, classes):
    n_steps = 4 if acts.startswith("......") else 2
    labels = PreInterventionLabel(n_steps)(episode(acts)).steps["intervention_class"]
    assert "".join(map(str, labels)) == classes
    demonstration = episode(acts).replace({"intervention": None})
    assert set(PreInterventionLabel()(demonstration).steps["intervention_class"]) == {0}


@pytest.mark.parametrize("counts", [(100, 700, 150, 50), (300, 500, 200, 0), (0, 10, 5, 5), (900, 60, 30, 10),
                                    (50, 0, 0, 0), (10, 90, 0, 0), (0, 0, 0, 7), (500, 0, 400, 100)])
def test_the_mean_weight_of_all_steps_is_one_and_none_is_negative(counts):
    counts = np.array(counts)
    weights = SIRIUS_WEIGHTS.of_classes(counts)
    assert (weights >= 0).all() and (weights * counts).sum() / counts.sum() == pytest.approx(1)


def test_the_weights_are_the_published_ones():
    """Half for interventions, 0.002 before them, demonstrations as they are, and the rest for the robot."""
    weights = SIRIUS_WEIGHTS.of_classes(np.array([100, 700, 150, 50]))
    assert weights == pytest.approx([1, (0.5 - 0.1 - 0.002) / 0.7, 0.5 / 0.15, 0.002 / 0.05])
    clamped = SIRIUS_WEIGHTS.of_classes(np.array([900, 60, 30, 10]))  # the robot's share would be negative
    total = 0.9 + 0.5 + 0.002
    assert clamped == pytest.approx([1 / total, 0, 0.5 / 0.03 / total, 0.002 / 0.01 / total])


def test_weights_follow_the_data_that_batches_are_drawn_from():
    data = Dataset([episode("....xxxx").replace({STATE: np.random.default_rng(n).normal(size=(9, 2)).astype("f4")})
                    for n in range(3)]).map(PreInterventionLabel(1))
    config = PolicyConfig(Regression(), MLP(8, 1), window=Window(1, 2))
    policy = Policy(config, data.features()).fit_statistics(data)
    learner = BehaviorCloning(10, 4, sample_weights=ClassBalancedWeights((None, None, 0.5, 0.1), remainder=1)).build(
        policy, 0, 10, data)
    for stored, expected in ((data, [0.4 / 0.375, 1, 0.1 / 0.125]),
                             (Dataset([*data, *data.map(lambda e: e.replace({"intervention_class": np.ones(8, int)}))]),
                              [0.4 / 0.6875, 0.5 / 0.25, 0.1 / 0.0625])):
        batch = learner.batch_sampler(stored).batch(64, 0)
        weights = learner.nets.weights(batch, policy)
        classes = batch.extra["intervention_class"].reshape(batch.mask.shape)
        for number, weight in zip((1, 2, 3), expected, strict=True):
            assert weights[(classes == number) & batch.mask].unique().tolist() == pytest.approx([weight], rel=1e-5)


def test_half_of_each_batch_begins_at_interventions():
    env = fork(6)
    data = rollout(env.expert(), env, 6, recording_seed(0)).map(
        lambda e: e.replace({"intervention": np.arange(len(e)) == 3}))
    config = PolicyConfig(Regression(), MLP(8, 1), window=Window(1, 1))
    learner = BehaviorCloning(10, 8).build(Policy(config, data.features()).fit_statistics(data), 0, 10, data)
    rounds = CollectionRounds(1, TaskSequenceCollector(), half_where="intervention")
    for stored, share in ((data, 0.5), (data.map(lambda e: e.replace({"intervention": np.zeros(len(e), bool)})), None)):
        sampler, flags = rounds._sampler(learner, stored, stored), []
        for n in range(10):
            batch = sampler.batch(32, n)
            starts = np.concatenate([np.arange(len(e)) for e in stored])[batch.extra["index"][:, 0].numpy()]
            flags.append(float(np.mean(starts == 3)))
        assert set(flags) == {share} if share is not None else np.mean(flags) < 0.3


def test_demonstrations_get_no_interventions_and_episodes_end_by_success_alone():
    [demonstration] = numbered(0, 1)
    n = len(demonstration)
    changed = DemonstrationsWithoutInterventions()(demonstration)
    assert not changed.steps["intervention"].any() and len(changed.steps["intervention"]) == n
    taken = episode("..xx")
    assert DemonstrationsWithoutInterventions()(taken) is taken
    failed = Episode({**demonstration.steps, "next.terminated": np.arange(n) == n - 1}, {"success": False})
    assert not EndAtSuccess()(failed).steps["next.terminated"].any()
    reached = Episode(demonstration.steps, {"success": True})
    assert EndAtSuccess()(reached).steps["next.terminated"].tolist() == [t == n - 1 for t in range(n)]


def test_without_a_takeover_the_rewards_of_rlif_are_zero_for_this_reason():
    env = fork(2)
    demos = rollout(env.expert(), env, 2, recording_seed(0))
    rounds = CollectionRounds(1, RolloutCollector(1, supervisor="expert", gate=RandomGate(0.0)), updates=PerRound(1))
    built = rlif(method(rounds, Regression()), rounds, demos.features()["action"])
    with pytest.warns(DataWarning, match="no action is better than another yet: nobody has taken over"):
        fit_method(replace(built, learner=replace(built.learner, batch_size=8)), demos, 0, env=env)


def test_a_stored_action_counts_as_much_in_a_longer_plan():
    """The score is that of a whole plan, so the distance must not be thinned out by the other actions. A plan that
    the end of an episode cuts short counts as much as a whole one, and each of its actions more.
    """
    env = fork(2)
    demos = rollout(env.expert(), env, 2, recording_seed(0))
    rounds = CollectionRounds(1, RolloutCollector(2, supervisor="expert"), updates=PerRound(2))
    for horizon in (1, 4):
        base = method(rounds, Regression())
        built = rlif(replace(base, policy=replace(base.policy, window=Window(horizon=horizon))), rounds,
                     demos.features()["action"])
        learner = built.learner.build(Policy(built.policy, demos.features()).fit_statistics(demos), 0, 2, demos)
        batch = learner.batch_sampler(demos).batch(16, 0, 0)
        moved = learner.policy.encode_batch(batch).clone()
        moved[:, 0] += 1
        price = learner.config.bc_weight * learner.config.distance(learner.nets, moved, batch, torch.Generator())
        torch.testing.assert_close(price, 2.0 * horizon / batch.mask.sum(1))
        assert batch.mask.all(1).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iwr", "sirius", "rlif"])
def test_they_keep_the_contract_of_data_collection(name):
    """A run that breaks off at any round resumes bit for bit."""
    env = fork(6)
    demos = rollout(env.expert(), env, 6, recording_seed(0))
    gate = DisagreementGate(0.1, 0.1, delay=1, hold=3, slip=0.1)
    rounds = CollectionRounds(2, RolloutCollector(2, supervisor="expert", gate=gate), updates=PerRound(3))
    built = {"iwr": iwr, "sirius": sirius, "rlif": lambda m, r: rlif(m, r, demos.features()["action"])}[name](
        method(rounds, Regression()), rounds)
    if name == "rlif":
        built = replace(built, learner=replace(built.learner, batch_size=8))
    check_collection(built, demos, fork)
