"""Manipulate by Seeing: one network for observation and goal, and the error of predicted encodings."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from understudy.core import Context, Feature, UserError
from understudy.heads.energy.motion_classifier import MotionClassifier
from understudy.methods.goal_conditioned.manipulate_by_seeing import (
    GOAL,
    MotionPrediction,
    SharedGoalEncoder,
    manipulate_by_seeing,
)
from understudy.nets.encoders import TokenEncoder
from understudy.policy import Policy
from understudy.testing import check_encoder, random_dataset

CAMERA = "observation.images.top"
FEATURES = {CAMERA: Feature("uint8", (16, 16, 3), "image"), "action": Feature("float32", (2,))}


def policy_and_batch():
    data = random_dataset(FEATURES)
    policy = Policy(manipulate_by_seeing(CAMERA, 8, 2).policy, data.features()).fit_statistics(data)
    return policy, policy.windows(data, next_obs=True).gather(
        np.arange(data.lengths[0])[-5:], np.random.default_rng(0))


def test_observation_and_goal_have_one_network():
    policy, batch = policy_and_batch()
    tokens = policy.context(batch.obs).tokens
    exchanged = policy.context({CAMERA: batch.obs[GOAL], GOAL: batch.obs[CAMERA]}).tokens
    torch.testing.assert_close(exchanged, tokens.flip(1))
    assert not torch.allclose(tokens[:, 0], tokens[:, 1])
    check_encoder(policy.config.encoder, {name: policy.features[name] for name in policy.inputs})


def test_the_codec_must_fit_the_shared_network():
    points = "observation.points"
    features = {points: Feature("float32", (8, 3)), "action": Feature("float32", (2,))}
    encoder = SharedGoalEncoder(TokenEncoder(8, point_clouds=(points,)))
    with pytest.raises(UserError, match="would scale each point of 'observation.points'"):
        Policy(replace(manipulate_by_seeing(points, 8, 2).policy, encoder=encoder), features)


def test_the_error_of_a_prediction_is_its_distance_and_moves_both_encodings():
    policy, batch = policy_and_batch()
    now, later = (policy.context(obs) for obs in (batch.obs, batch.next))
    later.tokens.retain_grad()
    policy.training_context = lambda obs, rng: later
    captured = {"context": now.tokens, "context_mask": now.mask}
    loss = MotionPrediction().build(policy)(policy, batch, torch.Generator(), captured)
    predicted = policy.net(policy.encode_batch(batch), torch.zeros(5, 2, 0), now.__class__(
        now.tokens[:, :1], now.mask[:, :1])).mean(1).detach().numpy()
    predicted, target = (x / np.linalg.norm(x, axis=1, keepdims=True)
                         for x in (predicted, later.tokens[:, 0].detach().numpy()))
    is_whole = batch.mask.all(1).numpy()
    assert not is_whole.all() and is_whole.any(), "one chunk is cut off by the end of its episode"
    np.testing.assert_allclose(loss.detach(), ((predicted - target) ** 2).mean(1) * is_whole, rtol=1e-4)
    loss.sum().backward()
    assert later.tokens.grad[:, 0].any() and not later.tokens.grad[:, 1].any()


def test_the_error_of_a_prediction_worked_out_by_hand():
    """The demonstrated motion leads from (2, 0) to (0, 3), and the next observation is (3, 4): the unit vectors (0, 1)
    and (0.6, 0.8), whose mean squared difference is (0.36 + 0.04) / 2. The chunk of the second row is cut off."""
    after = Context(torch.tensor([[[3.0, 4.0], [7.0, 7.0]]]).expand(2, -1, -1), torch.ones(2, 2, dtype=torch.bool))
    policy = SimpleNamespace(config=SimpleNamespace(head=MotionClassifier(1)), training_context=lambda obs, rng: after,
                             net=lambda x, t, context: x + context.flat().unsqueeze(1),
                             encode_batch=lambda batch: torch.tensor([[[-2.0, 3.0]]]).expand(2, 1, -1))
    captured = {"context": torch.tensor([[[2.0, 0.0], [0.0, 5.0]]]).expand(2, -1, -1), "context_mask": after.mask}
    batch = SimpleNamespace(next=None, mask=torch.tensor([[True], [False]]))
    error = MotionPrediction().build(policy)(policy, batch, torch.Generator(), captured)
    torch.testing.assert_close(error, torch.tensor([0.2, 0.0]))
