"""A leader that a person moves, and one that drifts, shakes or is put down."""

import numpy as np
import pytest

from understudy.robots.leader_motion import LeaderMotion
from understudy.robots.limits import SafetyLimits

FPS = 20
LIMITS = SafetyLimits((-90.0, 0.0), (90.0, 100.0), (60.0, 60.0))  # thresholds: 9 degrees, 5 percent
RESTS = 2 * FPS  # ticks


def first_motion(path, motion=None):
    """The tick at which a path of positions, (T, 2), counts as a motion of a person. None if it never does."""
    motion = motion or LeaderMotion(LIMITS)
    return next((t for t, position in enumerate(path) if motion.is_moved(position, t / FPS)), None)


def after_rest(first_joint, second_joint=0.0):
    path = np.zeros((RESTS + len(first_joint), 2))
    path[RESTS:] = np.stack(np.broadcast_arrays(first_joint, second_joint), 1)
    return path


@pytest.mark.parametrize("velocity, ticks", [
    (20.0, 11),  # deg/s: 1 degree a tick; a reference at rest would give 10
    (15.0, 15),  # a reference at rest would give 13
    (4.6, 136),
    (4.4, None)])  # the reference lags by at most 2.025 s of the motion: 4.44 deg/s reach 9 degrees
def test_a_motion_counts_at_the_computed_tick(velocity, ticks):
    """A ramp of s degrees a tick is s (1 - r^k) / (1 - r) degrees away at its tick k, with r = exp(-1 / (2 FPS))."""
    step, r = velocity / FPS, np.exp(-1 / (2 * FPS))
    distance = step * (1 - r ** np.arange(1, 5001)) / (1 - r)
    assert (int(np.flatnonzero(distance > 9)[0]) + 1 if (distance > 9).any() else None) == ticks
    path = after_rest(step * np.arange(1, 5001))
    assert first_motion(path) == (None if ticks is None else RESTS + ticks - 1)
    assert first_motion(-path) == first_motion(path)


def test_each_joint_has_the_threshold_of_its_range():
    jump = np.full(5, 6.0)
    assert first_motion(after_rest(jump)) is None
    assert first_motion(after_rest(0 * jump, jump)) == RESTS


def test_vibration_and_a_sagging_arm_do_not_count():
    t = np.arange(60 * FPS) / FPS
    assert first_motion(after_rest(3 * np.sin(40 * t) - 0.9 * t, 2 * np.cos(33 * t))) is None


def test_giving_back_arms_it_again_after_the_leader_has_rested():
    motion = LeaderMotion(LIMITS)
    jump = after_rest(np.full(5, 40.0))
    assert first_motion(jump, motion) == RESTS
    motion.begin()
    assert first_motion(np.full((RESTS, 2), 40.0), motion) is None  # it is still where it was moved
    motion.begin()
    put_down = np.concatenate([np.linspace([40, 0], [-80, 0], FPS), np.tile([-80.0, 0.0], (RESTS, 1))])
    assert first_motion(put_down, motion) is None  # 120 degrees in a second
    assert motion.is_moved(np.array([-60.0, 0.0]), len(put_down) / FPS)
