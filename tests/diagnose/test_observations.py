"""Observations that are changed in a known way."""

from dataclasses import replace

import numpy as np
import pytest

from understudy.core import Feature
from understudy.diagnose.observations import (
    check_columns,
    check_limits,
    check_novelty,
    check_starts,
    clipped_share,
)

PARTS = ["pan", "lift"]


def walks(n=60, length=20, seed=0):
    """Episodes that begin around (2, 0) and move."""
    rng = np.random.default_rng(seed)
    return [np.array([2.0, 0.0]) + rng.normal(size=2) * 0.5 + rng.normal(size=(length, 2)).cumsum(0) * 0.1
            for _ in range(n)]


def starts(change):
    return list(check_starts("observation.state", PARTS, walks(), [change(e) for e in walks(30, seed=1)]))


def test_equal_starts_have_no_finding():
    assert not starts(lambda e: e)


@pytest.mark.parametrize(("n_recorded", "n_observed"), [(60, 1), (60, 2), (60, 3), (5, 10), (2, 10)])
def test_few_equal_starts_have_no_finding(n_recorded, n_observed):
    """The spread of two or three starts was taken for the true one, in a tenth to a half of all cases."""
    for seed in range(20):
        recorded, observed = walks(n_recorded, seed=seed), walks(n_observed, seed=100 + seed)
        assert not list(check_starts("observation.state", PARTS, recorded, observed))


def test_degrees_are_recognized_by_the_spread():
    finding, = starts(lambda e: e * [1, 57.29578])
    assert (finding.code, finding.where.feature) == ("observation-units", "observation.state[lift]")
    assert finding.value == pytest.approx(57.3, rel=0.3) and "degrees and radians" in finding.message
    assert finding.command[3:5] == ("--scale", "observation.state[lift]=57.3")  # if the data should be in degrees


def test_a_turned_sign_is_recognized_by_the_mean():
    finding, = starts(lambda e: e * [-1, 1])
    assert (finding.code, finding.where.feature) == ("sign-flip", "observation.state[pan]")
    assert finding.command[3:5] == ("--sign", "observation.state[pan]")


def test_shifted_starts_are_counted_outside_of_the_recorded_range():
    finding, = starts(lambda e: e + [0, 1.5])
    edge, begins = max(e[0, 1] for e in walks()), np.array([e[0, 1] + 1.5 for e in walks(30, seed=1)])
    assert finding.code == "start-states" and finding.value == pytest.approx(np.mean(begins > edge), abs=0.1)
    assert not starts(lambda e: e * [1, 0.4])  # a part of the recorded range


def test_starts_of_which_only_a_part_was_recorded():
    """The mean of goals in twice the width is less than five standard errors away."""
    rng = np.random.default_rng(0)
    recorded, observed = ([np.tile(rng.uniform(0, width, (1, 2)), (5, 1)) for _ in range(n)]
                          for width, n in ((0.4, 80), (1.0, 30)))
    findings = list(check_starts("observation.goal", PARTS, recorded, observed))
    assert {f.code for f in findings} == {"start-states"} and findings[0].value > 0.4


def test_components_that_begin_as_others_do():
    rng = np.random.default_rng(0)

    def episodes(n, order):
        return [np.tile(rng.uniform([0, 0.6], [0.4, 1.0])[order], (5, 1)) for _ in range(n)]
    assert not list(check_starts("observation.goal", PARTS, episodes(60, [0, 1]), episodes(30, [0, 1])))
    finding, = check_starts("observation.goal", PARTS, episodes(60, [0, 1]), episodes(30, [1, 0]))
    assert (finding.code, finding.value) == ("component-order", 2)
    assert finding.command[3:5] == ("--swap", "observation.goal[pan,lift]")


def test_a_component_at_an_end_of_its_range_may_be_held_there():
    levels = [list(check_starts("observation.state", PARTS, walks(), [np.column_stack([e[:, 0], np.full(
        len(e), value)]) for e in walks(30, seed=1)]))[0] for value in (0.1, max(e[:, 1].max() for e in walks()))]
    assert [(f.code, f.level) for f in levels] == [("constant-sensor", "fault"), ("constant-sensor", "warning")]


def test_narrow_starts_elsewhere_are_no_unit():
    finding, = starts(lambda e: e * [1, 0.1] + [0, 1.5])
    assert (finding.code, finding.where.feature) == ("start-states", "observation.state[lift]")


def test_one_observation_of_a_robot_in_degrees():
    finding, = check_starts("observation.state", PARTS, walks(), [57.29578 * walks(1, seed=1)[0][:5]])
    assert (finding.code, finding.where.feature) == ("observation-units", "observation.state")
    assert 20 < finding.value < 100


def test_a_constant_sensor():
    finding, = starts(lambda e: np.column_stack([e[:, 0], np.full(len(e), 0.1)]))
    assert (finding.code, finding.where.feature) == ("constant-sensor", "observation.state[lift]")


def test_a_component_that_often_rests_is_no_broken_sensor():
    resting = [np.column_stack([e[:, 0], np.full(len(e), float(i % 2))]) for i, e in enumerate(walks())]
    assert not list(check_starts("observation.state", PARTS, resting, resting[:30]))


VECTOR, CAMERA = Feature("float32", (2,)), Feature("uint8", (48, 64, 3), "image")


def columns(observed):
    return list(check_columns({"observation.state": VECTOR, "observation.images.top": CAMERA}, observed,
                              {"observation.images.top": (48, 64)}))


def test_columns():
    good = {"observation.state": VECTOR, "observation.images.top": CAMERA}
    assert not columns(good)
    renamed, = columns({"observation.states": VECTOR, "observation.images.top": CAMERA})
    assert renamed.code == "missing-column" and "give observation.states the name" in renamed.remedy
    small, = columns({**good, "observation.images.top": Feature("uint8", (24, 64, 3), "image")})
    assert (small.code, small.value) == ("camera-size", 0.5)
    wider, = columns({**good, "observation.state": Feature("float32", (3,))})
    assert (wider.code, wider.value, wider.healthy) == ("missing-column", 3, (2, 2))
    for own, other, problem in (({"unit": "deg"}, {"unit": "rad"}, "the unit deg, and here it is rad"),
                                ({"names": ("a", "b")}, {"names": ("b", "a")}, "the components a, b, and here they")):
        finding, = check_columns({"observation.state": replace(VECTOR, **own)},
                                 {"observation.state": replace(VECTOR, **other)}, {})
        assert finding.code == "observation-units" and problem in finding.message


def test_novelty_is_the_share_beyond_held_out_distances():
    rng = np.random.default_rng(0)
    trained, held_out, same = ([rng.normal(size=(100, 2))] for _ in range(3))
    assert not list(check_novelty(trained, held_out, same))
    finding, = check_novelty(trained, held_out, [np.concatenate([trained[0][:10], same[0] + 20])])
    assert (finding.code, finding.level) == ("novel-states", "warning")
    assert finding.value == pytest.approx(100 / 110) and "from step 10 on" in finding.message


LOW, HIGH = np.array([-1.0, -1.0]), np.array([1.0, 1.0])


def limits(recorded, commanded=()):
    return list(check_limits(np.array(recorded), np.array(commanded), LOW, HIGH, PARTS))


def test_the_clipped_share_is_counted_beyond_a_tenth_of_the_range():
    share, each = clipped_share(np.array([[0, 0], [1.19, 0], [1.21, 0], [0, -3]]), LOW, HIGH)
    assert share == 0.5 and each.tolist() == [0.25, 0.25]


def test_limits():
    inside, outside = [[0.5, 0.5]] * 10, [[0.5, 2.0]] * 10
    assert not limits(inside) and not limits(inside, inside)
    finding, = limits(outside)
    assert (finding.code, finding.level, finding.value) == ("limits-bind", "fault", 1) and "lift" in finding.message
    assert [f.level for f in limits(inside, outside)] == ["warning"]
    unit, = limits([[57.3, -57.3]] * 10)
    assert unit.code == "action-units" and unit.value == pytest.approx(57.3) and "degrees" in unit.message
    assert unit.command[3:5] == ("--scale", "action[pan,lift]=0.0175")
    unit, = limits([[47.0, -47.0]] * 10)  # which does not reach its limits
    assert unit.value == 57.3
