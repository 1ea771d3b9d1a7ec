"""The dictionary of rewards and its metric, against direct minimization and drawn walks."""

from dataclasses import replace

import numpy as np
import pytest
from claims.task_sequence import what_rewards_share as share
from scipy.optimize import minimize

from evidence.families.task_sequence.what_rewards_share import (
    DECAY,
    DICTIONARY,
    SPARSITY,
    Learned,
    Task,
    TaskDemonstrations,
)
from understudy.learn.rewards.maxent_irl import soft_policy

RNG = np.random.default_rng(0)
ROOTS = RNG.normal(size=(7, 3, 4))  # of matrices of rank 3
METRICS, WEIGHTS = np.swapaxes(ROOTS, 1, 2) @ ROOTS, RNG.normal(size=(7, 4))


def test_the_dictionary_minimizes_the_errors_of_all_tasks():
    dictionary = share.Dictionary(4, 2)
    codes = [dictionary.add(w, h) for w, h in zip(WEIGHTS, METRICS, strict=True)]
    assert codes[0].tolist() == [1, 0] and codes[1].tolist() == [0, 1]

    def objective(columns):
        errors = [w - columns.reshape(4, 2) @ s for w, s in zip(WEIGHTS, codes, strict=True)]
        return np.mean([e @ h @ e for e, h in zip(errors, METRICS, strict=True)]) + DECAY * columns @ columns

    best = minimize(objective, np.zeros(8), options={"gtol": 1e-9})
    np.testing.assert_allclose(dictionary.columns, best.x.reshape(4, 2), atol=1e-4)


def test_a_code_minimizes_the_error_and_its_sum():
    dictionary = share.Dictionary(4, 3)
    dictionary.columns = RNG.normal(size=(4, 3))
    zeros = 0
    for w, h in zip(WEIGHTS, METRICS, strict=True):
        code = dictionary.encode(w, h)
        slope = 2 * dictionary.columns.T @ h @ (w - dictionary.columns @ code)
        np.testing.assert_allclose(slope[code != 0], SPARSITY * np.sign(code[code != 0]), atol=1e-5)
        assert (abs(slope) <= SPARSITY + 1e-5).all()
        zeros += (code == 0).sum()
    assert 0 < zeros < 21


def test_the_metric_is_the_covariance_of_drawn_walks():
    task = Task(7, 0)
    features, policy = task.features[:, share.NEAR], soft_policy(share.TRANSITIONS, task.features @ task.weights, 0.9)
    moves = np.einsum("sa,sat->st", policy, share.TRANSITIONS).cumsum(1)
    state, sums = RNG.integers(256, size=20_000), 0.0
    for t in range(100):
        sums = sums + 0.9**t * features[state]
        state = (moves[state] < RNG.random((len(state), 1))).sum(1).clip(max=255)
    np.testing.assert_allclose(share.covariance(features, policy), np.cov(sums.T), atol=0.25)


def test_losses_are_between_the_best_and_the_random_policy():
    data, mean = TaskDemonstrations(8, 8).load(7), {}
    for name, arm in (("true", Learned("true")), ("near", Learned("near")), ("each", Learned()),
                      ("first", DICTIONARY), ("again", replace(DICTIONARY, again=True)),
                      ("shuffled", replace(DICTIONARY, shuffled=True))):
        values = share.losses(None, arm, data, 7, 1, 0)
        mean[name] = 1 - (values["early value"][0] + values["late value"][0]) / 2
    assert mean["true"] == pytest.approx(0, abs=1e-9)
    assert 0 < mean["near"] < mean["each"] < mean["shuffled"] < 1
    assert mean["first"] != mean["again"]
    assert Task(7, 0).loss(np.zeros(76)) == pytest.approx(1)


def test_a_task_that_comes_first_is_its_own_column_and_shuffled_features_return():
    data, tasks = TaskDemonstrations(8, 8).load(7), share.tasks_of(7, 8)
    alone, order = Learned().fit(data, tasks), np.arange(8)[None]
    for arm in (Learned(metric="identity"), Learned(metric="identity", shuffled=True)):
        first = arm.learn(data, tasks, order, 7)[0, 0]
        np.testing.assert_allclose(first, alone[0] / (1 + DECAY), atol=1e-9)  # of one task, shrunk by the penalty
