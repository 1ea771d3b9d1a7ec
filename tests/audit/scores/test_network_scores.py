"""Scores of networks."""

import numpy as np
import pytest
import torch
from fixtures.scored import data, episode, line

from understudy.audit.scores import (
    Compatibility,
    Expertise,
)
from understudy.audit.scores.network_scores import fit_regression
from understudy.core import UserError, replaced


def two_members(state, action, members, steps, seed):
    """Members of an ensemble that predict the actions (0, 0) and (state, 0)."""
    return lambda x: torch.stack([torch.cat([0 * x, 0 * x], 1), torch.cat([x, 0 * x], 1)])


def test_error_novelty_and_compatibility_worked_out_by_hand():
    """The base has mean 0 and standard deviation 1, so that units do not matter. At the state 1 and the action (2, 1)
    the members are wrong by (-2, -1) and (-1, -1): the mean of the squares is (4 + 1 + 1 + 1) / 4. They differ by
    (1, 0), which has the standard deviation (1/2, 0) and the mean 1/4. The mean of the members would be wrong by
    (-1.5, -1) and have an error of 1.625."""
    base = data(episode([-1, 1, -1, 1], [[-1, -1], [-1, 1], [1, -1], [1, 1]]))
    new = data(episode([1, 1, 2, 3], [[2, 1], [1, 0], [0, 2], [2, 2]]), episode([0, 0, 0], [[1, 1], [0, 1], [0, 0]]))
    with replaced({fit_regression: two_members}):
        comparison = Compatibility(base, 2.0, 0.6, n_members=2).compare_to_base(new)
        assert [e.tolist() for e in comparison.error] == [[1.75, 0.25, 3.0, 3.25], [1.0, 0.5, 0.0]]
        assert [u.tolist() for u in comparison.novelty] == [[0.25, 0.25, 0.5, 0.75], [0, 0, 0]]
        steps = Compatibility(base, 2.0, 0.6, n_members=2).score_steps(new)
        assert [s.tolist() for s in steps] == [[0.125, 0.875, 0, 1], [0.5, 0.75, 1]]  # 1 - error / 2; the last is novel
        for limits, bad in (((2.0, 0.6), [1, 0]), ((2.0, 0.8), [2, 0]), ((0.6, 0.6), [2, 1]), ((0.6, 0.0), [0, 0])):
            assert Compatibility(base, *limits, n_members=2).compare_to_base(new).n_incompatible().tolist() == bad


def test_compatibility_refuses_another_way_where_it_knows_and_not_where_it_does_not():
    def way(low, action, n, seed):
        rng = np.random.default_rng(seed)
        return [episode(rng.uniform(low, low + 1, (20, 1)), action + 0.05 * rng.standard_normal(20)) for _ in range(n)]
    base = data(way(0, 1.0, 8, 0))
    score = Compatibility(base, n_members=2, n_updates=120)
    new = data(way(0, 1.0, 3, 1), way(0, -1.0, 3, 2), way(60, -1.0, 3, 3))
    bad = score.compare_to_base(new).n_incompatible()
    assert (bad[:3] <= 4).all() and (bad[3:6] >= 12).all() and (bad[6:] == 0).all()
    steps = score(new)
    assert steps[3:6].max() < 0.2 and steps[:3].min() > 0.5 and (steps[6:] == 1).all()
    with pytest.raises(UserError, match="no base demonstrations"):
        Compatibility().compare_to_base(new)
    with pytest.raises(UserError, match="states have 2 numbers and actions 1, but those to compare with have 1 and 1"):
        score.compare_to_base(data(episode(np.zeros((4, 2)), np.zeros(4))))


def test_without_a_base_the_odd_one_is_judged_by_the_others():
    d = data(line(9, lambda rng, n: 1 + 0.05 * rng.standard_normal(n)), line(1, lambda rng, n: np.full(n, -3.0)))
    assert Compatibility(n_members=2, n_updates=80, folds=2)(d).argmin() == 9


def test_expertise_finds_the_demonstrators_who_guess():
    def person(name, skilled, seed):
        rng = np.random.default_rng(seed)
        x = rng.uniform(-1, 1, (40, 1))
        return episode(x, np.where(rng.random((40, 1)) < skilled, np.sin(3 * x), rng.uniform(-1, 1, (40, 1))),
                       metadata={"operator": name})
    d = data([person("abcd"[i % 4], (0.95, 0.95, 0.1, 0.1)[i % 4], i) for i in range(12)])
    expertise = Expertise(demonstrator_key="operator", n_updates=300)(d)
    assert expertise[[0, 1]].min() > 0.6 > 0.4 > expertise[[2, 3]].max()
    with pytest.raises(UserError, match="'team'"):
        Expertise(demonstrator_key="team")(d)
