"""The field of the walks, and what the values of random walks say of it."""

import numpy as np
import pytest

from evidence.families.reinforcement import frozen_values as world
from understudy.learn.targets import REWARD
from understudy.testing import check_env


def test_the_best_actions_by_the_values_of_random_walks_have_the_score_that_the_table_states():
    check_env(world.Walks)
    mdp, n = world.walks(), world.STEPS
    anywhere = np.full((mdp.states, mdp.actions), 1 / mdp.actions)
    one_better = np.eye(mdp.actions)[mdp.action_values(n, policy=anywhere)[-1].argmax(1)]
    returns = [mdp.expected_return(policy, n) for policy in (anywhere, one_better, mdp.best_policy(n))]
    assert (returns[1] - returns[0]) / (returns[2] - returns[0]) == pytest.approx(0.77, abs=0.005)


def test_recorded_walks_take_each_action_as_often_and_have_the_rewards_of_the_cells_they_enter():
    data, mdp = world.TABLE.source.load(3), world.walks()
    actions = np.concatenate([e.steps["action"][:, 0] for e in data]).astype(int)
    assert np.abs(np.bincount(actions, minlength=4) / len(actions) - 0.25).max() < 0.04  # 4.5 standard deviations
    for episode in list(data)[:5]:
        cells = episode.steps["simulator.state"][:, 0].astype(int)
        np.testing.assert_allclose(episode.steps[REWARD], mdp.rewards[0, 0, cells[1:]], rtol=1e-6)
