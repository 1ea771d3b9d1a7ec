"""The dictionary of rewards and its metric, against direct minimization and drawn walks."""

import numpy as np
import pytest
from scipy.optimize import minimize

from claims.task_sequence import what_rewards_share as share
from claims.task_sequence.what_rewards_share import DECAY, SPARSITY, Dictionary, Learned, Task, TaskDemonstrations
from understudy.learn.maxent_irl import soft_policy

RNG = np.random.default_rng(0)
ROOTS = RNG.normal(size=(7, 3, 4))  # of matrices of rank 3
METRICS, WEIGHTS = np.swapaxes(ROOTS, 1, 2) @ ROOTS, RNG.normal(size=(7, 4))


def test_the_dictionary_minimizes_the_errors_of_all_tasks():
    dictionary = Dictionary(4, 2)
    codes = [dictionary.add(w, h) for w, h in zip(WEIGHTS, METRICS, strict=True)]
    assert codes[0].tolist() == [1, 0] and codes[1].tolist() == [0, 1]

    def objective(columns):
        errors = [w - columns.reshape(4, 2) @ s for w, s in zip(WEIGHTS, codes, strict=True)]
        return np.mean([e @ h @ e for e, h in zip(errors, METRICS, strict=True)]) + DECAY * columns @ columns

    best = minimize(objective, np.zeros(8), options={"gtol": 1e-9})
    np.testing.assert_allclose(dictionary.columns, best.x.reshape(4, 2), atol=1e-4)


def test_a_code_minimizes_the_error_and_its_sum():
    dictionary = Dictionary(4, 3)
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
    data, tasks = TaskDemonstrations(8, 8).load(7), [Task(7, number) for number in range(8)]
    losses = {}
    for name, arm in (("true", Learned("true")), ("near", Learned("near")), ("each", Learned()),
                      ("shuffled", Learned(metric="covariance", shuffled=True))):
        first, last = arm.rewards(data, tasks, 7)
        losses[name] = [np.mean([t.loss(w, t.new_features) for t, w in zip(tasks, r, strict=True)]) for r in (first, last)]
    assert losses["true"] == pytest.approx([0, 0], abs=1e-9)
    assert 0 < losses["near"][1] < losses["each"][1] < losses["shuffled"][1] < 1
    assert tasks[0].loss(0 * tasks[0].weights, tasks[0].features) == pytest.approx(1)
