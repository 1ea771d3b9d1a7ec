"""Push: contacts, and the mirror image."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.core import keys
from understudy.envs.toys import push
from understudy.envs.toys.push import Push


def _placed(disc, block, angle, goal=(0.9, 0.9), rows=1):
    env = Push(rows)
    whole = np.float32([*disc, *block, math.cos(angle), math.sin(angle), *goal])
    env.restore(torch.arange(rows), {"observation.state": torch.from_numpy(np.tile(whole, (rows, 1)))})
    return env


def _depth(env):
    return push.contact(*(env.state[k].T for k in ("disc", "block", "heading")))[0]


def test_a_push_through_the_centre_moves_the_block_straight():
    env = _placed((0.5 - push.HALF - push.DISC, 0.5), (0.5, 0.5), 0.0)
    env.step(torch.tensor([[0.25, 0.0]]))
    np.testing.assert_allclose(env.state["block"], [[0.525, 0.5]], atol=1e-6)
    np.testing.assert_allclose(env.state["heading"], [[1, 0]], atol=1e-6)


@pytest.mark.parametrize(("arm", "across"), [(0.02, 0.0), (-0.03, 0.0), (0.0, 0.004)])
def test_a_contact_that_sticks_moves_as_the_disc_does(arm, across):
    """Contact displacement (I + J J^T / c^2) f = d, with J = z x p, and the block's motion is f, J.f / c^2."""
    env = _placed((0.5 - push.HALF - push.DISC, 0.5 - arm), (0.5, 0.5), 0.0)
    step = np.array([0.001, across * 0.1])
    env.step(torch.from_numpy(step[None] * 10))
    lever = np.array([arm, -push.HALF])
    force = np.linalg.solve(np.eye(2) + np.outer(lever, lever) / push.LEVER ** 2, step)
    assert abs(force[1]) < push.FRICTION * force[0]  # it does stick
    np.testing.assert_allclose(env.state["block"][0] - 0.5, force, atol=2e-5)
    turned = math.atan2(env.state["heading"][0, 1], env.state["heading"][0, 0])
    assert turned == pytest.approx(lever @ force / push.LEVER ** 2, abs=4e-5)


def test_a_glancing_disc_slides_when_the_contact_cannot_hold_it():
    """Then the sideways push is 0.3 of the normal one, in the direction in which the disc slides."""
    env = _placed((0.5 - push.HALF - push.DISC, 0.5), (0.5, 0.5), 0.0)
    env.step(torch.tensor([[0.01, 0.2]]))
    along, across = (env.state["block"] - 0.5)[0]
    assert across / along == pytest.approx(push.FRICTION, rel=0.05)


def test_a_goal_of_all_episodes_stays_apart_from_the_block():
    env = Push(500, goal=(0.65, 0.4))
    state = env.reset(torch.arange(500), keys(3, range(500)))["observation.state"].numpy()
    np.testing.assert_allclose(state[:, 6:], np.float32([[0.65, 0.4]] * 500))
    assert np.linalg.norm(state[:, 2:4] - state[:, 6:], axis=1).min() > 0.2
    assert np.ptp(state[:, 2:4], axis=0).min() > 0.55


unit = st.floats(-1, 1, width=32)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), first=st.tuples(unit, unit), second=st.tuples(unit, unit))
def test_the_disc_is_never_in_the_block_nor_beyond_the_table(seed, first, second):
    env = Push(64)
    env.reset(torch.arange(64), keys(seed, range(64)))
    for n in range(24):
        aim = torch.from_numpy(env.state["block"] - env.state["disc"])
        before = {k: v.copy() for k, v in env.state.items()}
        env.step(0.25 * aim / aim.norm(dim=1, keepdim=True) + 0.1 * torch.tensor(first if n % 2 else second))
        s = env.state
        assert _depth(env).max() < 1e-6
        assert (s["block"] >= push.MARGIN - 1e-6).all() and (s["block"] <= 1 - push.MARGIN + 1e-6).all()
        assert np.abs(np.linalg.norm(s["heading"], axis=1) - 1).max() < 1e-5
        is_away = np.linalg.norm(before["disc"] - before["block"], axis=1) > push.REACH + 0.05
        assert (s["block"][is_away] == before["block"][is_away]).all()
        assert (s["heading"][is_away] == before["heading"][is_away]).all()
        # It goes round or pushes; it does not jump to the other side.
        assert (((before["disc"] - before["block"]) * (s["disc"] - s["block"])).sum(1) > 0).all()


@settings(max_examples=40, deadline=None)
@given(angle=st.floats(0, 6.3), arm=st.floats(-0.1, 0.1), steer=st.floats(-0.25, 0.25))
def test_the_mirror_image_of_a_push_is_the_push_of_the_mirror_image(angle, arm, steer):
    a, b = (_placed((0.37, 0.5 + sign * arm), (0.5, 0.5), sign * angle) for sign in (1, -1))
    for _ in range(8):
        a.step(torch.tensor([[0.2, steer]]))
        b.step(torch.tensor([[0.2, -steer]]))
    flip = np.float32([1, -1])
    np.testing.assert_allclose(a.state["block"] - 0.5, (b.state["block"] - 0.5) * flip, atol=1e-4)
    np.testing.assert_allclose(a.state["heading"], b.state["heading"] * flip, atol=2e-3)


def test_the_table_holds_the_block_and_the_block_the_disc():
    env = _placed((0.7, 0.5), (0.85, 0.5), 0.0, goal=(0.2, 0.2))
    for _ in range(20):
        env.step(torch.tensor([[0.25, 0.0]]))
    assert env.state["block"][0, 0] == pytest.approx(1 - push.MARGIN)
    assert env.state["disc"][0, 0] == pytest.approx(1 - push.MARGIN - push.HALF - push.DISC, abs=1e-5)
