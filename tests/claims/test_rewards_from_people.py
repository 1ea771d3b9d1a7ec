"""Row 027: the regret against an exact process, the clone, the reward and both learners against closed forms."""

import numpy as np
import pytest
from scipy.special import expit

from claims.rewards_from_people import compounding_errors as rope
from understudy.envs.toys.mdp import tightrope

RIGHT = rope.right_actions(7, 5, 2)


@pytest.mark.parametrize("recoverable", [False, True])
def test_the_regret_is_that_of_the_tightrope_of_the_library(recoverable):
    process, logits = tightrope(6, recoverable, seed=3), np.linspace(-2, 3, 6)
    right = process.rewards.sum(2).argmax(1)[:6]
    policy = np.full((process.states, 2), 0.5)
    policy[:6] = np.stack([expit(-logits), expit(logits)], 1)
    assert rope.regret(right[None, :, None], logits[None, :, None], recoverable)[0] == pytest.approx(
        6 - process.expected_return(policy, 6))


def test_a_clone_knows_what_it_has_counted_and_the_reward_is_the_logit_of_a_discriminator():
    look, action = np.array([[[0, 1], [0, 2]]]), np.array([[[1, 0], [0, 0]]])
    chance = expit(rope.clone(look, action))[0]
    np.testing.assert_allclose(chance[0], 0.5)  # half of the demonstrations, or none
    np.testing.assert_allclose(chance[1], [0.5, 0, 0, 0.5, 0.5, 0.5], atol=1e-5)
    look = np.zeros((2, 20_000, 6), int)
    reward = rope.learned_reward(RIGHT, look, np.random.default_rng(0))
    falls, lasts = 5 - (1 - 0.5**5), (1 - 0.5**5) / 6  # steps of a random episode after a fall, and at each look
    np.testing.assert_allclose(reward[:, 0], np.log(5 / lasts), atol=0.05)
    np.testing.assert_allclose(reward[:, -1], -np.log(falls * 20_000 + 1), atol=0.01)


def test_ppo_and_soft_q_learning_end_at_the_exact_maximum_of_their_objective():
    reference, reward = np.random.default_rng(1).normal(size=RIGHT.shape), np.tile([0.2] * 6 + [0.1], (2, 1))
    value, exact = 0.0, np.zeros(RIGHT.shape)
    for t in reversed(range(5)):
        gain = 0.1 + value  # of the rope over a fall
        exact[:, t] = reference[:, t] + (2 * RIGHT[:, t] - 1) * gain / rope.KL_WEIGHT
        holds = expit((2 * RIGHT[:, t] - 1) * reference[:, t])
        value = (rope.KL_WEIGHT * np.log(holds * np.exp(gain / rope.KL_WEIGHT) + 1 - holds)).mean(1, keepdims=True)
    learned = rope.soft_q(RIGHT, reference, reward, np.random.default_rng(2), 250, 0.1)
    assert np.abs(learned - exact).mean() < 0.05 and np.abs(exact - reference).mean() > 1.9
    practiced = rope.ppo(RIGHT, reference, reward, np.random.default_rng(3), 100, 3.0)
    assert np.abs(practiced - exact).mean() < 0.15
