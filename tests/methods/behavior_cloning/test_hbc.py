"""Hierarchical behavior cloning (HBC)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.commands.parts.conditions import goal_columns
from understudy.core import UserError, keys
from understudy.data.episode import Dataset, Episode
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.methods.behavior_cloning.hbc import SUBGOAL, LaterObservation
from understudy.nets.mlp import MLP

STATE = "observation.state"


def test_both_policies_mean_the_same_step():
    """What the upper one predicts at a step is what the lower one reads there, also near the end of an episode."""
    def walk(n):
        return Episode({STATE: 10 * n + np.arange(n + 1, dtype=np.float32)[:, None],
                        "action": np.zeros((n, 1), np.float32)})
    data, method = Dataset([walk(3), walk(9)]), find_method("hbc", subgoal_steps=4)
    subgoals = data.map(LaterObservation(STATE, 4))
    assert subgoals[1].steps[SUBGOAL].ravel().tolist() == [94, 95, 96, 97, 98, 98, 98, 98, 98]
    windows = method.policy.window.windows(data, (STATE, "observation.subgoal"), "action")
    read = windows.gather(np.arange(12), np.random.default_rng(0)).obs["observation.subgoal"]
    np.testing.assert_array_equal(read[:, 0].numpy(), np.concatenate([e.steps[SUBGOAL] for e in subgoals]))


def test_from_where_two_ways_lead_on_each_plan_takes_one():
    """Demonstrations go up or down from 0, by 1 in each step. Their mean action there is 0."""
    rng = np.random.default_rng(0)

    def way(up):
        state = up * np.arange(5, dtype=np.float32)[:, None] + 0.01 * rng.normal(size=(5, 1)).astype(np.float32)
        return Episode({STATE: state, "action": np.full((4, 1), up, np.float32)})
    data = Dataset([way(up) for up in (-1, 1) * 20])

    def small(method):
        stages = tuple(replace(stage, method=small(stage.method)) for stage in method.stages)
        return replace(method, policy=replace(method.policy, trunk=MLP(32, 1)), stages=stages,
                       learner=BehaviorCloning(500, 64, OptimizerConfig(lr=3e-3)))

    def first_actions(name, **options):
        actor = fit_method(small(find_method(name, data.features(), **options)), data, 0).actor
        obs = {STATE: torch.zeros(100, 1)}
        return actor.act(obs, actor.start(obs, keys(0, range(100))))[0].abs()
    assert (first_actions("hbc", subgoal_steps=2, n_action_steps=2) > 0.6).float().mean() > 0.9
    assert first_actions("bc").max() < 0.3


def test_nobody_is_asked_for_the_subgoal_and_it_must_be_numbers():
    data = Dataset([Episode({STATE: np.zeros((9, 2), np.float32), "observation.image": np.zeros((9, 8, 8, 3), np.uint8),
                             "action": np.zeros((9, 1), np.float32)})])
    assert goal_columns(find_method("hbc", data.features())) == {}
    with pytest.raises(UserError, match="observation.image: a subgoal must be numbers, .* the kind 'image'"):
        fit_method(find_method("hbc", data.features(), column="observation.image"), data, 0)
