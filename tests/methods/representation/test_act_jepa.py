"""Predicted encodings: the targets of the slow copy and the loss, against numbers that are worked out apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.networks import pytorch_layer
from torch.nn import functional as F

from understudy.core import Batch, Feature, UserError
from understudy.data.codec import Normalizer
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.methods.representation.act_jepa import LatentPrediction, TransformerEncoder, act_jepa
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.transformer import Transformer
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_encoder, random_dataset

STATE, OTHER, IMAGE = "observation.state", "observation.other", "observation.images.top"
FEATURES = {STATE: Feature("float32", (3,)), OTHER: Feature("float32", (2,)), "action": Feature("float32", (2,))}
HORIZON, WIDTH, DECAY = 5, 8, 0.9
LOSS = LatentPrediction((STATE, OTHER), Transformer(8, 1, 2), DECAY, weight=3.0)


def prepared(depth: int = 1):
    """A policy, the function of the loss, and a batch in which two windows reach beyond the end of an episode."""
    torch.manual_seed(0)
    data = random_dataset(FEATURES, episodes=2, steps=12)
    policy = Policy(PolicyConfig(Regression(), FeedForward((8,)), TransformerEncoder(WIDTH, depth, 2),
                                 window=Window(1, HORIZON)), FEATURES).fit_statistics(data)
    batch = policy.windows(data, extra=LOSS.columns).gather(np.array([0, 3, 9, 11]))
    assert batch.mask.sum(1).tolist() == [5, 5, 3, 1]
    return policy, LOSS.build(policy), batch


def loss_of(policy, function, batch):
    context = policy.context(batch.obs)
    return function(policy, batch, torch.Generator(), {"context": context.tokens, "context_mask": context.mask})


def test_the_encoder_keeps_its_contract():
    features = {**FEATURES, IMAGE: Feature("uint8", (16, 16, 3), "image"),
                "observation.kind": Feature("int64", (2,), "discrete", num_classes=(3, 4))}
    del features["action"]
    check_encoder(TransformerEncoder(8, 1, 2), features)


def test_the_encoder_is_pytorchs_over_tokens_with_sinusoids():
    """The same weights in `nn.TransformerEncoderLayer`, for three steps of which the last is absent in one row."""
    policy, _, _ = prepared(depth=2)
    net, x = policy.encoder, torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    layer, place = net.columns[1].maps[0], net.places[1]  # inputs are sorted
    angles = np.arange(3)[:, None] / 10_000 ** (np.arange(0, WIDTH, 2) / WIDTH)
    tokens = x.numpy() @ layer.weight.detach().numpy().T + (layer.bias + place).detach().numpy()
    tokens[..., ::2] += np.sin(angles)
    tokens[..., 1::2] += np.cos(angles)
    h, present = torch.from_numpy(tokens), torch.tensor([[True, True, True], [True, True, False]])
    for block in net.layers:
        h = pytorch_layer(block)(h, src_key_padding_mask=~present)
    context = net({STATE: x, f"{STATE}?": present})
    torch.testing.assert_close(context.tokens[present], F.layer_norm(h, (WIDTH,))[present], rtol=1e-4, atol=1e-5)
    assert torch.equal(context.mask, present)


def test_the_error_of_four_coming_signs_worked_out_by_hand():
    """Targets are a vector of unit numbers or its opposite, by the sign of the state, and a quarter of it is predicted.

    Errors are 3/4 and 5/4. Sinusoids are negligible beside tokens of 1000.
    """
    columns, vector = {STATE: Feature("float32", (1,)), "action": FEATURES["action"]}, torch.tensor([1.0, -1.0] * 4)
    policy = Policy(PolicyConfig(Regression(), FeedForward((8,)), TransformerEncoder(WIDTH, 0, 2), window=Window(1, 4),
                                 codec=Normalizer("identity", "identity")), columns)
    policy.encoder.columns[0].maps[0].weight.data = 1000 * vector.unsqueeze(1)
    function = LatentPrediction((STATE,), Transformer(8, 1, 2), DECAY, weight=2.0).build(policy)
    for parameter in function.predictor.output_layer[1].parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.ndim > 1 else vector / 4
    states = torch.tensor([[1.0, 1, -1, 1], [-1, -1, -1, 1], [-1, 1, 1, 1]]).unsqueeze(-1)
    mask = torch.tensor([[True] * 4, [True] * 4, [True, False, False, False]])
    batch = Batch({STATE: states[:, :1]}, torch.zeros(3, 4, 2), mask, {STATE: states})
    torch.testing.assert_close(loss_of(policy, function, batch), torch.tensor([1.75, 2.25, 2.5]), rtol=1e-2, atol=0)


def test_targets_are_tokens_and_sinusoids_at_unit_scale():
    policy, function, batch = prepared(depth=0)
    targets = function.targets(policy, batch)
    assert targets.shape == (4, HORIZON, 2 * WIDTH)
    coded = policy.codec.encode_obs({**batch.obs, OTHER: batch.extra[OTHER]})[OTHER]
    layer, place = policy.encoder.columns[0].maps[0], policy.encoder.places[0]  # inputs are sorted
    angles = torch.tensor([2 / 10_000 ** (2 * i / WIDTH) for i in range(WIDTH // 2)])
    position = torch.stack([angles.sin(), angles.cos()], 1).flatten()
    token = coded[0, 2] @ layer.weight.T + layer.bias + place[0] + position
    columns = targets[0, 2].unflatten(0, (2, WIDTH))
    torch.testing.assert_close(columns[0], F.layer_norm(token, (WIDTH,)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(columns.mean(1), torch.zeros(2), atol=1e-5, rtol=0)


def test_the_loss_is_the_mean_absolute_error_of_steps_that_exist():
    policy, function, batch = prepared()
    for parameter in function.predictor.output_layer[1].parameters():
        torch.nn.init.constant_(parameter, 0.25 if parameter.ndim == 1 else 0.0)
    targets, loss = function.targets(policy, batch), loss_of(policy, function, batch)
    for row, n in enumerate((5, 5, 3, 1)):
        assert loss[row].item() == pytest.approx(3 * (targets[row, :n] - 0.25).abs().mean().item(), rel=1e-5)
    batch.extra[STATE][2, 3:] = 1e3  # steps after the end
    torch.testing.assert_close(function.targets(policy, batch)[2, :3], targets[2, :3])
    torch.testing.assert_close(loss_of(policy, function, batch), loss)


def test_the_copy_follows_the_encoder_slowly_and_has_no_gradient():
    policy, function, batch = prepared()
    loss_of(policy, function, batch).mean().backward()
    assert all(p.grad is None for p in function.target.parameters())
    assert all(p.grad is not None for p in policy.encoder.parameters())
    copied, layer = function.target.encoder.norm.weight, policy.encoder.norm.weight
    with torch.no_grad():
        layer += 1.0
    function.after_update(policy)
    torch.testing.assert_close(copied, torch.full_like(copied, 1 + (1 - DECAY)))


@pytest.mark.parametrize("config, encoder, message", [
    (LatentPrediction(("observation.states",)), TransformerEncoder(8, 1, 2), "no input 'observation.states'"),
    (LatentPrediction((IMAGE,)), TransformerEncoder(8, 1, 2), "is an image"),
    (LatentPrediction(), TransformerEncoder(9, 1, 2), "not a multiple"),
    (LatentPrediction((STATE,)), ConcatEncoder(), "ConcatEncoder does not encode a sequence"),
])
def test_what_cannot_be_predicted_is_refused(config, encoder, message):
    features = FEATURES if isinstance(encoder, ConcatEncoder) else {**FEATURES,
                                                                    IMAGE: Feature("uint8", (16, 16, 3), "image")}
    with pytest.raises(UserError, match=message) as error:
        config.build(Policy(PolicyConfig(Regression(), encoder=encoder), features))
    assert error.value.hint


def test_the_method_learns_to_predict_encodings_of_both_columns():
    data, method = random_dataset(FEATURES, episodes=4, steps=30), act_jepa(4, (STATE, OTHER))
    config = replace(method.policy, encoder=TransformerEncoder(16, 1, 2), trunk=Transformer(16, 1, 2))
    torch.manual_seed(0)
    policy = Policy(config, FEATURES).fit_statistics(data)
    fast = replace(method.learner.optimizer, lr=3e-3, warmup_steps=0)
    learner = replace(method.learner, optimizer=fast).build(policy, 0, 80, data)
    (function,), sampler = learner.nets.auxiliary_losses, learner.batch_sampler(data)
    batch = sampler.gather(np.arange(0, 120, 2))
    before = loss_of(policy, function, batch).mean().item()
    for n in range(80):
        learner.update(sampler.batch(32, n, 0))
    assert function.config.columns == (STATE, OTHER)
    assert loss_of(policy, function, batch).mean().item() < 0.7 * before
