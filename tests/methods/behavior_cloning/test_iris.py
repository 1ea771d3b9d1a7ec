"""IRIS: subgoals by their values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.core import keys
from understudy.data.episode import Dataset, Episode
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.nets.mlp import MLP

STATE = "observation.state"


@pytest.mark.slow
@pytest.mark.parametrize("best", [-1, 1])
def test_of_two_demonstrated_ways_it_takes_the_one_with_rewards(best):
    """Demonstrations go up or down from 0, by 1 in each step, and one of the ends has a reward."""
    rng = np.random.default_rng(0)

    def way(up):
        state = up * np.arange(5, dtype=np.float32)[:, None] + 0.01 * rng.normal(size=(5, 1)).astype(np.float32)
        last = np.arange(4) == 3
        return Episode({STATE: state, "action": np.full((4, 1), up, np.float32), "next.terminated": last,
                        "next.reward": (last & (up == best)).astype(np.float32)})
    data = Dataset([way(up) for up in (-1, 1) * 20])

    def small(method):
        learner = replace(method.learner, steps=250, batch_size=64, optimizer=OptimizerConfig(lr=3e-3))
        if not isinstance(learner, BehaviorCloning):
            learner = replace(learner, critic=replace(learner.critic, hidden=(32,)))
        stages = tuple(replace(stage, method=small(stage.method)) for stage in method.stages)
        return replace(method, policy=replace(method.policy, trunk=MLP(32, 1)), learner=learner, stages=stages)
    method = find_method("iris", data.features(), subgoal_steps=2, n_action_steps=2)
    actor = fit_method(small(method), data, 0).actor
    obs = {STATE: torch.zeros(100, 1)}
    actions = best * actor.act(obs, actor.start(obs, keys(0, range(100))))[0]
    assert (actions > 0.6).float().mean() > 0.95
