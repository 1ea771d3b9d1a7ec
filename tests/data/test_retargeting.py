"""Retargeting of motions, against forward kinematics and arms whose joints follow from geometry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from understudy.core import DataError, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.opening import views
from understudy.data.operations import Filter
from understudy.data.retargeting import (
    MotionRetargeting,
    inverse_kinematics,
    joint_positions,
    link_lengths,
    nearest_reachable,
    reachable,
)
from understudy.envs.toys.planar_arms import ARMS, SPEED, PlanarArms
from understudy.evaluate.rollout import rollout

STATE, HUMAN = "observation.state", ARMS["human"]


@pytest.fixture(scope="module")
def human():
    env = PlanarArms(16, task="reach-human")
    return rollout(env.expert(), env, 32, 5)


def states(data: Dataset, links: int) -> tuple[np.ndarray, np.ndarray]:
    state = np.concatenate([e.steps[STATE] for e in data])
    return state[:, :links], state[:, links:]


def recorded(*tips, lengths=(0.5, 0.5)) -> Dataset:
    """An episode of an arm of two links whose tip is at these points, by the law of cosines, elbow to the right."""
    points, (a, b) = np.array(tips), lengths
    bend = np.arccos((np.square(points).sum(1) - a * a - b * b) / (2 * a * b))
    first = np.arctan2(points[:, 1], points[:, 0]) - np.arctan2(b * np.sin(bend), a + b * np.cos(bend))
    return Dataset([Episode({STATE: np.column_stack([first, bend, points]).astype(np.float32),
                             "action": np.zeros((len(points) - 1, 2), np.float32)}, {"number": 0})])


@pytest.mark.parametrize("arm", ["two", "three", "five", "six"])
def test_the_tip_of_the_other_arm_moves_as_the_recorded_tip(arm, human):
    robot = MotionRetargeting(ARMS[arm], turn=SPEED).apply(human)
    joints, tips = states(robot, len(ARMS[arm]))
    at = joint_positions(joints.astype(np.float64), np.array(ARMS[arm]))[:, -1]
    np.testing.assert_allclose(at, states(human, 3)[1], atol=2e-3)
    np.testing.assert_allclose(at, tips, atol=1e-5)


def test_actions_lead_from_joints_to_joints(human):
    episode = MotionRetargeting(ARMS["two"], turn=SPEED).apply(human)[3]
    joints = episode.steps[STATE][:, :2]
    np.testing.assert_allclose(joints[0] + SPEED * episode.steps["action"].cumsum(0), joints[1:], atol=1e-5)


@pytest.mark.parametrize("by", ["tips", "joints"])
def test_an_equal_arm_gets_the_same_episodes(by, human):
    same = MotionRetargeting(HUMAN, by=by, turn=SPEED).apply(human)
    for before, after in zip(human, same, strict=True):
        np.testing.assert_allclose(after.steps[STATE], before.steps[STATE], atol=1e-4)
        np.testing.assert_allclose(after.steps["action"], before.steps["action"].clip(-1, 1), atol=1e-3)


def test_joints_of_two_links_follow_from_the_law_of_cosines():
    tips = [(0.6, 0.3), (0.55, 0.35), (0.5, 0.4)]
    expected = recorded(*tips, lengths=(0.45, 0.4))[0].steps[STATE]
    robot = MotionRetargeting((0.45, 0.4)).apply(recorded(*tips))
    np.testing.assert_allclose(robot[0].steps[STATE], expected, atol=1e-3)


def test_copied_joints_put_the_tip_elsewhere(human):
    joints, tips = states(MotionRetargeting(ARMS["three"], by="joints").apply(human), 3)
    np.testing.assert_array_equal(joints, states(human, 3)[0])
    assert np.linalg.norm(tips - states(human, 3)[1], axis=1).mean() > 0.01
    with pytest.raises(UserError, match="the recorded arm has 3 joints, and the other arm 2"):
        MotionRetargeting((0.5, 0.5), by="joints").apply(human)


def test_what_an_arm_can_reach():
    points = np.array([[0.7, 0], [0.71, 0], [0, 0.1], [0, 0.09]])
    assert reachable((0.4, 0.3), points).tolist() == [True, False, True, False]  # a hole of 0.1 m around the base
    np.testing.assert_allclose(nearest_reachable((0.4, 0.3), points), [[0.7, 0], [0.7, 0], [0, 0.1], [0, 0.1]])
    rng = np.random.default_rng(0)  # whatever an arm does, its tip is where it can be
    assert reachable(HUMAN, joint_positions(rng.uniform(-3, 3, (500, 3)), np.array(HUMAN))[:, -1]).all()


def test_episodes_with_a_point_out_of_reach_are_dropped_or_clipped():
    near, beyond = recorded((0.3, 0.2), (0.3, 0.3)), recorded((0.3, 0.4), (0.6, 0.6), (0.9, 0))
    data = Dataset([near[0], beyond[0]])
    drop = MotionRetargeting((0.4, 0.3))
    assert drop.out_of_reach(data).tolist() == [0, 2]
    assert [len(e) for e in drop.apply(data)] == [1]
    clipped = replace(drop, reach="clip").apply(data)
    assert [e.metadata["out_of_reach"] for e in clipped] == [0, 2]
    np.testing.assert_allclose(clipped[1].steps[STATE][:, 2:], [[0.3, 0.4], [0.7 / 2**0.5] * 2, [0.7, 0]], atol=2e-3)
    assert len(Filter("out_of_reach", equals=(0,)).apply(clipped)) == 1


def test_lengths_follow_from_the_data_and_must_explain_every_tip(human):
    np.testing.assert_allclose(link_lengths(human), HUMAN, atol=1e-4)
    state = human[3].steps[STATE].copy()
    state[7, 4] += 0.2
    wrong = Dataset([e.replace({STATE: state}) if i == 3 else e for i, e in enumerate(human)])
    with pytest.raises(DataError, match=r"episode 3, step 7, observation\.state: the recorded tip is 0\.199 m from"):
        MotionRetargeting(ARMS["two"]).apply(wrong)


def test_a_straight_arm_that_cannot_bend_is_an_error_with_its_place():
    """Damped least squares does not leave the line on which a straight arm and its target are."""
    data = Dataset([Episode({STATE: np.array([[0, 0, 1.0, 0]] * 2, np.float32), "action": np.zeros((1, 2))})])
    with pytest.raises(DataError, match="episode 0, step 0: no joints were found"):
        MotionRetargeting((0.6, 0.6)).apply(data)
    stretched = inverse_kinematics(np.array([[0.1, 0.2]]), np.array([[0.0, 1.0]]), np.array([0.5, 0.5]))
    np.testing.assert_allclose(stretched, [[np.pi / 2, 0]], atol=0.1)


def test_a_view_holds_it(human, tmp_path):
    write_dataset(human, tmp_path / "human.npz")
    operation = MotionRetargeting(ARMS["two"], turn=SPEED)
    views.write_view(tmp_path / "robot.json", tmp_path / "human.npz", operation)
    data = open_dataset(tmp_path / "robot.json")
    np.testing.assert_array_equal(data[1].steps[STATE], operation.apply(human)[1].steps[STATE])
    assert data.features()[STATE].names == ("joint.0", "joint.1", "tip.x", "tip.y")


@pytest.mark.parametrize("fields", [{"to": ()}, {"to": (0.5, -0.1)}, {"to": (0.5,), "turn": 0.0}])
def test_lengths_and_turns_are_above_zero(fields):
    with pytest.raises(DataError, match="must be above 0"):
        MotionRetargeting(**fields)
