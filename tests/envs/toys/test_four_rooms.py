"""Four rooms."""

import numpy as np
import pytest
import torch

from understudy import envs
from understudy.core import UserError
from understudy.envs.toys import four_rooms, maze
from understudy.evaluate.rollout import rollout
from understudy.testing import check_env


@pytest.mark.parametrize("style", four_rooms.STYLES)
def test_every_style_keeps_the_contract(style):
    check_env(lambda rows: envs.make(f"four_rooms:{style}", rows, limit=25))


def test_every_cell_is_reached_and_rooms_part_at_doors_only():
    steps = four_rooms.STEPS.reshape(64, 64)
    assert np.isfinite(steps).all() and (steps == steps.T).all()
    assert steps[0, 63] == 14 and steps[0, 4] == 6 and steps[8 * 3 + 3, 8 * 4 + 3] == 5  # round by the door at (3, 1)
    env = four_rooms.FourRooms(1)
    env.restore(torch.tensor([0]), {"observation.state": torch.tensor([[3.9, 2.5]]),
                                    "observation.goal": torch.tensor([[7.5, 7.5]])})
    assert env.step(torch.tensor([[2.0, 0.0]])).obs["observation.state"][0].tolist() == pytest.approx([3.9, 2.5])
    env.restore(torch.tensor([0]), {"observation.state": torch.tensor([[3.9, 1.5]]),
                                    "observation.goal": torch.tensor([[7.5, 7.5]])})
    assert env.step(torch.tensor([[2.0, 0.0]])).obs["observation.state"][0].tolist() == pytest.approx([4.1, 1.5])


def test_styles_differ_in_what_their_episodes_show():
    def rooms_and_success(style):
        episodes = rollout(envs.make(f"four_rooms:{style}", 60).expert(), envs.make(f"four_rooms:{style}", 60), 60,
                           seed=3)
        at = [(e.steps["observation.state"] > 4) @ [1, 2] for e in episodes]
        return np.mean([len(np.unique(a)) for a in at]), [e.metadata.get("success") for e in episodes], episodes
    rooms, success, _ = rooms_and_success("navigate")
    assert rooms < 2.5 and all(success)
    rooms, success, _ = rooms_and_success("play")
    assert rooms > 2.5 and set(success) == {None}
    rooms, success, episodes = rooms_and_success("stitch")
    cells = [maze.cell_of(e.steps["observation.state"], 8) @ [8, 1] for e in episodes]
    distance = max(four_rooms.STEPS.reshape(64, 64)[c[0], c].max() for c in cells)
    assert rooms < 2.2 and distance <= four_rooms.REACH + 2  # of 14; the way between two waypoints may lead farther
    assert 0.3 < np.mean(rooms_and_success("mixed")[1]) < 0.8


def test_a_share_of_the_episodes_of_play_walks_at_random():
    for style, share in (("play", 0.0), ("play-40", 0.4), ("play-80", 0.8)):
        env = envs.make(f"four_rooms:{style}", 100)
        episodes = rollout(env.expert(), env, 100, seed=3)
        jumps = [np.abs(np.diff(e.steps["action"], axis=0)).mean() for e in episodes]
        assert np.mean([jump < 0.3 for jump in jumps]) == pytest.approx(share, abs=0.12)


def test_one_goal_is_not_observed_and_walls_may_end_an_episode():
    def make(rows, walls="end"):
        return envs.make("four_rooms", rows, goal=(2.5, 6.5), walls=walls)
    check_env(make)
    assert set(make(1).features) == {"observation.state", "action"}
    episodes = rollout(make(40).expert(), make(40), 40, seed=1)
    assert np.mean([e.metadata["success"] for e in episodes]) > 0.9
    ends = np.array([e.steps["observation.state"][-1] for e in episodes if e.metadata["success"]])
    assert (np.linalg.norm(ends - [2.5, 6.5], axis=1) < maze.RADIUS).all()
    for walls, ended in (("end", True), ("stop", False)):
        env = make(1, walls)
        env.restore(torch.tensor([0]), {"observation.state": torch.tensor([[3.9, 2.5]])})
        result = env.step(torch.tensor([[2.0, 0.0]]))
        assert result.terminated.item() is ended and not result.info["success"].item()
    with pytest.raises(UserError, match='choose "stop" or "end"'):
        make(1, "bounce")
