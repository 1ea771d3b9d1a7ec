"""The dictionary of rewards and its metric, against direct minimization and closed forms."""

import numpy as np
import pytest
from scipy.optimize import minimize

from understudy.core import UserError
from understudy.learn.rewards.reward_dictionary import RewardDictionary, feature_covariance

RNG = np.random.default_rng(0)
ROOTS = RNG.normal(size=(7, 3, 4))  # of matrices of rank 3
METRICS, WEIGHTS = np.swapaxes(ROOTS, 1, 2) @ ROOTS, RNG.normal(size=(7, 4))


def test_the_columns_minimize_the_errors_of_all_tasks():
    dictionary = RewardDictionary(4, 2, decay=0.05)
    codes = [dictionary.add(w, h) for w, h in zip(WEIGHTS, METRICS, strict=True)]
    assert codes[0].tolist() == [1, 0] and codes[1].tolist() == [0, 1]

    def objective(columns):
        errors = [w - columns.reshape(4, 2) @ s for w, s in zip(WEIGHTS, codes, strict=True)]
        return np.mean([e @ h @ e for e, h in zip(errors, METRICS, strict=True)]) + 0.05 * columns @ columns

    best = minimize(objective, np.zeros(8), options={"gtol": 1e-9})
    np.testing.assert_allclose(dictionary.columns, best.x.reshape(4, 2), atol=1e-4)


def test_a_code_minimizes_the_error_and_its_sum():
    """The conditions of the optimum of a lasso, which no coordinate descent states."""
    dictionary, n_zeros = RewardDictionary(4, 3, sparsity=0.8), 0
    dictionary.columns = RNG.normal(size=(4, 3))
    for w, h in zip(WEIGHTS, METRICS, strict=True):
        code = dictionary.encode(w, h)
        slope = 2 * dictionary.columns.T @ h @ (w - dictionary.columns @ code)
        np.testing.assert_allclose(slope[code != 0], 0.8 * np.sign(code[code != 0]), atol=1e-5)
        assert (abs(slope) <= 0.8 + 1e-5).all()
        n_zeros += (code == 0).sum()
    assert 0 < n_zeros < 21


@pytest.mark.parametrize(("stays", "factor"), [(0.0, 1 / (1 - 0.9**2)), (1.0, 1 / (1 - 0.9) ** 2)])
def test_the_covariance_of_states_that_are_independent_or_the_same(stays, factor):
    """The variance of a sum of independent terms is the sum of their variances, and of equal terms its square."""
    features, n = RNG.normal(size=(6, 3)), 6
    transitions = np.tile(stays * np.eye(n) + (1 - stays) / n, (2, 1, 1)).swapaxes(0, 1)
    covariance = feature_covariance(transitions, features, np.full((n, 2), 0.5), 0.9)
    np.testing.assert_allclose(covariance, factor * np.cov(features.T, bias=True), atol=1e-9)


def test_what_a_task_does_not_show_is_that_of_earlier_tasks():
    """The second task shows its first feature alone, which is 3 times that of the column."""
    dictionary = RewardDictionary(2, 1, sparsity=0.0, decay=1e-9)
    dictionary.add(np.array([1.0, 2.0]), np.eye(2))
    code = dictionary.add(np.array([3.0, -9.0]), np.diag([1.0, 0.0]))
    np.testing.assert_allclose(dictionary.columns @ code, [3.0, 6.0], atol=1e-6)


@pytest.mark.parametrize(("weights", "metric", "words"), [
    (np.ones(3), np.eye(4), r"\(3,\) and \(4, 4\), and there are 4 features"),
    (np.ones(4), np.eye(3), r"\(4,\) and \(3, 3\)"), (np.full(4, np.nan), np.eye(4), "not finite")])
def test_what_fits_no_dictionary_is_refused(weights, metric, words):
    dictionary = RewardDictionary(4)
    with pytest.raises(UserError, match=words):
        dictionary.add(weights, metric)
    assert dictionary.n_tasks == 0
    with pytest.raises(UserError, match="decay=0"):
        RewardDictionary(4, decay=0.0)
