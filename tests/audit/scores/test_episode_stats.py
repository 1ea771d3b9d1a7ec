"""Scores of one episode by itself."""

import numpy as np
import pytest
from fixtures.scored import data, episode, line, steady

from understudy.audit.scores import (
    Brevity,
    Criticality,
    Motion,
    Novelty,
    Return,
    Smoothness,
    state_action_coverage,
    trajectory_quality,
)
from understudy.core import UserError


def test_length_return_motion_and_smoothness():
    t = np.arange(10.0)
    d = data(episode(t, t**3, **{"next.reward": np.ones(10)}), episode(np.zeros(6), 5 * t[:6], **{
        "next.reward": np.r_[0, 0, 0, 0, 0, 4.0]}))
    assert Brevity()(d).tolist() == [-10, -6]
    assert Return()(d).tolist() == [10, 4] and Return(random_return=4, best_return=10)(d).tolist() == [1, 0]
    assert trajectory_quality(d, random=1, best=9) == pytest.approx(0.75)
    spread = np.concatenate([t**3, 5 * t[:6]]).std()
    assert Smoothness()(d) == pytest.approx([-np.log(36 / spread**2), -np.log(1e-12)], rel=1e-4)
    assert Motion()(d).tolist() == [1, 0]
    with pytest.raises(UserError, match="best return must be above 5"):
        Return(random_return=5, best_return=5)(d)
    assert np.isnan(Return(best_return=1.0)(data(line(1, steady)))).all()


def test_coverage_counts_pairs_in_the_bins_of_the_reference():
    """The reference has 10 cells; the other is in the lowest of them, however narrow its own range, and in one beyond,
    which counts with the highest."""
    reference = data(episode(np.arange(10.0), np.zeros(10)))
    assert state_action_coverage(reference, reference, bins=10) == 1
    assert state_action_coverage(
        data(episode(np.linspace(0, 0.5, 10), np.zeros(10))), reference, bins=10
    ) == pytest.approx(0.1)
    assert state_action_coverage(data(episode([0, 99, 99], np.zeros(3))), reference, bins=10) == pytest.approx(2 / 3)
    twice = data(episode(np.repeat(np.arange(5.0), 2), np.zeros(10)))
    assert state_action_coverage(twice, reference, bins=10) == pytest.approx(0.5)


def test_novelty_is_what_nobody_else_has():
    d = data(episode([0, 1, 2, 3], np.zeros(4)), episode([2, 3, 4, 4], np.zeros(4)))
    assert Novelty(n_bins=5)(d) == pytest.approx([2 / 4, 1 / 3])


def test_flags_are_scored_as_the_numbers_0_and_1():
    flags = np.random.default_rng(0).random((2, 12)) > 0.5
    as_flags, as_numbers = (data(*(episode(row.astype(dtype), row[::-1].astype(dtype)) for row in flags))
                            for dtype in (bool, float))
    for score in (Novelty(), Criticality(), Motion(), Smoothness()):
        assert score(as_flags) == pytest.approx(score(as_numbers), nan_ok=True)


def test_critical_steps_are_where_the_action_turns():
    d = data(episode(np.zeros(10), np.r_[np.ones(5), -np.ones(5)]))
    assert np.flatnonzero(Criticality().critical_steps(d, 0.2)[0]).tolist() == [0, 5]
    assert Criticality().score_steps(d)[0] == pytest.approx([1, 0, 0, 0, 0, 2, 0, 0, 0, 0])
