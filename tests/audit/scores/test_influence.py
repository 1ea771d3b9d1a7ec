"""Influence of episodes on the outcome."""

import numpy as np
import pytest
import torch
from fixtures.scored import data, episode
from torch import Generator
from torch.func import functional_call

from understudy.audit.base import Score
from understudy.audit.scores import (
    Brevity,
    Datamodel,
    FilterLikeYouTest,
    Influence,
    ValidationWeights,
    soft_capped_counts,
)
from understudy.audit.scores.network_scores import NetworkEnsemble
from understudy.audit.scores.step_table import StepTable
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig


def test_a_datamodel_finds_what_each_episode_is_worth():
    truth = np.arange(6.0) - 2
    d = Dataset([Episode({"action": np.full((3, 1), v)}) for v in truth])
    values = Datamodel(lambda part: sum(float(e.steps["action"][0, 0]) for e in part), n_subsets=100, ridge=1e-6)(d)
    assert np.diff(values) == pytest.approx(np.ones(5), abs=1e-4), "up to a constant, since halves are equally large"


def test_influence_follows_the_outcome_of_rollouts():
    """A linear policy of a constant state: an episode's gradient is to its action, and those that lead to what went
    well come first."""
    torch.manual_seed(0)
    def constant(action, **meta):
        return episode(np.ones((6, 2)), np.full(5, action), metadata=meta)
    d = data([constant(a) for a in (-1.0, 0.0, 1.0)])
    recipe = PolicyConfig(Regression(), trunk=MLP(16, 1), encoder=ConcatEncoder(), window=Window())
    policy = Policy(recipe, d.features()).fit_statistics(d)
    episodes = data(constant(0.9, success=True), constant(-0.9, success=False))
    assert (np.diff(Influence(policy, episodes)(d)) > 0).all()
    flipped = data(constant(0.9, success=False), constant(-0.9, success=True))
    assert Influence(policy, flipped)(d) == pytest.approx(-Influence(policy, episodes)(d))
    with pytest.raises(UserError, match="the same outcome"):
        Influence(policy, episodes[:1])(d)


def test_weights_that_are_tested_leave_out_the_corrupted():
    rng = np.random.default_rng(0)
    def some(corrupted):
        x = rng.uniform(-1, 1, (30, 1))
        return episode(x, (-x if corrupted else x) + 0.05 * rng.standard_normal(x.shape))
    d, test = data([some(i % 2 == 1) for i in range(10)]), data([some(False) for _ in range(3)])
    weights = ValidationWeights(test, n_updates=80)(d)
    assert weights[::2].min() > weights[1::2].max()
    mixed = ValidationWeights(
        test, base_scores=(Brevity(), Scored(tuple(i % 2 == 0 for i in range(10)))), n_updates=80
    )(d)
    assert mixed[::2].min() > mixed[1::2].max()


def lines(seed, n_episodes):
    """Episodes that go towards 0, and every second one away from it."""
    rng = np.random.default_rng(seed)
    episodes = []
    for i in range(n_episodes):
        x = rng.uniform(-1, 1, (30, 1))
        episodes.append(episode(x, (x if i % 2 else -x) + 0.05 * rng.standard_normal(x.shape)))
    return data(episodes)


def test_a_scoring_network_learns_from_one_pool_what_to_keep_of_another():
    pool, new, downstream = lines(0, 20), lines(1, 10), lines(2, 6)[::2]
    weights = FilterLikeYouTest(downstream, pool=pool, n_updates=150, scorer_lr=3e-3)(new)
    assert weights[::2].min() > weights[1::2].max()
    other_weights = FilterLikeYouTest(lines(2, 6)[1::2], pool=pool, n_updates=150, scorer_lr=3e-3)(new)
    assert other_weights[1::2].min() > other_weights[::2].max(), "the downstream data decide"


def test_the_scoring_network_follows_the_exact_derivative_of_the_downstream_loss():
    """After one update, as if the loss had been differentiated through the update of the reference model."""
    pool = StepTable.from_data(lines(0, 4))
    test = StepTable.from_data(lines(2, 4)[::2], like=pool)
    trained_scorer = FilterLikeYouTest(lines(2, 1), n_updates=1, batch_size=16, seed=5)._train(pool, test)

    x, y, tx, ty = map(torch.as_tensor, (pool.state, pool.action, test.state, test.action))
    rng, reference, scorer = Generator().manual_seed(5), NetworkEnsemble(1, 1, seed=5), NetworkEnsemble(2, 1, seed=6)
    at, some = torch.randint(len(x), (16,), generator=rng), torch.randint(len(tx), (16,), generator=rng)
    optim = torch.optim.Adam(scorer.parameters(), 1e-3)
    share = torch.softmax(scorer(torch.cat([x, y], 1)[at])[0, :, 0], 0)
    theta = dict(reference.named_parameters())

    def losses(weights, x, y):
        return (functional_call(reference, weights, (x,))[0] - y).square().mean(1)
    slope = torch.autograd.grad((share * losses(theta, x[at], y[at])).sum(), list(theta.values()), create_graph=True)
    after = {k: v - 0.5 * g for (k, v), g in zip(theta.items(), slope, strict=True)}
    losses(after, tx[some], ty[some]).mean().backward()
    optim.step()
    for a, b in zip(trained_scorer.parameters(), scorer.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


class Scored(Score):
    def __init__(self, values):
        self.values = values

    def __call__(self, data):
        return np.array(self.values, float)


def test_soft_cap_takes_the_good_more_often_but_not_for_ever():
    logits = np.array([3.0, 3.0, 0.0, -20.0])
    free, capped = soft_capped_counts(logits, 200, penalty=0.0), soft_capped_counts(logits, 200, penalty=0.2)
    assert free.sum() == capped.sum() == 200 and free[3] == capped[3] == 0
    assert capped[2] > 2 * free[2] and abs(int(capped[0]) - int(capped[1])) < 25
    # In the end each logit has fallen to the same: the good are ahead by 3 / 0.2 draws.
    assert capped[:2].mean() - capped[2] == pytest.approx(15, abs=8)
    assert (soft_capped_counts(logits, 50, seed=3) == soft_capped_counts(logits, 50, seed=3)).all()
