"""The weights of the blend by the formula, and the losses of single columns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.behavior_cloning.g_blend import ColumnEncoder, ColumnLosses, GradientBlend, blend_weights
from understudy.nets.base import capture_intermediates
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig

INPUTS = ("observation.cause", "observation.noise")
CONFIG = PolicyConfig(Regression(), FeedForward((16,)), ColumnEncoder(8, (16,)), inputs=INPUTS)


def episodes(n=6, length=20, seed=0):
    """The action is a column of the observation. Another column has 30 numbers of noise."""
    rng = np.random.default_rng(seed)
    shapes = [(length, 2), (length, 30)]
    data = [[rng.normal(size=shape).astype(np.float32) for shape in shapes] for _ in range(n)]
    return Dataset([Episode({INPUTS[0]: cause, INPUTS[1]: noise, "action": cause}) for cause, noise in data])


def test_weights_are_gain_by_squared_overfitting():
    # gains 0.6 and 0.2; the gap grows by 0.1 and by 0.2: weights 60 and 5
    weights = blend_weights(np.array([[1.0, 0.3], [1.0, 0.6]]), np.array([[1.0, 0.4], [1.0, 0.8]]))
    assert weights == pytest.approx([60 / 65, 5 / 65])
    # A part that does not generalize has no weight, and parts are equal if none does.
    assert blend_weights(np.array([[1.0, 0.3], [1.0, 0.1]]), np.array([[1.0, 0.4], [1.0, 1.2]])).tolist() == [1, 0]
    assert blend_weights(np.ones((2, 2)), np.ones((2, 2))).tolist() == [0.5, 0.5]


def test_each_column_has_a_loss_that_no_other_column_changes():
    data = episodes()
    policy = Policy(CONFIG, data.features()).fit_statistics(data)
    module = ColumnLosses((2.0, 0.5)).build(policy)
    windows = policy.windows(data)
    batch, rng = windows.gather(np.arange(64)), torch.Generator()

    def losses(batch):
        with capture_intermediates(("context", "context_mask")) as captured:
            policy.loss(batch, rng)
        return module.losses(policy, batch, rng, captured), module(policy, batch, rng, captured)
    each, total = losses(batch)
    assert torch.allclose(total, 2 * each[:, 0] + 0.5 * each[:, 1])
    other, _ = losses(batch.replace(obs={**batch.obs, INPUTS[1]: torch.randn(64, 1, 30)}))
    assert torch.equal(other[:, 0], each[:, 0]) and not torch.allclose(other[:, 1], each[:, 1])
    token = policy.context(batch.obs).tokens[:, :1]
    predicted = module.nets[0].layers(token.flatten(1))
    assert torch.allclose(each[:, 0], (predicted - policy.encode_batch(batch)[:, 0]).square().mean(-1), atol=1e-6)


@pytest.mark.parametrize("part", [0, 2], ids=["column", "all"])
def test_estimates_leave_padded_steps_out(part):
    data = episodes(length=4)
    policy = Policy(replace(CONFIG, window=Window(horizon=4)), data.features()).fit_statistics(data)
    columns, windows, rng = ColumnLosses((0.0, 0.0)).build(policy), policy.windows(data), torch.Generator()
    batch = windows.gather(np.arange(len(windows)))
    with capture_intermediates(("context", "context_mask")) as captured:
        steps = policy.loss(batch, rng)
    expected = columns.losses(policy, batch, rng, captured)[:, part] if part < 2 else steps.sum(1) / batch.mask.sum(1)
    nets = torch.nn.ModuleList([policy, columns])
    estimated = GradientBlend(estimation_steps=1)._curve(nets, part, windows, windows, 0)
    assert estimated[0][0] == pytest.approx(expected.mean().item(), rel=1e-5)


def test_noise_gets_no_weight():
    data, learner = episodes(), GradientBlend(optimizer=OptimizerConfig(lr=0.01), estimation_steps=150)
    torch.manual_seed(0)
    policy = Policy(CONFIG, data.features()).fit_statistics(data)
    assert learner.estimate(policy, data, 0)[1] < 0.01  # of the cause, the noise and both together


def test_the_blend_needs_episodes_to_hold_out_and_a_weight_for_each_token():
    with pytest.raises(UserError, match="none to hold out"):
        fit_method(Method(CONFIG, learner=GradientBlend(steps=1)), episodes(1), 0)
    with pytest.raises(UserError, match="3 weights, but 2 tokens"):
        fit_method(Method(CONFIG, learner=BehaviorCloning(1, auxiliary_losses=(ColumnLosses((1.0, 1.0, 1.0)),))),
                   episodes(), 0)
