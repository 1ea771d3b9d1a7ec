"""Made demonstrations: what moves with an object, and segments that a symmetry of the world moves."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.envs.toys.four_rooms import FourRooms
from understudy.envs.wrappers import WrappedEnv
from understudy.execute.waypoints import WaypointWrapper
from understudy.improve.generation import DemoGeneration, MovableObject, SegmentRule, SymmetryAugmentation
from understudy.testing import check_wrapper

STATE = "observation.state"
CUP, SHELF = MovableObject((0, 1), (0,), (0.3, 0.0)), MovableObject((2, 3), (1,), (0.1, 0.2))


def test_key_poses_move_with_their_object_and_with_nothing_else():
    taught = Episode({STATE: np.zeros((3, 4), np.float32), "action": np.ones((2, 4), np.float32)})
    copies = DemoGeneration((CUP, SHELF), 50).apply(Dataset([taught]))
    shift = np.stack([e.steps[STATE][0] for e in copies])
    action = np.stack([e.steps["action"] for e in copies]) - 1  # of two hands, two components each
    np.testing.assert_allclose(action[:, 0], np.tile(shift[:, :2], 2), atol=1e-6)
    np.testing.assert_allclose(action[:, 1], np.tile(shift[:, 2:], 2), atol=1e-6)
    assert (np.abs(shift) <= np.array([0.3, 0.0, 0.1, 0.2]) + 1e-6).all() and (shift.std(0)[[0, 2, 3]] > 0.03).all()
    assert abs(np.corrcoef(shift[:, 0], shift[:, 2])[0, 1]) < 0.5, "objects move independently"
    assert not taught.steps[STATE].any(), "the demonstration stays as it is"


def test_a_waypoint_is_reached_and_held():
    wrapper = WaypointWrapper((0, 1), period=30)
    check_wrapper(FourRooms, wrapper)
    env = WrappedEnv(FourRooms(1), wrapper)
    obs = env.reset(torch.arange(1), torch.zeros(1, dtype=torch.int64))
    place = obs[STATE].floor() + 0.7  # in the same cell, so that no wall is between
    np.testing.assert_allclose(env.step(place).obs[STATE], place, atol=1e-4)
    with pytest.raises(UserError, match="3 components are the position, but the action has 2"):
        WrappedEnv(FourRooms(1), WaypointWrapper((0, 1, 2)))


@dataclass(frozen=True)
class ToTheRight(SegmentRule):
    def accepts(self, segment):
        return bool(segment.steps[STATE][-1, 0] > segment.steps[STATE][0, 0] + 0.5)


@pytest.fixture(scope="module")
def walk():
    """Six steps in one direction."""
    action = np.tile(np.array([[2, 1]], np.float32), (6, 1))
    position = 1 + 0.1 * np.arange(7, dtype=np.float32)[:, None] * action[:1]
    return Dataset([Episode({STATE: position, "observation.goal": np.full((7, 2), 7.5, np.float32), "action": action})])


def test_segments_are_what_the_environment_does_and_go_in_all_directions(walk):
    moved_episodes = SymmetryAugmentation("four_rooms", 300, 6, 0.1, 7.9).apply(walk)
    assert len(moved_episodes) == 300
    for e in moved_episodes:
        moved = np.diff(e.steps[STATE], axis=0)
        np.testing.assert_allclose(moved, 0.1 * e.steps["action"], atol=2e-3, err_msg="no wall stopped it")
        assert len(e) == 6 or e.steps["next.terminated"][-1] and e.steps["next.reward"].sum() == 1
    turned = {tuple(np.rint(e.steps["action"][0]).astype(int)) for e in moved_episodes}
    assert turned == {(a, b) for x, y in ((2, 1), (1, 2)) for a in (x, -x) for b in (y, -y)}
    assert np.concatenate([e.steps[STATE] for e in moved_episodes]).std(0).min() > 1.5, "everywhere in the four rooms"


def test_a_rule_guides_what_is_made(walk):
    guided = SymmetryAugmentation("four_rooms", 100, 6, 0.1, 7.9, ToTheRight()).apply(walk)
    assert all(ToTheRight().accepts(e) for e in guided)
    with pytest.raises(UserError, match="only 0 of"):
        SymmetryAugmentation("four_rooms", 10, 7).apply(walk)
