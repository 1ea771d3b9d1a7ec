"""Scores of networks."""

import numpy as np
import pytest
from fixtures.scored import data, episode, line

from understudy.audit.scores import (
    Compatibility,
    Expertise,
)
from understudy.core import UserError


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
