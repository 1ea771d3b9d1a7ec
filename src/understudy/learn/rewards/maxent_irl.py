"""Maximum entropy inverse reinforcement learning for finite MDPs: a linear reward that explains demonstrations."""

from __future__ import annotations

import numpy as np
from scipy.special import xlogy

from ...core import UserError


def soft_policy(transitions: np.ndarray, rewards: np.ndarray, discount: float) -> np.ndarray:
    """Computes the policy of largest expected discounted return plus entropy, by policy iteration.

    Args:
        transitions: Probability of the next state, (S, A, S).
        rewards: Reward of each state, (..., S).
        discount: Factor per step, below 1.

    Returns:
        Probability of each action, (..., S, A).
    """
    value = np.zeros(rewards.shape)
    while True:
        after = value @ transitions.reshape(-1, len(transitions)).T
        scores = rewards[..., None] + discount * after.reshape(*rewards.shape, -1)
        improved = np.logaddexp.reduce(scores, -1)
        policy = np.exp(scores - improved[..., None])
        if np.abs(improved - value).max() < 1e-9 * (1 + np.abs(value).max()):
            return policy
        entropy = improved - (policy * scores).sum(-1)
        value = np.linalg.solve(_kept(transitions, policy, discount), (rewards + entropy)[..., None])[..., 0]


def expected_features(transitions: np.ndarray, features: np.ndarray, policy: np.ndarray, discount: float) -> np.ndarray:
    """Computes the expected discounted sum of features from each state, (..., S, F), for features (..., S, F)."""
    return np.linalg.solve(_kept(transitions, policy, discount), features)


def fit_reward(transitions: np.ndarray, features: np.ndarray, counts: np.ndarray, discount: float,
               ridge: float) -> np.ndarray:
    """Fits the linear reward whose `soft_policy` makes demonstrations most likely, by Fisher scoring from zero.

    Several worlds with the same transitions share one reward: their features and counts have the same leading axes.

    Args:
        transitions: Probability of the next state, (S, A, S), such as `env.mdp.transitions`.
        features: Features of each state, (..., S, F).
        counts: Number of times that each action was demonstrated in each state, (..., S, A).
        discount: Factor per step, below 1.
        ridge: Penalty on half of the sum of squared weights, above 0.

    Returns:
        Reward of each feature, (F,).

    Raises:
        UserError: A number is outside these limits or not finite, so that no reward would be found.

    References:
        Ziebart, Bagnell and Dey (2010), Modeling Interaction via the Principle of Maximum Causal Entropy.
    """
    if not (0 <= discount < 1 and ridge > 0):
        raise UserError(f"the discount is {discount:g} and the ridge {ridge:g}", where="fit_reward",
                        hint="use a discount of at least 0 and below 1, and a ridge above 0")
    for name, array in (("transitions", transitions), ("features", features), ("counts", counts)):
        if not np.isfinite(array).all():
            index = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
            raise UserError(f"{array[index]} is not a finite number", where=f"fit_reward, {name}{list(index)}",
                            hint="leave this state or feature out")
    weights, best = np.zeros(features.shape[-1]), -np.inf
    step = weights
    while True:
        policy = soft_policy(transitions, features @ (weights + step), discount)
        value = xlogy(counts, policy).sum() - ridge / 2 * (weights + step) @ (weights + step)
        if value < best:
            step = step / 2
            continue
        weights, best = weights + step, value
        gradient, information = _scores(transitions, features, counts, discount, policy)
        gradient = gradient - ridge * weights
        step = np.linalg.solve(information + ridge * np.eye(len(weights)), gradient)
        if step @ gradient < 1e-7:
            return weights


def _scores(transitions, features, counts, discount, policy):
    """Returns gradient (F,) and information (F, F) of the log-likelihood with respect to the reward's weights."""
    sums = expected_features(transitions, features, policy, discount)
    after = (transitions.reshape(-1, len(transitions)) @ sums).reshape(*policy.shape, -1)
    slope = discount * (after - (policy[..., None] * after).sum(-2, keepdims=True))  # of each log-probability
    expected_counts = counts.sum(-1, keepdims=True) * policy
    flat = slope.reshape(-1, slope.shape[-1])
    return counts.reshape(-1) @ flat, (expected_counts.reshape(-1, 1) * flat).T @ flat


def _kept(transitions, policy, discount):
    """Returns the identity matrix minus the discounted transition matrix of a policy, (..., S, S)."""
    return np.eye(len(transitions)) - discount * np.einsum("...sa,sat->...st", policy, transitions)
