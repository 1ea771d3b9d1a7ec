"""Scores from nearest neighbors."""


import numpy as np
import pytest
from fixtures.scored import data, episode, line, noisy, steady
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.audit.scores import (
    ActionConsistency,
    ActionVariance,
    Alignment,
    Compatibility,
    LocalUnimodality,
    StateDiversity,
    StateSimilarity,
    TransitionDiversity,
    Typicality,
    Unimodality,
)
from understudy.audit.scores.neighbors import nearest_neighbors


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 6))
def test_nearest_is_what_looking_at_all_of_them_finds(seed, episodes, count):
    rng = np.random.default_rng(seed)
    whose = rng.integers(0, episodes, 40)
    points, among = rng.standard_normal((40, 2)), np.sort(rng.choice(40, 25, replace=False))
    distances, neighbors = nearest_neighbors(points, whose, count, among)
    for i in range(40):
        others = among[whose[among] != whose[i]]
        away = np.sort(np.linalg.norm(points[others] - points[i], axis=1))[:count]
        assert np.allclose(distances[i, : len(away)], away) and np.isinf(distances[i, len(away):]).all()
        assert np.allclose(np.linalg.norm(points[neighbors[i, : len(away)]] - points[i], axis=1), away)
        assert (whose[neighbors[i, : len(away)]] != whose[i]).all()


def test_action_variance_of_known_actions():
    """In every place one in two does +1 and one -1: of 2n values so, the variance without bias is 2n / (2n - 1) times
    that of the data."""
    d = data([episode(np.arange(10.0) + 1e-4 * i, np.full(10, (-1.0) ** i)) for i in range(6)])
    variances = ActionVariance(n_neighbors=5)(d)
    assert variances == pytest.approx(np.full(6, -6 / 5), rel=1e-3)
    assert ActionVariance(n_neighbors=5)(data(line(6, steady))) == pytest.approx(np.zeros(6))


def test_consistency_blames_who_does_otherwise():
    """Five do 0 and one does 6: of units of the standard deviation sqrt(5), the odd one is 6 / sqrt(5) off, and the
    others as much as their mean of five neighbors is, a fifth."""
    d = data([episode(np.arange(10.0) + 1e-4 * i, np.full(10, 6.0 * (i == 5))) for i in range(6)])
    assert ActionConsistency(n_neighbors=5)(d) == pytest.approx([-0.2 * 36 / 25] * 5 + [-36 / 5], rel=1e-3)


def test_state_diversity_is_a_mean_distance():
    """Two still episodes 3 apart, so that the mean distance is 3, in units of a standard deviation of 1.5."""
    d = data(episode(np.zeros(5), np.zeros(5)), episode(np.full(5, 3.0), np.zeros(5)))
    assert StateDiversity(n_neighbors=2)(d) == pytest.approx([2, 2])
    assert StateSimilarity(n_neighbors=2)(d) == pytest.approx([-2, -2])


def test_transition_diversity_is_the_noise_of_the_system():
    """From the same state by the same action: always the same place, or one of two."""
    def walk(seed, noise):
        rng = np.random.default_rng(seed)
        return [episode(np.cumsum(np.r_[0, 1 + noise * rng.choice([-1, 1], 20)]) % 7, np.ones(20)) for _ in range(20)]
    still, gusty = (np.nanmean(TransitionDiversity(n_neighbors=8)(data(walk(0, n)))) for n in (0.0, 0.9))
    assert still == pytest.approx(0, abs=1e-6) and gusty > 0.3


def test_typicality_finds_the_outlier():
    d = data(line(8, steady), episode(np.linspace(0, 1, 31) + 50, np.ones(30)))
    typicality = Typicality(n_neighbors=3)(d)
    assert typicality.argmin() == 8 and typicality[8] < 5 * typicality[:8].min()


def test_two_ways_are_told_from_scatter_and_from_one_way():
    two = data(line(20, lambda rng, n: np.full(n, rng.choice([-1.0, 1.0]))))
    scatter = data(line(20, lambda rng, n: rng.uniform(-1, 1, n)))
    assert np.nanmean(Unimodality()(two)) < -0.7
    assert np.nanmean(Unimodality()(scatter)) > -0.35
    assert np.nanmean(Unimodality()(data(line(20, steady)))) == 0


def test_actions_that_follow_the_state_are_one_way():
    """Every episode goes to a goal of its own, left or right of where it starts. A linear function of the state gives
    the actions, and nothing is left. Without the goal in the state, two ways remain."""
    def episodes(shown):
        rng = np.random.default_rng(0)
        def one(goal):
            at = np.sort(rng.uniform(-0.1, 0.1, 20))
            return episode(np.stack([at, np.full(20, goal * shown)], 1), goal - at)
        return data([one(goal) for goal in rng.choice([-1.0, 1.0], 20) + rng.uniform(-0.3, 0.3, 20)])
    assert np.nanmean(LocalUnimodality()(episodes(1.0))) > -0.01
    assert np.nanmean(LocalUnimodality()(episodes(0.0))) < -0.5


@pytest.mark.parametrize("score", [ActionVariance(), StateDiversity(), Typicality(), Unimodality(),
                                   LocalUnimodality(), Compatibility(),
                                   Alignment()])
def test_one_episode_has_nobody_to_be_compared_with(score):
    assert np.isnan(score(data(line(1, steady)))).all()


def test_subsampling_is_decided_by_its_seed():
    d = data(line(10, noisy))
    a, b, c = (StateDiversity(max_steps=40, seed=s)(d) for s in (1, 1, 2))
    assert (a == b).all() and (a != c).any()
