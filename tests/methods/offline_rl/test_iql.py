"""Implicit Q-learning: losses of a peer, exact tabular values, and mixed data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.d3rlpy import HIDDEN, LOSSES, STATE, TanhNet, fill, fill_critic, make_batch, make_policy
from fixtures.learning import call_step
from fixtures.tables import few_actions

from understudy.core import ConfigError, Feature, Unsupported
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.learn.critic import CriticConfig
from understudy.learn.fit import fit
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.methods.offline_rl.iql import IQL
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

RNG = torch.Generator().manual_seed(0)
CONSTANT = OptimizerConfig(lr=3e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)


def test_it_keeps_the_contract_of_learners():
    check_learner(IQL(batch_size=8, critic=CriticConfig((8,))))


def test_losses_equal_those_of_d3rlpy():
    expected, batch = LOSSES["iql"], make_batch()
    learner = IQL(critic=CriticConfig(HIDDEN)).build(make_policy(Gaussian(min_std=0.0)), 0, 1, Dataset([]))
    learner.policy.net = TanhNet(101, expected["std"])  # phase 100 is the standard deviation of the peer
    fill_critic(learner.nets.critic, 200)
    fill_critic(learner.nets.target.critic, 300)
    fill(learner.nets.value.layers.parameters(), 400)
    batch = call_step(learner, "scored", batch, RNG)
    assert call_step(learner, "value_loss", batch, RNG).mean().item() == pytest.approx(expected["value"], abs=1e-5)
    assert call_step(learner, "critic_loss", batch, RNG).mean().item() == pytest.approx(expected["critic"], abs=1e-5)
    weights = call_step(learner, "weight", batch, RNG)
    assert weights.tolist() == pytest.approx(expected["weights"], rel=1e-5, abs=1e-5)
    learner.minimize("policy", learner.policy.loss, batch, weights, normalize="rows")
    assert learner.end_update()["loss"] == pytest.approx(expected["policy"], rel=1e-5)


@pytest.mark.parametrize("offset", [-1, 1])
@pytest.mark.parametrize("name", ["iql", "xql", "f-dvl", "recoil", "history-iql", "awac", "crr", "fql", "iq-learn"])
def test_plans_that_begin_at_another_step_are_refused(name, offset):
    """Their rewards would be counted from another step than that of the observation."""
    method, features = find_method(name), dict.fromkeys((STATE, "action"), Feature("float32", (2,)))
    policy = Policy(replace(method.policy, window=Window(1, 1, action_offset=offset)), features)
    with pytest.raises(Unsupported, match="action_offset=0"):
        method.learner.build(policy, 0, 1, Dataset([]))


@pytest.mark.parametrize("name", [
    "iql", "history-iql", "fql", "bcq", "plas", "bear", "iq-learn", "gcivl", "discrete-sac"])
def test_a_subset_of_networks_is_refused_where_targets_read_all(name):
    numbers, classes = Feature("float32", (2,)), Feature("int64", (1,), "discrete", num_classes=(3,))
    features = {STATE: numbers, "action": classes if name == "discrete-sac" else numbers}
    method = find_method(name, features=features)
    learner = replace(method.learner, critic=replace(method.learner.critic, target_subset_size=1))
    with pytest.raises(ConfigError, match=r"targets are those of all networks(.|\n)*sac, td3 or awac"):
        learner.build(Policy(method.policy, features), 0, 1, Dataset([]))


@pytest.mark.slow
@pytest.mark.parametrize(("expectile", "exact"), [(0.5, 0.5), (0.995, 1.0)])
def test_values_are_exact_in_a_table(expectile, exact):
    """The episodes are cut off after one step or terminate."""
    data, values = few_actions()
    torch.manual_seed(0)
    policy = Policy(PolicyConfig(Categorical(), MLP(16, 0), ConcatEncoder()), data.features())
    policy.fit_statistics(data)
    config = IQL(expectile=expectile, discount=0.8, critic=CriticConfig((64,), n_critics=1), optimizer=CONSTANT,
                 target_decay=0.9, beta=1e6)
    learner = config.build(policy, 0, 2500, data)
    batch = learner.batch_sampler(data).gather(np.arange(data.steps))
    fit(learner, lambda n: batch, 2500)
    with torch.no_grad():
        value = learner.nets.value(batch.obs).numpy()
        plans = policy.plan(batch.obs, torch.zeros(len(batch), *policy.noise_shape))[:, 0, 0].numpy()
    rows = batch.obs[STATE][:, 0].argmax(-1).numpy()
    assert np.abs(value - values[exact][rows]).max() < 0.05 * np.ptp(values[exact])
    if exact == 1:  # and the policy takes the actions that have these values
        scored = call_step(learner, "scored", batch, RNG)
        best = config.advantage(learner.nets, scored).detach().numpy() > -0.05
        assert ((batch.action[:, 0, 0].numpy() == plans) == best).mean() > 0.95
