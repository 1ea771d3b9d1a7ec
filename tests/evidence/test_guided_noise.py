"""Row 295: what the arms explore with."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evidence.families.reinforcement.guided_noise import (
    DURING,
    GOAL,
    GUIDED,
    LIMIT,
    STEPS,
    TABLE,
    Permuted,
    SameSize,
    UnsteadyWalks,
    practised,
)
from understudy.envs import make
from understudy.improve.data_guided_exploration import DataGuidedExploration
from understudy.policy import Policy

ARMS = TABLE.arms
ABLATION = TABLE.arms["permuted"]


@pytest.fixture(scope="module")
def training():
    data = UnsteadyWalks(4).load(0)
    policy = Policy(ARMS["RLPD"].method.policy, data.features()).fit_statistics(data).eval()
    return SimpleNamespace(data=data, seed=0, n_updates=0, learner=SimpleNamespace(trained_policy=policy))


def test_arms_differ_in_the_exploration_alone():
    for arm in ("DGN", "isotropic"):
        assert replace(ARMS[arm], exploration=ARMS["RLPD"].exploration) == ARMS["RLPD"]
    assert (ARMS["isotropic"].exploration, ABLATION.exploration) == (SameSize(GUIDED), Permuted(GUIDED))


def test_isotropic_noise_has_the_mean_size_of_the_guided_noise(training):
    env, policy = make("four_rooms", 4, goal=GOAL, limit=LIMIT), training.learner.trained_policy
    std = SameSize(GUIDED).build(None, env, training).std
    noise, state = GUIDED.noise_policy(training), np.concatenate([e.steps["observation.state"][:len(e)]
                                                                  for e in training.data])
    obs = {"observation.state": torch.from_numpy(np.tile(state, (200, 1)))[:, None]}
    draws = noise.plan(obs, torch.randn(len(obs["observation.state"]), 1, 2,
                                        generator=torch.Generator().manual_seed(0)))
    assert std == pytest.approx((draws * policy.action_scale).square().mean().sqrt().item(), rel=0.03)


def test_the_control_permutes_the_actions_that_the_noise_is_learned_from(training, monkeypatch):
    monkeypatch.setattr(DataGuidedExploration, "build", lambda self, actor, env, training: training.data)
    permuted, before = Permuted(GUIDED).build(None, None, training), training.data
    columns = [[np.concatenate([e.steps[k][:len(e)] for e in data]) for k in ("observation.state", "action")]
               for data in (before, permuted)]
    assert np.array_equal(columns[0][0], columns[1][0]) and not np.array_equal(columns[0][1], columns[1][1])
    assert np.array_equal(*(np.sort(action, 0) for _, action in columns))


def test_steps_are_counted_until_half_of_the_goals_are_reached(monkeypatch):
    small, successes = replace(ARMS["RLPD"], n_rounds=2, n_steps=30), iter([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    monkeypatch.setattr("evidence.families.reinforcement.guided_noise.rollout_policy", lambda *args: None)
    monkeypatch.setattr("evidence.families.reinforcement.guided_noise.flags", lambda _: {"success": next(successes)})
    values = practised(TABLE, small, UnsteadyWalks(2).load(0), 0, 2, 7)
    assert values["success"] == [1.0, 1.0] and values[DURING] == pytest.approx([2 / 3, 1 / 3])
    assert 0 < values[STEPS][0] <= LIMIT  # those of the first round
