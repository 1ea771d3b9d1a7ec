"""SIMS: the copy learns samples of the policy, and plans are those of the policy moved away from it."""

from dataclasses import replace

import pytest
import torch
from fixtures.learning import call_step
from torch import nn

from understudy.checkpoint import FromStage
from understudy.core import Feature, Unsupported
from understudy.data.window import Window
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.methods.generative.sims import SIMS
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner, random_dataset

FEATURES = {"observation.state": Feature("float32", (3,)), "action": Feature("float32", (2,))}
CONFIG = PolicyConfig(Flow(8), MLP(16, 1), window=Window(1, 3), inputs=("observation.state",))


class Gaussian(nn.Module):
    """The velocity of flow matching to a Gaussian of the width 1: E[action - noise | x] at t action + (1 - t) noise."""

    def __init__(self, center):
        super().__init__()
        self.center = nn.Parameter(torch.tensor(center))

    def forward(self, x, t, context):
        slope = (2 * t - 1) / (t.square() + (1 - t).square())
        return self.center + slope * (x - t * self.center)


class Sample(nn.Module):
    """A network that predicts the same action for everything."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x, t, context):
        return self.value.expand(x.shape)


def policy(net=None, head=None):
    data = random_dataset(FEATURES)
    built = Policy(replace(CONFIG, head=head or CONFIG.head), data.features()).fit_statistics(data)
    built.net = net or built.net
    return built


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_plans_leave_the_copy_on_the_other_side_of_the_policy(weight):
    """Of Gaussians of one width around 1 (the policy) and 3 (the copy), the extrapolated score is that of the Gaussian
    around (1 + weight) - 3 weight."""
    base, copy, expected = (policy(Gaussian(center)) for center in (1.0, 3.0, 1 - 2 * weight))
    (config,) = SIMS().method(weight=weight).inference
    planner = replace(config, planner=copy, others=(base,))
    obs = {"observation.state": torch.zeros(5, 1, 3)}
    noise = planner.noise(torch.arange(5), torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(planner.plan(obs, noise), expected.plan(obs, noise), atol=1e-4, rtol=1e-4)
    mean = base.encode(planner.plan(obs, torch.zeros_like(noise)), obs)  # the flow moves the mean to the mean
    torch.testing.assert_close(mean, torch.full_like(mean, 1 - 2 * weight), atol=1e-4, rtol=0)


@pytest.mark.parametrize("predicted, loss", [(0.7, 0.0), (0.2, 0.25)])
def test_the_copy_learns_what_the_policy_samples_and_not_the_data(predicted, loss):
    """All samples of the policy are 0.7, whatever the data are. The error of another prediction is its distance."""
    head = Flow(3, prediction="sample")
    copy = policy(Sample(predicted), head)
    learner = SIMS(policy(Sample(0.7), head)).build(copy, 0, 10, random_dataset(FEATURES))
    batch = copy.windows(random_dataset(FEATURES)).batch(64, 0, seed=0)
    losses = call_step(learner, "cloning_loss", batch, torch.Generator().manual_seed(0))
    torch.testing.assert_close(losses[batch.mask], torch.full_like(losses[batch.mask], loss), atol=1e-5, rtol=0)


def test_the_method_trains_the_copy_from_the_policy_and_refuses_heads_without_steps():
    method = SIMS().method()
    assert method.stages[0].name == "flow" and method.initialize_from[0].source == FromStage("flow")
    check_learner(SIMS(policy(), steps=10, batch_size=8), (CONFIG,))
    with pytest.raises(Unsupported, match="combined at each step"):
        SIMS(policy(head=Regression())).build(policy(head=Regression()), 0, 10, random_dataset(FEATURES))
