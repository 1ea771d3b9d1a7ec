"""Distances to demonstrations."""

import math

import numpy as np
import pytest
from fixtures.behaviors import episode
from scipy.spatial.distance import cdist

from understudy import rollout
from understudy.data.episode import Dataset, Episode
from understudy.envs.toys.fork import Fork, ForkExpert
from understudy.evaluate.behavior.demo_distance import DemonstrationIndex, discriminator_accuracy, distribution_distance
from understudy.evaluate.behavior.scaling import TrajectoryScaling


def walk(rng, offset=0.0, n=30):
    states = rng.normal(size=(n + 1, 3)).cumsum(0) + offset
    return episode(states, rng.normal(size=(n, 2)))


def test_distances_are_those_of_every_pair():
    rng = np.random.default_rng(0)
    data, other = Dataset([walk(rng) for _ in range(5)]), walk(rng)
    view = TrajectoryScaling.from_data(data, Dataset([other]))
    index = DemonstrationIndex.from_data(data, view)
    states, actions = (np.concatenate([f(e)[:len(e)] for e in data]) for f in (view.states, view.actions))
    whose = np.repeat(np.arange(5), 30)
    for e, without in ((other, None), (data[3], 3)):
        kept = whose != without if without is not None else np.ones(150, bool)
        d = cdist(view.states(e)[:30], states[kept])
        order = np.argsort(d, 1)[:, :10]
        gap = [min(np.linalg.norm(actions[kept][j] - a) for j in o)
               for o, a in zip(order, view.actions(e), strict=True)]
        distances, off = index.distances(e, exclude=without)
        assert np.allclose(distances, d.min(1) / math.sqrt(3)) and np.allclose(off, np.array(gap) / math.sqrt(2))
    assert np.all(index.distances(data[3])[0] == 0)


def test_one_of_two_demonstrated_ways_is_near():
    states = np.zeros((21, 1)) + np.linspace(0, 1, 21)[:, None]
    data = Dataset([episode(states, np.full((20, 1), a)) for a in (-1.0, 1.0, -1.0, 1.0)])
    index = DemonstrationIndex.from_data(data, TrajectoryScaling.from_data(data))
    assert index.distances(data[0])[1].max() == 0  # and not 1, as from the mean
    middle = episode(states, np.zeros((20, 1)))
    assert np.allclose(index.distances(middle)[1], 1)  # the mean of both is what nobody did


def test_what_is_constant_or_no_number_counts_nothing():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(21, 2))
    states[:, 1] = 7.0
    data = Dataset([episode(states), episode(states)])
    assert TrajectoryScaling.from_data(data).n_components == 1
    moved = states.copy()
    moved[:, 1] += 5
    moved[3, 0] = np.nan
    distances, _ = DemonstrationIndex.from_data(data, TrajectoryScaling.from_data(data)).distances(episode(moved))
    assert math.isnan(distances[3]) and np.nanmax(distances) == 0
    only = Dataset([Episode({"observation.images.a": np.zeros((4, 8, 8, 3), np.uint8), "action": np.zeros((3, 1))})])
    assert (
        TrajectoryScaling.from_data(only).columns == ()
        and DemonstrationIndex.from_data(only, TrajectoryScaling.from_data(only)) is None
    )


def test_who_moves_alike_is_not_told_apart():
    env = Fork(50)
    demos = rollout(env.expert(), env, 40, seed=1)
    view = TrajectoryScaling.from_data(demos)
    same = discriminator_accuracy(rollout(env.expert(), env, 40, seed=2), demos, view, 10.0)
    assert same.low < 0.5 < same.high
    calm = discriminator_accuracy(rollout(ForkExpert(noise=0.02), env, 40, seed=2), demos, view, 10.0)
    assert calm.estimate > 0.9
    # The very same episodes: each is its twin's nearest, and of the other kind.
    assert discriminator_accuracy(demos, demos, view, 10.0).estimate < 0.1
    assert discriminator_accuracy(demos[:9], demos, view, 10.0) is None


def test_earth_movers_distance():
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(41, 2)), np.cumsum(rng.choice([-1, 1], (40, 1)), 0)
    data = Dataset([episode(states, actions)] * 4)
    view = TrajectoryScaling.from_data(data)
    same = distribution_distance(data, data, view)
    assert (same.states, same.state_changes, same.between_demonstrations) == (0, 0, (0, 0))
    shifted = Dataset([episode(states + [3, 0], 2 * actions)] * 2)  # a shift costs its length, in one of two components
    distance = distribution_distance(shifted, data, view)
    assert distance.states == pytest.approx(3 / view.scale[0] / 2, rel=1e-5)
    assert distance.state_changes == pytest.approx(1 / view.action_scale[0])  # every change is twice as large
    assert distribution_distance(data, data[:3], view) is None
