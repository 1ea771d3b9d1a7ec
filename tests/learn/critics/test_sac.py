"""Soft actor-critic: its targets, its optimum, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.learning import call_step

from understudy.core import ConfigError, Feature, Unsupported
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.learn.critic import CriticConfig
from understudy.learn.critics import sac
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

STATE = "observation.state"
CONSTANT = OptimizerConfig(lr=3e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)
SAC = sac.SAC(600, 64, CONSTANT, CriticConfig((32, 32)), temperature=0.5, target_entropy=None)


def policy_config(head=None, **window) -> PolicyConfig:
    return PolicyConfig(head or SquashedGaussian(), MLP(16, 1), window=Window(**window), inputs=(STATE,))


@pytest.mark.parametrize("learner", [
    SAC, replace(SAC, target_entropy=-1.0, bc_weight=0.5), replace(SAC, n_step=4),
    replace(SAC, target_entropy=-0.5, critic=CriticConfig((8,), n_critics=4, target_subset_size=2, layer_norm=True)),
], ids=["fixed", "adjusted", "n-step", "redq"])
def test_it_keeps_the_contract_of_learners(learner):
    heads = (SquashedGaussian(), SquashedGaussian("free"))
    check_learner(replace(learner, batch_size=8), [policy_config(head, n_obs_steps=2, horizon=3) for head in heads])


def chain(terminated: bool) -> Episode:
    ends = np.zeros(5, bool)
    ends[-1] = terminated
    return Episode({STATE: np.arange(6, dtype=np.float32)[:, None], "next.terminated": ends,
                    "action": np.linspace(-1, 1, 5, dtype=np.float32)[:, None],
                    "next.reward": np.array([1, 2, 3, 4, 5], np.float32)})


class Ten(torch.nn.Module):
    """A critic that says 10 everywhere."""

    def target_score(self, obs, plan, rng):
        return torch.full((len(plan),), 10.0)


def targets(**fields) -> tuple[list[float], list[float]]:
    """Targets, and the log-densities of the next actions, of an episode that ends and of one that is cut off."""
    data = Dataset([chain(True), chain(False)])
    policy = Policy(policy_config(horizon=1), data.features()).fit_statistics(data)
    learner = replace(SAC, discount=0.5, **fields).build(policy, 0, 10, data)
    learner.nets.target.critic = Ten()
    batch = learner.batch_sampler(data).gather(np.arange(10))
    target = call_step(learner, "target_value", batch, torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_prob = policy.sample_log_prob(policy.context(batch.next), torch.Generator().manual_seed(0))[1]
    return target.tolist(), log_prob.sum(1).tolist()


def test_targets_have_the_entropy_of_the_next_action():
    target, log_prob = targets()
    value = [10 - 0.5 * x for x in log_prob]
    steps = [r + 0.5 * v for r, v in zip([1, 2, 3, 4], value, strict=False)]
    cut = [r + 0.5 * v for r, v in zip([1, 2, 3, 4, 5], value[5:], strict=True)]
    assert target == pytest.approx([*steps, 5, *cut], rel=1e-5)


def test_targets_of_several_steps():
    target, _ = targets(temperature=1e-9, n_step=3)
    whole = [1 + 0.5 * 2 + 0.25 * 3 + 0.125 * 10, 2 + 0.5 * 3 + 0.25 * 4 + 0.125 * 10]
    ended, cut = 3 + 0.5 * 4 + 0.25 * 5, 3 + 0.5 * 4 + 0.25 * 5 + 0.125 * 10
    assert target == pytest.approx([*whole, ended, 4 + 0.5 * 5, 5, *whole, cut, 4 + 0.5 * 5 + 0.25 * 10, 5 + 0.5 * 10])


def test_with_a_subset_the_policy_maximizes_the_mean_of_all_critics():
    data = Dataset([chain(True)])
    policy = Policy(policy_config(horizon=1), data.features()).fit_statistics(data)
    critic = CriticConfig((8,), n_critics=3)
    for config, pooled in ((critic, torch.amin), (replace(critic, target_subset_size=2), torch.mean)):
        learner = replace(SAC, critic=config).build(policy, 0, 10, data)
        batch = learner.batch_sampler(data).gather(np.arange(5))
        loss = call_step(learner, "policy_loss", batch, torch.Generator().manual_seed(0))
        coded, log_prob = policy.sample_log_prob(policy.context(batch.obs), torch.Generator().manual_seed(0))
        scores = learner.nets.critic.scores(batch.obs, policy.decode(coded, batch.obs))
        torch.testing.assert_close(loss, 0.5 * log_prob.sum(1) - pooled(scores, 0))


def bandit(n: int = 2000, best: float = 0.2) -> Dataset:
    """One step: a random action, whose reward is minus its squared distance to the best one."""
    actions = np.random.default_rng(0).uniform(-1, 1, (n, 1, 1)).astype(np.float32)
    actions[:2] = [[[-1.0]], [[1.0]]]
    return Dataset([Episode({STATE: np.zeros((2, 1), np.float32), "action": a, "next.terminated": np.ones(1, bool),
                             "next.reward": -np.square(a[0] - best)}) for a in actions])


def entropy_and_spread(result) -> tuple[float, float, float]:
    policy, obs = result.policy, {STATE: torch.zeros(4000, 1, 1)}
    with torch.no_grad():
        coded, log_prob = policy.sample_log_prob(policy.context(obs), torch.Generator().manual_seed(1))
    return -float(log_prob.mean()), float(coded.mean()), float(coded.std())


@pytest.mark.slow
def test_the_optimum_of_a_bandit_is_a_known_distribution():
    """With the reward -(a - m)^2, the best policy at temperature t is the normal distribution N(m, t / 2).

    Its squashed form is near it, where it is narrow. With a target entropy, the temperature is that of this entropy.
    """
    data, config = bandit(), PolicyConfig(SquashedGaussian(), FeedForward((32, 32)), ConcatEncoder())
    fixed = fit_method(Method(config, learner=replace(SAC, steps=1500, temperature=0.04)), data, 0)
    entropy, mean, std = entropy_and_spread(fixed)
    exact = math.sqrt(0.04 / 2)
    assert mean == pytest.approx(0.2, abs=0.03) and std == pytest.approx(exact, rel=0.15)
    assert entropy == pytest.approx(0.5 * math.log(2 * math.pi * math.e * exact**2), abs=0.15)
    adjusted = replace(SAC, steps=2500, temperature=0.5, target_entropy=-0.3)
    seen_temperatures = []
    result = fit_method(Method(config, learner=adjusted), data, 0,
                        callbacks=[lambda n, learner, metrics: seen_temperatures.append(metrics["temperature"])])
    entropy, mean, std = entropy_and_spread(result)
    assert entropy == pytest.approx(-0.3, abs=0.1) and mean == pytest.approx(0.2, abs=0.05)
    variance = math.exp(2 * -0.3) / (2 * math.pi * math.e)
    assert np.mean(seen_temperatures[-500:]) == pytest.approx(2 * variance, rel=0.25)


def test_what_it_cannot_learn_is_refused():
    numbers = {STATE: Feature("float32", (1,)), "action": Feature("float32", (1,))}
    data = Dataset([chain(True)])
    with pytest.raises(Unsupported, match=r"Regression has no density\n.*SquashedGaussian"):
        SAC.build(Policy(policy_config(Regression()), numbers), 0, 1, data)
    with pytest.raises(Unsupported, match=r"rewards of 2 steps, but a plan has 3\n.*use at least as many, or 0"):
        replace(SAC, n_step=2).build(Policy(policy_config(horizon=3), numbers), 0, 1, data)
    classes = {STATE: Feature("float32", (1,)), "action": Feature("int64", (1,), "discrete", num_classes=(3,))}
    with pytest.raises(Unsupported, match="squashed into a range"):
        Policy(policy_config(), classes)
    with pytest.raises(ConfigError, match="temperature is 0.0, but must be above 0"):
        replace(SAC, temperature=0.0)
