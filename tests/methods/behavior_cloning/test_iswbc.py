"""Cloning weighted by a discriminator: the weights are ratios of densities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from understudy.core import ConfigError, Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import EXPERT
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.learn.fit import fit
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.rewards.discriminator_reward import DiscriminatorReward
from understudy.methods.behavior_cloning.iswbc import ISWBC
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

STATE = "observation.state"
OPTIMIZER = OptimizerConfig(lr=1e-2, weight_decay=0.0, lr_schedule="cosine", grad_clip_norm=None)


def test_it_keeps_the_contract_of_learners():
    policy = PolicyConfig(Gaussian(), MLP(16, 1, dropout=0.2), inputs=(STATE,))
    check_learner(ISWBC(batch_size=8, reward=DiscriminatorReward(hidden=(8,))), (policy,))


@pytest.mark.parametrize("reward", [{"form": "gail"}, {"inputs": "next"}, {"absorbing": True}], ids=str)
def test_discriminators_whose_reward_is_no_logit_of_the_step_are_refused(reward):
    with pytest.raises(ConfigError, match="the logit of the step alone"):
        ISWBC(reward=DiscriminatorReward(**reward))


def steps(counts: dict[tuple[int, float], int], is_expert: bool) -> list[Episode]:
    """One episode of a step for each count of a state and an action."""
    features = {STATE: Feature("float32", (2,)), "action": Feature("float32", (1,))}
    return [Episode({STATE: np.eye(2, dtype=np.float32)[[state]], "action": np.array([[action]], np.float32)},
                    {EXPERT: is_expert}, schema=features)
            for (state, action), count in counts.items() for _ in range(count)]


def test_weights_are_ratios_of_densities_and_the_policy_is_that_of_the_demonstrations():
    expert, others = {(0, 1.0): 3, (0, -1.0): 1, (1, 1.0): 4}, {(0, 1.0): 2, (0, -1.0): 2, (1, 1.0): 1, (1, -1.0): 3}
    data = Dataset([*steps(expert, True), *steps(others, False)])
    torch.manual_seed(0)
    policy = Policy(PolicyConfig(Gaussian(), MLP(16, 1, dropout=0.0), ConcatEncoder()), data.features())
    policy.fit_statistics(data)
    config = ISWBC(batch_size=8, optimizer=OPTIMIZER, reward=DiscriminatorReward(
        hidden=(32,), penalty=0.0, optimizer=OPTIMIZER))
    learner = config.build(policy, 0, 600, data)
    sampler, rows = learner.batch_sampler(data), np.arange(8)
    whole = sampler.sampler.gather(rows).replace(others={"expert": sampler.others["expert"].gather(rows)})
    fit(learner, lambda n: whole, 600)
    with torch.no_grad():
        weights = 2 * learner.nets.reward.logit(whole).sigmoid()
        plans = policy.plan(whole.obs, torch.zeros(len(whole), *policy.noise_shape))[:, 0, 0]
    for obs, action, weight, plan in zip(whole.obs[STATE][:, 0], whole.action.flatten(), weights, plans, strict=True):
        pair = int(obs.argmax()), float(action)
        n_expert, n_others = expert.get(pair, 0), others[pair]
        assert abs(float(weight) - 2 * n_expert / (n_expert + n_others)) < 0.05
        assert abs(float(plan) - (0.5, 1.0)[pair[0]]) < 0.05
