"""The tournament of two policies over blocks, and what wrong actions do to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from understudy.core import Feature, Unsupported, UserError
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.heads.tokens.behavior_transformer import BeT
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.behavior_cloning.robust_bc import RobustBC, median_block
from understudy.nets.ema import ConstantDecay
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig
from understudy.testing import check_learner, random_batch


def corrupted(share: float) -> Dataset:
    """Actions around 1, and a fraction of them 50, whatever is observed."""
    rng, episodes = np.random.default_rng(0), []
    for number in range(20):
        action = 1 + 0.1 * rng.standard_normal((40, 1))
        action[rng.random(40) < share] = 50
        steps = {"observation.state": rng.standard_normal((40, 2)).astype(np.float32),
                 "action": action.astype(np.float32)}
        episodes.append(Episode(steps, {"number": number}))
    return Dataset(episodes, {"observation.state": Feature("float32", (2,)), "action": Feature("float32", (1,))})


def planned(learner, data) -> float:
    codec = Normalizer(target="identity")
    policy = PolicyConfig(Regression(), MLP(16, 1), codec=codec, window=Window(1, 1))
    trained = fit_method(Method(policy, learner=learner), data, 0).policy
    batch = trained.windows(data).gather(np.arange(200))
    return float(trained.plan(batch.obs, torch.zeros(200, 1, 0)).mean())


def test_the_median_is_that_of_the_differences():
    assert median_block(torch.tensor([5.0, -1.0, 2.0])) == 2
    assert median_block(torch.tensor([5.0, -1.0, 2.0, 3.0])) == 2
    # With numbers for policies, the difference in a block is linear in the mean of the block, so that its median is
    # in the block whose mean is the median of the means: (p - m)^2 - (q - m)^2 = (p - q) (p + q - 2 m).
    rng = torch.Generator().manual_seed(0)
    for _ in range(50):
        blocks, (p, q) = torch.randn(9, 4, generator=rng), torch.randn(2, generator=rng)
        difference = ((blocks - p).square() - (blocks - q).square()).mean(1)
        means = blocks.mean(1)
        assert means[median_block(difference)] == means.median()


@pytest.mark.slow
def test_wrong_actions_do_not_move_it():
    """With 10 % of wrong actions a block of 4 is clean in 66 % of cases, and the mean action is 5.9."""
    optimizer = OptimizerConfig(lr=3e-3, warmup_steps=10)
    data, robust = corrupted(0.1), RobustBC(32, 1500, optimizer=optimizer, ema=ConstantDecay(0.99))
    assert planned(robust, data) == pytest.approx(1, abs=0.1)
    assert planned(BehaviorCloning(1500, optimizer=optimizer, ema=ConstantDecay(0.99)), data) > 4
    worse = corrupted(0.6)  # more than half of the blocks are wrong, whatever their size
    assert planned(robust, worse) > 10


def test_it_keeps_the_contract_of_learners():
    window = Window(2, 3)
    check_learner(RobustBC(4, batch_size=8), (
        PolicyConfig(Regression(), MLP(16, 1, dropout=0.2), window=window, inputs=("observation.state",)),
        PolicyConfig(Flow(n_steps=2), MLP(16, 1), window=window, inputs=("observation.state",))))


def test_what_it_cannot_train_is_refused():
    with pytest.raises(UserError, match="129 blocks for 128 windows"):
        RobustBC(129)
    policy, _ = random_batch(PolicyConfig(BeT(4), MLP(16)))
    with pytest.raises(Unsupported, match="BeT is more than a network"):
        RobustBC().build(policy, 0, 10, None)
