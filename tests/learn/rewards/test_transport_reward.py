"""Rewards of optimal and of greedy transport."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from folders import TESTS
from scipy.optimize import linear_sum_assignment

from understudy.core import Feature, Unsupported
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.heads.likelihood.regression import Regression
from understudy.learn.rewards.transport_reward import (
    COLUMN,
    OptimalTransportReward,
    PWILReward,
    greedy_costs,
    transport_plan,
)
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_reward_model

STATE = "observation.state"
PLANS = json.loads((TESTS / "fixtures" / "pot_plans.json").read_text())


@pytest.mark.parametrize("config", [OptimalTransportReward(), OptimalTransportReward("uniform", inputs="action"),
                                    PWILReward(), PWILReward(inputs="next")])
def test_contract(config):
    check_reward_model(config)


@pytest.mark.parametrize("number", [0, 1])
def test_plans_are_those_of_pot(number):
    peer = PLANS[number]
    cost = torch.tensor(peer["cost"], dtype=torch.float64)
    torch.testing.assert_close(transport_plan(cost, 0.1, 2000), torch.tensor(peer["sinkhorn"], dtype=torch.float64),
                               rtol=0, atol=1e-6)
    torch.testing.assert_close(transport_plan(cost, 1e-3, 5000), torch.tensor(peer["exact"], dtype=torch.float64),
                               rtol=0, atol=1e-3)


def test_without_entropy_a_plan_is_the_best_assignment():
    cost = torch.rand(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, columns = linear_sum_assignment(cost.numpy())
    expected = torch.zeros(8, 8, dtype=torch.float64)
    expected[rows, columns] = 1 / 8
    torch.testing.assert_close(transport_plan(cost, 1e-3, 5000), expected, rtol=0, atol=1e-4)


def test_rows_and_columns_of_a_plan_have_equal_mass():
    plan = transport_plan(torch.rand(5, 9, generator=torch.Generator().manual_seed(1)), 0.05, 500)
    torch.testing.assert_close(plan.sum(0), torch.full((9,), 1 / 9), rtol=0, atol=1e-6)
    torch.testing.assert_close(plan.sum(1), torch.full((5,), 1 / 5), rtol=0, atol=1e-5)


def test_three_greedy_steps_by_hand():
    """Each step has 1/3. The first takes the nearest column, the second what is left of it and of the next one."""
    cost = torch.tensor([[1.0, 5.0], [2.0, 4.0], [3.0, 7.0]])
    costs = greedy_costs(cost, 1 / 3)
    torch.testing.assert_close(costs, torch.tensor([1 / 3, 2 / 6 + 4 / 6, 7 / 3]))
    assert greedy_costs(cost, 1 / 2)[2] == torch.inf  # no mass is left for a longer episode


def episode(states, actions=None) -> Episode:
    states = np.asarray(states, np.float32).reshape(-1, 1)
    actions = np.zeros((len(states) - 1, 1), np.float32) if actions is None else np.reshape(actions, (-1, 1))
    return Episode({STATE: states, "action": np.asarray(actions, np.float32)})


def model(config, *demonstrations):
    data = Dataset(list(demonstrations))
    codec = Normalizer("identity", "identity")
    policy = Policy(PolicyConfig(Regression(), MLP(8, 1), codec=codec), data.features()).fit_statistics(data)
    return config.build(policy, data)


def rewards(reward_model, *episodes) -> list[np.ndarray]:
    return [e.steps[COLUMN] for e in reward_model.annotate(Dataset(list(episodes)))]


def test_the_reward_of_an_episode_is_its_transport_cost_in_units_of_the_demonstrations():
    """The demonstration leads to 1, 2, 3; their mean distance is 8/9. An episode 0.5 beside it costs 0.5."""
    transport = model(OptimalTransportReward(scale=4.0, epsilon=0.02, n_iterations=1000), episode([0, 1, 2, 3]))
    same, beside, longer = rewards(transport, episode([0, 1, 2, 3]), episode([0, 1.5, 2.5, 3.5]),
                                   episode([0, 1, 1, 2, 2, 3, 3]))
    assert same.sum() == pytest.approx(0, abs=1e-3) and longer.sum() == pytest.approx(0, abs=1e-3)
    assert beside == pytest.approx([-4 * 0.5 / 3 / (8 / 9)] * 3, abs=1e-2)
    shuffled, = rewards(transport, episode([0, 3, 1, 2]))  # transport ignores order
    assert shuffled.sum() == pytest.approx(0, abs=1e-3)


def test_a_uniform_plan_does_not_tell_which_step_was_matched():
    transport = model(OptimalTransportReward("uniform", scale=4.0), episode([0, 1, 2, 3]))
    actual, = rewards(transport, episode([0, 1, 2, 3]))
    assert actual == pytest.approx([-4 / 3 * 1.125, -4 / 3 * 0.75, -4 / 3 * 1.125])


def test_of_several_demonstrations_of_unequal_length_the_nearest_counts():
    long = episode([0, -4, -5, -6, -7, -8])
    transport = model(OptimalTransportReward(n_iterations=1000), episode([0, 1, 2, 3]), long)
    same, short = rewards(transport, long, episode([0, 9, 9]))
    assert same.sum() == pytest.approx(0, abs=1e-2) and len(same) == 5
    assert short.sum() < -5 and len(short) == 2


def test_greedy_rewards_of_a_demonstration_are_the_largest():
    greedy = model(PWILReward(scale=2.0, rate=3.0), episode([0, 1, 2], [1, 1]))
    same, beside = rewards(greedy, episode([0, 1, 2], [1, 1]), episode([0, 1, 2], [1, 2]))
    assert same == pytest.approx([2, 2])
    assert beside == pytest.approx([2, 2 * np.exp(-3 * 1 / 2**0.5)])
    longer, = rewards(greedy, episode([0, 1, 2, 3], [1, 1, 1]))
    assert longer == pytest.approx([2, 2, 0])


def test_demonstrations_are_stored_with_the_model_and_others_are_not():
    other = replace(episode([5, 6, 7]), metadata={"expert": False})
    transport = model(OptimalTransportReward(), episode([0, 1, 2, 3]), other)
    assert transport.points.tolist() == [[1], [2], [3]] and transport.lengths.tolist() == [3]


def test_columns_that_are_no_numbers_are_refused():
    features = {"observation.images.top": Feature("uint8", (16, 16, 3), "image"), "action": Feature("float32", (1,))}
    policy = Policy(PolicyConfig(Regression(), MLP(8, 1)), features)
    with pytest.raises(Unsupported, match=r"observation.images.top(.|\n)*policy.inputs"):
        OptimalTransportReward().build(policy, Dataset([episode([0, 1])]))
