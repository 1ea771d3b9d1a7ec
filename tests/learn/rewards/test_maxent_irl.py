"""Maximum entropy inverse reinforcement learning: soft values by iteration, and rewards that are recovered."""

import numpy as np
import pytest
from scipy.optimize import minimize

from understudy.core import UserError
from understudy.envs.toys.mdp import slippery_grid
from understudy.learn.rewards.maxent_irl import expected_features, fit_reward, soft_policy

RNG, DISCOUNT = np.random.default_rng(0), 0.9
TRANSITIONS = RNG.dirichlet(np.full(6, 0.3), (6, 3))
FEATURES = RNG.normal(size=(2, 6, 4))  # of two worlds


def test_the_soft_policy_is_the_fixed_point_of_soft_value_iteration():
    rewards, value = 3 * RNG.normal(size=(2, 6)), np.zeros((2, 6))
    for _ in range(400):
        scores = rewards[..., None] + DISCOUNT * np.einsum("sat,wt->wsa", TRANSITIONS, value)
        value = np.log(np.exp(scores).sum(-1))
    policy = np.exp(scores - value[..., None])
    np.testing.assert_allclose(soft_policy(TRANSITIONS, rewards, DISCOUNT), policy, atol=1e-9)


def test_a_large_reward_leaves_the_best_policy_and_features_are_summed():
    grid = slippery_grid()
    at_goal = grid.success.astype(float)
    policy = soft_policy(grid.transitions, 1e4 * at_goal, DISCOUNT)
    sums = expected_features(grid.transitions, at_goal[:, None], policy, DISCOUNT)[:, 0]
    entered = grid.action_values(400, DISCOUNT)[-1].max(1)  # 1 at the step into the goal, where nothing follows
    np.testing.assert_allclose(sums[~grid.final] * (1 - DISCOUNT) / DISCOUNT, entered[~grid.final], atol=1e-6)


@pytest.mark.parametrize("worlds", [0, slice(None)])
def test_the_fit_minimizes_the_penalized_likelihood(worlds):
    features = FEATURES[worlds]
    counts, ridge = RNG.integers(4, size=(*features.shape[:-1], 3)).astype(float), 0.1

    def loss(weights):
        policy = soft_policy(TRANSITIONS, features @ weights, DISCOUNT)
        return ridge / 2 * weights @ weights - (counts * np.log(policy)).sum()

    best = minimize(loss, np.zeros(4), options={"gtol": 1e-7})
    np.testing.assert_allclose(fit_reward(TRANSITIONS, features, counts, DISCOUNT, ridge), best.x, atol=1e-4)


def test_the_reward_of_many_demonstrations_is_recovered():
    weights = np.array([2.0, -1.0, 0.5, 1.0])
    counts = 1e5 * soft_policy(TRANSITIONS, FEATURES @ weights, DISCOUNT)
    np.testing.assert_allclose(fit_reward(TRANSITIONS, FEATURES, counts, DISCOUNT, 1e-6), weights, atol=1e-4)


@pytest.mark.parametrize(("discount", "ridge", "words"), [
    (1.0, 1.0, "discount is 1 "), (0.9, 0.0, "ridge 0"), (0.9, 1.0, r"features\[1, 2, 3\]: nan is not a finite")])
def test_what_would_never_end_is_refused(discount, ridge, words):
    features = FEATURES.copy()
    features[1, 2, 3] = np.nan if "features" in words else 0.0
    with pytest.raises(UserError, match=words):
        fit_reward(TRANSITIONS, features, np.ones((2, 6, 3)), discount, ridge)
