"""What to collect next."""

import numpy as np
import pytest
from fixtures.scored import data, episode

from understudy.audit.scores import (
    select_within_budget,
)
from understudy.core import UserError


def test_the_farthest_is_collected_first_within_the_budget():
    points = np.array([[0.0], [1.0], [4.0], [10.0], [10.5]])
    assert select_within_budget(points, 2, existing=np.array([[0.0]])) == [4, 2]
    assert select_within_budget(points, 2) == [0, 4]
    assert select_within_budget(points, 3, existing=np.array([[0.0]]), cost=np.array([1, 1, 1, 2, 9.0])) == [3, 2]
    assert select_within_budget(points, 1, existing=np.array([[0.0]]), value_of=np.array([1, 1, 9, 1, 1.0])) == [2]
    assert sorted(select_within_budget(points, 99)) == [0, 1, 2, 3, 4] and select_within_budget(points, 0) == []
    with pytest.raises(UserError, match="cost above 0"):
        select_within_budget(points, 2, cost=np.zeros(5))


def test_data_sets_are_chosen_by_their_first_states():
    def starts(*at):
        return data([episode([a, 99.0, a], np.zeros(2)) for a in at])
    assert select_within_budget(starts(0.1, 3.0, 9.0), 2, existing=starts(0.0)) == [2, 1]
