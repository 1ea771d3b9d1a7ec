"""GAIL: PPO with the rewards of a discriminator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.collections import Stop, contents, fork
from fixtures.reward_models import Stored

from understudy.core import Feature
from understudy.data.episode import Dataset
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.learn.critics.ppo import RETURN
from understudy.learn.fit_method import fit_method
from understudy.learn.run import Run
from understudy.learn.train import train
from understudy.methods import find_method
from understudy.policy import Policy
from understudy.testing import check_method, example_columns

STATE = "observation.state"


@pytest.fixture(scope="module")
def demos() -> Dataset:
    return rollout(fork(4).expert(), fork(4), 4, recording_seed(0))


def small(reward=None):
    method = find_method("gail", n_rounds=2, n_steps=20, n_epochs=2)
    learner = replace(method.learner, batch_size=8)
    reward = replace(learner.reward, hidden=(8,)) if reward is None else reward
    return replace(method, learner=replace(learner, reward=None if reward == "data" else reward))


def test_it_learns_classes():
    check_method("gail", {**example_columns("gail"), "action": Feature("int64", (1,), "discrete", num_classes=(3,))})


def test_rewards_of_the_data_give_the_same_training_bit_by_bit(demos):
    plain, stored = (fit_method(small(reward), demos, 0, env=fork(2)) for reward in ("data", Stored()))
    for name in ("policy", "value"):
        weights = [list(result.modules[name].state_dict().values()) for result in (plain, stored)]
        assert all(map(torch.equal, *weights))


def test_the_discriminator_judges_a_round_before_its_updates(demos):
    """The return of the last step of an episode that terminated is its reward."""
    method = small()
    policy = Policy(method.policy, demos.features()).fit_statistics(demos)
    learner = method.learner.build(policy, 0, 10, demos)
    ended = demos.map(lambda e: e.replace({"next.terminated": np.arange(len(e)) == len(e) - 1}))
    annotated = learner.annotate(ended, 0)
    for episode in annotated:
        batch = policy.windows(Dataset([episode]), extra=("next.terminated",), next_obs=True).gather(
            np.array([len(episode) - 1]))
        with torch.no_grad():
            reward = float(learner.reward.eval().reward(batch, policy))
        assert float(episode.steps[RETURN][-1]) == pytest.approx(reward, rel=1e-4)
        assert reward != float(episode.steps["next.reward"][-1])


def test_the_discriminator_is_trained_at_every_fourth_update_of_the_policy(demos):
    method = small()
    policy = Policy(method.policy, demos.features()).fit_statistics(demos)
    learner = method.learner.build(policy, 0, 10, demos)
    sampler = learner.batch_sampler(learner.annotate(demos, 0))
    changed = []
    for step in range(9):
        before = [p.clone() for p in learner.reward.parameters()]
        learner.update(sampler.batch(8, step))
        changed.append(not all(map(torch.equal, before, learner.reward.parameters())))
    assert changed == [False, False, False, True] * 2 + [False]


@pytest.mark.slow
def test_stopped_within_and_between_rounds_it_continues_bit_by_bit(demos, tmp_path):
    options = {"device": "cpu", "val_fraction": 0, "progress": False}
    train(small(), demos, tmp_path / "whole", env=fork(), **options)
    first = max(line["step"] for line in Run(tmp_path / "whole").read_metrics() if "round" in line)
    for at in (first - 1, first, first + 2):
        with pytest.raises(KeyboardInterrupt):
            train(small(), demos, tmp_path / "run", env=fork(), callbacks=[Stop(at)], **options)
    train(small(), demos, tmp_path / "run", env=fork(), **options)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
