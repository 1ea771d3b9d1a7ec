"""The density of demonstrations as a reward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from understudy.core import UserError
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.heads.likelihood.regression import Regression
from understudy.learn.rewards.transport_reward import COLUMN
from understudy.methods import find_method
from understudy.methods.reward_matching.density_reward import DensityReward
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_reward_model

STATE = "observation.state"


def random_episode(seed: int, n_steps: int, expert: bool = True) -> Episode:
    rng = np.random.default_rng(seed)
    steps = {STATE: rng.normal(size=(n_steps + 1, 3)), "action": rng.normal(size=(n_steps, 2))}
    return Episode({k: v.astype(np.float32) for k, v in steps.items()}, metadata={"expert": expert})


@pytest.mark.parametrize("inputs", ["next", "action"])
def test_contract(inputs):
    check_reward_model(DensityReward(inputs=inputs))


@pytest.mark.parametrize("inputs", ["next", "action"])
def test_rewards_are_log_densities_of_a_mixture_of_normals(inputs):
    """One at each step of a demonstration. Other episodes do not count."""
    demonstrations, others = [random_episode(i, 5 + i) for i in range(3)], [random_episode(9, 8, expert=False)]
    data = Dataset(demonstrations + others)
    codec = Normalizer("identity", "identity")
    policy = Policy(PolicyConfig(Regression(), MLP(8, 1), codec=codec), data.features()).fit_statistics(data)

    def steps(episode):
        state, action = episode.steps[STATE], episode.steps["action"]
        return state[1:] if inputs == "next" else np.concatenate([state[:-1], action], 1)

    def log_density(points):
        means = np.concatenate([steps(e) for e in demonstrations])
        return logsumexp([multivariate_normal(m, 0.7**2).logpdf(points) for m in means], axis=0) - np.log(len(means))

    model, tenth = (DensityReward(0.7, inputs, scale).build(policy, data) for scale in (1.0, 0.1))
    for episode, scaled in zip(model.annotate(data), tenth.annotate(data), strict=True):
        np.testing.assert_allclose(episode.steps[COLUMN], log_density(steps(episode)), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(scaled.steps[COLUMN], episode.steps[COLUMN] / 10, rtol=1e-4, atol=1e-4)
    if inputs == "action":
        state, action = (torch.from_numpy(others[0].steps[k])[:8, None] for k in (STATE, "action"))
        expected = log_density(steps(others[0]))
        np.testing.assert_allclose(model({STATE: state}, action), expected, rtol=1e-4, atol=1e-4)


def test_a_bandwidth_of_zero_is_refused():
    with pytest.raises(UserError, match="bandwidth"):
        find_method("density-reward", bandwidth=0.0)
