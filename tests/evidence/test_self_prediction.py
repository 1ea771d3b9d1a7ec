"""The exact gradients of the claim about encodings that predict themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from evidence.families.representation.self_prediction import (
    COLUMN,
    N_STATES,
    TABLE,
    WIDTH,
    RandomChains,
    SelfPredictive,
    best_predictor,
    encodings,
)

CHAIN = np.asarray(RandomChains().load(0)[0].steps[COLUMN])
RATE = 0.3


def start(arm: SelfPredictive) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encodings of states and of next states, and the predictor, as the experiment draws them."""
    rng = np.random.default_rng(1)
    x, later = (np.linalg.qr(rng.normal(size=(N_STATES, WIDTH)))[0] for _ in range(2))
    return x, later if arm.two_way else x, rng.normal(size=(WIDTH, WIDTH)) / WIDTH


def expected_loss(x, predictor, y, joint):
    """Half of the mean squared error of x P, by the sum over all pairs of a state and its next one."""
    return sum(joint[s, after] * (x[s] @ predictor - y[after]).square().sum()
               for s in range(N_STATES) for after in range(N_STATES)) / 2


def by_autograd(arm: SelfPredictive, n_steps: int) -> np.ndarray:
    joint = np.full_like(CHAIN, 1 / N_STATES**2) if arm.even else CHAIN / N_STATES
    x, later, predictor = start(arm)
    for _ in range(n_steps):
        y = later if arm.two_way else x
        if arm.predictor_rate is None:
            predictor = best_predictor(x, y, joint)
        weights, matrix = (torch.tensor(w, requires_grad=True) for w in (x, predictor))
        target = weights if arm.full else torch.tensor(y)
        loss = expected_loss(weights, matrix, target, torch.tensor(joint))
        loss.backward()
        if arm.two_way:
            other = torch.tensor(y, requires_grad=True)
            expected_loss(other, torch.tensor(best_predictor(y, x, joint.T)), torch.tensor(x),
                          torch.tensor(joint.T)).backward()
            later = y - RATE * other.grad.numpy()
        if arm.predictor_rate is not None:
            predictor = predictor - RATE * arm.predictor_rate * matrix.grad.numpy()
        x = x - RATE * weights.grad.numpy()
    return x


@pytest.mark.parametrize("arm", [*(arm.options[0] for arm in TABLE.experiment.arms),
                                 *(ablation.option for _, ablation in TABLE.ablations)])
def test_each_arm_follows_the_gradient_of_its_expected_loss(arm):
    np.testing.assert_allclose(encodings(replace(arm, rate=RATE, steps=3), CHAIN, 1), by_autograd(arm, 3), atol=1e-12)


def test_with_the_best_predictor_a_small_step_keeps_the_products_of_columns():
    """Its gradient is orthogonal to the encodings, so that none of their directions is lost."""
    x = encodings(SelfPredictive(rate=1e-6, steps=1), CHAIN, 1)
    full = encodings(SelfPredictive(predictor_rate=1.0, full=True, rate=1e-6, steps=1), CHAIN, 1)
    np.testing.assert_allclose(x.T @ x, np.eye(WIDTH), atol=1e-12)
    assert np.abs(full.T @ full - np.eye(WIDTH)).max() > 1e-8


def test_the_best_predictor_has_no_gradient_left():
    x, y, _ = start(SelfPredictive(two_way=True))
    joint = CHAIN / N_STATES
    matrix = torch.tensor(best_predictor(x, y, joint), requires_grad=True)
    expected_loss(torch.tensor(x), matrix, torch.tensor(y), torch.tensor(joint)).backward()
    np.testing.assert_allclose(matrix.grad.numpy(), 0, atol=1e-12)
