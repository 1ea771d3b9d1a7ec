"""Weights of samples."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.learning import clone, policy

from understudy import config
from understudy.checkpoint import FromStage
from understudy.core import Unsupported, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.denoising.flow import Flow
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig
from understudy.learn.fit import fit
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.sample_weights import (
    AdvantageWeights,
    ClassBalancedWeights,
    ColumnWeights,
    CriticAdvantage,
    CurriculumWeights,
    PastTargetWeights,
    StoredWeights,
    TrimmedWeights,
    UniformWeights,
)
from understudy.methods.offline_rl.iql import IQL
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig


def test_weights(data):
    fresh_policy = policy(data)
    batch = fresh_policy.windows(data, extra=("intervention",)).batch(8, 0)
    assert torch.equal(UniformWeights()(batch, fresh_policy), torch.ones(8))
    column = ColumnWeights("intervention", 4.0, 0.25)
    assert torch.equal(column(batch, fresh_policy), torch.where(batch.extra["intervention"] == 1, 4.0, 0.25))
    assert BehaviorCloning(sample_weights=column).extra == ("intervention",) and BehaviorCloning().extra == ()
    with pytest.raises(UserError, match="the batch has no column 'takeover' in extra; it has intervention, index"):
        ColumnWeights("takeover")(batch, fresh_policy)
    advantage = torch.linspace(-1, 3, 8)
    advantage_weights = AdvantageWeights(lambda b: advantage, beta=2.0, max_weight=10.0)(batch, fresh_policy)
    assert advantage_weights.tolist() == pytest.approx([min(math.exp(2 * a), 10.0) for a in advantage.tolist()],
                                                       rel=1e-5)


def test_advantages_of_the_critics_of_a_stage(data):
    """A stage trains both. Cloning is then weighted by the formula, with the networks as they are."""
    rewarded = data.map(lambda e: replace(e, steps={**e.steps, "next.reward": np.linspace(0, 1, len(e), dtype="f"),
                                                    "next.terminated": np.zeros(len(e), bool)}))
    stage = Stage("values", Method(policy(data).config, learner=IQL(2, 8, critic=CriticConfig((8,)))))
    advantage = CriticAdvantage(FromStage("values", "critic"), FromStage("values", "value"))
    learner = BehaviorCloning(2, 8, sample_weights=AdvantageWeights(advantage, beta=2.0))
    method = Method(policy(data).config, learner=learner, stages=(stage,))
    assert config.load(json.loads(json.dumps(config.dump(method)))) == method
    critics = fit_method(stage.method, rewarded, 0)
    result = fit_method(method, rewarded, 0, stages={"values": critics})
    batch = policy(data).windows(data).batch(8, 0)
    weights = result.method.learner.sample_weights(batch, result.policy)
    score, value = critics.modules["critic"](batch.obs, batch.action), critics.modules["value"](batch.obs)
    torch.testing.assert_close(weights, (2 * (score - value)).exp().clamp(max=100).detach())
    with pytest.raises(UserError, match="CriticAdvantage.value: FromStage scores nothing"):
        AdvantageWeights(replace(advantage, critic=critics.modules["critic"]))(batch, result.policy)


def test_weights_choose_what_is_learned():
    """Two answers for one observation, at odds of 3 to 1 by weight: the mean is theirs."""
    observations = np.zeros((64, 1), np.float32)
    answer = (np.arange(64) % 2).astype(np.float32)
    data = Dataset([Episode({"observation.state": observations, "action": answer[:, None], "intervention": answer})])
    learner = clone(data, OptimizerConfig(lr=0.01), steps=200, sample_weights=ColumnWeights("intervention", 3.0, 1.0),
                    recipe={"window": Window()})
    windows = learner.policy.windows(data, extra=("intervention",))
    fit(learner, lambda n: windows.gather(np.arange(64)), 200)
    plan = learner.trained_policy.plan({"observation.state": torch.zeros(1, 1, 1)}, torch.zeros(1, 1, 0))
    assert plan.item() == pytest.approx(0.75, abs=0.01)


def test_a_curriculum_settles_on_one_of_two_answers():
    """With equal weights it is their mean, 2/3."""
    answer = (np.arange(60) % 3 > 0).astype(np.float32)
    data = Dataset([Episode({"observation.state": np.zeros((60, 1), np.float32), "action": answer[:, None]})])
    learner = clone(data, OptimizerConfig(lr=0.01), steps=200, sample_weights=CurriculumWeights(0.2),
                    recipe={"window": Window()})
    windows = learner.policy.windows(data)
    fit(learner, lambda n: windows.gather(np.arange(60)), 200)
    policy, batch = learner.trained_policy, windows.gather(np.arange(60))
    plan = policy.plan({"observation.state": torch.zeros(1, 1, 1)}, torch.zeros(1, 1, 0)).item()
    assert min(abs(plan), abs(plan - 1)) < 0.05
    weights, is_chosen = CurriculumWeights(2.0)(batch, policy), torch.from_numpy(answer == round(plan))
    gap = policy.loss(batch, torch.Generator())[:2, 0].diff().abs().item()
    assert (weights[is_chosen] == 1).all()
    assert weights[~is_chosen].numpy() == pytest.approx(math.exp(-gap / 2), rel=1e-4)
    with pytest.raises(Unsupported, match="the loss of Flow is not a log-likelihood"):
        CurriculumWeights().build(Policy(PolicyConfig(Flow(), MLP(8, 1)), data.features()), data)
    with pytest.raises(UserError, match="temperature is 0"):
        CurriculumWeights(0)


def test_the_largest_losses_of_a_batch_are_trimmed(data):
    fresh_policy = policy(data)
    batch = fresh_policy.windows(data).batch(9, 0)
    loss = fresh_policy.loss(batch, torch.Generator().manual_seed(0))
    loss = loss.sum(1) / batch.mask.sum(1)
    weights = TrimmedWeights(0.25)(batch, fresh_policy)
    assert weights.sum() == 7 and loss[weights == 1].max() < loss[weights == 0].min()
    assert torch.equal(TrimmedWeights(0.0)(batch, fresh_policy), torch.ones(9))


@pytest.mark.parametrize("weights", [lambda n: np.full(n, -1.0), lambda n: np.full(n, np.nan),
                                     lambda n: np.ones((n, 2))], ids=["negative", "NaN", "two"])
def test_stored_weights_are_finite_numbers_of_at_least_0(data, weights):
    """A negative one would make the loss as large as possible."""
    weighted = data.map(lambda e: e.replace({"weight": weights(len(e)).astype(np.float32)}))
    learner = BehaviorCloning(1, 4, sample_weights=StoredWeights("weight"))
    method = Method(PolicyConfig(Flow(), MLP(8, 1)), learner=learner)
    with pytest.raises(UserError, match="episode 0, column 'weight': a weight is one finite number per step"):
        fit_method(method, weighted, 0)
    with pytest.raises(UserError, match="there is no column weight"):
        fit_method(method, data, 0)


@pytest.mark.parametrize("make", [lambda: ColumnWeights(weight=-1.0), lambda: ColumnWeights(other_weight=-1.0),
                                  lambda: PastTargetWeights(-1.0), lambda: ClassBalancedWeights((None, -0.5), 0)])
def test_weights_are_at_least_0(make):
    with pytest.raises(UserError, match="must be at least 0"):
        make()


def test_each_class_of_the_data_has_a_target(data):
    learner = BehaviorCloning(1, 4, sample_weights=ClassBalancedWeights((0.5,), 0, "intervention"))
    method = Method(PolicyConfig(Flow(), MLP(8, 1)), learner=learner)
    with pytest.raises(UserError, match="(?s)column 'intervention': there are classes from 0 to 1, but.*targets"):
        fit_method(method, data, 0)
    with pytest.raises(UserError, match="class 2 is none of the 2 with a target"):
        ClassBalancedWeights((None, 0.5), 2)
