"""Row 146: locks, and the number of steps that matching takes in them against its expectation."""

import numpy as np

from claims.hard_to_explore.expert_starts import Matching, right_actions
from understudy.envs.toys.mdp import combination_lock


def test_the_right_actions_are_those_of_the_best_policy_of_the_lock():
    right = right_actions(3, 6, 4)
    for i in range(4):
        best = combination_lock(6, 2, resets=False, seed=3000 + i).best_policy(6)
        assert [best[5 - k, k].argmax() for k in range(6)] == right[i].tolist()
    assert not (right == right[0]).all()


def test_matching_takes_as_many_steps_as_guesses_take_in_the_mean():
    """Opened from the start with chance 2^-H, after 2 - 2^(1 - H) steps in the mean: 2^(H + 1) - 2 steps.

    With two positions, all starts demonstrated: an episode has 1.25 steps in the mean. With chance 1/8 it opens the
    lock from the start, with chance 1/4 from the second position, after which an episode opens it with chance 1/4.
    """
    def mean(length, *options):
        right = right_actions(5, length, 1).repeat(4000, 0)
        return Matching(*options, limit=1000).steps(right, np.random.default_rng(0)).mean()
    np.testing.assert_allclose([mean(1), mean(2), mean(4)], [2, 6, 30], rtol=0.05)
    np.testing.assert_allclose(mean(2, "expert", 1.0), (1.25 + 0.25 * 5) / (1 - 0.625), rtol=0.05)
    assert mean(6, "own", 0.5) < 0.8 * mean(6)  # deeper states are starts as well
