"""Success from demonstrated starts and from others: a small case by hand."""

import numpy as np
import pytest
from fixtures.behaviors import episode

from understudy.data.episode import Dataset
from understudy.evaluate.behavior.scaling import TrajectoryScaling
from understudy.evaluate.behavior.support import success_by_support
from understudy.evaluate.independent import miettinen_nurminen


def starting_at(starts, successes=None):
    """Episodes of 3 steps that begin there. The second component is constant in the demonstrations."""
    return Dataset([episode([[x, 0], [x + 5, 0], [x - 5, 0], [x, 0]], success=successes and successes[i], number=i)
                    for i, x in enumerate(starts)])


SHOWN = starting_at([0, 1, 2, 4, 5, 6])


def test_starts_are_divided_by_the_largest_distance_between_neighbors():
    """Six starts, of which each has another one at a distance of 1: what is within 1 of any of them is supported."""
    starts = [-1, 0.5, 3, 6.9, 7, 2.5, -1.1, 7.1, 9, -4, 20]  # the first six, and no other
    wins = [True, True, True, True, False, True, False, True, False, False, False]
    rollouts = starting_at(starts, wins)
    support = success_by_support(rollouts, SHOWN, TrajectoryScaling.from_data(SHOWN, rollouts))
    assert (support.successes, support.episodes, support.other_successes, support.other_episodes) == (5, 6, 1, 5)
    assert support.difference == miettinen_nurminen(5, 6, 1, 5)
    sentence = support.describe()
    assert "5 of 6; from others" in sentence and "1 of 5. The difference is +63 points [" in sentence
    assert support.to_json()["difference"]["estimate"] == pytest.approx(5 / 6 - 1 / 5)


def test_a_goal_that_nobody_was_shown_is_another_start():
    rng = np.random.default_rng(0)

    def towards(goals, successes=None):
        return Dataset([episode(np.c_[rng.random(4), np.full(4, goal)], success=successes and successes[i], number=i)
                        for i, goal in enumerate(goals)])
    shown = towards([0, 10] * 20)
    rollouts = towards([0, 10, 5] * 6, [True, True, False] * 6)
    support = success_by_support(rollouts, shown, TrajectoryScaling.from_data(shown, rollouts))
    assert (support.successes, support.episodes, support.other_successes, support.other_episodes) == (12, 12, 0, 6)
    assert support.difference.low > 0.5


def test_few_starts_of_a_kind_and_unknown_success_say_nothing():
    def measured(rollouts):
        return success_by_support(rollouts, SHOWN, TrajectoryScaling.from_data(SHOWN, rollouts))
    assert measured(starting_at([0] * 20 + [50] * 4, [True] * 24)) is None
    assert measured(starting_at([0] * 20 + [50] * 5, [True] * 25)).other_episodes == 5
    assert measured(starting_at([0] * 20 + [50] * 5)) is None
