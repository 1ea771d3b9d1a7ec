"""Missions of several stages."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from understudy.core import UserError, keys
from understudy.envs.toys import gridworld_tasks
from understudy.envs.toys.gridworld_tasks import GridworldTasks
from understudy.evaluate.rollout import rollout


def test_missions_keep_what_a_stage_needs_within_reach():
    env = GridworldTasks(300, missions=(0, 3, 5))
    obs = env.reset(torch.arange(300), keys(0, range(300)))
    state = env.state
    assert set(state["mission"]) == {0, 3, 5}
    cells_of = np.concatenate([state["at"][:, None], state["things"]], 1)
    assert (cells_of[:, 0, 0] < 4).all() and (cells_of[:, 1, 0] < 4).all() and (cells_of[..., 0] != 4).all()
    assert all(len(np.unique(cells, axis=0)) == 4 for cells in cells_of)
    for mission, ball, pad in zip(state["mission"], cells_of[:, 2, 0], cells_of[:, 3, 0], strict=True):
        order = gridworld_tasks.ORDERS[mission]
        door = order.index(gridworld_tasks.DOOR)
        assert ball < 4 or order.index(gridworld_tasks.BALL) > door
        assert pad < 4 or order.index(gridworld_tasks.PAD) > door
    text = bytes(obs["observation.task"][0].numpy()).rstrip(b"\0").decode()
    assert text == gridworld_tasks.MISSIONS[state["mission"][0]] and "take the key" in text


def test_a_stage_before_its_turn_fails_and_a_slip_must_be_tried_again():
    mission = gridworld_tasks.ORDERS.index((2, 0, 1, 3))  # the ball first
    env = GridworldTasks(2)
    task = torch.from_numpy(gridworld_tasks._TEXTS[[mission] * 2])
    env.restore(torch.arange(2), {
        "observation.task": task, "observation.state": torch.tensor([[1.0, 1, 0, 0, 0, 0], [2, 2, 0, 0, 0, 0]]),
        "observation.environment_state": torch.tensor([[1.0, 1, 2, 2, 3, 3, 0]] * 2),
        "simulator.state": torch.zeros(2, 2)})
    out = env.step(torch.tensor([[4], [4]]))  # the key, and the ball
    assert out.reward.tolist() == [-1, 0] and out.terminated.tolist() == [True, False]
    assert out.obs["simulator.subgoal"][1].item() == gridworld_tasks.KEY and out.obs["observation.state"][1, 4] == 1
    env = GridworldTasks(200, slip=0.5)
    used = [int((e.steps["action"] == 4).sum()) for e in rollout(replace(env.expert(), noise=0.0), env, 200)]
    assert 7.3 < np.mean(used) < 8.7  # four stages at 1/2: 8 on average, with standard error 0.2


@pytest.mark.parametrize("options", [{"limit": 22, "slip": 0.5}, {"limit": 20},
                                     {"limit": 18, "slip": 0.5, "missions": (5,)},
                                     {"limit": 26, "slip": 0.3, "missions": (0, 1)}])
def test_the_optimum_of_missions_in_little_time_is_what_the_expert_reaches(options):
    env = GridworldTasks(2000, **options)
    successes = sum(e.metadata["success"] for e in rollout(replace(env.expert(), noise=0.0), env, 4000))
    interval = binomtest(successes, 4000).proportion_ci(0.999)
    assert interval.low < env.metadata["optimum"] < interval.high and interval.high - interval.low < 0.06
    assert 0.1 < env.metadata["optimum"] < 0.9


def test_the_optimum_of_missions_is_1_where_there_is_time():
    longest = max(np.flatnonzero(gridworld_tasks._walk_distribution(m)).max() for m in range(6)) + 4
    for limit in (gridworld_tasks.FARTHEST + 4, gridworld_tasks.FARTHEST + 3, longest):
        assert GridworldTasks(1, limit=limit).metadata["optimum"] == 1.0
    assert GridworldTasks(1, limit=longest - 8).metadata["optimum"] < 1.0
    assert GridworldTasks(1, limit=4, slip=0.5).metadata["optimum"] == 0.0  # the walker begins elsewhere


def test_a_mission_in_other_words_is_refused():
    with pytest.raises(UserError, match="'dance' is not a mission"):
        gridworld_tasks.parse_missions(np.frombuffer(b"dance".ljust(80, b"\0"), np.uint8)[None])
    with pytest.raises(UserError, match="0 to 5"):
        GridworldTasks(1, missions=(6,))
