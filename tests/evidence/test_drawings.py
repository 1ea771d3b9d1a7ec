"""The world, the measure and the control of the claim about iterative inversion."""

import numpy as np
import pytest
from claims.observation_only import drawings as claim

from understudy.data.episode import Episode
from understudy.testing import check_env


def test_the_world_and_its_drawings():
    check_env(claim.DrawingArm)
    data = claim.Drawings(episodes=6, n_practice=3).load(3)
    parts = [e.metadata["dataset"] for e in data]
    assert parts == ["task"] * 6 + ["prior"] * 3 and set(data.lengths) == {claim.LENGTH}
    states = np.stack([e.steps[claim.STATE] for e in data])
    assert np.allclose(states[:, 0, :2], [0.5, 1.0]) and np.ptp(states[:6, -1, 0]) > 1
    bends = np.diff([e.steps["action"] for e in data][:6], n=2, axis=1)
    assert (np.abs(bends) > 1e-5).any(-1).sum(1).max() <= 2  # velocities change linearly between three of them
    new = claim.Drawings(episodes=6, n_practice=3).load(3, 300_000)
    assert not np.allclose(new[0].steps[claim.STATE], states[0])


def test_the_measure_is_the_distance_of_the_tips_at_equal_steps():
    def drawing(x, y):
        return Episode({claim.STATE: np.array([[9, 9, x, y], [7, 7, x, y + 1]], np.float32)})
    assert claim.distances(drawing(0, 0), drawing(3, 4)) == pytest.approx([5, 5])


def test_the_reward_is_minus_the_distance_to_the_drawing_that_was_shown():
    data = claim.Drawings(episodes=3, n_practice=1).load(3)
    drawings, practice = data.select(range(3)), data[3]
    reward = claim.TrackingReward(drawings)
    shown = np.full((claim.LENGTH, 1), 2)
    rewarded = reward(practice.replace({claim.NUMBER: shown}))
    far = np.linalg.norm(practice.steps[claim.STATE][1:, 2:] - drawings[2].steps[claim.STATE][1:, 2:], axis=1)
    assert rewarded.steps["next.reward"] == pytest.approx(-far, abs=1e-6)
    assert rewarded.steps["next.terminated"].tolist() == [False] * (claim.LENGTH - 1) + [True]
    frames = claim.SHOW.frames(drawings[2])
    assert np.array_equal(rewarded.steps[claim.SHOW.into[1]], np.repeat(frames[1:2], claim.LENGTH + 1, 0))
    assert (reward(drawings[1]).steps["next.reward"] == 0).all()  # each drawing follows itself


def test_the_control_mirrors_drawings_alone():
    data = claim.Drawings(episodes=1, n_practice=1).load(3)
    shown, practice = map(claim.mirrored, data)
    before, after = data[0].steps[claim.STATE], shown.steps[claim.STATE]
    tip = claim.DrawingArm()
    tip.state["joints"] = after[-1:, :2]
    assert np.allclose(tip.tip()[0], after[-1, 2:], atol=1e-5)  # a pose that the arm can have
    assert np.allclose(after[:, 3], -before[:, 3]) and np.allclose(after[:, 2], before[:, 2])
    assert practice is data[1]
