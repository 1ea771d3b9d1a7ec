"""HIQL: subgoals on the way to a goal, and a low-level policy that follows them."""

from dataclasses import replace

import numpy as np
import torch

from understudy.core import keys
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Goal, Subgoal, Window
from understudy.learn.critic import CriticConfig
from understudy.learn.fit_method import fit_method
from understudy.methods import find_method
from understudy.nets.feed_forward import FeedForward

STATE, GOAL = "observation.state", "observation.goal"


def counted_episodes(*lengths: int) -> Dataset:
    """Episodes whose state is (number of the episode, row)."""
    return Dataset([Episode({STATE: np.stack([np.full(n + 1, i), np.arange(n + 1)], 1).astype(np.float32),
                             "action": np.ones((n, 1), np.float32)}) for i, n in enumerate(lengths)])


def test_subgoals_are_a_few_steps_away_and_not_beyond_the_goal():
    window = Window(goals=(Goal(STATE, p_randomgoal=0.5), Subgoal(STATE, "observation.near", 4),
                           Subgoal(STATE, "observation.target", 4, GOAL)))
    names = (STATE, GOAL, "observation.near", "observation.target")
    batch = window.windows(counted_episodes(12, 9, 1), names, "action").batch(2000, 0)
    now, goal, near, target = (batch.obs[k][:, 0] for k in names)
    last = torch.tensor([12, 9, 1])[now[:, 0].long()] - 1
    assert torch.equal(near[:, 0], now[:, 0]) and torch.equal(target[:, 0], now[:, 0])
    assert torch.equal(near[:, 1], torch.minimum(now[:, 1] + 4, last.float()))
    is_ahead = (goal[:, 0] == now[:, 0]) & (goal[:, 1] > now[:, 1])
    expected = torch.where(is_ahead, torch.minimum(near[:, 1], goal[:, 1]), near[:, 1])
    assert torch.equal(target[:, 1], expected)
    assert is_ahead.any() and (~is_ahead).any() and (expected < near[:, 1]).any()


def trained(data: Dataset):
    method = find_method("hiql", data.features(), latent_dim=4, subgoal_steps=3)
    learner = replace(method.learner, steps=3, batch_size=16, critic=CriticConfig((8,)))
    return fit_method(replace(method, learner=learner, policy=replace(method.policy, trunk=FeedForward((8,)))), data, 0)


def test_the_low_level_policy_reads_the_goal_through_subgoals_alone():
    rng = np.random.default_rng(0)
    data = Dataset([Episode({STATE: rng.normal(size=(13, 2)).astype(np.float32), GOAL: np.ones((13, 2), np.float32),
                             "action": rng.normal(size=(12, 1)).astype(np.float32)}) for _ in range(3)])
    result = trained(data)
    low, high = result.modules["policy"], result.modules["high"]
    assert low.inputs == (STATE, "observation.subgoal") and high.inputs == (STATE, GOAL)
    obs = {STATE: torch.zeros(2, 2), GOAL: torch.tensor([[1.0, 2.0], [-3.0, 0.5]])}
    state = result.actor.start(obs, keys(0, range(2)))
    action, _ = result.actor.act(obs, state)
    proposal = high.plan({k: v[:, None] for k, v in obs.items()}, torch.zeros(2, *high.noise_shape))
    subgoal = 2 * proposal / proposal.norm(dim=-1, keepdim=True)  # the length of representations: the root of 4
    expected = low.plan({STATE: obs[STATE][:, None], "observation.subgoal": subgoal}, torch.zeros(2, *low.noise_shape))
    torch.testing.assert_close(action, expected[:, 0])
    assert (action[0] - action[1]).abs() > 1e-5
