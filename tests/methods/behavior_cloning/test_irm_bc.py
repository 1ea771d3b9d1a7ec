"""The penalties of invariance against their closed forms."""

import numpy as np
import pytest
import torch

from understudy.core import Batch, UserError
from understudy.data.episode import Dataset, Episode
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.learn.fit_method import fit_method
from understudy.methods.behavior_cloning.irm_bc import RiskInvariance, irm_bc
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig

INPUTS = ("observation.cause", "observation.cue")


def episodes(strengths, seed=0, length=50):
    """The action is the cause plus noise; the cue is the action times the strength of the episode's place."""
    rng = np.random.default_rng(seed)
    data = []
    for place, strength in enumerate(strengths):
        cause = rng.normal(size=(length, 1)).astype(np.float32)
        action = (cause + rng.normal(size=(length, 1))).astype(np.float32)
        cue = (strength * action + 0.5 * rng.normal(size=(length, 1))).astype(np.float32)
        data.append(Episode({"observation.cause": cause, "observation.cue": cue, "action": action,
                             "place": np.full((length, 1), place)}))
    return Dataset(data)


LINEAR = PolicyConfig(Regression(), FeedForward(()), ConcatEncoder(), inputs=INPUTS)


def batch_and_policy():
    data = episodes((1.0, 2.0, 4.0))
    policy = Policy(LINEAR, data.features()).fit_statistics(data)
    windows = policy.windows(data, extra=("place",))
    return windows.gather(np.arange(len(windows))), policy


def predictions(policy: Policy, batch: Batch):
    with torch.no_grad():
        return policy.sample(policy.context(batch.obs), torch.Generator())[:, 0, 0], policy.encode_batch(batch)[:, 0, 0]


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_irm_penalty_is_the_product_of_two_slopes(norm):
    batch, policy = batch_and_policy()
    policy = policy.with_head(Regression(norm))
    predicted, action = predictions(policy, batch)
    slope = 2 * (predicted - action) * predicted if norm == "l2" else (predicted - action).sign() * predicted
    places = slope.reshape(3, 50)  # the windows of each place follow each other
    expected = (places[:, ::2].mean(1) * places[:, 1::2].mean(1)).mean()
    penalty = RiskInvariance(weight=3.0).build(policy)(policy, batch, torch.Generator(), {})
    assert penalty.shape == (150,)
    assert penalty[0].item() == pytest.approx(3 * expected.item(), rel=1e-5)


def test_the_gradient_of_the_irm_penalty_is_its_closed_form():
    batch, policy = batch_and_policy()
    RiskInvariance().build(policy)(policy, batch, torch.Generator(), {}).mean().backward()
    (bias,) = [p for name, p in policy.net.named_parameters() if name.endswith("bias")]
    predicted, action = (x.reshape(3, 50) for x in predictions(policy, batch))
    slope, change = 2 * (predicted - action) * predicted, 2 * (2 * predicted - action)  # the second by the bias
    halves = [(slope[:, i::2].mean(1), change[:, i::2].mean(1)) for i in (0, 1)]
    expected = (halves[0][0] * halves[1][1] + halves[1][0] * halves[0][1]).mean()
    assert bias.grad.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_rex_penalty_is_the_variance_of_the_risks():
    batch, policy = batch_and_policy()
    predicted, action = predictions(policy, batch)
    risks = (predicted - action).square().reshape(3, 50).mean(1)
    penalty = RiskInvariance(form="rex").build(policy)(policy, batch, torch.Generator(), {})
    assert penalty[0].item() == pytest.approx(risks.var(correction=0).item(), rel=1e-5)


def test_the_penalty_needs_a_prediction_and_the_method_a_place():
    with pytest.raises(UserError, match="Flow is not a prediction"):
        RiskInvariance().build(Policy(PolicyConfig(Flow(), inputs=INPUTS), episodes((1.0,)).features()))
    with pytest.raises(UserError, match="place"):
        fit_method(irm_bc(), Dataset([e.replace({"place": None}) for e in episodes((1.0,))]), 0)
