"""Smoothness, jerk and time to success."""

import math

import numpy as np
import pytest
from fixtures.behaviors import episode
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.evaluate.behavior import motion


def test_smoothness_is_as_its_authors_publish_it():
    """The two examples in the authors' own documentation of their code (github.com/siva82kb/SPARC)."""
    move = np.exp(-5 * np.arange(-1, 1, 0.01) ** 2)
    assert motion.spectral_arc_length(move, 100) == pytest.approx(-1.41403, abs=1e-5)
    assert motion.log_dimensionless_jerk(move, 100) == pytest.approx(-5.81636, abs=1e-5)


def test_the_smoothest_stroke_has_the_jerk_of_theory():
    """Of minimal jerk: 720 D^2 / T^5 integrated, with a largest speed of 15/8 D/T."""
    t = np.linspace(0, 1, 4001)
    speed = 30 * t**2 - 60 * t**3 + 30 * t**4
    assert motion.log_dimensionless_jerk(speed, 4000) == pytest.approx(-math.log(720 / 1.875**2), abs=3e-3)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 100), st.sampled_from([1.0, 2.0, 5.0]))
def test_smoothness_knows_neither_size_nor_pace(size, slower):
    move = np.sin(np.linspace(0, np.pi, 200)) ** 2
    for of in (motion.spectral_arc_length, motion.log_dimensionless_jerk):
        band = {"max_frequency": 10 / slower} if of is motion.spectral_arc_length else {}
        assert of(size * move, 100 / slower, **band) == pytest.approx(of(move, 100), rel=1e-6)


def test_halts_are_less_smooth():
    def strokes(n, rest):
        one = np.sin(np.linspace(0, np.pi, 60)) ** 2
        return np.concatenate([np.concatenate([one, np.zeros(rest)]) for _ in range(n)])
    arc_lengths = [motion.spectral_arc_length(strokes(n, 20), 60) for n in (1, 2, 4)]
    assert arc_lengths[0] > arc_lengths[1] > arc_lengths[2]
    for bad in (np.zeros(50), np.ones(3), np.array([1, 2, np.nan, 2, 1, 0, 1])):
        assert math.isnan(motion.spectral_arc_length(bad, 10)) and math.isnan(motion.log_dimensionless_jerk(bad, 10))


def test_spectral_arc_length_reads_nothing_above_half_the_rate():
    """A record of 10 Hz has a mirror image of its spectrum there, which would count as trembling."""
    move = np.sin(np.linspace(0, np.pi, 20)) ** 2
    assert motion.spectral_arc_length(move, 10, max_frequency=5) == motion.spectral_arc_length(
        move, 10, max_frequency=10
    )
    assert motion.spectral_arc_length(move, 10) > -2


def test_action_jerk():
    t = np.arange(20.0)[:, None]
    assert motion.action_jerk(t**2) == pytest.approx(0, abs=1e-9) and motion.action_jerk(t**3) == pytest.approx(6)
    assert math.isnan(motion.action_jerk(t[:3]))


def test_time_to_success_is_the_first_step_that_tells():
    e = episode(np.zeros((6, 1)), success=False)
    e.steps["next.success"][2:4] = True
    assert motion.success_step(e) == 3
    assert math.isnan(motion.success_step(episode(np.zeros((6, 1)), success=False)))
