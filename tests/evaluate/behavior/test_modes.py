"""Modes of behavior: entropy, and the ways around an obstacle."""

import math
from dataclasses import replace

import numpy as np
import pytest
from fixtures.behaviors import episode
from hypothesis import given
from hypothesis import strategies as st

from understudy import make, rollout
from understudy.core import UserError
from understudy.data.episode import Dataset
from understudy.envs.toys.fork import Fork, ForkExpert
from understudy.evaluate.behavior import modes
from understudy.evaluate.behavior.scaling import TrajectoryScaling


def test_entropy_is_that_of_the_paper():
    assert modes.mode_entropy([5, 5], 2) == pytest.approx(1)
    assert modes.mode_entropy([10], 2) == modes.mode_entropy([10, 0], 2) == 0
    assert math.isnan(modes.mode_entropy([], 2)) and math.isnan(modes.mode_entropy([0, 0], 2))
    assert modes.mode_entropy([3, 3, 3], 24) == pytest.approx(math.log(3) / math.log(24))  # its Avoiding has 24
    assert modes.mode_entropy([1, 3], 2) == pytest.approx(-(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)))
    for counts, ways in (([1, 2, 3], 2), ([4], 1)):
        with pytest.raises(ValueError):
            modes.mode_entropy(counts, ways)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 4))
def test_entropy_is_between_none_and_all_alike(counts, more):
    ways = max(len(counts) + more, 2)
    entropy = modes.mode_entropy(counts, ways)
    assert -1e-12 <= entropy <= 1 + 1e-12 and entropy == pytest.approx(modes.mode_entropy(counts[::-1], ways))
    assert modes.mode_entropy([10 * c for c in counts], ways) == pytest.approx(entropy)
    assert modes.mode_entropy([7] * ways, ways) == pytest.approx(1)


@pytest.mark.parametrize("ways,repeats", [(2, 2), (2, 8), (4, 5)])
def test_what_a_fair_policy_gets_is_the_mean_over_its_draws(ways, repeats):
    from itertools import product

    every = [
        modes.mode_entropy(np.bincount(draw, minlength=ways), ways) for draw in product(range(ways), repeat=repeats)
    ]
    assert modes.expected_entropy(ways, repeats) == pytest.approx(np.mean(every))


def test_the_forks_expert_goes_both_ways_from_one_start_and_one_side_does_not():
    env = Fork(7)
    both = modes.rollout_repeated_starts(env.expert(), env, 12, 16, seed=3)
    one = modes.rollout_repeated_starts(ForkExpert(side=-1), env, 12, 16, seed=3)
    assert modes.conditional_entropy(both, modes.fork_mode, 2).estimate == pytest.approx(
        modes.expected_entropy(2, 16), abs=0.06
    )
    assert modes.conditional_entropy(one, modes.fork_mode, 2).estimate == 0 and set(
        modes.mode_counts(one, modes.fork_mode)
    ) == {"right"}
    # Both sides, but always the same from one start: much entropy over all starts, none from each.
    decided = Dataset([replace(e, metadata={**e.metadata, "start": n}) for n in range(10) for e in [
        *rollout(ForkExpert(side=1 if n % 2 else -1), env, 3, seed=n)]])
    assert modes.mode_entropy(list(modes.mode_counts(decided, modes.fork_mode).values()), 2) == 1
    assert modes.conditional_entropy(decided, modes.fork_mode, 2).estimate == 0


def test_the_same_start_is_the_same_and_is_that_of_the_evaluation():
    env = make("fork", 5, gust=0.3)
    data = modes.rollout_repeated_starts(ForkExpert(side=1, noise=0.0), env, 3, 4, seed=9)
    plain = rollout(ForkExpert(side=1, noise=0.0), env, 3, seed=9)
    assert [e.metadata["start"] for e in data] == [n // 4 for n in range(12)]
    for e in data:  # a policy that draws nothing: luck is the start's, so all is the same
        assert np.array_equal(e.steps["observation.state"], plain[e.metadata["start"]].steps["observation.state"])
    noisy = modes.rollout_repeated_starts(ForkExpert(side=1), env, 1, 4, seed=9)
    assert len({e.steps["action"].tobytes() for e in noisy}) == 4
    other = modes.rollout_repeated_starts(ForkExpert(side=1), make("fork", 12, gust=0.3), 1, 4, seed=9)
    assert all(np.array_equal(a.steps["action"], b.steps["action"]) for a, b in zip(noisy, other, strict=True))
    for starts, repeats in ((0, 4), (3, 1)):
        with pytest.raises(UserError):
            modes.rollout_repeated_starts(ForkExpert(), env, starts, repeats)


def test_failures_count_in_no_way():
    data = Dataset([episode(np.zeros((3, 1)), success=s, mode=m, start=0) for s, m in (
        (True, "a"), (True, "b"), (False, "b"), (False, "b"), (True, -1))])
    assert modes.mode_counts(data, modes.reported_mode) == {"a": 1, "b": 1}
    assert modes.conditional_entropy(data, modes.reported_mode, 2).estimate == 1
    failure = episode(np.zeros((3, 1)), success=False, mode="a", start=1)
    # a start without success has none
    assert modes.conditional_entropy(data + Dataset([failure]), modes.reported_mode, 2).estimate == 1


def test_ways_that_an_environment_tells_of():
    data = Dataset([episode(np.zeros((3, 1)), mode=m, number=i) for i, m in enumerate((0, 0, 1, 2))])
    way, ways, source = modes.find_mode_function(None, data, None, None)
    assert (ways, source) == (3, "the environment") and modes.mode_counts(data, way) == {"0": 2, "1": 1, "2": 1}
    none = Dataset([episode(np.zeros((3, 1)), mode=-1)] * 2)  # failures went none of the ways that were shown
    way, ways, source = modes.find_mode_function(None, none, data, None)
    assert (ways, source) == (3, "the environment") and not modes.mode_counts(none, way)
    alike = Dataset([episode(np.zeros((3, 1)), mode=0)] * 4)
    assert modes.find_mode_function(None, alike, None, None) is None


def test_ways_found_by_clusters_are_the_sides_of_the_fork():
    env = Fork(50)
    data = rollout(env.expert(), env, 60, seed=1)
    shapes = modes.TrajectoryClusters.from_data(data, TrajectoryScaling.from_data(data))
    assert len(shapes.clusters) == 2
    pairs = {(shapes(e), modes.fork_mode(e)) for e in rollout(env.expert(), env, 60, seed=2)}
    assert len(pairs) == 2
    straight = rollout(ForkExpert(side=1), env, 60, seed=1)
    assert len(modes.TrajectoryClusters.from_data(straight, TrajectoryScaling.from_data(straight)).clusters) == 1


def test_overlap():
    assert modes.mode_overlap({"a": 5, "b": 5}, {"a": 50, "b": 50}) == pytest.approx(1)
    assert modes.mode_overlap({"a": 5}, {"a": 50, "b": 50}) == pytest.approx(0.5)
    assert modes.mode_overlap({"c": 5}, {"a": 50, "b": 50}) == 0 and math.isnan(modes.mode_overlap({}, {"a": 1}))
