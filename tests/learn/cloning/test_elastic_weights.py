"""Elastic weight consolidation: the Fisher information and the solution of a linear regression in closed form."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy import config
from understudy.core import ConfigError, UserError
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.cloning.elastic_weights import EWC, fisher_information, save_anchor
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.ema import ConstantDecay
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig

STATE = "observation.state"
PLAIN = PolicyConfig(Regression(), FeedForward(()), ConcatEncoder(), Normalizer("identity", "identity"),
                     Window(1, 1))  # action = weight @ state + bias


def demonstrations(n, seed=0):
    rng = np.random.default_rng(seed)
    return Dataset([Episode({STATE: rng.normal(size=(n + 1, 2)).astype(np.float32),
                             "action": rng.normal(size=(n, 1)).astype(np.float32)})])


def linear_policy(data, weight, bias):
    policy = Policy(PLAIN, data.features()).fit_statistics(data)
    for p, value in zip(policy.parameters(), (weight, bias), strict=True):
        p.data = torch.tensor(value)
    return policy


def test_fisher_information_of_a_linear_regression():
    """The gradient of (w x + b - a)^2 is 2 (w x + b - a) (x, 1)."""
    data = demonstrations(6)
    policy = linear_policy(data, [[0.5, -1.0]], [0.25])
    drawn = [policy.training_windows(data).batch(1, n, 3) for n in range(20)]
    x = torch.cat([torch.cat([b.obs[STATE][:, 0], torch.ones(1, 1)], 1) for b in drawn])
    residual = x @ torch.tensor([0.5, -1.0, 0.25]) - torch.cat([b.action for b in drawn]).flatten()
    expected = (4 * residual.square()[:, None] * x.square()).mean(0)
    weight, bias = fisher_information(policy, data, 20, seed=3).values()
    torch.testing.assert_close(torch.cat([weight[0], bias]), expected)


def test_training_ends_where_the_losses_of_both_tasks_balance(tmp_path):
    """One step x, a: (2 x x' + F) w = 2 a x + F w_old, for the weight 1 of the penalty."""
    old, data = demonstrations(6), demonstrations(1, seed=1)
    policy = linear_policy(old, [[0.5, -1.0]], [0.25])
    save_anchor(policy, old, tmp_path / "old.safetensors", 50)
    fisher = torch.cat([f.flatten() for f in fisher_information(policy, old, 50).values()])
    x = torch.tensor([*data[0].steps[STATE][0], 1.0])
    learner = BehaviorCloning(3000, 4, OptimizerConfig(1e-2, weight_decay=0.0), ConstantDecay(0.0),
                              auxiliary_losses=(EWC((str(tmp_path / "old.safetensors"),)),))
    result = fit_method(Method(PLAIN, learner=learner), data, 0, policy=policy)
    w = torch.cat([p.detach().flatten() for p in result.policy.parameters()])
    w_old = torch.tensor([0.5, -1.0, 0.25])
    expected = torch.linalg.solve(2 * torch.outer(x, x) + fisher.diag(),
                                  2 * data[0].steps["action"].item() * x + fisher * w_old)
    torch.testing.assert_close(w, expected, rtol=0, atol=1e-3)
    assert (w - w_old).abs().max() > 0.05


def test_it_is_configuration_and_refuses_another_network(tmp_path):
    data, path = demonstrations(4), str(tmp_path / "old.safetensors")
    save_anchor(linear_policy(data, [[0.5, -1.0]], [0.25]), data, path, 2)
    learner = BehaviorCloning(2, 4, auxiliary_losses=(EWC((path, path), 3.0),))
    assert config.load(json.loads(json.dumps(config.dump(learner)))) == learner
    with pytest.raises(ConfigError, match="another network"):
        fit_method(Method(replace(PLAIN, trunk=FeedForward((4,))), learner=learner), data, 0)
    learner = replace(learner, auxiliary_losses=(EWC((str(tmp_path / "none.safetensors"),)),))
    with pytest.raises(UserError, match="none.safetensors.*no such file"):
        fit_method(replace(Method(PLAIN), learner=learner), data, 0)
    with pytest.raises(ConfigError, match="EWC.anchors: there is no earlier task"):
        fit_method(Method(PLAIN, learner=BehaviorCloning(2, 4, auxiliary_losses=(EWC(()),))), data, 0)
