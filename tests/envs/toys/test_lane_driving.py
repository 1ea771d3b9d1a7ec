"""A winding lane with a box."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.core import keys
from understudy.envs.toys.lane_driving import DAMPING, PERIOD, TURN, LaneDriving, clearance
from understudy.evaluate.rollout import rollout


def test_the_clearance_is_the_distance_to_the_edges_and_to_the_box():
    box = np.array([[30, 0.9], [30, 0.9], [0, 0.9], [0, 0.9], [3.0, 0.9], [-1.5 - 0.3, -0.9]], np.float32)
    offset = np.array([0.0, 1.3, -0.6, 0.2, 0.9, 0.1], np.float32)
    expected = [1.1, -0.2, 0.5, -0.3, 0.2, np.hypot(0.3, 0.4) - 0.4]
    np.testing.assert_allclose(clearance(offset, box), expected, atol=1e-6)


def test_an_episode_goes_on_from_any_of_its_steps():
    env = LaneDriving(1)
    (episode,) = rollout(env.expert(), env, 1, seed=3)
    observed = {k: torch.from_numpy(np.array(episode.steps[k])) for k in env.state_columns}
    for t in (0, 20, len(episode) - 1):
        env.restore(torch.tensor([0]), {k: v[t:t + 1] for k, v in observed.items()})
        out = env.step(torch.from_numpy(np.array(episode.steps["action"][t:t + 1])))
        for column, rows in observed.items():
            assert torch.equal(out.obs[column][0], rows[t + 1]), column
    assert out.reward.tolist() == [1.0]


def test_what_is_steered_turns_the_car_with_delay_and_gusts_turn_it_too():
    env = LaneDriving(2)
    env.reset(torch.arange(2), keys(0, range(2)))
    for n in range(1, 4):
        yaw_rate = env.step(torch.tensor([[1.0, 0.0]] * 2)).obs["observation.state"][0, 3]
        expected = TURN / DAMPING * (1 - (1 - DAMPING * PERIOD) ** n)
        assert yaw_rate == pytest.approx(expected, rel=1e-5)
    windy = LaneDriving(200, gust=2.0)
    windy.reset(torch.arange(200), keys(0, range(200)))
    assert windy.step(torch.zeros(200, 2)).obs["observation.state"][:, 3].std() == pytest.approx(0.2, rel=0.2)


def test_who_leaves_the_lane_or_touches_the_box_fails_and_the_expert_comes_back_from_the_edge():
    env = LaneDriving(100, offset=1.0)
    centered = replace(env.expert(), clearance=-0.5, noise=0.0)  # toward the middle, over the corner of the box
    assert not any(e.metadata["success"] for e in rollout(centered, env, 100))
    assert all(e.metadata["success"] for e in rollout(replace(env.expert(), noise=0.0), env, 100))
